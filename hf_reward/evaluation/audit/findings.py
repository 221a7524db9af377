"""Results of an audit: findings, examples, tables and curves."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hf_reward.data import row_text
from hf_reward.data.preference_row import Prompt
from hf_reward.data.python_values import json_value

VERDICTS = ("biased", "equivalent", "inconclusive", "not_assessed")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An estimate with its uncertainty and verdict."""

    name: str
    family: str
    label: str
    """Name for readers."""
    estimate: float | None
    unit: str
    ci_low: float | None
    """95% interval; clusters, not cases, are treated as independent."""
    ci_high: float | None
    n: int
    """Number of cases."""
    clusters: int
    verdict: str = "not_assessed"
    """One of `VERDICTS`; observational checks are `not_assessed`."""
    delta: float | None = None
    """Largest effect that does not matter; fixed in advance."""
    mde: float | None = None
    """Minimum detectable effect: the audit detects it with a probability of 80%."""
    p_value: float | None = None
    q_value: float | None = None
    """`p_value` corrected for all probes of the audit (Benjamini and Hochberg, 1995)."""
    screen_only: bool = False
    """Whether it is an observational check, which never has a verdict."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return json_value(asdict(self))


class About(NamedTuple):
    """Family, name and label of a finding."""

    family: str
    name: str
    label: str
    """Name for readers; the finding capitalises it."""


def empty_finding(about: About, unit: str, **fields: Any) -> Finding:
    """Return a finding without an estimate.

    Args:
        about: Family, name and label.
        unit: Unit of the estimate.
        **fields: Other fields of a finding.

    Returns:
        The finding; missing fields are 0 or None.
    """
    none = {"estimate": None, "ci_low": None, "ci_high": None, "n": 0, "clusters": 0}
    label = about.label[:1].upper() + about.label[1:]
    return Finding(family=about.family, name=about.name, label=label, unit=unit, **{**none, **fields})


class ScoredResponse(NamedTuple):
    """A response of an example with its reward."""

    what: str
    text: str
    reward: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example of a comparison for readers."""

    title: str
    prompt: str
    responses: list[ScoredResponse]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a family for readers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points with intervals for a figure."""

    name: str
    """Name for files."""
    title: str
    x_label: str
    y_label: str
    series: list[dict[str, Any]]
    """`label`, `x`, `y`, and optionally `low` and `high` for intervals; lists of numbers."""
    diagonal: bool = False
    """Whether to draw the line y = x, on which ideal points lie."""


def readable(prompt: Prompt) -> str:
    """Return a prompt as text for readers."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {row_text.readable(message['content'])}" for message in prompt)
