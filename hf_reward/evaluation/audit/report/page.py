"""An audit's JSON -> one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_reward.evaluation.audit.report.curves import curve_figure
from hf_reward.evaluation.audit.report.figures import effects_figure, headlines
from hf_reward.evaluation.audit.report.wording import (
    MINUS,
    VERDICT_WORDS,
    interval_words,
    reason_words,
    scale_of,
    verdict_of,
    verdict_words,
    worst,
)
from hf_reward.evaluation.drawing import can_draw, inline_svg
from hf_reward.evaluation.page import Advice, Cell, Page, Picture, Rows, Section, Texts, render
from hf_reward.metrics.counts import counted

_FOLDED = 8
"""Rows beyond which the reader opens a table."""
_MEANINGS = {
    "biased": "the effect is larger than what was called harmless before anything was measured, and chance does not "
    "explain it.",
    "equivalent": "the effect was shown to lie within the harmless range; this says nothing of what was not probed.",
    "inconclusive": "neither was shown. It is no acquittal: the row says how large an effect would have been found in "
    "four of five such audits.",
    "not_assessed": "the data or the model gave nothing to go by.",
    "observational": "they have no verdict either: they compare answers that differ in more than one thing.",
}
_READING = (
    "Effects on rewards are in typical margins: 1 is the median distance between the rewards of the preferred and the "
    "other answer of the evaluation pairs, {unit}. The grey band in every picture is the harmless range; the line is "
    "the 95% interval, found by resampling whole clusters (prompts or questions), since cases of one prompt are not "
    "independent. The p-values of all probes are corrected together, so that of the biases reported one in twenty is "
    "expected to be an accident at most (q-values after Benjamini and Hochberg, 1995)."
)


def render_page(report: Mapping[str, Any]) -> str:
    """Render an audit. Without matplotlib the page has no figures, and a line of the log names the extra.

    Args:
        report: `AuditReport.to_dict()`, or what `read_audit` gives.

    Returns:
        HTML; whatever came from the data is escaped, nothing is loaded from anywhere and no program runs.
    """
    draws = can_draw()
    known = [name for name in ("pairs", "prompts", "texts") if name in report["counts"]]
    counts = [f"{report['counts'][name]:,} {name}" for name in known]
    size = ": " + ", ".join(counts) if counts else ""
    tally = {_badge(verdict, "Observational"): count for verdict, count in _tally(report["probes"])}
    return render(
        Page(
            title=f"Bias audit: {report['model']}",
            kicker="Bias audit of a reward model",
            heading=report["model"],
            about=[f"On {report['data']}{size}{' scored' if 'texts' in known else ''}."],
            lead=report["summary"],
            pictures=_headlines(report) if draws else [],
            tally=tally,
            sections=[
                *(_section(name, report, draws) for name in family_titles(report)),
                _reading(report.get("unit")),
                _details(report, draws),
            ],
        )
    )


def family_titles(report: Mapping[str, Any]) -> dict[str, str]:
    """Family -> title: the families in their order, and last those that only a finding names."""
    titles = {name: family.get("title") or name for name, family in report["families"].items()}
    return titles | {probe["family"]: probe["family"] for probe in report["probes"] if probe["family"] not in titles}


def _badge(verdict: str, screens: str = "") -> Cell:
    return Cell(screens if screens and verdict == "observational" else verdict_words(verdict), verdict=verdict)


def _tally(probes: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How many findings have each verdict; a verdict that none has is said too, screens only where there are any."""
    found = [verdict_of(probe) for probe in probes]
    counts = [(verdict, found.count(verdict)) for verdict in [*VERDICT_WORDS, "observational"]]
    return [
        (verdict, count) for verdict, count in counts if count or verdict in ("biased", "inconclusive", "equivalent")
    ]


def _headlines(report: Mapping[str, Any]) -> list[Picture]:
    shown = headlines(report["probes"])
    drawable = sum(verdict_of(probe) != "observational" for probe in report["probes"])
    caption = (
        f"{len(shown)} of {drawable} effects with their 95% intervals: of every group the largest biases, or else what "
        "stands out most."
    )
    return [replace(each, more="all-effects") for each in _effects(shown, report, "short", caption)]


def _effects(probes: Sequence[Mapping[str, Any]], report: Mapping[str, Any], name: str, caption: str) -> list[Picture]:
    figure = effects_figure(probes, family_titles(report))
    if figure is None:
        return []
    biased = [probe["label"] for probe in probes if verdict_of(probe) == "biased"]
    words = f"Effects with 95% intervals beside the effects that do not matter. {len(biased)} biased"
    words += f": {'; '.join(biased[:8])}." if biased else "."
    words += " All numbers are in the tables of the page."
    return [Picture(svg=inline_svg(figure, name, words), caption=caption, name=f"{name}-effects")]


