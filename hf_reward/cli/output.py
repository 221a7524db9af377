"""The output of the commands of `hf-reward`: verbosity, tables, and the closing lines."""

import json
import logging
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer


@dataclass(frozen=True)
class Output:
    """The form of a command's output."""

    quiet: bool = False
    as_json: bool = False

    def finish(self, written: Iterable[object] = (), then: Sequence[object] = (), *, err: bool = False) -> None:
        """Print the files that were written and a command to try next, unless the output is quiet or JSON.

        Args:
            written: Files and folders.
            then: Words of a command.
            err: Print to standard error, because standard output has rows.
        """
        if self.quiet or self.as_json:
            return
        paths = [str(path) for path in written]
        lines = ["Written:", *(f"  {path}" for path in paths)] if paths else []
        lines += ["Next:", f"  {shlex.join(map(str, then))}"] if then else []
        for line in lines:
            typer.echo(line, err=err)


def start_output(*, quiet: bool = False, verbose: bool = False, as_json: bool = False) -> Output:
    """Set the verbosity of the libraries that a command uses.

    Progress bars of loading models and reading data are always off: they would hide the command's own. All others are
    off with `quiet` and in redirected output, where each step would be part of one long line.

    Args:
        quiet: Print only the result and errors.
        verbose: Also print the libraries' info messages.
        as_json: Print only JSON to standard output.

    Returns:
        The form of the output.

    Raises:
        typer.BadParameter: If both `quiet` and `verbose` are set.
    """
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other; set one of them")
    if quiet or verbose:
        set_log_level(logging.ERROR if quiet else logging.INFO)
    silence_progress_bars(downloads=quiet or not sys.stderr.isatty())
    return Output(quiet=quiet, as_json=as_json)


def silence_progress_bars(*, downloads: bool = True) -> None:
    """Switch the progress bars of transformers and datasets off.

    Args:
        downloads: Switch those of `huggingface_hub` off too, which hf_reward uses for its own.
    """
    import datasets
    import huggingface_hub.utils
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if downloads:
        huggingface_hub.utils.disable_progress_bars()


def set_log_level(level: int) -> None:
    """Set the level of messages of hf_reward and of the libraries that it uses.

    Args:
        level: A level of `logging`; above `WARNING`, Python's warnings are off too.
    """
    import datasets
    import huggingface_hub
    import transformers

    logging.basicConfig(format="%(message)s", level=level, force=True)
    for library in (transformers.logging, datasets.logging, huggingface_hub.logging):
        library.set_verbosity(level)
    if level > logging.WARNING:
        warnings.simplefilter("ignore")


# --- rewards ---------------------------------------------------------------------------------------------------------


def print_scores(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], reward: str) -> None:
    """Print scored rows as a table.

    Args:
        rows: Rows of the output.
        names: Our name of a column -> the data's.
        reward: Name of the reward's column.
    """
    from rich.markup import escape
    from rich.table import Table

    from hf_reward.cli.console import make_console

    table = Table("id", "prompt", "response", reward)
    for row in rows:
        shown = (names[name] for name in ("response", "responses", "messages", "text"))
        response = next((row[name] for name in shown if row.get(name) is not None), None)
        values = row[reward] if isinstance(row[reward], list) else [row[reward]]
        texts = (str(row["id"]), short(row.get(names["prompt"])), short(response))
        table.add_row(*map(escape, texts), ", ".join(f"{value:.4f}" for value in values))
    make_console().print(table)


def print_ranking(prompt: Any, responses: Sequence[Any], rewards: Sequence[float]) -> None:
    """Print the responses to a prompt as a table, best first.

    Args:
        prompt: The prompt.
        responses: Its responses.
        rewards: Their rewards.
    """
    from rich.markup import escape
    from rich.table import Table

    from hf_reward.cli.console import make_console

    table = Table("", "response", "reward", title=escape(short(prompt)), title_justify="left")
    ordered = sorted(zip(responses, rewards, strict=True), key=lambda each: -each[1])
    for place, (response, reward) in enumerate(ordered):
        table.add_row("best" if place == 0 else "", escape(short(response, 200)), f"{reward:.4f}")
    make_console().print(table)


def short(value: Any, limit: int = 60) -> str:
    """Return the start of a text, or of the last message of a conversation, on one line."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def print_summary(report: Any, *, err: bool) -> None:
    """Print the counts of a bulk run, and the reasons of rejected rows.

    Args:
        report: A `BulkReport`.
        err: Print to standard error, because standard output has rows.
    """
    from hf_reward.metrics.counts import counted

    counts = report.counts
    copies = counts.responses - counts.distinct
    lines = [
        f"{counts.rows_out:,} of {counted(counts.rows_in, 'row')} scored in {report.seconds:.1f} s "
        f"({report.rows_per_second:,.1f} rows/s)"
        + (f", {counted(copies, 'duplicate response')} computed once" if copies else "")
        + (f", {counted(counts.cut, 'prompt')} cut to fit the model" if counts.cut else "")
    ]
    if report.finished_before:
        lines.append(f"Finished by an earlier run: {report.finished_before} of {counted(report.shards, 'shard')}.")
    if not report.complete:
        lines.append("Other parts of the run are not finished.")
    if counts.quarantined:
        rows = sum(counts.quarantined.values())
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.quarantined.items())
        lines.append(f"{counted(rows, 'row')} rejected: {reasons}.")
    for line in lines:
        typer.echo(line, err=err)


def print_quarantine(path: Path, count: int) -> None:
    """Print the first rejected rows of a run without an output file.

    Args:
        path: The quarantine file, which may be missing.
        count: Largest number of rows.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            place = f"line {row['line']}" if "line" in row else f"row {row['row']}"
            typer.echo(f"  {row['file']}, {place}: {row['reason']}", err=True)


def as_list(value: Any) -> Iterable[Any]:
    """Return a list, parsed if it is JSON text from a CSV file."""
    return json.loads(value) if isinstance(value, str) else value
