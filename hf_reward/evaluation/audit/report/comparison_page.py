"""Two audits compared -> one HTML file in the style of an audit's page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_reward.data.atomic_file import write_whole
from hf_reward.evaluation.audit.report.bars import Axis, Bar, axis_of
from hf_reward.evaluation.audit.report.page import environment
from hf_reward.evaluation.audit.report.wording import below, interval_words, scale_of, verdict_words

_LEVEL = 0.05
DIFFERS, ALIKE, UNKNOWN = "Differs", "No difference shown", "Cannot be compared"


@dataclass(frozen=True)
class Row:
    """One probe in both audits."""

    probe: Mapping[str, Any]
    sides: list[tuple[str, str, str, str]]
    """Model, number, verdict and its words, of both."""
    number: str
    unit: str
    interval: str
    bar: Bar | None
    differs: bool
    words: str
    reason: str


@dataclass(frozen=True)
class Group:
    """The probes of a family with the same unit, and their axis."""

    family: str
    unit: str
    ticks: list[tuple[float, str]]
    rows: list[Row]


def write_comparison(comparison: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write `comparison.json` and `comparison.html` into a folder; earlier ones there are replaced.

    Args:
        comparison: As in `render_comparison`.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.json": json.dumps(comparison, indent=2, ensure_ascii=False) + "\n",
        "comparison.html": render_comparison(comparison),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Render a comparison of two audits.

    Args:
        comparison: `a` and `b` (names of the models), `probes` (each with `name`, `family`, `label`, `unit`, `a`, `b`,
            `difference`, `ci_low`, `ci_high`, `p_value`, `q_value`, `verdict_a`, `verdict_b` and `note`),
            `not_comparable` and `summary`.

    Returns:
        HTML; whatever came from the data is escaped, nothing is loaded from anywhere and no program runs.
    """
    probes = comparison["probes"]
    keys = dict.fromkeys((probe["family"], probe.get("unit") or "") for probe in probes)
    members = {key: [probe for probe in probes if (probe["family"], probe.get("unit") or "") == key] for key in keys}
    groups = [_group(*key, rows, comparison) for key, rows in members.items()]
    found = [row for group in groups for row in group.rows]
    unlike = sum(row.differs for row in found)
    unknown = sum(row.words == UNKNOWN for row in found)
    return environment().get_template("comparison.html").render(
        comparison=comparison,
        groups=groups,
        tally=[(DIFFERS, unlike), (ALIKE, len(found) - unlike - unknown), (UNKNOWN, unknown)],
        left_out=[_left_out(each) for each in comparison.get("not_comparable") or []],
    )  # fmt: skip


def _group(family: str, unit: str, probes: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> Group:
    """The probes that differ come first, the largest difference above."""
    axis = axis_of([_as_effect(probe) for probe in probes])
    order = sorted(probes, key=lambda probe: (not _differs(probe), -abs(probe.get("difference") or 0.0)))
    rows = [_row(probe, axis, comparison) for probe in order]
    scale = scale_of(unit)
    ticks = axis.ticks(_signed(unit)) if any(row.bar for row in rows) else []
    return Group(family, f"{scale.symbol} {scale.words}".strip(), ticks, rows)


def _signed(unit: str) -> str:
    """The unit of a difference: shares differ by points."""
    return "rate difference" if scale_of(unit).symbol == "%" else unit


def _as_effect(probe: Mapping[str, Any]) -> dict[str, Any]:
    """The difference in the form of a finding, for its bar; nothing was called harmless for it."""
    unit = _signed(probe.get("unit") or "")
    interval = {"ci_low": probe.get("ci_low"), "ci_high": probe.get("ci_high")}
    return {"estimate": probe.get("difference"), "unit": unit, "delta": None, **interval}


def _differs(probe: Mapping[str, Any]) -> bool:
    q_value = probe.get("q_value")
    return q_value is not None and q_value <= _LEVEL


def _row(probe: Mapping[str, Any], axis: Axis, comparison: Mapping[str, Any]) -> Row:
    scale, effect = scale_of(probe.get("unit") or ""), _as_effect(probe)
    change = scale_of(effect["unit"])
    sides = [
        (str(comparison[side]), scale.number(probe.get(side)), verdict, verdict_words(verdict))
        for side, verdict in (
            ("a", probe.get("verdict_a") or "not_assessed"),
            ("b", probe.get("verdict_b") or "not_assessed"),
        )
    ]
    q_value, difference = probe.get("q_value"), probe.get("difference")
    words, reason = UNKNOWN, ""
    if q_value is not None and difference is not None:
        words, reason = DIFFERS if _differs(probe) else ALIKE, f"q {below(q_value)}"
    return Row(
        probe=probe,
        sides=sides,
        number=_plus(change.number(difference), difference),
        unit=change.words if difference is not None else "",
        interval=interval_words(effect),
        bar=axis.bar(effect),
        differs=_differs(probe),
        words=words,
        reason=reason,
    )


def _plus(text: str, value: float | None) -> str:
    """A difference with its sign, whatever its unit."""
    return f"+{text}" if value is not None and value > 0 and text[0].isdigit() else text


def _left_out(entry: Any) -> str:
    """A probe that one of the audits lacks, as text: a name, or a dict with `name` and `note`."""
    if not isinstance(entry, Mapping):
        return str(entry)
    reason = entry.get("note") or entry.get("reason") or ""
    name = str(entry.get("label") or entry.get("name") or "probe")
    return f"{name}: {reason}" if reason else name
