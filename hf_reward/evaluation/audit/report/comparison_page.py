"""Two audits compared -> one HTML file in the style of an audit's page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_reward.evaluation.audit.report.figures import effects_figure
from hf_reward.evaluation.audit.report.wording import below, interval_words, scale_of, verdict_words
from hf_reward.evaluation.drawing import can_draw, inline_svg
from hf_reward.evaluation.page import Cell, Page, Picture, Rows, Section, as_json, render, write_files

_LEVEL = 0.05
DIFFERS, SAME, UNKNOWN = "Differs", "No difference shown", "Cannot be compared"
_COLUMNS = ("Probe", "a", "b", "a minus b", "95% interval", "")
_READING = (
    "Both audits edit the same answers to the same prompts, so each difference is one of pairs: a minus b, case by "
    "case. The line is its 95% interval, found by resampling whole clusters (prompts or questions). A difference is "
    "told when its q-value, the p-value corrected for all probes that are compared (Benjamini and Hochberg, 1995), is "
    '5% or less. "No difference shown" is no proof that both are alike; and a model that differs from the other may be '
    "the better or the worse one: look at the verdicts of both."
)


def write_comparison(comparison: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write `comparison.json` and `comparison.html` into a folder; earlier ones there are replaced.

    Args:
        comparison: As in `render_comparison`.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    contents = {"comparison.json": as_json(comparison), "comparison.html": render_comparison(comparison)}
    return write_files(folder, contents)


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Render a comparison of two audits. Without matplotlib it has no figure, and a line of the log names the extra.

    Args:
        comparison: `a` and `b` (names of the models), `probes` (each with `name`, `family`, `label`, `unit`, `a`, `b`,
            `difference`, `ci_low`, `ci_high`, `p_value`, `q_value`, `verdict_a`, `verdict_b` and `note`),
            `not_comparable` and `summary`.

    Returns:
        HTML; whatever came from the data is escaped, nothing is loaded from anywhere and no program runs.
    """
    probes = comparison["probes"]
    families = dict.fromkeys(probe["family"] for probe in probes)
    told = [_status(probe) for probe in probes]
    left_out = [[_left_out(each)] for each in comparison.get("not_comparable") or []]
    sections = [
        _section(f"family-{place}", family, [probe for probe in probes if probe["family"] == family])
        for place, family in enumerate(families, start=1)
    ]
    if left_out:
        sections.append(
            Section(name="left-out", title="Not compared", tables=[Rows(title="Not compared", rows=left_out)])
        )
    return render(
        Page(
            title=f"Audits compared: {comparison['a']} and {comparison['b']}",
            kicker="Bias audits",
            heading="Two reward models compared",
            about=[f"{side}: {comparison[side]}" for side in "ab"],
            lead=comparison["summary"],
            pictures=_pictures(probes),
            tally={Cell(words): told.count(words) for words in (DIFFERS, SAME, UNKNOWN)},
            sections=[*sections, Section(name="reading", title="How to read this", text=[_READING])],
        )
    )


def _pictures(probes: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """The differences of all probes; nothing was called harmless for them."""
    if not can_draw():
        return []
    effects = [
        {**_as_effect(probe), "verdict": "differs" if _status(probe) == DIFFERS else "no_difference_shown"}
        for probe in probes
        if _status(probe) != UNKNOWN
    ]
    figure = effects_figure(effects, {}, "a minus b,")
    if figure is None:
        return []
    count = sum(effect["verdict"] == "differs" for effect in effects)
    words = f"Differences with 95% intervals, of which {count} are told. All numbers are in the tables of the page."
    return [Picture(svg=inline_svg(figure, "differences", words), caption="Differences with their 95% intervals")]


def _section(name: str, family: str, probes: Sequence[Mapping[str, Any]]) -> Section:
    """The probes that differ come first, the largest difference above."""
    order = sorted(probes, key=lambda probe: (_status(probe) != DIFFERS, -abs(probe.get("difference") or 0.0)))
    table = Rows(title="a minus b", columns=_COLUMNS, rows=[_row(probe) for probe in order])
    return Section(name=name, title=family, tables=[table])


def _as_effect(probe: Mapping[str, Any]) -> dict[str, Any]:
    """The difference in the form of a finding: shares differ by points."""
    unit = probe.get("unit") or ""
    unit = "rate difference" if scale_of(unit).symbol == "%" else unit
    kept = {key: probe.get(key) for key in ("family", "label", "name", "ci_low", "ci_high")}
    return {"estimate": probe.get("difference"), "unit": unit, "delta": None, **kept}


def _status(probe: Mapping[str, Any]) -> str:
    q_value = probe.get("q_value")
    if q_value is None or probe.get("difference") is None:
        return UNKNOWN
    return DIFFERS if q_value <= _LEVEL else SAME


def _row(probe: Mapping[str, Any]) -> list[Cell | str]:
    scale, effect = scale_of(probe.get("unit") or ""), _as_effect(probe)
    change, told, difference = scale_of(effect["unit"]), _status(probe), probe.get("difference")
    sides = [
        Cell(scale.number(probe.get(side)), [verdict_words(verdict)], verdict)
        for side in "ab"
        for verdict in [probe.get(f"verdict_{side}") or "not_assessed"]
    ]
    number = change.number(difference)
    return [
        Cell(probe.get("label") or probe["name"], [probe.get("note") or ""]),
        *sides,
        Cell(
            f"+{number}" if (difference or 0) > 0 and number[0].isdigit() else number,
            [change.words if difference is not None else ""],
        ),
        interval_words(effect) or "no interval",
        Cell(told, [] if told == UNKNOWN else [f"q {below(probe['q_value'])}"], "differs" if told == DIFFERS else ""),
    ]


def _left_out(entry: Any) -> str:
    """A probe that one of the audits lacks, as text: a name, or a dict with `name` and `note`."""
    if not isinstance(entry, Mapping):
        return str(entry)
    reason = entry.get("note") or entry.get("reason") or ""
    name = str(entry.get("label") or entry.get("name") or "probe")
    return f"{name}: {reason}" if reason else name
