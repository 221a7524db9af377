"""Figure of the audit effects in the model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D

_WIDTH = 7.0
_DPI, _DPI_OF_MANY, _MANY = 130, 100, 24
_STEP = 51
"""Colours are rounded to multiples of this, which halves the file."""
_ROW = 0.36
_LABEL_WIDTH = 30


class _Mark(NamedTuple):
    shape: str
    line: str
    fill: str
    legend: str


_MARKS = {
    "biased": _Mark("D", "#cc3300", "#cc3300", "biased"),
    "equivalent": _Mark("o", "#0066cc", "#0066cc", "equivalent (too small to matter)"),
    "inconclusive": _Mark("s", "#333333", "white", "inconclusive"),
    "not_assessed": _Mark("X", "#666666", "#666666", "not assessed"),
}
"""The mark of each verdict. Shapes differ, so the figure works without colour."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row of the figure. Fields that are None are not drawn."""

    label: str
    unit: str
    verdict: str
    """One of `biased`, `equivalent`, `inconclusive`, `not_assessed`."""
    estimate: float | None
    low: float | None
    high: float | None
    delta: float | None
    """Equivalence margin: effects within ±delta are too small to matter."""


def draw_audit_effects(effects: Sequence[Effect], path: str | Path) -> None:
    """Draw each effect with its interval over the equivalence margin.

    Each unit has its own panel. The same effects give the same bytes.

    Args:
        effects: At least one effect.
        path: The PNG to write.
    """
    panels = _by_unit(effects)
    heights = [len(rows) for rows in panels.values()]
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=(_WIDTH, 0.6 + 0.75 * len(panels) + _ROW * sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 0.6 for count in heights])
        for place, (unit, rows) in enumerate(panels.items()):
            _draw_panel(axes[place, 0], unit, rows)
        figure.legend(handles=_legend(effects), loc="outside upper center", ncols=4, frameon=False, fontsize=10)
        figure.set_dpi(_DPI if sum(heights) <= _MANY else _DPI_OF_MANY)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.round(np.asarray(canvas.buffer_rgba())[..., :3] / _STEP) * _STEP
        imsave(path, pixels.astype(np.uint8), metadata={"Software": "hf_reward"}, pil_kwargs={"optimize": True})


def _by_unit(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    panels: dict[str, list[Effect]] = {}
    for effect in effects:
        panels.setdefault(effect.unit, []).append(effect)
    return panels


def _draw_panel(axes: Axes, unit: str, rows: Sequence[Effect]) -> None:
    places = np.arange(len(rows))
    bands = np.array([row.delta or 0.0 for row in rows])
    axes.barh(places, 2 * bands, left=-bands, height=1.0, color="#cccccc", zorder=1)
    axes.axvline(0, color="#333333", linewidth=0.8, zorder=2)
    for place, row in zip(places, rows, strict=True):
        _draw_effect(axes, float(place), row)
    labels = [fill(row.label, _LABEL_WIDTH) for row in rows]
    axes.set_yticks(places, labels, fontsize=10, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.use_sticky_edges = False
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=7)
    name = f"effect, {unit}" if unit else "effect"
    axes.set_xlabel(f"{name} (grey: too small to matter)", fontsize=10, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_effect(axes: Axes, place: float, effect: Effect) -> None:
    mark = _MARKS[effect.verdict]
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [place, place], color=mark.line, linewidth=1.8, zorder=3)
    if effect.estimate is None:
        text_style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": mark.line, "zorder": 4}
        axes.annotate("no estimate", (0, place), (6, 0), **text_style)
        return
    style = {"marker": mark.shape, "markersize": 7, "markeredgecolor": mark.line, "markerfacecolor": mark.fill}
    axes.plot([effect.estimate], [place], linestyle="none", zorder=4, **style)


def _legend(effects: Sequence[Effect]) -> list[Line2D]:
    present = {effect.verdict for effect in effects}
    marks = [mark for verdict, mark in _MARKS.items() if verdict in present]
    style: dict[str, Any] = {"markersize": 7, "linestyle": "none"}
    return [
        Line2D([], [], marker=mark.shape, color=mark.line, markerfacecolor=mark.fill, label=mark.legend, **style)
        for mark in marks
    ]