def _section(name: str, report: Mapping[str, Any], draws: bool) -> Section:
    probes = [probe for probe in report["probes"] if probe["family"] == name]
    blank = {"title": name, "what": "", "advice": "", "not_assessed": "", "left_out": 0}
    family = {**blank, "examples": [], "tables": [], "curves": [], **report["families"].get(name, {})}
    place, verdict = list(family_titles(report)).index(name) + 1, worst(probes)
    biased = verdict == "biased"
    missing = f"Not assessed. {family['not_assessed']}" if family["not_assessed"] else ""
    title = "What to do" if biased else "What to do if this matters to you"
    return Section(
        name=f"family-{place}",
        title=family["title"],
        verdict=_badge(verdict, "Observational only"),
        text=[family["what"], _tally_words(probes, family["left_out"]), missing],
        advice=[Advice(title=title, text=family["advice"], urgent=biased)] if family["advice"] else [],
        pictures=[_curve(curve, f"curve-{place}-{at}") for at, curve in enumerate(family["curves"])] if draws else [],
        tables=[
            *([_findings(probes)] if probes else []),
            *(Rows(**each, folded=len(each["rows"]) > _FOLDED) for each in family["tables"]),
            *map(_points, family["curves"]),
        ],
        examples=[_example(each) for each in family["examples"]],
        examples_open=biased,
    )


def _tally_words(probes: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """How many findings of a family have each verdict, and how many cases are missing from it."""
    tally = [(verdict, count) for verdict, count in _tally(probes) if count]
    found = ", ".join(f"{count} {verdict_words(verdict).partition(':')[0].lower()}" for verdict, count in tally)
    lost = f"{counted(left_out, 'case')} left out because a text could not be scored" if left_out else ""
    return "; ".join(part for part in (found, lost) if part)


def _findings(probes: Sequence[Mapping[str, Any]]) -> Rows:
    return Rows(title="Findings", columns=["Probe", "Effect", "95% interval", "Verdict"], rows=list(map(_row, probes)))


def _row(probe: Mapping[str, Any]) -> list[Cell | str]:
    scale, verdict = scale_of(probe.get("unit") or ""), verdict_of(probe)
    size = f"{counted(probe.get('n') or 0, 'case')}, {counted(probe.get('clusters') or 0, 'cluster')}"
    return [
        Cell(probe.get("label") or probe["name"], [size, probe.get("note") or ""]),
        Cell(scale.number(probe.get("estimate")), [scale.words if probe.get("estimate") is not None else ""]),
        interval_words(probe) or "no interval",
        Cell(verdict_words(verdict), [reason_words(probe)], verdict),
    ]


def _curve(curve: Mapping[str, Any], name: str) -> Picture:
    series = ", ".join(each.get("label") or "" for each in curve["series"] if each.get("label"))
    words = f"{curve['title']}: {curve['y_label']} by {curve['x_label']}" + (f" ({series})" if series else "")
    return Picture(svg=inline_svg(curve_figure(curve, titled=False), name, words), caption=curve["title"])


def _points(curve: Mapping[str, Any]) -> Rows:
    """The numbers of a curve, for those who do not see it."""
    rows = []
    for series in curve["series"]:
        bounds = ([*series.get(key, ())] or [None] * len(series["x"]) for key in ("low", "high"))
        for x, y, low, high in zip(series["x"], series["y"], *bounds, strict=True):
            interval = "" if low is None or high is None else f"{_short(low)} to {_short(high)}"
            rows.append([series.get("label") or "", _short(x), _short(y), interval])
    columns = ["", curve["x_label"], curve["y_label"], "95% interval"]
    return Rows(title=f"{curve['title']}, in numbers", columns=columns, rows=rows, folded=True)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}".replace("-", MINUS)


def _example(example: Mapping[str, Any]) -> Texts:
    rewards = [
        (what, "reward not known" if reward is None else f"reward {reward:+.3f}".replace("-", MINUS), text)
        for what, text, reward in example["responses"]
    ]
    return Texts(title=example["title"], texts=[("Prompt", "", example["prompt"]), *rewards])


def _reading(unit: float | None) -> Section:
    known = "which is 0 or not known for this model, so such effects have no size"
    words = known if unit is None else f"which is {unit:.4g} in this model's own units"
    points = [
        Cell("Observational" if verdict == "observational" else verdict_words(verdict), [meaning], verdict)
        for verdict, meaning in _MEANINGS.items()
    ]
    return Section(name="reading", title="How to read this", points=points, text=[_READING.format(unit=words)])


def _details(report: Mapping[str, Any], draws: bool) -> Section:
    """All effects; settings, counts and fingerprint as names and values."""
    unit = report.get("unit")
    counts = {**(report.get("counts") or {}), "seconds": report.get("seconds")}
    settings = {**(report.get("settings") or {}), "typical margin in the model's own units": unit}
    named = {"Settings": settings, "Counts": counts, "Fingerprint": report.get("fingerprint") or {}}
    tables = [
        Rows(title=title, rows=[[name.replace("_", " "), _plain(value)] for name, value in values.items()])
        for title, values in named.items()
        if values
    ]
    pictures = _effects(report["probes"], report, "all", "All effects") if draws else []
    nothing = "" if pictures or not draws else "No effect could be estimated, so there is nothing to draw."
    return Section(name="details", title="Details", text=[nothing], pictures=pictures, tables=tables)


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
