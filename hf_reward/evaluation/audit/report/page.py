"""An audit's JSON -> one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from hf_reward.evaluation.audit.report.bars import Axis, Bar, axis_of
from hf_reward.evaluation.audit.report.curves import curve_figure
from hf_reward.evaluation.audit.report.drawing import inline_svg
from hf_reward.evaluation.audit.report.figures import NARROW, WIDE, effects_figure, headlines
from hf_reward.evaluation.audit.report.wording import (
    MINUS,
    SCREEN_WORDS,
    VERDICT_WORDS,
    counted,
    interval_words,
    reason_words,
    scale_of,
    verdict_of,
    verdict_words,
    worst,
)

_CLAMPED = 320
"""Characters of a text that are shown before the reader asks for more."""
_CLAMPED_LINES = 6


@dataclass(frozen=True)
class Row:
    """One finding as the page shows it."""

    probe: Mapping[str, Any]
    verdict: str
    words: str
    number: str
    unit: str
    interval: str
    bar: Bar | None
    reason: str
    size: str


@dataclass(frozen=True)
class Group:
    """The findings of a family with the same unit, and their axis."""

    unit: str
    ticks: list[tuple[float, str]]
    rows: list[Row]


@dataclass(frozen=True)
class Section:
    """One family as the page shows it."""

    name: str
    family: Mapping[str, Any]
    verdict: str
    tally: str
    groups: list[Group]
    curves: list[tuple[str, Markup]]


def render_page(report: dict[str, Any]) -> str:
    """Render an audit.

    Args:
        report: `AuditReport.to_dict()`, or what `read_audit` gives.

    Returns:
        HTML; whatever came from the data is escaped, nothing is loaded from anywhere and no program runs.
    """
    probes, titles = report["probes"], family_titles(report)
    shown = headlines(probes)
    return environment().get_template("page.html").render(
        report=report,
        tally=[(verdict, verdict_words(verdict), count) for verdict, count in _tally(probes)],
        picture=_effects(shown, titles, "short"),
        all_effects=_effects(probes, titles, "all"),
        shown=len(shown),
        drawable=sum(verdict_of(probe) != "screen" for probe in probes),
        sections=[_section(name, report) for name in titles],
        facts=_facts(report),
    )  # fmt: skip


def environment() -> Environment:
    """Templates of this folder; everything that they write is escaped."""

    def load(name: str) -> str:
        return files("hf_reward.evaluation.audit.report").joinpath(name).read_text(encoding="utf-8")

    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(load),
    )
    made.filters.update(beginning=_beginning, code=_code, counted=counted, reward=_reward)
    made.globals.update(VERDICT_WORDS=VERDICT_WORDS, SCREEN_WORDS=SCREEN_WORDS)
    return made


def family_titles(report: Mapping[str, Any]) -> dict[str, str]:
    """Family -> title: the families in their order, and last those that only a finding names."""
    titles = {name: family.get("title") or name for name, family in report["families"].items()}
    return titles | {probe["family"]: probe["family"] for probe in report["probes"] if probe["family"] not in titles}


def _tally(probes: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How many findings have each verdict; a verdict that none has is said too, screens only where there are any."""
    found = [verdict_of(probe) for probe in probes]
    counts = [(verdict, found.count(verdict)) for verdict in [*VERDICT_WORDS, "screen"]]
    return [
        (verdict, count) for verdict, count in counts if count or verdict in ("biased", "inconclusive", "equivalent")
    ]


def _effects(probes: Sequence[Mapping[str, Any]], titles: Mapping[str, str], name: str) -> list[tuple[str, Markup]]:
    """The picture twice, for wide and for narrow windows."""
    drawn: list[tuple[str, Markup]] = []
    biased = [probe["label"] for probe in probes if verdict_of(probe) == "biased"]
    words = f"Effects with 95% intervals beside the effects that do not matter. {len(biased)} biased"
    words += f": {'; '.join(biased[:8])}." if biased else "."
    words += " All numbers are in the sections below."
    for width, layout in (("wide", WIDE), ("narrow", NARROW)):
        figure = effects_figure(probes, titles, layout)
        if figure is not None:
            drawn.append((width, inline_svg(figure, f"{name}-{width}", words)))
    return drawn


