"""An audit's JSON -> the picture of its effects beside what does not matter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hf_reward.evaluation.audit.report.wording import (
    MINUS,
    VERDICT_WORDS,
    interval_words,
    plain_line,
    scale_of,
    verdict_of,
    wrapped,
)

PALETTE = {
    "text": "#1d2330",
    "dim": "#596273",
    "rule": "#dfe3ea",
    "band": "#e3e6ec",
    "page": "#ffffff",
    "biased": "#c2330a",
    "equivalent": "#1f66b0",
    "inconclusive": "#6a5a17",
    "not_assessed": "#6b7280",
    "line-1": "#1f66b1",
    "line-2": "#c2330b",
    "line-3": "#2c7a4b",
    "line-4": "#7a4fa3",
    "line-5": "#8a6100",
}
"""Part of a figure -> its colour on paper; no two are alike, so that the page can put its own in their place."""
MARKS = {"biased": "D", "inconclusive": "s", "equivalent": "o", "not_assessed": "X"}
"""Shape of each verdict; `inconclusive` is hollow."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things are in an effect figure, in points."""

    width: float
    labels: float
    """Width of the column of labels; 0 puts each label above its interval."""
    values: float
    """Width of the column of numbers, 0 for none."""
    columns: int
    """Characters of a line of a label."""
    font: float
    legend_columns: int

    @property
    def line(self) -> float:
        """Height of a line of text."""
        return self.font * 1.3


WIDE = Layout(width=720, labels=275, values=130, columns=46, font=9.5, legend_columns=4)
NARROW = Layout(width=330, labels=0, values=0, columns=44, font=11, legend_columns=2)


@dataclass(frozen=True)
class _Row:
    """A line of the figure: a heading, or a finding."""

    lines: list[str]
    height: float
    probe: Mapping[str, Any] | None


def headlines(probes: Sequence[Mapping[str, Any]], *, most: int = 4) -> list[Mapping[str, Any]]:
    """The findings for a picture that is taken in at a glance: of each family the largest biases, or else one finding.

    Args:
        probes: All findings.
        most: Biases of one family that are shown.

    Returns:
        Findings with an estimate, in their order.
    """
    families: dict[str, list[int]] = {}
    for place, probe in enumerate(probes):
        if verdict_of(probe) in MARKS and probe.get("estimate") is not None:
            families.setdefault(probe["family"], []).append(place)
    order, picked = list(VERDICT_WORDS), set()
    for places in families.values():
        ranked = sorted(places, key=lambda place: (order.index(verdict_of(probes[place])), -_excess(probes[place])))
        biased = [place for place in ranked if verdict_of(probes[place]) == "biased"]
        picked.update(biased[:most] or ranked[:1])
    return [probe for place, probe in enumerate(probes) if place in picked]


def _excess(probe: Mapping[str, Any]) -> float:
    return abs(probe["estimate"]) / (probe.get("delta") or 1.0)


def effects_figure(
    probes: Iterable[Mapping[str, Any]], titles: Mapping[str, str], layout: Layout = WIDE
) -> Figure | None:
    """Draw effects with 95% intervals, the band of effects that do not matter, a panel for each unit.

    Args:
        probes: Findings; screens are left out, since they settle nothing.
        titles: Family -> title.
        layout: Where things are.

    Returns:
        The figure, None where there is nothing to draw.
    """
    shown = [probe for probe in probes if verdict_of(probe) in MARKS]
    if not any(probe.get("estimate") is not None for probe in shown):
        return None
    panels = _panels(shown, titles, layout)
    top, foot, gap = 1.7 * layout.line * (4 / layout.legend_columns), 3.2 * layout.line, 0.8 * layout.line
    heights = [sum(row.height for row in rows) for rows in panels.values()]
    total = top + sum(heights) + (foot + gap) * len(heights)
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=(layout.width / 72, total / 72), facecolor=PALETTE["page"])
        below = total - top
        margin = 0.0 if layout.labels else 14.0
        for (unit, rows), height in zip(panels.items(), heights, strict=True):
            below -= height
            box = (layout.labels + margin, below, layout.width - layout.labels - layout.values - 2 * margin - 8, height)
            share = (box[0] / layout.width, box[1] / total, box[2] / layout.width, box[3] / total)
            _draw_panel(figure.add_axes(share), unit, rows, layout, margin)
            below -= foot + gap
        _name_verdicts(figure, shown, layout)
    return figure


