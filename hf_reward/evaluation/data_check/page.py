"""A report -> its files, among them one HTML page that loads nothing."""

import json
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from hf_reward.data.atomic_file import write_whole
from hf_reward.evaluation.data_check.report import DataReport
from hf_reward.evaluation.data_check.report_text import sections


def render_page(report: DataReport) -> str:
    """Render the report.

    Args:
        report: What was found.

    Returns:
        HTML; whatever came from the data is escaped, and nothing is loaded from anywhere.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    template = files("hf_reward.evaluation.data_check").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(report=report, sections=sections(report))


def _code(text: str) -> Markup:
    """Set what stands between backticks as code; everything is escaped."""
    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick without its other
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


JSON_NAME, PAGE_NAME = "data_report.json", "data_report.html"


def write_report(report: DataReport, folder: str | Path) -> list[Path]:
    """Write `data_report.json` and `data_report.html` into a folder; earlier reports there are replaced.

    Args:
        report: What was found.
        folder: Made if it is not there.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        JSON_NAME: json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        PAGE_NAME: render_page(report),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]
