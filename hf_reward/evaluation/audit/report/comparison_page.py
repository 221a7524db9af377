"""A comparison of two audits -> one HTML file in the style of an audit's page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_reward.evaluation.audit.report.figures import effects_figure
from hf_reward.evaluation.audit.report.wording import below, interval_words, scale_of, verdict_words
from hf_reward.evaluation.drawing import can_draw, inline_svg
from hf_reward.evaluation.page import Cell, Page, Picture, Rows, Section, as_json, render, write_files

_LEVEL = 0.05
DIFFERS, NO_DIFFERENCE, UNKNOWN = "Differs", "No difference shown", "Cannot be compared"
_COLUMNS = ("Probe", "a", "b", "a minus b", "95% interval", "")
_READING = (
    "Both audits edit the same answers to the same prompts, so differences are paired: a minus b, case by case. Lines "
    "are 95% intervals; they take into account that cases of one prompt are not independent. A probe differs if its "
    'p-value, corrected for all probes (Benjamini and Hochberg, 1995), is 5% or less. "No difference shown" does not '
    "prove that the models are the same. Whether the model with the larger number is better or worse follows from the "
    "verdicts of both."
)


def write_comparison(comparison: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write `comparison.json` and `comparison.html` into a folder; existing ones are replaced.

    Args:
        comparison: As in `render_comparison`.
        folder: Created if it is missing.

    Returns:
        The files.
    """
    contents = {"comparison.json": as_json(comparison), "comparison.html": render_comparison(comparison)}
    return write_files(folder, contents)


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Render a comparison of two audits. Without matplotlib it has no figure, and the log names the extra once.

    Args:
        comparison: `a` and `b` (names of the models), `probes` (each with `name`, `family`, `label`, `unit`, `a`, `b`,
            `difference`, `ci_low`, `ci_high`, `p_value`, `q_value`, `verdict_a`, `verdict_b` and `note`),
            `not_comparable` and `summary`.

    Returns:
        HTML without scripts that loads nothing; text from the data is escaped.
    """
    probes = comparison["probes"]
    families = dict.fromkeys(probe["family"] for probe in probes)
    statuses = [_status(probe) for probe in probes]
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
            tally={Cell(words): statuses.count(words) for words in (DIFFERS, NO_DIFFERENCE, UNKNOWN)},
            sections=[*sections, Section(name="reading", title="How to read this page", text=[_READING])],
        )
    )


def _pictures(probes: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Draw the differences of all probes; there is no limit for differences that matter."""
    if not can_draw():
        return []
    effects = [
        {**_as_effect(probe), "verdict": "differs" if _status(probe) == DIFFERS else "no_difference_shown"}
        for probe in probes
        if _status(probe) != UNKNOWN
    ]
    figures = [effects_figure(effects, {}, "a minus b,", narrow=narrow) for narrow in (False, True)]
    if figures[0] is None or figures[1] is None:
        return []
    count = sum(effect["verdict"] == "differs" for effect in effects)
    words = f"Differences with 95% intervals; {count} of them differ. All numbers are in the tables of the page."
    wide, narrow = inline_svg(figures[0], "differences", words), inline_svg(figures[1], "differences-narrow", words)
    return [Picture(svg=wide, narrow=narrow, caption="Differences with their 95% intervals")]


def _section(name: str, family: str, probes: Sequence[Mapping[str, Any]]) -> Section:
    """Section of a family: probes that differ first, then by size."""
    order = sorted(probes, key=lambda probe: (_status(probe) != DIFFERS, -abs(probe.get("difference") or 0.0)))
    table = Rows(title="a minus b", columns=_COLUMNS, rows=[_row(probe) for probe in order])
    return Section(name=name, title=family, tables=[table])


def _as_effect(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference in the form of a finding; shares differ by percentage points."""
    unit = probe.get("unit") or ""
    unit = "rate difference" if scale_of(unit).symbol == "%" else unit
    kept = {key: probe.get(key) for key in ("family", "label", "name", "ci_low", "ci_high")}
    return {"estimate": probe.get("difference"), "unit": unit, "delta": None, **kept}


def _status(probe: Mapping[str, Any]) -> str:
    q_value = probe.get("q_value")
    if q_value is None or probe.get("difference") is None:
        return UNKNOWN
    return DIFFERS if q_value <= _LEVEL else NO_DIFFERENCE


def _row(probe: Mapping[str, Any]) -> list[Cell | str]:
    scale, effect = scale_of(probe.get("unit") or ""), _as_effect(probe)
    change, status, difference = scale_of(effect["unit"]), _status(probe), probe.get("difference")
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
        Cell(
            status,
            [] if status == UNKNOWN else [f"corrected p {below(probe['q_value'])}"],
            "differs" if status == DIFFERS else "",
        ),
    ]


def _left_out(entry: Any) -> str:
    """Describe a probe without a comparison: a name, or a dict with `name` and `note`."""
    if not isinstance(entry, Mapping):
        return str(entry)
    reason = entry.get("note") or entry.get("reason") or ""
    name = str(entry.get("label") or entry.get("name") or "probe")
    return f"{name}: {reason}" if reason else name
