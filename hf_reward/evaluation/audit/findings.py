"""What an audit is made of: texts to score, cases that compare them, and what was found."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_reward.data.preference_row import Prompt

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


def json_value(value: Any) -> Any:
    """JSON values of dicts, sequences and numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_value(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(prompt: Prompt) -> str:
    """A prompt as text for readers."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
