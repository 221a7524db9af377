"""An audit as JSON -> one HTML file without external resources."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_reward.evaluation.audit.report.curves import curve_figure
from hf_reward.evaluation.audit.report.figures import effects_figure, headlines
from hf_reward.evaluation.audit.report.summary import largest_biases, opening
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
"""Rows beyond which a table is folded."""
_SHORT_MEANINGS = {
    "biased": "large enough to matter, and not chance",
    "inconclusive": "more prompts are needed",
    "equivalent": "shown to be too small to matter",
    "not_assessed": "the data had no case for it",
    "observational": "checks without a verdict",
}
_MEANINGS = {
    "biased": "the effect exceeds the limit that was fixed before the audit, and chance does not explain it.",
    "equivalent": "the effect lies within the limit. This does not cover effects that were not probed.",
    "inconclusive": "neither was shown, so a bias remains possible. The row states how large an effect this audit "
    "detects with a probability of 80%.",
    "not_assessed": "the data or the model had no case for the probe.",
    "observational": "these checks compare answers that differ in more than one way, so they have no verdict.",
}
_READING = (
    "Effects on rewards are in typical margins: 1 is the median difference between the rewards of the preferred and "
    "the other response of the evaluation pairs, {unit}. The grey band in each figure is the range of effects that "
    "are too small to matter. Lines are 95% intervals; they take into account that responses to one prompt are not "
    "independent. The p-values of all probes are corrected together (Benjamini and Hochberg, 1995), so about one in "
    "twenty reported biases may be a false alarm."
)


def render_page(report: Mapping[str, Any]) -> str:
    """Render an audit as HTML. Without matplotlib the page has no figures, and the log names the extra once.

    Args:
        report: `AuditReport.to_dict()`, or the result of `read_audit`.

    Returns:
        HTML without scripts that loads nothing; text from the data is escaped.
    """
    draws, titles = can_draw(), family_titles(report)
    return render(
        Page(
            title=f"Bias audit: {report['model']}",
            kicker="Bias audit of a reward model",
            heading=report["model"],
            about=[_data_words(report)],
            tally={_verdict_cell(verdict): count for verdict, count in _tally(report["probes"], every=True)},
            lead=opening(report, titles),
            advice=_first_advice(report),
            pictures=_headlines(report) if draws else [],
            sections=[
                *(_section(name, report, draws) for name in titles),
                _reading(report.get("unit")),
                _details(report, draws),
            ],
        )
    )


def _data_words(report: Mapping[str, Any]) -> str:
    """Data, sizes and accuracy."""
    known = [name for name in ("pairs", "prompts", "texts") if name in report["counts"]]
    counts = ", ".join(f"{report['counts'][name]:,} {name}" for name in known)
    words = f"Data: {report['data']}" + (f"; {counts}" if counts else "")
    accuracy = next((probe for probe in report["probes"] if probe["name"] == "accuracy"), None)
    if accuracy is None or accuracy.get("estimate") is None:
        return f"{words}."
    interval = interval_words(accuracy)
    number = scale_of("rate").number(accuracy["estimate"])
    return f"{words}. Accuracy: {number}" + (f" (95% interval {interval})." if interval else ".")


def _first_advice(report: Mapping[str, Any]) -> list[Advice]:
    """The advice for the family with the largest bias, or on more prompts if there is none."""
    biased = largest_biases(report["probes"])
    if biased:
        text = report["families"].get(biased[0]["family"], {}).get("advice")
        return [Advice(title="What to do first", text=text, urgent=True)] if text else []
    if not any(verdict_of(probe) == "inconclusive" for probe in report["probes"]):
        return []
    return [Advice(title="What to do", text="Repeat the audit with more held-out prompts to settle the open probes.")]


def family_titles(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the title of each family, followed by families that only a finding names."""
    titles = {name: family.get("title") or name for name, family in report["families"].items()}
    return titles | {probe["family"]: probe["family"] for probe in report["probes"] if probe["family"] not in titles}


def _badge(verdict: str, observational: str = "Observational") -> Cell:
    return Cell(observational if verdict == "observational" else verdict_words(verdict), verdict=verdict)


def _verdict_cell(verdict: str) -> Cell:
    return replace(_badge(verdict), small=(_SHORT_MEANINGS[verdict],))


