"""When the monitor warned in the runs of `reward_monitor_runs.py`: outcomes, tables and the figure.

The quality of a run is smoothed over five steps. Its loss is the difference between the lowest point and the highest
point before it. Half of the regret has occurred at the first step, after the highest point, at which the quality has
lost half of that.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from hf_reward import RewardMonitor
from hf_reward.evaluation.monitoring.steps import MeasuredResponse

SMOOTHED_STEPS = 5
LEAST_LOSS = 0.1
"""Loss of quality below which a run has no regret; the standard deviation between steps is about 0.06."""
COLOURS = {"slow": "#1f5fa8", "medium": "#c2570c", "fast": "#3a7d44"}


@dataclass(frozen=True)
class Outcome:
    """What happened in a run."""

    run: dict[str, Any]
    quality: np.ndarray
    """Smoothed, one value for each step."""
    monitor: RewardMonitor
    peak: int
    lowest: int
    half: int | None
    """Step at which half of the regret has occurred; None for a run without regret."""

    def warned_at(self, feature: str | None = None) -> int | None:
        """Return the step of the first warning, of any feature or of one."""
        steps = [each.step for each in self.monitor.warnings if feature in (None, each.feature)]
        return min(steps, default=None)

    def lost_at(self, step: int) -> float:
        """Return the share of the loss that has occurred at a step, 0 before the highest point."""
        peak, lowest = self.quality[self.peak], self.quality[self.lowest]
        return float((peak - self.quality[step]) / (peak - lowest)) if step > self.peak else 0.0


def outcome_of(entry: dict[str, Any], *, prompts: int | None = None, **settings: Any) -> Outcome:
    """Monitor a finished run again.

    Args:
        entry: A line of the file.
        prompts: Number of prompts in each step whose responses are used; by default all.
        **settings: Settings of the monitor.

    Returns:
        The outcome.
    """
    monitor = RewardMonitor(**settings)
    for step, responses in enumerate(entry["steps"]):
        kept = list(dict.fromkeys(row[0] for row in responses))[:prompts]
        monitor.add([MeasuredResponse(row[0], tuple(row[1:-1]), row[-1]) for row in responses if row[0] in kept], step)
    quality = smoothed(np.array(entry["quality"]))
    lowest = int(quality.argmin())
    peak = int(quality[: lowest + 1].argmax())
    has_regret = quality[peak] - quality[lowest] >= LEAST_LOSS
    is_lost = quality <= (quality[peak] + quality[lowest]) / 2
    half = peak + int(is_lost[peak:].argmax()) if has_regret else None
    return Outcome(entry["run"], quality, monitor, peak, lowest, half)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return centred means over `SMOOTHED_STEPS` steps, over fewer at both ends."""
    around = SMOOTHED_STEPS // 2
    return np.array([values[max(0, place - around) : place + around + 1].mean() for place in range(len(values))])


# --- tables ----------------------------------------------------------------------------------------------------------


def warning_row(outcomes: Sequence[Outcome], label: str) -> str:
    """Return a line of the table of runs with regret: when half of it has occurred, and when the monitor warned."""
    lossy = [each for each in outcomes if each.half is not None]
    cells = [f"{len(outcomes)}", f"{len(lossy)}"]
    for feature in (None, "length"):
        early = sum(_is_early(each, feature) for each in lossy)
        cells.append(f"{early} of {len(lossy)} {percent(early, len(lossy))}" if lossy else "")
    steps = [each.warned_at() for each in lossy]
    lost = [each.lost_at(step) for each, step in zip(lossy, steps, strict=True) if step is not None]
    cells += [middle([each.half for each in lossy]), middle(steps), f"{np.median(lost):.0%}" if lost else ""]
    return f"| {label} | " + " | ".join(cells) + " |"


def _is_early(outcome: Outcome, feature: str | None) -> bool:
    step = outcome.warned_at(feature)
    return step is not None and outcome.half is not None and step < outcome.half


def alarm_row(outcomes: Sequence[Outcome], label: str) -> str:
    """Return a line of the table of drifts and warnings."""
    drifted = Counter(name for each in outcomes for name in each.monitor.drifts)
    warned = Counter(each.feature for outcome in outcomes for each in outcome.monitor.warnings)
    numbers = (
        sum(bool(each.monitor.drifts) for each in outcomes),
        sum(bool(each.monitor.warnings) for each in outcomes),
    )
    cells = [f"{number} {percent(number, len(outcomes))}" for number in numbers]
    cells += [", ".join(f"{name} {number}" for name, number in each.most_common()) for each in (drifted, warned)]
    return f"| {label} | {len(outcomes)} | " + " | ".join(cells) + " |"


def percent(count: int, total: int) -> str:
    """Return the exact 95% interval of a share (Clopper and Pearson) in percent, in parentheses."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"({100 * interval.low:.0f} to {100 * interval.high:.0f}%)"


def middle(steps: Sequence[int | None]) -> str:
    """Return the median of steps; runs without one count as later than all others."""
    value = np.median([np.inf if step is None else step for step in steps]) if steps else np.nan
    return f"{value:g}" if np.isfinite(value) else ""


# --- figure ----------------------------------------------------------------------------------------------------------


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Return the figure: the warnings of all runs with regret, and one run.

    Args:
        outcomes: Runs with a planted reward.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_warnings(left, [each for each in outcomes if each.half is not None])
    example = next(each for each in outcomes if each.run["speed"] == "medium" and each.warned_at() is not None)
    _draw_run(right, example)
    return figure


def _draw_warnings(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    last = max(len(each.quality) for each in outcomes)
    for speed, colour in COLOURS.items():
        points = [(each.half, each.warned_at()) for each in outcomes if each.run["speed"] == speed]
        halves, warned = zip(*((half, last if step is None else step) for half, step in points), strict=True)
        axes.scatter(halves, warned, s=22, color=colour, alpha=0.75, label=speed, linewidths=0)
    axes.plot([0, last], [0, last], color="#555555", linewidth=0.8)
    axes.annotate("too late", (0.03 * last, 0.93 * last), fontsize=9)
    axes.annotate("before half of the regret", (0.97 * last, 0.03 * last), fontsize=9, ha="right")
    axes.set(xlabel="step with half of the regret", ylabel="step of the first warning", xlim=(0, last), ylim=(0, last))
    axes.legend(title="learning rate", frameon=False, loc="center left", bbox_to_anchor=(0, 0.7))


def _draw_run(axes: Axes, outcome: Outcome) -> None:
    rows = outcome.monitor.history
    lines = {"reward": [row["reward"] for row in rows], "length": [row["length"] for row in rows]}
    lines = {name: smoothed(np.array(values)) for name, values in lines.items()} | {"quality": outcome.quality}
    styles = {"reward": "#c2570c", "length": "#777777", "quality": "#1f5fa8"}
    for name, values in lines.items():
        low, high = values.min(), values.max()
        axes.plot((values - low) / (high - low), color=styles[name], label=name)
    axes.axvspan(0, outcome.monitor.reference_steps - 1, color="#bbbbbb", alpha=0.4, linewidth=0, label="reference")
    for step, name, style in ((outcome.warned_at(), "first warning", "-"), (outcome.half, "half of the regret", "--")):
        if step is not None:
            axes.axvline(step, color="black", linewidth=1, linestyle=style, label=name)
    axes.set(xlabel="step", ylabel="scaled to 0 ... 1", xlim=(0, len(rows) - 1))
    axes.set_title(f"One run (medium, seed {outcome.run['seed']})", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center right")
