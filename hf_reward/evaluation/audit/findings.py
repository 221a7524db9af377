"""What an audit is made of: texts to score, cases that compare them, and what was found."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from hf_reward.data.preference_row import Prompt
from hf_reward.data.score_request import ScoreRequest

if TYPE_CHECKING:
    from hf_reward.evaluation.audit.inference import Evidence, Inference
    from hf_reward.evaluation.audit.material.material import Material


VERDICTS = ("biased", "equivalent", "inconclusive", "not_assessed")


@dataclass(frozen=True, kw_only=True)
class Text:
    """One response to one prompt, of which the reward is wanted."""

    prompt: Prompt
    """Text, or messages without any but `role` and `content`."""
    response: str
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template."""

    @cached_property
    def key(self) -> str:
        """What tells it from other texts: XXH3-128 of its content."""
        digest = xxhash.xxh3_128()
        turns = (
            [("", self.prompt)] if isinstance(self.prompt, str) else [(m["role"], m["content"]) for m in self.prompt]
        )
        parts = [part for turn in turns for part in turn] + [self.response]
        if self.template:
            parts.append(repr(sorted(self.template.items())))
        for part in parts:
            content = str(part).encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)}:".encode() + content)
        return digest.hexdigest()

    def request(self) -> ScoreRequest:
        """The same for `RewardScorer.score_requests`."""
        return ScoreRequest(prompt=self.prompt, response=self.response, template=self.template)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some texts whose rewards are compared with each other."""

    cluster: str
    """What it rests on, a prompt or a question: cases of one cluster are not independent."""
    texts: Mapping[str, Text]
    """Role in the comparison -> text."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """What else the probe has to know of the case."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A case whose texts all have a reward."""

    case: Case
    rewards: Mapping[str, float]
    """Role -> reward."""
    cut: bool = False
    """Whether the prompt of one of its texts was cut to fit the model."""

    def gap(self, one: str, other: str) -> float:
        """Reward of one role minus that of another."""
        return self.rewards[one] - self.rewards[other]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number of the audit, how sure it is, and what follows from it."""

    name: str
    family: str
    label: str
    """The name for readers."""
    estimate: float | None
    unit: str
    ci_low: float | None
    """95% interval, by resampling whole clusters."""
    ci_high: float | None
    n: int
    """Cases."""
    clusters: int
    verdict: str = "not_assessed"
    """One of `VERDICTS`; a screen stays `not_assessed`."""
    delta: float | None = None
    """How large an effect may be and still not matter; fixed in advance."""
    mde: float | None = None
    """Smallest effect that this many clusters would show in four of five audits."""
    p_value: float | None = None
    q_value: float | None = None
    """`p_value` corrected for all probes of the audit (Benjamini and Hochberg, 1995)."""
    screen_only: bool = False
    """Whether it can only raise a question: it never has a verdict."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return json_value(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Example:
    """One comparison as a reader sees it."""

    title: str
    prompt: str
    responses: list[tuple[str, str, float]]
    """What it is, its text and its reward, each."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers that go with a family, for readers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points with intervals, to be drawn."""

    name: str
    """For file names."""
    title: str
    x_label: str
    y_label: str
    series: list[dict[str, Any]]
    """`label`, `x`, `y`, and `low` and `high` where there is an interval; lists of numbers."""
    diagonal: bool = False
    """Whether the line y = x is what ought to be."""


@dataclass(kw_only=True)
class FamilyResult:
    """What the probes of one family found."""

    findings: list[Finding] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers for programs."""
    not_assessed: str = ""
    """Why nothing could be said."""
    left_out: int = 0
    """Cases of which a text could not be scored."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One group of probes: which texts it needs, and what their rewards say."""

    name: str
    title: str
    what: str
    """What was done, in a sentence."""
    advice: str
    """What to do about a bias found here."""
    cases: "Callable[[Material], list[Case]]"
    judge: "Callable[[list[Judged], Material, Inference], FamilyResult]"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """A whole audit."""

    model: str
    data: str
    summary: str
    """One paragraph in plain words."""
    unit: float | None
    """Median absolute preference margin in the model's own reward units: what effects of rewards are divided by."""
    families: dict[str, FamilyResult]
    about: dict[str, dict[str, str]]
    """Family -> `title`, `what`, `advice`."""
    settings: dict[str, Any]
    counts: dict[str, int]
    """`rows`, `pairs`, `prompts`, `texts`, `from_cache`, `without_reward`, ..."""
    fingerprint: dict[str, Any]
    seconds: float
    skipped: dict[str, int] = field(default_factory=dict)
    """Why rows were left out -> how many."""
    evidence: "dict[str, Evidence]" = field(default_factory=dict, repr=False)
    """Finding -> the values it rests on; not a part of the JSON."""
    responses: list[tuple[float, int]] = field(default_factory=list, repr=False)
    """Reward and characters of every response of the pairs; not a part of the JSON."""

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the families."""
        return [finding for result in self.families.values() for finding in result.findings]

    def finding(self, name: str) -> Finding:
        """The finding of a name.

        Args:
            name: Its name.

        Returns:
            The finding.

        Raises:
            KeyError: If there is none.
        """
        return {finding.name: finding for finding in self.findings}[name]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values: `probes` holds all findings, `families` the rest by family."""
        families = {
            name: {**self.about[name], **{key: value for key, value in asdict(result).items() if key != "findings"}}
            for name, result in self.families.items()
        }
        head = {"model": self.model, "data": self.data, "summary": self.summary, "unit": self.unit}
        tail = {"settings": self.settings, "counts": self.counts, "skipped": self.skipped}
        tail |= {"fingerprint": self.fingerprint}
        probes = [finding.to_dict() for finding in self.findings]
        return json_value({**head, "probes": probes, "families": families, **tail, "seconds": round(self.seconds, 1)})


def json_value(value: Any) -> Any:
    """JSON values of dicts, sequences and numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_value(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def three_examples(
    judged: Sequence[Judged], effect: Callable[[Judged], float], roles: Mapping[str, str], title: str
) -> list[Example]:
    """The cases with the largest, the median and the smallest effect, so that no reader sees the best three alone.

    Args:
        judged: Cases.
        effect: What to sort them by.
        roles: Role -> what the reader is told it is.
        title: What is compared.

    Returns:
        Up to three examples.
    """
    if not judged:
        return []
    order = sorted(judged, key=effect)
    picks = dict.fromkeys([len(order) - 1, len(order) // 2, 0])  # fewer for fewer cases
    names = {len(order) // 2: "middle", 0: "smallest effect", len(order) - 1: "largest effect"}
    return [
        Example(
            title=f"{title}: {names[place]} ({effect(order[place]):+.2f})",
            prompt=readable(next(iter(order[place].case.texts.values())).prompt),
            responses=[
                (words, order[place].case.texts[role].response, order[place].rewards[role])
                for role, words in roles.items()
            ],
        )
        for place in picks
    ]


def readable(prompt: Prompt) -> str:
    """A prompt as text for readers."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
