"""An audit's JSON -> a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hf_reward.audit.page import family_titles
from hf_reward.audit.wording import VERDICT_WORDS, interval_words, plain_line, scale_of, verdict_of

_STYLES = {"biased": "bold red", "inconclusive": "yellow", "equivalent": "blue", "not_assessed": "dim", "screen": "dim"}
_ORDER = [*VERDICT_WORDS, "screen"]


def print_audit(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every finding, in each family the biased ones first and screens last and dim, then the summary.

    Args:
        report: `AuditReport.to_dict()`, or what `read_audit` gives.
        console: Where to; by default the standard output.
    """
    console = console or Console()
    title = f"Bias audit of {plain_line(report['model'])}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Probe", overflow="fold")
    table.add_column("Effect", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("Verdict", overflow="fold", min_width=22)
    for family, words in family_titles(report).items():
        rows = [probe for probe in report["probes"] if probe["family"] == family]
        _add_family(table, words, rows, report["families"].get(family, {}).get("not_assessed") or "")
    console.print(table)
    console.print(escape(plain_line(report["summary"])), highlight=False)


def _add_family(table: Table, title: str, probes: Sequence[Mapping[str, Any]], reason: str) -> None:
    """The probes of a family under its title, those with one unit together."""
    title = f"[bold]{escape(plain_line(title))}[/]"
    if not probes:
        table.add_row(f"{title}\n{escape(plain_line(reason))}", "", "", VERDICT_WORDS["not_assessed"])
    for unit in dict.fromkeys(probe.get("unit") or "" for probe in probes):
        scale = scale_of(unit)
        words = plain_line(f"{scale.symbol} {scale.words}")
        table.add_row(f"{title} [dim]in {escape(words)}[/]" if words else title, "", "", "")
        members = [probe for probe in probes if (probe.get("unit") or "") == unit]
        for probe in sorted(members, key=lambda probe: _ORDER.index(verdict_of(probe))):
            _add_probe(table, probe)
    table.add_section()


def _add_probe(table: Table, probe: Mapping[str, Any]) -> None:
    verdict, scale = verdict_of(probe), scale_of(probe.get("unit") or "")
    words = f"[{_STYLES[verdict]}]{VERDICT_WORDS.get(verdict, 'Screen only')}[/]"
    if verdict == "inconclusive" and probe.get("mde") is not None:
        words += f"\n[dim]would find {scale.number(probe['mde'], sign=False)}[/]"
    table.add_row(
        Padding(escape(plain_line(probe.get("label") or probe["name"])), (0, 0, 0, 2)),
        scale.number(probe.get("estimate")),
        interval_words(probe),
        words,
        style="dim" if verdict == "screen" else "",
    )
