"""Write the files of a report, including a self-contained HTML page."""

from collections.abc import Sequence
from pathlib import Path

from hf_reward.evaluation.data_check.distribution_figures import captions, distribution_pictures
from hf_reward.evaluation.data_check.report import DataReport, Example, Fix
from hf_reward.evaluation.data_check.report_text import sections
from hf_reward.evaluation.drawing import can_draw
from hf_reward.evaluation.page import Advice, Cell, Page, Rows, Section, Texts, as_json, render, write_files
from hf_reward.metrics.counts import counted

JSON_NAME, PAGE_NAME = "data_report.json", "data_report.html"
_NO_FIGURES = 'The histograms need matplotlib, which is not installed. Run `pip install "hf_reward[audit]"`.'


def render_page(report: DataReport) -> str:
    """Render the report.

    Args:
        report: The report.

    Returns:
        HTML that loads nothing; text from the data is escaped.
    """
    found = [
        Section(
            name=f"part-{number}",
            title=part.title,
            text=[part.intro],
            tables=[
                Rows(
                    title=part.title,
                    rows=[[line.name, Cell(line.value, bar=line.bar), line.note] for line in part.lines],
                )
            ],
        )
        for number, part in enumerate(sections(report), start=1)
    ]
    fixes = [_advice(number, fix) for number, fix in enumerate(report.fix_first, start=1)]
    first = Section(name="fixes", title="Fix these first", text=[] if fixes else ["Nothing stands out."], advice=fixes)
    title = f"Data check: {report.data.name}"
    return render(Page(title=title, heading=title, about=_about(report), sections=[first, *_figures(report), *found]))


def _about(report: DataReport) -> Sequence[str]:
    data, held = report.data, report.eval_data
    counts = [counted(data.rows, "row"), counted(data.strict_pairs, "strict pair")]
    counts += [counted(report.duplicates.prompt_groups, "prompt group")]
    about = [", ".join(counts)]
    return about if held is None else [*about, f"Evaluation data: {held.name}, {counted(held.rows, 'row')}"]


def _figures(report: DataReport) -> list[Section]:
    if not report.histograms:
        return []
    drawn = can_draw()
    return [
        Section(
            name="lengths",
            title="Lengths and gaps",
            text=[] if drawn else [_NO_FIGURES, *captions(report.histograms)],
            pictures=distribution_pictures(report.histograms) if drawn else [],
        )
    ]


def _advice(number: int, fix: Fix) -> Advice:
    return Advice(
        title=f"{number}. {fix.finding[0].upper()}{fix.finding[1:]}",
        scope=fix.scope,
        text=fix.found,
        remedy=fix.remedy,
        examples=[_texts(each) for each in fix.examples],
    )


def _texts(example: Example) -> Texts:
    row = f"Row {example.row}"
    title = row if example.place.capitalize() == row else f"{row} ({example.place})"
    return Texts(title=title, texts=[(name, "", text) for name, text in example.texts.items()])


def write_report(report: DataReport, folder: str | Path) -> list[Path]:
    """Write `data_report.json` and `data_report.html` into a folder and replace earlier ones.

    Args:
        report: The report.
        folder: Created if it does not exist.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    return write_files(folder, {JSON_NAME: as_json(report.to_dict()), PAGE_NAME: render_page(report)})
