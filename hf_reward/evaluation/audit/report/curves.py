"""A curve as JSON -> a figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_reward.data.extras import require
from hf_reward.evaluation.audit.report.figures import PALETTE
from hf_reward.evaluation.audit.report.wording import MINUS, wrapped
from hf_reward.metrics.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS, _STYLES = "osD^v", ("-", "--", "-.", ":", "-")
"""Of the first five series; further ones repeat colours and dashes with other shapes."""


def curve_figure(curve: Mapping[str, Any], *, titled: bool = True) -> "Figure":
    """Draw a curve with its intervals.

    Args:
        curve: A `Curve` as JSON.
        titled: Whether to draw its title.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "audit")
    labels = [_series_label(series, place) for place, series in enumerate(curve["series"])]
    columns = 2 if all(len(label) <= 18 for label in labels) else 1
    lines = -(-len(labels) // columns) if len(labels) > 1 else 0
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        make = require("matplotlib.figure", "audit").Figure
        figure = make(figsize=(4.2, 3.0 + 0.3 * titled + 0.21 * lines), layout="constrained")
        figure.set_facecolor(PALETTE["page"])
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(PALETTE["dim"])
        axes.grid(color=PALETTE["rule"], linewidth=0.7)
        axes.set_axisbelow(True)
        if curve.get("diagonal"):
            _draw_diagonal(axes, curve["series"])
        for place, (series, label) in enumerate(zip(curve["series"], labels, strict=True)):
            _draw_series(axes, series, place, label)
        axes.tick_params(labelsize=9.5, colors=PALETTE["dim"])
        _place_ticks(axes, curve["series"])
        words = {"fontsize": 10.5, "color": PALETTE["text"], "parse_math": False}
        axes.set_xlabel(_shortened(curve["x_label"], 44), **words)
        axes.set_title(_shortened(curve["y_label"], 48), loc="left", pad=8, **words)  # horizontal is easier to read
        if titled:
            figure.suptitle(_shortened(curve["title"], 48), fontsize=11, color=PALETTE["text"], parse_math=False)
        if lines:
            _name_series(figure, axes, columns)
    return figure


def _shortened(text: str, columns: int) -> str:
    """Return the first line of a text, with an ellipsis if it was cut."""
    lines = wrapped(text, columns)
    return lines[0] + ("…" if len(lines) > 1 else "")


def _series_label(series: Mapping[str, Any], place: int) -> str:
    """Return the label of the legend; matplotlib would omit one that starts with an underscore."""
    label = _shortened(series.get("label") or "", 40) or f"{place + 1}"
    return f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label


def _draw_series(axes: "Axes", series: Mapping[str, Any], place: int, label: str) -> None:
    x, y = _numbers(series["x"]), _numbers(series["y"])
    colour, style = PALETTE[f"line-{place % 5 + 1}"], {"marker": _MARKS[(place + place // 5) % 5], "markersize": 5}
    axes.plot(x, y, color=colour, linewidth=1.6, linestyle=_STYLES[place % 5], label=label, zorder=3, **style)
    if series.get("low") and series.get("high"):
        axes.vlines(x, _numbers(series["low"]), _numbers(series["high"]), color=colour, linewidth=1.4, zorder=2.5)


def _draw_diagonal(axes: "Axes", series: Sequence[Mapping[str, Any]]) -> None:
    """Draw the line y = x over all points."""
    places = [value for each in series for value in each["x"] if value is not None] or [0.0, 1.0]
    ends = [min(places), max(places)]
    axes.axline((ends[0], ends[0]), slope=1, color=PALETTE["dim"], linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    axes.update_datalim(list(zip(ends, ends, strict=True)))


def _place_ticks(axes: "Axes", series: Sequence[Mapping[str, Any]]) -> None:
    """Set ticks at the points if they are few and apart."""
    places = np.unique([value for each in series for value in each["x"] if value is not None])
    if 1 < len(places) <= 8 and np.diff(places).min() > 0.06 * np.ptp(places):
        axes.set_xticks(places, [f"{value:.3g}".replace("-", MINUS) for value in places])
    else:
        axes.xaxis.set_major_locator(require("matplotlib.ticker", "audit").MaxNLocator(6))


def _numbers(values: Sequence[float | None]) -> FloatArray:
    """Return the numbers, NaN for missing ones, which leaves a gap."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _name_series(figure: "Figure", axes: "Axes", columns: int) -> None:
    names = axes.get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    legend = figure.legend(*names, **place, fontsize=9.5, labelcolor=PALETTE["text"])
    for text in legend.get_texts():
        text.set_parse_math(False)
