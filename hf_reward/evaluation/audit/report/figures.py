"""Draw the effects of an audit as a forest plot, with the range of negligible effects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_reward.data.extras import require
from hf_reward.evaluation.audit.inference import UNIT
from hf_reward.evaluation.audit.report.wording import (
    MINUS,
    VERDICT_WORDS,
    interval_words,
    rank,
    scale_of,
    verdict_of,
    wrapped,
)
from hf_reward.evaluation.page import THEME
from hf_reward.evaluation.plain_text import plain_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PALETTE = {name: light for name, (light, _) in THEME.items()}
"""Part of a figure -> its colour on paper."""
MARKS = {
    "biased": "D",
    "inconclusive": "s",
    "equivalent": "o",
    "not_assessed": "X",
    "differs": "D",
    "no_difference_shown": "o",
}
"""Shape of each verdict; `inconclusive` is hollow."""
LEGEND = {**VERDICT_WORDS, "differs": "Differs", "no_difference_shown": "No difference shown"}
_FONT = 9.5
_LINE = _FONT * 1.3


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Widths of a figure and its columns, in points."""

    width: float
    labels: float
    values: float
    columns: int
    """Characters in a line of a label."""
    stacked: bool
    """Whether a label is above its interval instead of beside it."""


_WIDE = _Layout(width=720, labels=275, values=130, columns=50, stacked=False)
_NARROW = _Layout(width=310, labels=8, values=108, columns=48, stacked=True)


@dataclass(frozen=True)
class _Row:
    """A line of the figure: a heading, or a finding."""

    lines: list[str]
    height: float
    probe: Mapping[str, Any] | None


def headlines(probes: Sequence[Mapping[str, Any]], *, most: int = 4) -> list[Mapping[str, Any]]:
    """Choose the findings for the overview: the largest biases of each family, or its first finding.

    Args:
        probes: All findings.
        most: Maximum number of biases of one family.

    Returns:
        Findings with an estimate: families with the largest biases first, and in each the largest effect first.
    """
    families: dict[str, list[Mapping[str, Any]]] = {}
    for probe in probes:
        if verdict_of(probe) in MARKS and probe.get("estimate") is not None:
            families.setdefault(probe["family"], []).append(probe)
    picked = []
    for members in families.values():
        biased = [probe for probe in members if verdict_of(probe) == "biased"]
        picked.append(sorted(biased, key=rank)[:most] or members[:1])
    return [probe for chosen in sorted(picked, key=lambda chosen: rank(chosen[0])) for probe in chosen]


