"""Histograms of a report -> figures with captions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_reward.data.extras import require
from hf_reward.evaluation.data_check.histograms import Histogram
from hf_reward.evaluation.drawing import inline_svg
from hf_reward.evaluation.page import THEME, Picture
from hf_reward.metrics.counts import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {name: light for name, (light, _) in THEME.items()}
_SIZE = (4.4, 2.7)
"""Of a figure, in inches."""
_DASHES = ("\N{EM DASH}", "\N{EN DASH} \N{EN DASH}")
"""Line style of chosen and rejected, in their labels."""


def distribution_pictures(histograms: Sequence[Histogram]) -> list[Picture]:
    """Draw prompt lengths, response lengths, length gaps and score gaps.

    Args:
        histograms: Of a report.

    Returns:
        A figure for each quantity that the report has.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    pictures = []
    for name, group in _groups(histograms):
        figure = _draw_gaps(group[0]) if name.endswith("gap") else _draw_lengths(group)
        words = caption(name, group)
        pictures.append(Picture(svg=inline_svg(figure, name.replace(" ", "-"), words), caption=words))
    return pictures


def captions(histograms: Sequence[Histogram]) -> list[str]:
    """Return what the pictures show, in sentences.

    Args:
        histograms: Of a report.

    Returns:
        A caption for each figure.
    """
    return [caption(name, group) for name, group in _groups(histograms)]


def _groups(histograms: Sequence[Histogram]) -> list[tuple[str, list[Histogram]]]:
    """Put chosen and rejected lengths together."""
    names = {"prompt length": ("prompt",), "response length": ("chosen", "rejected")}
    names |= {"length gap": ("length gap",), "score gap": ("score gap",)}
    groups = [(title, [each for each in histograms if each.name in parts]) for title, parts in names.items()]
    return [(title, group) for title, group in groups if group]


def caption(name: str, group: Sequence[Histogram]) -> str:
    """Describe a figure.

    Args:
        name: `prompt length`, `response length`, `length gap` or `score gap`.
        group: Its histograms.

    Returns:
        Medians or shares, and the number of values outside the bins.
    """
    first = group[0]
    hidden = sum(each.below + each.above for each in group)
    left_out = f" {counted(hidden, 'more extreme value')} not drawn." if hidden else ""
    if not name.endswith("gap"):
        medians = ", ".join(f"{each.name} {each.median:,.0f}" for each in group).removeprefix("prompt ")
        return f"{name.capitalize()} in {first.unit}. Median: {medians}.{left_out}"
    more = "longer" if name == "length gap" else "higher"
    shares = (f"{side} {more} {count / first.values:.1%}" for side, count in _sides(first))
    middle = first.edges[len(first.edges) // 2]
    return (
        f"{name.capitalize()} (chosen minus rejected){f' in {first.unit}' if first.unit != 'score' else ''} of "
        f"{counted(first.values, 'pair')}: {', '.join(shares)}, equal {first.zero / first.values:.1%}. Median: "
        f"{first.median:+,.4g}. Grey bar: gaps of less than {middle:,.4g}.{left_out}"
    )


def _sides(gaps: Histogram) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("chosen", gaps.positive), ("rejected", gaps.negative)


def _draw_lengths(group: Sequence[Histogram]) -> "Figure":
    figure, axes = _axes(group[0], f"{'Prompts' if len(group) == 1 else 'Responses of pairs'} by length")
    for place, each in enumerate(group):
        colour = _COLOURS[f"line-{place + 1}"]
        axes.stairs(each.counts, each.edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(each.counts, each.edges, color=colour, linewidth=1.6, linestyle="-" if place == 0 else "--")
        if len(group) > 1:
            _label(axes, 0.98, 0.94 - 0.12 * place, f"{each.name} {_DASHES[place]}", colour)
    return figure


def _draw_gaps(gaps: Histogram) -> "Figure":
    figure, axes = _axes(gaps, f"Pairs by {gaps.name}: chosen \N{MINUS SIGN} rejected")
    edges, counts = np.array(gaps.edges), np.array(gaps.counts)
    centres = (edges[1:] + edges[:-1]) / 2
    width = edges[1] - edges[0]
    signs = np.where(np.abs(centres) < width / 4, 0, np.sign(centres))
    for sign, name in ((1, "line-1"), (-1, "line-2"), (0, "dim")):
        axes.stairs(np.where(signs == sign, counts, 0), edges, fill=True, color=_COLOURS[name])
    axes.axvline(0, color=_COLOURS["dim"], linewidth=1, linestyle=(0, (4, 3)))
    more = "longer" if gaps.name == "length gap" else "higher"
    axes.margins(y=0.22)
    for (side, count), name, x in zip(_sides(gaps), ("line-1", "line-2"), (0.98, 0.02), strict=True):
        _label(axes, x, 0.94, f"{side} {more} {count / gaps.values:.0%}", _COLOURS[name])
    return figure


def _label(axes: "Axes", x: float, y: float, text: str, colour: str) -> None:
    side = "right" if x > 0.5 else "left"
    place = {"transform": axes.transAxes, "ha": side, "va": "center"}
    axes.text(x, y, text, color=colour, fontsize=9.5, parse_math=False, **place)


def _axes(first: Histogram, title: str) -> tuple["Figure", Any]:
    matplotlib = require("matplotlib", "audit")
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = require("matplotlib.figure", "audit").Figure(figsize=_SIZE, layout="constrained")
        figure.set_facecolor(_COLOURS["page"])
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(_COLOURS["dim"])
        axes.tick_params(labelsize=9.5, colors=_COLOURS["dim"])
        ticker = require("matplotlib.ticker", "audit")
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        plain = ticker.FuncFormatter(lambda value, _: f"{value:,.4g}".replace("-", "\N{MINUS SIGN}"))
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        words = {"fontsize": 10.5, "color": _COLOURS["text"]}
        axes.set_xlabel(first.unit, **words)
        axes.set_title(title, loc="left", pad=8, **words)
    return figure, axes
