"""Findings -> the intervals that the page draws in its rows, in per cent of a common width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_reward.evaluation.audit.report.wording import effect_words, interval_words, scale_of


@dataclass(frozen=True)
class Bar:
    """One interval; places and widths in per cent."""

    words: str
    """The same for those who do not see it."""
    zero: float | None
    band: tuple[float, float] | None
    """Where the band of effects that do not matter begins, and its width."""
    span: tuple[float, float] | None
    """Where the interval begins, and its width."""
    point: float | None


@dataclass(frozen=True)
class Axis:
    """What the bars of some rows with the same unit have in common."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value is, in per cent."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def reach(self, low: float, high: float) -> tuple[float, float]:
        """Where a range begins, and its width."""
        return self.place(low), round(self.place(high) - self.place(low), 2)

    def bar(self, probe: Mapping[str, Any]) -> Bar | None:
        """The bar of a finding, None where it has neither estimate nor interval."""
        low, high, estimate, delta = (probe.get(key) for key in ("ci_low", "ci_high", "estimate", "delta"))
        has_interval = low is not None and high is not None
        if estimate is None and not has_interval:
            return None
        return Bar(
            words=_bar_words(probe),
            zero=self.place(0.0) if self.low <= 0 <= self.high else None,
            band=None if delta is None else self.reach(-delta, delta),
            span=self.reach(low, high) if low is not None and high is not None else None,
            point=None if estimate is None else self.place(estimate),
        )

    def ticks(self, unit: str) -> list[tuple[float, str]]:
        """0 and a round number on each side of it, those that have room."""
        scale = scale_of(unit)
        zero = self.place(0.0)
        ends = [(self.place(value), scale.number(value)) for value in (_round(self.low), _round(self.high))]
        return [(zero, "0" + scale.symbol), *[end for end in ends if abs(end[0] - zero) > 22]]


def _round(end: float) -> float:
    """The largest number of one digit, or 1.5 or 2.5 times a power of ten, that an end of an axis reaches."""
    if end == 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(abs(end)))
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    return math.copysign(max(step for step in steps if step * power <= abs(end) * (1 + 1e-9)) * power, end)


def _bar_words(probe: Mapping[str, Any]) -> str:
    interval, delta = interval_words(probe), probe.get("delta")
    parts = [f"Effect {effect_words(probe)}" if probe.get("estimate") is not None else "No estimate"]
    if interval:
        parts.append(f"95% interval {interval}")
    if delta is not None:
        parts.append(f"up to {scale_of(probe.get('unit') or '').size(delta)} does not matter")
    return ", ".join(parts)


def axis_of(probes: Sequence[Mapping[str, Any]]) -> Axis:
    """The axis that shows all of some findings: the intervals, the harmless band and 0.

    Args:
        probes: Findings with the same unit.

    Returns:
        The axis; an interval of more than three times the largest effect is cut.
    """
    sizes = [abs(each["estimate"]) for each in probes if each.get("estimate") is not None]
    deltas = [each["delta"] for each in probes if each.get("delta") is not None]
    most = 3 * max([*sizes, *deltas], default=1.0) or 1.0
    values = [each.get(key) for each in probes for key in ("estimate", "ci_low", "ci_high")]
    ends = [min(max(value, -most), most) for value in values if value is not None]
    low, high = min([*ends, 0.0]), max([*ends, *deltas, 0.0])
    if low < 0:
        low = min([low, *[-delta for delta in deltas]])
    room = 0.06 * (high - low) or 1.0
    return Axis(low - room if low < 0 else 0.0, high + room)
