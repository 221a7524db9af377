"""A report -> one HTML file that needs nothing else."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

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
