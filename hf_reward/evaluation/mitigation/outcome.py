"""Audits before and after a mitigation -> the change of each bias and of the accuracy, with paired intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.comparing import compare_audits
from hf_reward.evaluation.audit.report.files import read_audit
from hf_reward.evaluation.audit.report.wording import verdict_of
from hf_reward.metrics.counts import counted

ACCURACIES = ("length_balanced_accuracy", "accuracy")
"""Findings that show the cost of a mitigation."""
OUTCOMES = {
    "removed": "Equivalent",
    "halved": "At least halved",
    "reduced": "Reduced by less than half",
    "unchanged": "No change shown",
    "increased": "Increased",
    "new": "New bias",
    "unknown": "No paired interval",
}
"""Outcome of a probe -> its name for readers, the best first."""


def compare_outcomes(before: str | Path, after: str | Path, second: tuple[Path, Path] | None = None) -> dict[str, Any]:
    """Compare the audits before and after a mitigation.

    Args:
        before: Folder of the audit of the original model.
        after: Folder of the audit of the trained model on the same data.
        second: Folders of both audits on data of another domain.

    Returns:
        JSON values: `probes` (each that is biased in one of the audits, with `before`, `after`, `change`, `ci_low`,
        `ci_high`, `verdict_before`, `verdict_after` and `outcome`, a key of `OUTCOMES`), `accuracies` (the same fields
        with `data` instead of verdicts), `counts` (outcome -> probes), `typical_margins` (before and after, in reward
        units) and a `summary`.

    Raises:
        ValueError: If the audits have no probe with the same cases.
    """
    probes = [_entry(*each) for each in _compared(before, after) if "biased" in map(verdict_of, each[:2])]
    accuracies = _accuracies(before, after)
    if second is not None:
        accuracies += _accuracies(*second)
    counts = {name: sum(each["outcome"] == name for each in probes) for name in OUTCOMES}
    counts = {name: count for name, count in counts.items() if count}
    margins = [read_audit(folder)["unit"] for folder in (before, after)]
    found = {"probes": probes, "accuracies": accuracies, "counts": counts, "typical_margins": margins}
    return json_value({**found, "summary": _summary(probes, counts, margins)})


_Probe = Mapping[str, Any]


def _compared(before: str | Path, after: str | Path) -> list[tuple[_Probe, _Probe, _Probe]]:
    """Return each finding before and after, and its paired change (empty if it has none)."""
    changes = {each["name"]: each for each in compare_audits(after, before)["probes"]}
    later = {probe["name"]: probe for probe in read_audit(after)["probes"]}
    return [
        (probe, later[probe["name"]], changes.get(probe["name"], {}))
        for probe in read_audit(before)["probes"]
        if probe["name"] in later
    ]


def _entry(before: _Probe, after: _Probe, change: _Probe) -> dict[str, Any]:
    entry = _change(before, after, change)
    entry |= {"verdict_before": verdict_of(before), "verdict_after": verdict_of(after)}
    return {**entry, "outcome": outcome_of(entry), "note": change.get("note", "")}


def _change(before: _Probe, after: _Probe, change: _Probe) -> dict[str, Any]:
    entry = {key: before[key] for key in ("name", "family", "label", "unit")}
    entry |= {"before": before["estimate"], "after": after["estimate"], "change": change.get("difference")}
    return entry | {key: change.get(key) for key in ("ci_low", "ci_high")} | {"n": before["n"]}


def outcome_of(entry: Mapping[str, Any]) -> str:
    """Classify the change of a probe.

    Args:
        entry: `before`, `after`, the interval of the change `ci_low` and `ci_high`, and both verdicts.

    Returns:
        `removed` if it is now equivalent; else `halved`, `reduced` or `increased` only if the interval excludes 0;
        `new` if it was not biased before. See `OUTCOMES`.
    """
    if entry["verdict_before"] != "biased":
        return "new"
    if entry["verdict_after"] == "equivalent":
        return "removed"
    before, after, low, high = (entry[key] for key in ("before", "after", "ci_low", "ci_high"))
    if low is None or high is None or after is None:
        return "unknown"
    smaller, larger = (high < 0, low > 0) if before > 0 else (low > 0, high < 0)
    if smaller:
        return "halved" if abs(after) <= abs(before) / 2 else "reduced"
    return "increased" if larger else "unchanged"


def _accuracies(before: str | Path, after: str | Path) -> list[dict[str, Any]]:
    data = read_audit(before)["data"]
    found = {each[0]["name"]: _change(*each) for each in _compared(before, after)}
    return [{**found[name], "data": data} for name in ACCURACIES if name in found]


def _summary(probes: Sequence[Mapping[str, Any]], counts: Mapping[str, int], margins: Sequence[float | None]) -> str:
    biased = sum(each["verdict_before"] == "biased" for each in probes)
    parts = [
        f"{count} {OUTCOMES[name][0].lower()}{OUTCOMES[name][1:]}" for name, count in counts.items() if name != "new"
    ]
    new = [each["label"] for each in probes if each["outcome"] == "new"]
    words = f"Of {counted(biased, 'biased probe')}: {', '.join(parts)}."
    words += f" New biases: {', '.join(new)}." if new else " No new bias."
    known = [margin for margin in margins if margin is not None]
    if len(known) < len(margins):
        return words
    return f"{words} Typical margin: {known[0]:.3g} before, {known[1]:.3g} after, in reward units."
