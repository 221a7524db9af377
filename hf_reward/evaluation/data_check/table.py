"""A report -> tables for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_reward.evaluation.data_check.report import DataReport
from hf_reward.evaluation.data_check.report_text import sections


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Print all findings, and last what to fix first.

    Args:
        report: What was found.
        console: Where to; by default the standard output.
    """
    console = console or Console()
    for section in sections(report):
        table = Table(title=section.title, title_justify="left", show_header=False, expand=False)
        for line in section.lines:  # names and reasons come from the data, where [red] is text
            table.add_row(escape(line.name), escape(line.value), escape(line.note))
        console.print(table)
    if not report.fix_first:
        console.print("Nothing stands out.")
        return
    console.print("[bold]Fix these first[/bold]")
    for number, fix in enumerate(report.fix_first, start=1):
        console.print(f"{number}. {escape(fix.found)}", highlight=False)
        console.print(f"   {escape(fix.cure)}", highlight=False, style="dim")
