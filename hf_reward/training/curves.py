"""Log entries of a run -> a figure of its loss, accuracy, margin and learning rate."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_reward.data.extras import optional, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LogHistory = Sequence[Mapping[str, Any]]

CURVES_FILE = "training_curves.png"
TRAINING, REFERENCE, SCHEDULE = "#0072B2", "#555555", "#333333"
EVALUATION = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that readers with colour-vision deficiency can distinguish (Okabe and Ito); one for each evaluation split."""
SMOOTHED_FROM = 10
"""Fewer training logs than this are drawn without smoothing."""
_WINDOW_SHARE = 0.05
"""Width of the smoothing window, as a share of the training logs."""
_PANELS = (
    ("loss", "Loss (nats)"),
    ("accuracy", "Pairwise accuracy (strict)"),
    ("margin", "Mean margin (reward units)"),
    ("learning_rate", "Learning rate"),
)
_CHANCE = (0.5, "0.5\n(chance)")
_EQUAL_REWARDS = (math.log(2), "ln 2\n(equal\nrewards)")


def draw_curves(log_history: LogHistory, path: Path, *, loss_type: str = "bradley_terry") -> None:
    """Write the training curves as a PNG; without matplotlib, log once that none are drawn.

    Args:
        log_history: `TrainerState.log_history`.
        path: The PNG to write.
        loss_type: The loss of the run, which decides whether ln 2 is its value at equal rewards.
    """
    # matplotlib takes a second to import and is needed once, at the end of a run.
    if optional("matplotlib.figure", "audit", "No training curves are drawn.") is not None:
        training_figure(log_history, loss_type=loss_type).savefig(path, dpi=120)


def training_figure(log_history: LogHistory, *, loss_type: str = "bradley_terry") -> "Figure":
    """Draw four panels over optimizer steps: loss, accuracy, margin and learning rate.

    Args:
        log_history: `TrainerState.log_history`.
        loss_type: See `draw_curves`.

    Returns:
        The figure, with one legend for all panels.
    """
    matplotlib = require("matplotlib", "audit")
    references: dict[str, tuple[float, str]] = {"accuracy": _CHANCE}
    if loss_type in ("bradley_terry", "plackett_luce"):
        references["loss"] = _EQUAL_REWARDS
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = require("matplotlib.figure", "audit").Figure(figsize=(10, 6.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (metric, label) in zip(panels.flat, _PANELS, strict=True):
            _draw_training(axes, log_history, metric)
            for color, split in zip(cycle(EVALUATION), evaluation_splits(log_history), strict=False):
                _draw_evaluation(axes, log_history, split, metric, color)
            if metric in references:
                _draw_reference(axes, *references[metric])
            _label(axes, label)
        for axes in panels[-1]:
            axes.set_xlabel("Optimizer step")
        steps = max((int(entry["step"]) for entry in log_history), default=0)
        figure.suptitle(f"Training curves, {steps:,} step{'' if steps == 1 else 's'}")
        _add_legend(figure)
    return figure


def evaluation_splits(log_history: LogHistory) -> list[str]:
    """Return the metric prefixes of the evaluation splits, such as "eval" or "eval_test".

    Sources of a split have no loss of their own, so they are not among them.

    Args:
        log_history: `TrainerState.log_history`.

    Returns:
        Prefixes in the order of their first log entry.
    """
    names = (name for entry in log_history for name in entry if name.startswith("eval") and name.endswith("_loss"))
    return list(dict.fromkeys(name.removesuffix("_loss") for name in names if not name.endswith("_log_loss")))


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the centred moving mean; the window is cut off at both ends, and NaN is left out.

    Args:
        values: One number for each training log.

    Returns:
        As many numbers.
    """
    half = max(2, round(len(values) * _WINDOW_SHARE / 2))
    windows = (values[max(0, place - half) : place + half + 1] for place in range(len(values)))
    finite = ([value for value in window if math.isfinite(value)] for window in windows)
    return [fmean(window) if window else math.nan for window in finite]


def _series(log_history: LogHistory, key: str) -> tuple[list[int], list[float]]:
    points = [(int(entry["step"]), float(entry[key])) for entry in log_history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw_training(axes: "Axes", log_history: LogHistory, metric: str) -> None:
    steps, values = _series(log_history, metric)
    if metric == "learning_rate":
        axes.plot(steps, values, color=SCHEDULE)
        return
    marker = "o" if len(values) == 1 else ""
    if len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, color=TRAINING, marker=marker, markersize=4, label="training")
    else:
        axes.plot(steps, values, color=TRAINING, alpha=0.25, linewidth=1, label="training, each log")
        axes.plot(steps, smoothed(values), color=TRAINING, linewidth=1.8, label="training, smoothed")
    steps, values = _series(log_history, f"epoch_{metric}")
    axes.plot(steps, values, color=TRAINING, marker="o", linestyle="", markersize=6, label="training, epoch mean")


def _draw_evaluation(axes: "Axes", log_history: LogHistory, split: str, metric: str, color: str) -> None:
    steps, values = _series(log_history, f"{split}_{metric}")
    name = "evaluation" if split == "eval" else f"evaluation: {split.removeprefix('eval_')}"
    axes.plot(steps, values, color=color, marker="s", markersize=4, linewidth=1.5, label=name)


def _draw_reference(axes: "Axes", value: float, label: str) -> None:
    axes.axhline(value, color=REFERENCE, linestyle=":", linewidth=1.2)
    place = axes.get_yaxis_transform()  # outside the panel, where no curve runs through the label
    axes.text(1.01, value, label, transform=place, va="center", fontsize="small", color=REFERENCE)


def _label(axes: "Axes", label: str) -> None:
    ticker = require("matplotlib.ticker", "audit")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")


def _add_legend(figure: "Figure") -> None:
    """Name each curve once, below the panels."""
    named = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            steps: Any = line.get_xdata()
            if not str(line.get_label()).startswith("_") and len(steps):
                named.setdefault(line.get_label(), line)
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(len(named), 4), frameon=False)
