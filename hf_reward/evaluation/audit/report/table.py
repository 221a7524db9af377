"""An audit as JSON -> a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hf_reward.evaluation.audit.report.page import family_titles
from hf_reward.evaluation.audit.report.wording import VERDICT_WORDS, interval_words, scale_of, verdict_of
from hf_reward.evaluation.plain_text import plain_line

_STYLES = {
    "biased": "bold red",
    "inconclusive": "yellow",
    "equivalent": "blue",
    "not_assessed": "dim",
    "observational": "dim",
}
_ORDER = [*VERDICT_WORDS, "observational"]
_LEVEL = 0.05


def print_audit(report: Mapping[str, Any], console: Console | None = None, *, observational: bool = False) -> None:
    """Print the findings by family, biased ones first, then the summary.

    Args:
        report: `AuditReport.to_dict()`, or the result of `read_audit`.
        console: Target; by default the standard output.
        observational: Whether to print observational checks too. A family without other findings is always printed.
    """
    console = console or Console()
    title = f"Bias audit of {plain_line(report['model'])}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Probe", overflow="fold")
    table.add_column("Effect", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("Verdict", overflow="fold", min_width=22)
    for family, words in family_titles(report).items():
        probes = [probe for probe in report["probes"] if probe["family"] == family]
        rows = [probe for probe in probes if observational or not probe["screen_only"]] or probes
        _add_family(table, words, rows, report["families"].get(family, {}).get("not_assessed") or "")
    console.print(table)
    console.print(escape(plain_line(report["summary"])), highlight=False)


def print_comparison(comparison: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the comparison of two audits, then its summary.

    Args:
        comparison: The result of `compare_audits`.
        console: Target; by default the standard output.
    """
    console = console or Console()
    first, second = (plain_line(str(comparison[name])) for name in "ab")
    console.print(f"A: {escape(first)}\nB: {escape(second)}", highlight=False)
    table = Table(title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Probe", overflow="fold")
    for name in ("A", "B", "A minus B", "95% interval", "q"):
        table.add_column(name, justify="right", no_wrap=True)
    for probe in comparison["probes"]:
        scale, q_value = scale_of(probe.get("unit") or ""), probe["q_value"]
        differs = q_value is not None and q_value <= _LEVEL
        table.add_row(
            escape(plain_line(probe["label"])),
            scale.number(probe["a"]),
            scale.number(probe["b"]),
            scale.number(probe["difference"]),
            interval_words(probe),
            "-" if q_value is None else f"{q_value:.2g}",
            style="bold" if differs else "",
        )
    console.print(table)
    console.print(escape(plain_line(comparison["summary"])), highlight=False)


def print_self_test(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the result of the self-test.

    Args:
        found: `SelfTest.to_dict()`.
        console: Target; by default the standard output.
    """
    console = console or Console()
    table = Table("planted fault", "finding", "true size", "mean estimate", "intervals that cover it", "found", "")
    for each in found["faults"]:
        seeds = each["seeds"]
        table.add_row(
            each["name"],
            each["finding"],
            f"{each['truth']:+.3f}",
            f"{each['mean_estimate']:+.3f}",
            f"{each['covered']}/{seeds} ({each['covered'] / seeds:.1%})",
            f"{each['flagged']}/{seeds} ({each['flagged'] / seeds:.1%})",
            "passed" if each["passed"] else "FAILED",
        )
    console.print(table)
    for clean in found["clean"]:
        which = ", ".join(f"{name} {count}" for name, count in clean["which"].items())
        share = clean["flagged"] / max(1, clean["seeds"])
        verdicts = ", ".join(f"{count} {name}" for name, count in clean["verdicts"].items())
        console.print(
            f"{clean['name']}: {clean['flagged']} of {clean['seeds']} audits report a bias ({share:.1%}; "
            f"{which or 'none'}); verdicts: {verdicts}. {'Passed' if clean['passed'] else 'FAILED'}.",
            highlight=False,
        )
    console.print("The self-test passed." if found["passed"] else "The self-test FAILED.", highlight=False)


def _add_family(table: Table, title: str, probes: Sequence[Mapping[str, Any]], reason: str) -> None:
    """Add the probes of a family under its title, grouped by unit."""
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
    words = f"[{_STYLES[verdict]}]{VERDICT_WORDS.get(verdict, 'Observational')}[/]"
    if verdict == "inconclusive" and probe.get("mde") is not None:
        words += f"\n[dim]detects {scale.number(probe['mde'], sign=False)}[/]"
    table.add_row(
        Padding(escape(plain_line(probe.get("label") or probe["name"])), (0, 0, 0, 2)),
        scale.number(probe.get("estimate")),
        interval_words(probe),
        words,
        style="dim" if verdict == "observational" else "",
    )
