"""A report -> its files, among them one HTML page that loads nothing."""

from pathlib import Path

from hf_reward.evaluation.data_check.report import DataReport, Fix
from hf_reward.evaluation.data_check.report_text import sections
from hf_reward.evaluation.page import Advice, Cell, Page, Rows, Section, Texts, as_json, render, write_files


def render_page(report: DataReport) -> str:
    """Render the report.

    Args:
        report: What was found.

    Returns:
        HTML; whatever came from the data is escaped, and nothing is loaded from anywhere.
    """
    data, held = report.data, report.eval_data
    about = f"{data.rows:,} rows, {data.strict_pairs:,} strict pairs, {report.duplicates.prompt_groups:,} prompt groups"
    about += f"; evaluation data {held.name} with {held.rows:,} rows." if held is not None else "."
    found = [
        Section(
            name=f"part-{place}",
            title=part.title,
            text=[part.intro],
            tables=[
                Rows(
                    title=part.title,
                    rows=[[line.name, Cell(line.value, bar=line.bar), line.note] for line in part.lines],
                )
            ],
        )
        for place, part in enumerate(sections(report), start=1)
    ]
    fixes = [_advice(number, fix) for number, fix in enumerate(report.fix_first, start=1)]
    first = Section(name="fixes", title="Fix these first", text=[] if fixes else ["Nothing stands out."], advice=fixes)
    title = f"Data check: {data.name}"
    return render(Page(title=title, heading=title, about=[about], sections=[first, *found]))


def _advice(number: int, fix: Fix) -> Advice:
    examples = [
        Texts(title=each.place, texts=[(what, "", text) for what, text in each.texts.items()]) for each in fix.examples
    ]
    return Advice(title=f"{number}. {fix.finding}", text=fix.found, remedy=fix.cure, examples=examples)


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
    return write_files(folder, {JSON_NAME: as_json(report.to_dict()), PAGE_NAME: render_page(report)})
