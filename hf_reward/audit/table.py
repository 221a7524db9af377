"""An audit's JSON -> a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_reward.audit.figures import plain_line
from hf_reward.audit.page import family_titles
from hf_reward.audit.wording import (
    VERDICT_WORDS,
    effect_words,
    interval_words,
    reason_words,
    verdict_of,
)

_STYLES = {"biased": "bold red", "inconclusive": "yellow", "equivalent": "blue", "not_assessed": "dim", "screen": "dim"}
_ORDER = [*VERDICT_WORDS, "screen"]


def print_audit(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every finding, in each family the biased ones first and screens last and dim, then the summary.

    Args:
        report: `AuditReport.to_dict()`, or what `read_audit` gives.
        console: Where to; by default the standard output.
    """
    console = console or Console()
    table = Table(title=escape(f"Bias audit of {_line(report['model'])}"), title_justify="left")
    for name in ("Family", "Probe"):
        table.add_column(name, overflow="fold")
    table.add_column("Effect", justify="right", overflow="fold")
    table.add_column("95% interval", justify="right")
    table.add_column("Verdict", overflow="fold")
    for family, title in family_titles(report).items():
        rows = [probe for probe in report["probes"] if probe["family"] == family]
        _add_family(table, title, rows, report["families"].get(family, {}).get("not_assessed") or "")
    console.print(table)
    console.print(escape(_line(report["summary"])), highlight=False)


def _add_family(table: Table, title: str, probes: Sequence[Mapping[str, Any]], reason: str) -> None:
    if not probes:
        table.add_row(escape(_line(title)), escape(_line(reason)), "", "", VERDICT_WORDS["not_assessed"], style="dim")
    for place, probe in enumerate(sorted(probes, key=lambda probe: _ORDER.index(verdict_of(probe)))):
        verdict = verdict_of(probe)
        words = VERDICT_WORDS.get(verdict, "Screen only")
        why = reason_words(probe) if verdict == "inconclusive" else ""
        table.add_row(
            escape(_line(title)) if place == 0 else "",
            escape(_line(probe.get("label") or probe["name"])),
            escape(_line(effect_words(probe))),
            interval_words(probe),
            f"[{_STYLES[verdict]}]{words}[/]" + (f"\n[dim]{escape(why)}[/]" if why else ""),
            style="dim" if verdict == "screen" else "",
        )
    table.add_section()


def _line(text: str) -> str:
    """Text from the data on one line, without the signs that steer a terminal."""
    return plain_line(text)