def _section(name: str, report: Mapping[str, Any]) -> Section:
    probes = [probe for probe in report["probes"] if probe["family"] == name]
    blank = {"title": name, "what": "", "advice": "", "not_assessed": "", "left_out": 0}
    family = {**blank, "examples": [], "tables": [], "curves": [], **report["families"].get(name, {})}
    place = list(family_titles(report)).index(name)
    units = dict.fromkeys(probe.get("unit") or "" for probe in probes)
    return Section(
        name=f"family-{place + 1}",
        family=family,
        verdict=worst(probes),
        tally=_tally_words(probes, family["left_out"]),
        groups=[_group(unit, [probe for probe in probes if (probe.get("unit") or "") == unit]) for unit in units],
        curves=[
            (curve["title"], _curve(curve, f"curve-{place + 1}-{number + 1}"))
            for number, curve in enumerate(family["curves"])
        ],
    )


def _tally_words(probes: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """How many findings of a family have each verdict, and how many cases are missing from it."""
    words = {verdict: words.lower() for verdict, words in VERDICT_WORDS.items()}
    tally = [(verdict, count) for verdict, count in _tally(probes) if count]
    found = ", ".join(
        counted(count, "screen") if verdict == "screen" else f"{count} {words[verdict]}" for verdict, count in tally
    )
    lost = f"{counted(left_out, 'case')} left out because a text could not be scored" if left_out else ""
    return "; ".join(part for part in (found, lost) if part)


def _curve(curve: Mapping[str, Any], name: str) -> Markup:
    figure: Figure = curve_figure(curve, titled=False)
    series = ", ".join(each.get("label") or "" for each in curve["series"] if each.get("label"))
    words = f"{curve['title']}: {curve['y_label']} by {curve['x_label']}"
    return inline_svg(figure, name, words + (f" ({series})" if series else ""))


def _group(unit: str, probes: Sequence[Mapping[str, Any]]) -> Group:
    axis = axis_of(probes)
    rows = [_row(probe, axis) for probe in probes]
    ticks = axis.ticks(unit) if any(row.bar for row in rows) else []
    return Group(unit=f"{scale_of(unit).symbol} {scale_of(unit).words}".strip(), ticks=ticks, rows=rows)


def _row(probe: Mapping[str, Any], axis: Axis) -> Row:
    scale, verdict = scale_of(probe.get("unit") or ""), verdict_of(probe)
    return Row(
        probe=probe,
        verdict=verdict,
        words=verdict_words(verdict),
        number=scale.number(probe.get("estimate")),
        unit=scale.words if probe.get("estimate") is not None else "",
        interval=interval_words(probe),
        bar=axis.bar(probe),
        reason=reason_words(probe),
        size=f"{counted(probe.get('n') or 0, 'case')}, {counted(probe.get('clusters') or 0, 'cluster')}",
    )


def _facts(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, counts and fingerprint as names and values."""
    unit = report.get("unit")
    counts = {**(report.get("counts") or {}), "seconds": report.get("seconds")}
    settings = {**(report.get("settings") or {}), "typical margin in the model's own units": unit}
    named = {"Settings": settings, "Counts": counts, "Fingerprint": report.get("fingerprint") or {}}
    return [
        (title, [(name.replace("_", " "), _plain(value)) for name, value in values.items()])
        for title, values in named.items()
    ]


def _plain(value: Any) -> str:
    """A JSON value as a reader wants it."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(text: str) -> Markup:
    """Set what stands between backticks as code; everything is escaped."""
    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick without its other
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _reward(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.3f}".replace("-", MINUS)


def _beginning(text: str) -> str:
    """The beginning of a text that is too long to be shown at once, empty for others."""
    lines = text.split("\n")
    if len(text) <= _CLAMPED and len(lines) <= _CLAMPED_LINES:
        return ""
    short = "\n".join(lines[:_CLAMPED_LINES])
    return short[: _CLAMPED - 40].rstrip() + "…"
