"""A family of probes, its results, and the report of all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.cases import Case, ScoredCase

if TYPE_CHECKING:
    from hf_reward.evaluation.audit.inference import Evidence, Inference
    from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.audit.findings import Curve, Example, Finding, Scored, Table, readable


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
    cases: "Callable[[AuditInputs], list[Case]]"
    analyse: "Callable[[list[ScoredCase], AuditInputs, Inference], FamilyResult]"


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


def three_examples(
    scored: Sequence[ScoredCase], effect: Callable[[ScoredCase], float], roles: Mapping[str, str], title: str
) -> list[Example]:
    """The cases with the largest, the median and the smallest effect, so that no reader sees the best three alone.

    Args:
        scored: Cases.
        effect: What to sort them by.
        roles: Role -> what the reader is told it is.
        title: What is compared.

    Returns:
        Up to three examples.
    """
    if not scored:
        return []
    order = sorted(scored, key=effect)
    picks = dict.fromkeys([len(order) - 1, len(order) // 2, 0])  # fewer for fewer cases
    names = {len(order) // 2: "middle", 0: "smallest effect", len(order) - 1: "largest effect"}
    return [
        Example(
            title=f"{title}: {names[place]} ({effect(order[place]):+.2f})",
            prompt=readable(next(iter(order[place].case.texts.values())).prompt),
            responses=[
                Scored(words, order[place].case.texts[role].response, order[place].rewards[role])
                for role, words in roles.items()
            ],
        )
        for place in picks
    ]