def effects_figure(
    probes: Iterable[Mapping[str, Any]], titles: Mapping[str, str], what: str = "Effect", *, narrow: bool = False
) -> "Figure | None":
    """Draw effects with 95% intervals and the range of effects that do not matter, one panel per unit.

    Args:
        probes: Findings; observational ones are left out, because they have no verdict.
        titles: Family -> title.
        what: Name of the numbers.
        narrow: Whether to draw for the width of a phone.

    Returns:
        The figure, None if there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "audit")
    shown = [probe for probe in probes if _mark_of(probe) in MARKS]
    if not any(probe.get("estimate") is not None for probe in shown):
        return None
    layout = _NARROW if narrow else _WIDE
    panels = _panels(shown, titles, layout)
    entries = len({_mark_of(probe) for probe in shown})
    axis_words = {unit: _axis_words(unit, what, rows, layout) for unit, rows in panels.items()}
    top = (0.4 + 1.3 * -(-entries // _legend_columns(layout))) * _LINE
    feet = [(2.6 + 1.2 * words.count("\n")) * _LINE for words in axis_words.values()]
    heights = [sum(row.height for row in rows) for rows in panels.values()]
    gap = 1.0 * _LINE
    total = top + sum(heights) + sum(feet) + gap * len(heights)
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = require("matplotlib.figure", "audit").Figure(
            figsize=(layout.width / 72, total / 72), facecolor=PALETTE["page"]
        )
        below = total - top
        width = layout.width - layout.labels - layout.values - 8
        for (unit, rows), height, foot in zip(panels.items(), heights, feet, strict=True):
            below -= height
            share = (layout.labels / layout.width, below / total, width / layout.width, height / total)
            _draw_panel(figure.add_axes(share), unit, rows, axis_words[unit], layout)
            below -= foot + gap
        _add_legend(figure, shown, layout)
    return figure


def _mark_of(probe: Mapping[str, Any]) -> str:
    """The verdict of a finding, or whether two differ."""
    return probe["verdict"] if probe.get("verdict") in ("differs", "no_difference_shown") else verdict_of(probe)


def _panels(probes: Sequence[Mapping[str, Any]], titles: Mapping[str, str], layout: _Layout) -> dict[str, list[_Row]]:
    """Rows by unit, under the headings of their families."""
    units: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for probe in probes:
        units.setdefault(probe.get("unit") or "", {}).setdefault(probe["family"], []).append(probe)
    panels: dict[str, list[_Row]] = {}
    for unit, families in units.items():
        rows = panels.setdefault(unit, [])
        for family, members in families.items():
            rows.append(_Row(wrapped(titles.get(family, family), layout.columns)[:1], 1.9 * _LINE, None))
            for probe in members:
                lines = wrapped(probe.get("label") or probe.get("name") or "", layout.columns)
                rows.append(_Row(lines, (len(lines) + (1.9 if layout.stacked else 0.5)) * _LINE, probe))
    return panels


def _draw_panel(axes: "Axes", unit: str, rows: Sequence[_Row], words: str, layout: _Layout) -> None:
    ticker = require("matplotlib.ticker", "audit")
    probes = [row.probe for row in rows if row.probe]
    axes.set_xlim(*_limits(probes))
    axes.set_ylim(sum(row.height for row in rows), 0)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["dim"])
    axes.set_yticks([])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(4 if layout.stacked else 6))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick(value, unit)))
    axes.tick_params(axis="x", labelsize=_FONT - 1, colors=PALETTE["dim"], length=3)
    axes.set_xlabel(words, fontsize=_FONT, color=PALETTE["dim"], parse_math=False)
    bands = {probe.get("delta") or 0.0 for probe in probes}
    continuous = len(bands) == 1 and not layout.stacked
    if continuous:
        _draw_range(axes, bands.pop(), 0.0, sum(row.height for row in rows))
    above = 0.0
    for row in rows:
        _draw_row(axes, row, above, layout)
        above += row.height
        if row.probe and not continuous:
            height = 1.5 * _LINE if layout.stacked else row.height
            _draw_range(axes, row.probe.get("delta") or 0.0, above - height, above)


def _draw_range(axes: "Axes", band: float, top: float, bottom: float) -> None:
    """Draw the effects that do not matter, and 0."""
    axes.fill_betweenx([top, bottom], -band, band, color=PALETTE["band"], linewidth=0, zorder=1)
    axes.vlines([0], top, bottom, color=PALETTE["dim"], linewidth=0.9, zorder=2)


def _axis_words(unit: str, what: str, rows: Sequence[_Row], layout: _Layout) -> str:
    scale = scale_of(unit)
    words = plain_line(f"{scale.symbol} {scale.words}")
    lines = [f"{what} in {words}" if words else what]
    if any(row.probe and row.probe.get("delta") is not None for row in rows):
        lines.append("(grey: too small to matter)")
    lines = lines if layout.stacked else [" ".join(lines)]
    if unit == UNIT and what == "Effect":
        lines.insert(0, "\N{LEFTWARDS ARROW} lower reward | higher reward \N{RIGHTWARDS ARROW}")
    return "\n".join(lines)


def _tick(value: float, unit: str) -> str:
    scale = scale_of(unit)
    return format(value * scale.factor, "g").replace("-", MINUS) + scale.symbol


def _limits(probes: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of the axis: all estimates fit, intervals that are much wider are cut."""
    estimates = [each["estimate"] for each in probes if each.get("estimate") is not None]
    bands = [each.get("delta") or 0.0 for each in probes]
    reach = 1.8 * max([abs(value) for value in estimates] + [1.5 * band for band in bands], default=1.0) or 1.0
    ends = [end for each in probes for end in (each.get("ci_low"), each.get("ci_high")) if end is not None]
    ends = [float(np.clip(end, -reach, reach)) for end in ends] + estimates
    low, high = min([*ends, 0.0]), max([*ends, *[1.5 * band for band in bands], 0.0])
    if low < 0:
        low = min(low, *[-1.5 * band for band in bands])
    room = 0.04 * (high - low or 1.0)
    return (low - room if low < 0 else 0.0), high + room


