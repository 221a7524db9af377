"""Format a report as tables for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_reward.evaluation.data_check.report import DataReport
from hf_reward.evaluation.data_check.report_text import sections


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Print all numbers, and at the end the findings to fix first.

    Args:
        report: The report.
        console: Output; by default the standard output.
    """
    console = console or Console()
    for section in sections(report):
        table = Table(title=section.title, title_justify="left", show_header=False, expand=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for line in section.lines:  # names and reasons come from the data, where [red] is text
            table.add_row(escape(line.name), escape(line.value), escape(line.note))
        console.print(table)
    if not report.fix_first:
        console.print("Nothing stands out.")
        return
    console.print("[bold]Fix these first[/bold]")
    for number, fix in enumerate(report.fix_first, start=1):
        console.print(f"{number}. [bold]{escape(fix.finding)}[/bold]: {escape(fix.scope)}", highlight=False)
        for text, style in ((fix.found, ""), (fix.remedy, "dim")):
            console.print(Padding(Text(text, style), (0, 0, 0, 3), expand=False), highlight=False)