def _tally(probes: Sequence[Mapping[str, Any]], *, every: bool = False) -> list[tuple[str, int]]:
    """Count the findings of each verdict; with `every`, verdicts without findings are listed too."""
    found = Counter(map(verdict_of, probes))
    listed = [*VERDICT_WORDS, "observational"]
    return [(verdict, found[verdict]) for verdict in listed if found[verdict] or (every and verdict in VERDICT_WORDS)]


def _headlines(report: Mapping[str, Any]) -> list[Picture]:
    shown = headlines(report["probes"])
    drawable = sum(verdict_of(probe) != "observational" for probe in report["probes"])
    caption = (
        f"{len(shown)} of {drawable} effects with 95% intervals: the largest biases of each group, or its main effect."
    )
    return [replace(each, more="all-effects") for each in _effects(shown, report, "short", caption)]


def _effects(probes: Sequence[Mapping[str, Any]], report: Mapping[str, Any], name: str, caption: str) -> list[Picture]:
    figures = [effects_figure(probes, family_titles(report), narrow=narrow) for narrow in (False, True)]
    if figures[0] is None or figures[1] is None:
        return []
    biased = [probe["label"] for probe in probes if verdict_of(probe) == "biased"]
    words = f"Effects with 95% intervals and the range that is too small to matter. {len(biased)} biased"
    words += f": {'; '.join(biased[:8])}." if biased else "."
    words += " All numbers are in the tables of the page."
    wide, narrow = inline_svg(figures[0], name, words), inline_svg(figures[1], f"{name}-narrow", words)
    return [Picture(svg=wide, narrow=narrow, caption=caption, name=f"{name}-effects")]


def _section(name: str, report: Mapping[str, Any], draws: bool) -> Section:
    probes = [probe for probe in report["probes"] if probe["family"] == name]
    blank = {"title": name, "what": "", "advice": "", "not_assessed": "", "left_out": 0}
    family = {**blank, "examples": [], "tables": [], "curves": [], "details": {}, **report["families"].get(name, {})}
    place, verdict = list(family_titles(report)).index(name) + 1, worst(probes)
    biased = verdict == "biased"
    missing = f"Not assessed. {family['not_assessed']}" if family["not_assessed"] else ""
    title = "What to do" if biased else "What to do if this matters to you"
    return Section(
        name=f"family-{place}",
        title=family["title"],
        verdict=_badge(verdict, "Observational only"),
        text=[family["what"], _tally_words(probes, family["left_out"]), missing, family["details"].get("reading", "")],
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
    """Count the findings of each verdict and the cases without a reward."""
    found = ", ".join(f"{count} {_badge(verdict).text.lower()}" for verdict, count in _tally(probes))
    lost = f"{counted(left_out, 'case')} left out because a text could not be scored" if left_out else ""
    return "; ".join(part for part in (found, lost) if part)


def _findings(probes: Sequence[Mapping[str, Any]]) -> Rows:
    return Rows(title="Findings", columns=["Probe", "Effect", "95% interval", "Verdict"], rows=list(map(_row, probes)))


def _row(probe: Mapping[str, Any]) -> list[Cell | str]:
    scale, verdict = scale_of(probe.get("unit") or ""), verdict_of(probe)
    size = f"{counted(probe.get('n') or 0, 'case')} from {counted(probe.get('clusters') or 0, 'prompt')}"
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
    """The numbers of a curve as a table, for readers who cannot see it."""
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
        (what, "no reward" if reward is None else f"reward {reward:+.3f}".replace("-", MINUS), text)
        for what, text, reward in example["responses"]
    ]
    return Texts(title=example["title"], texts=[("Prompt", "", example["prompt"]), *rewards])


def _reading(unit: float | None) -> Section:
    known = "which is 0 or unknown for this model, so these effects have no size"
    words = known if unit is None else f"which is {unit:.4g} in this model's own units"
    points = [replace(_badge(verdict), small=(meaning,)) for verdict, meaning in _MEANINGS.items()]
    return Section(name="reading", title="How to read this page", points=points, text=[_READING.format(unit=words)])


def _details(report: Mapping[str, Any], draws: bool) -> Section:
    """Picture of all effects, and tables of settings, counts and fingerprint."""
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
    """Format a JSON value for readers."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
