"""Compare two audits on the same cases with paired intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from hf_reward.data.path_safety import shown_name
from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.inference import PAIRS, Evidence, Inference
from hf_reward.evaluation.audit.report.evidence import read_evidence
from hf_reward.evaluation.audit.report.files import read_audit
from hf_reward.evaluation.audit.report.wording import scale_of
from hf_reward.evaluation.audit.samples import Sample, interval, p_value, with_units
from hf_reward.metrics.bootstrap import Bootstrap, Unit, median_margin
from hf_reward.metrics.intervals import FEW_CLUSTERS

_CONTRAST = "The difference and its interval are of the gains over the plain answer."
"""Note if the smaller of two gains is another one in each audit."""


def compare_audits(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Compare two audits probe by probe: the estimate of A minus that of B.

    Both audits use the same cases, so their clusters and units are resampled together.

    Args:
        a: Folder of one audit.
        b: Folder of the other.

    Returns:
        JSON values: `a`, `b`, `probes` (with `a`, `b`, `difference`, `ci_low`, `ci_high`, `p_value`, `q_value` and both
        verdicts), `not_comparable` and a `summary`.

    Raises:
        ValueError: If a folder has no audit, or no probe has the same cases in both.
    """
    reports = read_audit(a), read_audit(b)
    evidence = read_evidence(a), read_evidence(b)
    settings = reports[0]["settings"]
    bootstrap = Bootstrap(settings["resamples"], settings["seed"])
    units = _unit(bootstrap, evidence[0]), _unit(bootstrap, evidence[1])
    probes, not_comparable = [], []
    others = {probe["name"]: probe for probe in reports[1]["probes"]}
    for probe in reports[0]["probes"]:
        other = others.get(probe["name"])
        found = _of_one_contrast(evidence[0].get(probe["name"]), evidence[1].get(probe["name"]))
        reason = _problem(probe, other, *found)
        if reason or other is None or found[0] is None or found[1] is None:
            if probe["estimate"] is not None:
                not_comparable.append({"name": probe["name"], "label": probe["label"], "reason": reason})
            continue
        row = _row(probe, other, paired_difference(bootstrap, found[0], found[1], units))
        if found[0] is not evidence[0][probe["name"]] or found[1] is not evidence[1][probe["name"]]:
            row["note"] = f"{_CONTRAST} {row['note']}".strip()
        probes.append(row)
    if not probes:
        raise ValueError(
            f"The audits {a} and {b} have no probe with the same cases. Audit both models on the same data."
        )
    _correct(probes)
    names = {side: shown_name(report["model"]) for side, report in zip("ab", reports, strict=True)}
    summary = _summary(names["a"], names["b"], probes)
    data = [Path(str(report["data"])).name for report in reports]
    if data[0] != data[1]:
        summary += f" The audits name different data ({data[0]} and {data[1]}); check that the prompts are the same."
    return json_value({**names, "probes": probes, "not_comparable": not_comparable, "summary": summary})


def _of_one_contrast(a: Evidence | None, b: Evidence | None) -> tuple[Evidence | None, Evidence | None]:
    """Return both values with the contrast over the plain answer if the audits use different contrasts."""
    return (a, b) if a is None or b is None or a.part == b.part else (a.over_plain, b.over_plain)


def _unit(bootstrap: Bootstrap, evidence: Mapping[str, Evidence]) -> Unit | None:
    pairs = evidence.get(PAIRS)
    return None if pairs is None else median_margin(bootstrap, pairs.values, pairs.clusters)


def _problem(probe: Mapping[str, Any], other: Mapping[str, Any] | None, a: Evidence | None, b: Evidence | None) -> str:
    if other is None:
        return "only the first audit has it"
    if probe["estimate"] is None or other["estimate"] is None:
        return "one of the audits has no estimate"
    if a is None or b is None:
        return "it is not a mean over cases"
    if a.part != b.part:
        return "the audits use different contrasts"
    return "" if a.clusters == b.clusters else "the audits have different cases"


def paired_difference(
    bootstrap: Bootstrap, a: Evidence, b: Evidence, units: tuple[Unit | None, Unit | None]
) -> Sample | None:
    """Return the paired difference of two estimates over the same cases.

    Args:
        bootstrap: The resamples.
        a: Values behind the first estimate.
        b: Values behind the second.
        units: Unit of effects in each audit.

    Returns:
        The difference; None for effects if one of the audits has no unit.
    """
    inference = Inference(bootstrap, None)
    if not a.in_margins:
        return inference.sample(a.values - b.values, a.clusters, kind="difference")
    if units[0] is None or units[1] is None:
        return None
    first, second = (each.values / unit.value for each, unit in zip((a, b), (units[0], units[1]), strict=True))
    shares = [
        effect.mean() * unit.draws / unit.value
        for effect, unit in zip((first, second), (units[0], units[1]), strict=True)
    ]
    return with_units(inference.sample(first - second, a.clusters), shares[0] - shares[1])


def _row(probe: Mapping[str, Any], other: Mapping[str, Any], found: Sample | None) -> dict[str, Any]:
    row = {key: probe[key] for key in ("name", "family", "label", "unit")}
    row |= {"a": probe["estimate"], "b": other["estimate"], "screen_only": probe["screen_only"]}
    row |= {"verdict_a": probe["verdict"], "verdict_b": other["verdict"]}
    if found is None:
        return row | {"difference": None, "ci_low": None, "ci_high": None, "p_value": None, "q_value": None, "note": ""}
    low, high = interval(found, 0.95)
    note = "Too few prompts for a reliable interval." if found.clusters < FEW_CLUSTERS else ""
    tail = p_value(found, 0.0, above=False)
    numbers = {"difference": found.mean, "ci_low": low, "ci_high": high, "p_value": tail, "q_value": None}
    return row | numbers | {"note": note}


def _correct(probes: list[dict[str, Any]]) -> None:
    tested = [probe for probe in probes if probe["p_value"] is not None]
    if tested:
        q_values = stats.false_discovery_control([probe["p_value"] for probe in tested])
        for probe, q_value in zip(tested, q_values, strict=True):
            probe["q_value"] = float(q_value)


def _compared(probe: dict[str, Any]) -> str:
    scale = scale_of(probe["unit"])
    return f"{probe['label']} ({scale.number(probe['a'])} compared with {scale.number(probe['b'])} {scale.words})"


def _summary(a: str, b: str, probes: list[dict[str, Any]]) -> str:
    differ = [each for each in probes if each["q_value"] is not None and each["q_value"] <= 0.05]
    if not differ:
        return f"No probe shows a difference between {a} and {b} (p-values corrected for {len(probes)} probes)."
    largest = sorted(differ, key=lambda each: each["q_value"])[:3]
    named = "; ".join(_compared(each) for each in largest)
    return f"{len(differ)} of {len(probes)} probes differ between {a} and {b} after correction, most clearly: {named}."