def _panels(probes: Sequence[Mapping[str, Any]], titles: Mapping[str, str], layout: Layout) -> dict[str, list[_Row]]:
    """Rows by unit, under the headings of their families."""
    units: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for probe in probes:
        units.setdefault(probe.get("unit") or "", {}).setdefault(probe["family"], []).append(probe)
    panels: dict[str, list[_Row]] = {}
    for unit, families in units.items():
        rows = panels.setdefault(unit, [])
        for family, members in families.items():
            rows.append(_Row(wrapped(titles.get(family, family), layout.columns)[:1], 1.9 * layout.line, None))
            for probe in members:
                lines = wrapped(probe.get("label") or probe.get("name") or "", layout.columns)
                height = len(lines) * layout.line + (0.5 if layout.labels else 1.7) * layout.line
                rows.append(_Row(lines, height, probe))
    return panels


def _draw_panel(axes: Axes, unit: str, rows: Sequence[_Row], layout: Layout, margin: float) -> None:
    height = sum(row.height for row in rows)
    left, right = _limits([row.probe for row in rows if row.probe])
    axes.set_xlim(left, right)
    axes.set_ylim(height, 0)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["dim"])
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6 if layout.labels else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))
    axes.tick_params(axis="x", labelsize=layout.font - 1, colors=PALETTE["dim"], length=3)
    axes.set_xlabel(_axis_words(unit), fontsize=layout.font, color=PALETTE["dim"], parse_math=False)
    if layout.labels:
        axes.axvline(0, color=PALETTE["dim"], linewidth=0.9, zorder=2)
    above = 0.0
    for row in rows:
        _draw_row(axes, row, above, layout, margin)
        above += row.height


def _axis_words(unit: str) -> str:
    scale = scale_of(unit)
    words = f"{scale.symbol} {scale.words}".strip()
    return (
        f"Effect in {plain_line(words)} (grey: too small to matter)" if words else "Effect (grey: too small to matter)"
    )


def _tick(value: float, unit: str) -> str:
    scale = scale_of(unit)
    return format(value * scale.factor, "g").replace("-", MINUS) + scale.symbol


def _limits(probes: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From the smallest to the largest; intervals much wider than all effects run out of the picture."""
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


def _draw_row(axes: Axes, row: _Row, above: float, layout: Layout, margin: float) -> None:
    column = -layout.labels - margin
    if row.probe is None:
        bottom = above + row.height - 0.75 * layout.line
        _write(axes, row.lines[0], (0.0, bottom), column, size=layout.font, weight="bold")
        return
    indent = 10 if layout.labels else 0
    first = above + 0.75 * layout.line
    for place, line in enumerate(row.lines):
        _write(axes, line, (0.0, first + place * layout.line), column + indent, size=layout.font)
    if layout.labels:
        middle, top, height = above + row.height / 2, above, row.height
    else:
        top, height = above + row.height - 1.3 * layout.line, 0.9 * layout.line
        middle = top + height / 2
    band = row.probe.get("delta") or 0.0
    axes.barh([top], [2 * band], left=-band, height=height, align="edge", color=PALETTE["band"], zorder=1)
    if not layout.labels:  # a line from top to bottom would cross the labels
        axes.plot([0, 0], [top - 2, top + height + 2], color=PALETTE["dim"], linewidth=0.9, zorder=2)
    _draw_effect(axes, middle, row.probe)
    if layout.values:
        _write(axes, _value_words(row.probe), (1.0, middle), layout.values, size=layout.font - 0.5, side="right")


def _value_words(probe: Mapping[str, Any]) -> str:
    if probe.get("estimate") is None:
        return ""
    number, interval = scale_of(probe.get("unit") or "").number(probe["estimate"]), interval_words(probe)
    return f"{number}  [{interval.replace(' to ', ', ')}]" if interval else number


def _write(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: float,
    *,
    size: float,
    side: str = "left",
    weight: str = "",
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
        fontweight=weight or "normal",
        parse_math=False,
    )


def _draw_effect(axes: Axes, middle: float, probe: Mapping[str, Any]) -> None:
    verdict = verdict_of(probe)
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


def _name_verdicts(figure: Figure, probes: Sequence[Mapping[str, Any]], layout: Layout) -> None:
    figure.legend(
        handles=_legend(probes),
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=layout.legend_columns,
        frameon=False,
        fontsize=layout.font,
        borderaxespad=0.2,
        borderpad=0.2,
        handletextpad=0.2,
        labelcolor=PALETTE["text"],
    )


def _legend(probes: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    present = {verdict_of(probe) for probe in probes}
    return [
        Line2D([], [], linestyle="none", label=words, **_mark(verdict))
        for verdict, words in VERDICT_WORDS.items()
        if verdict in present
    ]
