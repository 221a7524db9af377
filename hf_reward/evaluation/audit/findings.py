"""What an audit found: findings, examples, tables and curves."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hf_reward.data.preference_row import Prompt
from hf_reward.data.python_values import json_value

VERDICTS = ("biased", "equivalent", "inconclusive", "not_assessed")


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


class About(NamedTuple):
    """What a finding is called."""

    family: str
    name: str
    label: str
    """For readers; a finding's label begins with a capital letter."""


def empty_finding(about: About, unit: str, **fields: Any) -> Finding:
    """A finding without an estimate.

    Args:
        about: Family, name and label.
        unit: Of the estimate.
        **fields: Other fields of a finding.

    Returns:
        The finding; what `fields` leave out is 0 or None.
    """
    none = {"estimate": None, "ci_low": None, "ci_high": None, "n": 0, "clusters": 0}
    label = about.label[:1].upper() + about.label[1:]
    return Finding(family=about.family, name=about.name, label=label, unit=unit, **{**none, **fields})


class Scored(NamedTuple):
    """One response of an example."""

    what: str
    text: str
    reward: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """One comparison as a reader sees it."""

    title: str
    prompt: str
    responses: list[Scored]


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


def readable(prompt: Prompt) -> str:
    """A prompt as text for readers."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
