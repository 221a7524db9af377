"""A family of probes, its results, and the report of an audit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.cases import Case, ScoredCase

if TYPE_CHECKING:
    from hf_reward.evaluation.audit.inference import Evidence, Inference
    from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.audit.findings import Curve, Example, Finding, ScoredResponse, Table, readable


@dataclass(kw_only=True)
class FamilyResult:
    """Results of the probes of one family."""

    findings: list[Finding] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers, for programs."""
    not_assessed: str = ""
    """Reason if the family could not be assessed."""
    left_out: int = 0
    """Number of cases with a text that could not be scored."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A group of probes: the texts that it needs, and the analysis of their rewards."""

    name: str
    title: str
    what: str
    """Description of the probes in one or two sentences."""
    advice: str
    """Remedy for a bias of this family."""
    cases: "Callable[[AuditInputs], list[Case]]"
    analyse: "Callable[[list[ScoredCase], AuditInputs, Inference], FamilyResult]"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """A complete audit."""

    model: str
    data: str
    summary: str
    """One paragraph in plain words."""
    unit: float | None
    """Typical margin: the median absolute preference margin in the model's reward units, the unit of effects."""
    families: dict[str, FamilyResult]
    about: dict[str, dict[str, str]]
    """Family -> `title`, `what`, `advice`."""
    settings: dict[str, Any]
    counts: dict[str, int]
    """`rows`, `pairs`, `prompts`, `texts`, `from_cache`, `without_reward`, ..."""
    fingerprint: dict[str, Any]
    seconds: float
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason for skipped rows -> number of rows."""
    evidence: "dict[str, Evidence]" = field(default_factory=dict, repr=False)
    """Finding -> the values behind it; not part of the JSON."""
    responses: list[tuple[float, int]] = field(default_factory=list, repr=False)
    """Reward and number of characters of every response of the pairs; not part of the JSON."""

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the families."""
        return [finding for result in self.families.values() for finding in result.findings]

    def finding(self, name: str) -> Finding:
        """Return the finding with a name.

        Args:
            name: Name of the finding.

        Returns:
            The finding.

        Raises:
            KeyError: If there is no such finding.
        """
        return {finding.name: finding for finding in self.findings}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values: `probes` has all findings, `families` the other results by family."""
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
    """Return the cases with the largest, the median and the smallest effect, so that examples are not cherry-picked.

    Args:
        scored: Cases.
        effect: Effect of a case.
        roles: Role -> label for readers.
        title: Title of the examples.

    Returns:
        Up to three examples.
    """
    if not scored:
        return []
    order = sorted(scored, key=effect)
    picks = dict.fromkeys([len(order) - 1, len(order) // 2, 0])  # fewer for fewer cases
    names = {len(order) // 2: "median effect", 0: "smallest effect", len(order) - 1: "largest effect"}
    return [
        Example(
            title=f"{title}: {names[place]} ({effect(order[place]):+.2f})",
            prompt=readable(next(iter(order[place].case.texts.values())).prompt),
            responses=[
                ScoredResponse(words, order[place].case.texts[role].response, order[place].rewards[role])
                for role, words in roles.items()
            ],
        )
        for place in picks
    ]