def _draw_row(axes: "Axes", row: _Row, above: float, layout: _Layout) -> None:
    if row.probe is None:
        _write(axes, row.lines[0], (0.0, above + row.height - 0.75 * _LINE), -layout.labels, weight="bold")
        return
    indent = 0 if layout.stacked else 10
    for place, line in enumerate(row.lines):
        _write(axes, line, (0.0, above + (0.75 + place) * _LINE), indent - layout.labels)
    middle = above + (row.height - 0.75 * _LINE if layout.stacked else row.height / 2)
    _draw_effect(axes, middle, row.probe)
    _write(axes, _value_words(row.probe), (1.0, middle), layout.values, size=_FONT - 0.5, side="right")


def _value_words(probe: Mapping[str, Any]) -> str:
    if probe.get("estimate") is None:
        return ""
    number, interval = scale_of(probe.get("unit") or "").number(probe["estimate"]), interval_words(probe)
    return f"{number}  [{interval.replace(' to ', ', ')}]" if interval else number


def _write(
    axes: "Axes",
    text: str,
    place: tuple[float, float],
    offset: float,
    *,
    size: float = _FONT,
    side: str = "left",
    weight: str = "normal",
) -> None:
    axes.annotate(
        text,
        place,
        (offset, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=size,
        color=PALETTE["text"],
        fontweight=weight,
        parse_math=False,
    )


def _draw_effect(axes: "Axes", middle: float, probe: Mapping[str, Any]) -> None:
    verdict = _mark_of(probe)
    colour, (left, right) = PALETTE[verdict], axes.get_xlim()
    low, high, estimate = probe.get("ci_low"), probe.get("ci_high"), probe.get("estimate")
    if low is not None and high is not None:
        axes.plot([max(low, left), min(high, right)], [middle, middle], color=colour, linewidth=1.8, zorder=3)
        for cut, edge, arrow in ((low < left, left, "<"), (high > right, right, ">")):
            if cut:
                axes.plot([edge], [middle], marker=arrow, markersize=5, color=colour, clip_on=False, zorder=3)
    if estimate is None:
        words = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": PALETTE["dim"]}
        axes.annotate("no estimate", (0, middle), (6, 0), **words)
        return
    axes.plot([estimate], [middle], linestyle="none", zorder=4, clip_on=False, **_mark(verdict))


def _mark(verdict: str) -> dict[str, Any]:
    inside = PALETTE["page"] if verdict == "inconclusive" else PALETTE[verdict]
    edge = {"markeredgecolor": PALETTE[verdict], "markeredgewidth": 1.4 if verdict == "inconclusive" else 0.6}
    return {"marker": MARKS[verdict], "markersize": 6.5, "markerfacecolor": inside, **edge}


def _legend_columns(layout: _Layout) -> int:
    return 2 if layout.stacked else 4


def _add_legend(figure: "Figure", probes: Sequence[Mapping[str, Any]], layout: _Layout) -> None:
    figure.legend(
        handles=_legend(probes),
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=_legend_columns(layout),
        frameon=False,
        fontsize=_FONT,
        borderaxespad=0.2,
        borderpad=0.2,
        handletextpad=0.2,
        labelcolor=PALETTE["text"],
    )


def _legend(probes: Sequence[Mapping[str, Any]]) -> "list[Line2D]":
    present, lines = {_mark_of(probe) for probe in probes}, require("matplotlib.lines", "audit")
    return [
        lines.Line2D([], [], linestyle="none", label=words, **_mark(verdict))
        for verdict, words in LEGEND.items()
        if verdict in present
    ]
