"""An audit -> its files, and back."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_reward.data.python_values import json_value
from hf_reward.evaluation.audit.family import AuditReport
from hf_reward.evaluation.audit.report.curves import curve_figure
from hf_reward.evaluation.audit.report.evidence import write_evidence
from hf_reward.evaluation.audit.report.figures import effects_figure, headlines
from hf_reward.evaluation.audit.report.page import family_titles, render_page
from hf_reward.evaluation.drawing import as_png, as_svg, can_draw
from hf_reward.evaluation.page import as_json, write_files

JSON_NAME, PAGE_NAME, SUMMARY_NAME, FIGURES = "audit.json", "audit.html", "audit_summary.json", "figures"
_PREFIX = "audit_"
_PARTS = {
    "model": str, "data": str, "summary": str, "probes": list, "families": dict, "settings": dict, "counts": dict,
    "fingerprint": dict,
}  # fmt: skip
"""What tells an audit from other JSON."""


def write_audit(report: AuditReport | Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write an audit into a folder: `audit.json`, `audit.html`, `audit_summary.json` for the model card, and figures.

    An earlier audit there is replaced, with its figures (`figures/audit_*`); everything else stays. The same report
    gives the same bytes.

    Args:
        report: What was found, or its `to_dict()`.
        folder: Made if it is not there.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    content = json_value(report.to_dict() if isinstance(report, AuditReport) else report)
    folder = Path(folder)
    files = {
        **_figure_files(content),
        PAGE_NAME: render_page(content),
        SUMMARY_NAME: as_json(card_summary(content)),
        JSON_NAME: as_json(content),
    }
    written = write_files(folder, files)
    if isinstance(report, AuditReport) and report.evidence:
        written.append(write_evidence(report.evidence, folder))
    for path in (folder / FIGURES).glob(f"{_PREFIX}*"):
        if path not in written and path.suffix in (".svg", ".png"):
            path.unlink()
    return written


def card_summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the model card needs of an audit.

    Args:
        report: The audit as JSON.

    Returns:
        `model`, `data`, `unit`, `summary` and `probes`.
    """
    return {name: report.get(name) for name in ("model", "data", "unit", "summary", "probes")}


def read_audit(folder: str | Path) -> dict[str, Any]:
    """Read what `write_audit` wrote.

    Args:
        folder: The folder, or its `audit.json`.

    Returns:
        `AuditReport.to_dict()` of that audit.

    Raises:
        FileNotFoundError: If there is no audit.
        ValueError: If the file is damaged, or holds something else.
    """
    path = Path(folder)
    path = path / JSON_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Name the folder that `hf-reward audit` wrote to, or its `{JSON_NAME}`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}). Run the audit again.") from error
    wrong = _wrong_parts(content)
    if wrong:
        raise ValueError(
            f"{path} is no audit: {wrong}. Name a file `{JSON_NAME}` that `hf-reward audit` wrote; "
            f"`{SUMMARY_NAME}` holds too little."
        )
    return content


def _wrong_parts(content: Any) -> str:
    """What an audit has and this has not, empty if nothing is missing."""
    if not isinstance(content, dict):
        return f"it holds a JSON {type(content).__name__} and not an object"
    wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        return "it lacks " + ", ".join(f"`{name}`" for name in wrong)
    needed = {"name", "family", "label", "estimate", "unit", "verdict"}
    for place, probe in enumerate(content["probes"]):
        if not isinstance(probe, dict) or not needed <= set(probe):
            return f"entry {place} of its `probes` is no finding"
    broken = [name for name, family in content["families"].items() if not isinstance(family, dict)]
    return f"family `{broken[0]}` is no object" if broken else ""


def _figure_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Name within the folder -> content: headlines, all effects and each curve, as SVG and as PNG."""
    if not can_draw():
        return {}
    titles, probes = family_titles(report), report["probes"]
    figures = {"headlines": effects_figure(headlines(probes), titles), "effects": effects_figure(probes, titles)}
    for family, content in report["families"].items():
        for curve in content.get("curves") or []:
            figures[_free(file_stem(family, curve["name"]), figures)] = curve_figure(curve)
    files: dict[str, bytes] = {}
    for stem, figure in figures.items():
        if figure is not None:
            files[f"{FIGURES}/{_PREFIX}{stem}.svg"] = as_svg(figure, stem.replace("_", "-")).encode()
            files[f"{FIGURES}/{_PREFIX}{stem}.png"] = as_png(figure)
    return files


def _free(stem: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number where another curve has it."""
    names = [stem, *[f"{stem}_{number}" for number in range(2, len(taken) + 3)]]
    return next(name for name in names if name not in taken)


def file_stem(*names: str) -> str:
    """Names as the beginning of a file name: small letters, digits and `_`."""
    return "_".join(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "unnamed" for name in names)
