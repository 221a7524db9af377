"""Write the files of an audit, and read them."""

import json
import re
from collections.abc import Mapping, Sequence
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
INPUTS_NAME = "inputs.json"
"""Data and options with which the audit can be repeated. It names local folders, so reports do not include it."""
_PREFIX = "audit_"
_PARTS = {
    "model": str, "data": str, "summary": str, "probes": list, "families": dict, "settings": dict, "counts": dict,
    "fingerprint": dict,
}  # fmt: skip
"""Keys of an audit's JSON and their types."""


def write_audit(report: AuditReport | Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write an audit into a folder: `audit.json`, `audit.html`, `audit_summary.json` for the model card, and figures.

    An existing audit and its figures (`figures/audit_*`) are replaced; others stay. Equal reports give equal files.

    Args:
        report: The audit, or its `to_dict()`.
        folder: Created if it is missing.

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
    """Return the part of an audit that the model card shows.

    Args:
        report: The audit as JSON.

    Returns:
        `model`, `data`, `unit`, `summary` and `probes`.
    """
    return {name: report.get(name) for name in ("model", "data", "unit", "summary", "probes")}


def read_audit(folder: str | Path) -> dict[str, Any]:
    """Read an audit that `write_audit` wrote.

    Args:
        folder: The folder, or its `audit.json`.

    Returns:
        `AuditReport.to_dict()` of that audit.

    Raises:
        FileNotFoundError: If there is no audit.
        ValueError: If the file is damaged or no audit.
    """
    path = Path(folder)
    path = path / JSON_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Name the folder that `hf-reward audit` wrote, or its `{JSON_NAME}`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: invalid JSON ({error}). Run the audit again.") from error
    wrong = _wrong_parts(content)
    if wrong:
        raise ValueError(
            f"{path} is not an audit: {wrong}. Name a file `{JSON_NAME}` that `hf-reward audit` wrote; "
            f"`{SUMMARY_NAME}` is only a summary."
        )
    return content


def write_inputs(folder: str | Path, data: str, probe_data: Sequence[str], **options: Mapping[str, Any]) -> Path:
    """Write the inputs of an audit, so that another model can be audited in the same way.

    Args:
        folder: The audit's folder.
        data: File, folder or Hub id of the held-out data; an existing path is stored as an absolute path.
        probe_data: Files of further probes.
        **options: `reading` for the data and `loading` for the model.

    Returns:
        The file.
    """
    content = {"data": _absolute(data), "probe_data": [_absolute(path) for path in probe_data], **options}
    return write_files(Path(folder), {INPUTS_NAME: as_json(json_value(content))})[0]


def read_inputs(folder: str | Path) -> dict[str, Any]:
    """Read the inputs of an audit.

    Args:
        folder: The audit's folder.

    Returns:
        `data`, `probe_data`, `reading` and `loading`; empty if the audit was run from Python or by an older version.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(folder) / INPUTS_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in ("data", "probe_data", "reading", "loading")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). Run the audit again.") from error


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).exists() else name


def _wrong_parts(content: Any) -> str:
    """Describe the first thing that is wrong with an audit's JSON; empty for a valid audit."""
    if not isinstance(content, dict):
        return f"it is a JSON {type(content).__name__}, not an object"
    wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        return "missing or of the wrong type: " + ", ".join(f"`{name}`" for name in wrong)
    needed = {"name", "family", "label", "estimate", "unit", "verdict"}
    for place, probe in enumerate(content["probes"]):
        if not isinstance(probe, dict) or not needed <= set(probe):
            return f"entry {place} of `probes` is not a finding"
    broken = [name for name, family in content["families"].items() if not isinstance(family, dict)]
    return f"family `{broken[0]}` is not an object" if broken else ""


def _figure_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures as SVG and PNG, by name within the folder: headlines, all effects and each curve."""
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
    """Return the name, with a number if another curve has it."""
    names = [stem, *[f"{stem}_{number}" for number in range(2, len(taken) + 3)]]
    return next(name for name in names if name not in taken)


def file_stem(*names: str) -> str:
    """Return the stem of a file name: lower-case letters, digits and `_`."""
    return "_".join(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "unnamed" for name in names)
