"""An audit's JSON -> the picture of its effects beside what does not matter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_reward.data.extras import require
from hf_reward.evaluation.audit.report.wording import (
    MINUS,
    VERDICT_WORDS,
    interval_words,
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
_WIDTH, _LABELS, _VALUES = 720.0, 275.0, 130.0
"""Of the figure and its columns of labels and of numbers, in points."""
_COLUMNS, _FONT = 46, 9.5
"""Characters of a line of a label, and the size of its font."""
_LINE = _FONT * 1.3


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
    probes: Iterable[Mapping[str, Any]], titles: Mapping[str, str], what: str = "Effect"
) -> "Figure | None":
    """Draw effects with 95% intervals, the band of effects that do not matter, a panel for each unit.

    Args:
        probes: Findings; screens are left out, since they assign_verdicts nothing.
        titles: Family -> title.
        what: What the numbers are.

    Returns:
        The figure, None where there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "audit")
    shown = [probe for probe in probes if _mark_of(probe) in MARKS]
    if not any(probe.get("estimate") is not None for probe in shown):
        return None
    panels = _panels(shown, titles)
    top, foot, gap = 1.7 * _LINE, 3.2 * _LINE, 0.8 * _LINE
    heights = [sum(row.height for row in rows) for rows in panels.values()]
    total = top + sum(heights) + (foot + gap) * len(heights)
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = require("matplotlib.figure", "audit").Figure(
            figsize=(_WIDTH / 72, total / 72), facecolor=PALETTE["page"]
        )
        below = total - top
        width = _WIDTH - _LABELS - _VALUES - 8
        for (unit, rows), height in zip(panels.items(), heights, strict=True):
            below -= height
            share = (_LABELS / _WIDTH, below / total, width / _WIDTH, height / total)
            _draw_panel(figure.add_axes(share), unit, rows, what)
            below -= foot + gap
        _name_verdicts(figure, shown)
    return figure


def _mark_of(probe: Mapping[str, Any]) -> str:
    """The verdict of a finding, or whether two differ."""
    return probe["verdict"] if probe.get("verdict") in ("differs", "no_difference_shown") else verdict_of(probe)


def _panels(probes: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> dict[str, list[_Row]]:
    """Rows by unit, under the headings of their families."""
    units: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for probe in probes:
        units.setdefault(probe.get("unit") or "", {}).setdefault(probe["family"], []).append(probe)
    panels: dict[str, list[_Row]] = {}
    for unit, families in units.items():
        rows = panels.setdefault(unit, [])
        for family, members in families.items():
            rows.append(_Row(wrapped(titles.get(family, family), _COLUMNS)[:1], 1.9 * _LINE, None))
            for probe in members:
                lines = wrapped(probe.get("label") or probe.get("name") or "", _COLUMNS)
                rows.append(_Row(lines, (len(lines) + 0.5) * _LINE, probe))
    return panels


def _draw_panel(axes: "Axes", unit: str, rows: Sequence[_Row], what: str) -> None:
    ticker = require("matplotlib.ticker", "audit")
    probes = [row.probe for row in rows if row.probe]
    axes.set_xlim(*_limits(probes))
    axes.set_ylim(sum(row.height for row in rows), 0)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["dim"])
    axes.set_yticks([])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick(value, unit)))
    axes.tick_params(axis="x", labelsize=_FONT - 1, colors=PALETTE["dim"], length=3)
    has_band = any(probe.get("delta") is not None for probe in probes)
    axes.set_xlabel(_axis_words(unit, what, has_band), fontsize=_FONT, color=PALETTE["dim"], parse_math=False)
    axes.axvline(0, color=PALETTE["dim"], linewidth=0.9, zorder=2)
    above = 0.0
    for row in rows:
        _draw_row(axes, row, above)
        above += row.height


def _axis_words(unit: str, what: str, has_band: bool) -> str:
    scale = scale_of(unit)
    words = plain_line(f"{scale.symbol} {scale.words}")
    return f"{what} in {words}" * bool(words) + what * (not words) + " (grey: too small to matter)" * has_band


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


def _draw_row(axes: "Axes", row: _Row, above: float) -> None:
    if row.probe is None:
        _write(axes, row.lines[0], (0.0, above + row.height - 0.75 * _LINE), -_LABELS, size=_FONT, weight="bold")
        return
    for place, line in enumerate(row.lines):
        _write(axes, line, (0.0, above + (0.75 + place) * _LINE), 10 - _LABELS, size=_FONT)
    middle, band = above + row.height / 2, row.probe.get("delta") or 0.0
    axes.barh([above], [2 * band], left=-band, height=row.height, align="edge", color=PALETTE["band"], zorder=1)
    _draw_effect(axes, middle, row.probe)
    _write(axes, _value_words(row.probe), (1.0, middle), _VALUES, size=_FONT - 0.5, side="right")


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


def _name_verdicts(figure: "Figure", probes: Sequence[Mapping[str, Any]]) -> None:
    figure.legend(
        handles=_legend(probes),
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=4,
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
