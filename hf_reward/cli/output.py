"""What the commands of `hf-reward` print, and what they keep libraries from printing in between."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer


def quiet() -> None:
    """Keep the progress bars of loading models out of a command's own answer; warnings are shown."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def quiet_data() -> None:
    """Keep the progress bars of reading data out of a command's own answer."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()


# --- rewards ---------------------------------------------------------------------------------------------------------


def print_scores(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], reward: str) -> None:
    """Print scored rows as a table.

    Args:
        rows: Rows of the output.
        names: Our name of a column -> the data's.
        reward: Name of the reward's column.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "prompt", "response", reward)
    for row in rows:
        shown = (names[name] for name in ("response", "responses", "messages", "text"))
        response = next((row[name] for name in shown if row.get(name) is not None), None)
        values = row[reward] if isinstance(row[reward], list) else [row[reward]]
        texts = (str(row["id"]), short(row.get(names["prompt"])), short(response))
        table.add_row(*map(escape, texts), ", ".join(f"{value:.4f}" for value in values))
    Console().print(table)


def print_ranking(prompt: Any, responses: Sequence[Any], rewards: Sequence[float]) -> None:
    """Print the responses to a prompt as a table, best first.

    Args:
        prompt: The prompt.
        responses: Its responses.
        rewards: Their rewards.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "response", "reward", title=escape(short(prompt)), title_justify="left")
    ordered = sorted(zip(responses, rewards, strict=True), key=lambda each: -each[1])
    for place, (response, reward) in enumerate(ordered):
        table.add_row("best" if place == 0 else "", escape(short(response, 200)), f"{reward:.4f}")
    Console().print(table)


def short(value: Any, limit: int = 60) -> str:
    """The beginning of a text, or of what the last message says, on one line."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def print_summary(report: Any, *, err: bool) -> None:
    """Say what a bulk run did, and which rows have no reward.

    Args:
        report: A `BulkReport`.
        err: Print it where errors go, because the output is taken up by rows.
    """
    counts = report.counts
    copies = counts.responses - counts.distinct
    lines = [
        f"{counts.rows_out:,} of {counts.rows_in:,} rows scored in {report.seconds:.1f} s "
        f"({report.rows_per_second:,.1f} rows/s)"
        + (f", {copies:,} responses were equal to another and computed once" if copies else "")
        + (f", {counts.cut:,} prompts cut to fit the model" if counts.cut else "")
    ]
    if report.finished_before:
        lines.append(f"{report.finished_before} of {report.shards} shards were finished before this start.")
    if not report.complete:
        lines.append("Other parts of the run are not finished.")
    if counts.quarantined:
        rows = sum(counts.quarantined.values())
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.quarantined.items())
        lines.append(f"{rows:,} rows put aside: {reasons}.")
    for line in lines:
        typer.echo(line, err=err)


def print_quarantine(path: Path, count: int) -> None:
    """Name the first rows that have no reward, where no file keeps them.

    Args:
        path: The quarantine file, which need not exist.
        count: At most so many.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            place = f"line {row['line']}" if "line" in row else f"row {row['row']}"
            typer.echo(f"  {row['file']}, {place}: {row['reason']}", err=True)


def as_list(value: Any) -> Iterable[Any]:
    """A list, or the JSON of one, as CSV files hold it."""
    return json.loads(value) if isinstance(value, str) else value
