"""`hf-reward check-data | split`: preference data before training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    AsJson,
    Columns,
    Layout,
    Quiet,
    Verbose,
    folder_option,
    one_of,
    parse_columns,
)
from hf_reward.cli.output import start_output

_TOKENS = "Sequence length"
Data = Annotated[str, typer.Option("--data", help="File, folder or Hub id of preference data.")]
MinGap = Annotated[
    float | None,
    typer.Option(
        help="For rated rows: smallest score difference at which two responses form a pair.",
        rich_help_panel=DATA_PANEL,
    ),
]
Split = Annotated[
    str, typer.Option(help="Split of a Hub dataset or of a folder with several splits.", rich_help_panel=DATA_PANEL)
]
Seed = Annotated[int, typer.Option(help="Random seed.")]


def check_data(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for data_report.json and data_report.html.", callback=folder_option),
    ] = None,
    eval_data: Annotated[str, typer.Option(help="Evaluation data, to find leakage.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 if there are findings under `Fix these first`.")
    ] = False,
    seed: Seed = 42,
    columns: Columns = None,
    layout: Layout = "auto",
    min_gap: MinGap = None,
    split: Split = "train",
    eval_split: Annotated[str, typer.Option(help="Split of the evaluation data.", rich_help_panel=DATA_PANEL)] = "test",
    tokenizer: Annotated[
        str,
        typer.Option(help="Folder or Hub id of a tokenizer, to measure lengths in tokens.", rich_help_panel=_TOKENS),
    ] = "",
    max_length: Annotated[
        int, typer.Option(help="Longest sequence in tokens; needs --tokenizer.", rich_help_panel=_TOKENS)
    ] = 1024,
    over_length: Annotated[
        str,
        typer.Option(
            help="Training policy for rows longer than --max-length: truncate_prompt, drop or error.",
            rich_help_panel=_TOKENS,
            autocompletion=one_of("truncate_prompt", "drop", "error"),
        ),
    ] = "truncate_prompt",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check preference data for errors, duplicates, leakage and biases.

    Exit code 0: finished, with or without findings. 1: the data cannot be read. 2: wrong options. 3: with --strict,
    the data has problems to fix before training.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.cli.console import make_console
    from hf_reward.data.path_safety import require_writable
    from hf_reward.data.sources import Source
    from hf_reward.evaluation.data_check import check_data as check
    from hf_reward.evaluation.data_check import print_report, write_report
    from hf_reward.preprocessing.tokenization import FormatRule

    defaults: dict[str, Any] = {"columns": parse_columns(columns), "layout": _known_layout(layout), "min_gap": min_gap}
    if out is not None:
        require_writable(out / "data_report.json")
    with _usage_errors():
        rule = FormatRule(max_length=max_length, over_length=over_length)
    report = check(
        data,
        eval_data=Source(data=eval_data, split=eval_split, **defaults) if eval_data else None,
        tokenizer=tokenizer or None,
        rule=rule,
        seed=seed,
        split=split,
        **defaults,
    )
    written = write_report(report, out) if out is not None else []
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, make_console())
    reading = _reading_words(columns, layout, min_gap, split)
    then = (
        ["split", "--data", data, "--out", (out or Path()) / "split", *reading]
        if not eval_data
        else ["train", "--help"]
    )
    output.finish(written, ["hf-reward", *then])
    if strict and report.fix_first:
        raise typer.Exit(3)


def split(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two files.", callback=folder_option)],
    test_size: Annotated[
        str, typer.Option(help="Rows in the test file: a fraction such as 0.1, or a number such as 500.")
    ] = "0.1",
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates", help="Keep rows with near-duplicate prompts or long responses in the same file."
        ),
    ] = False,
    seed: Seed = 42,
    columns: Columns = None,
    layout: Layout = "auto",
    min_gap: MinGap = None,
    split: Split = "train",
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows", help="Skip unreadable rows instead of stopping at the first.", rich_help_panel=DATA_PANEL
        ),
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            help="Format of the files: jsonl or parquet.",
            rich_help_panel=OUTPUT_PANEL,
            autocompletion=one_of("jsonl", "parquet"),
        ),
    ] = "jsonl",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of an earlier split.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Split preference data by prompt into a training and a test file.

    No prompt is in both files. Exit code 0: written. 1: the data cannot be read or split. 2: wrong options.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.data.split_files import SplitRule, write_split
    from hf_reward.metrics.counts import counted

    settings: dict[str, Any] = {"test_size": _size(test_size), "near_duplicates": near_duplicates, "seed": seed}
    with _usage_errors():
        rule = SplitRule(**settings, skip_bad_rows=skip_bad_rows, format=format)
    reading: dict[str, Any] = {"columns": parse_columns(columns), "layout": _known_layout(layout), "split": split}
    reading |= {"min_gap": min_gap}
    counts = write_split(data, out, rule, overwrite=overwrite, **reading)
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
        return
    for side in ("train", "test"):
        part = counts[side]
        typer.echo(f"{part['file']}: {counted(part['rows'], 'row')}, {counted(part['prompt_groups'], 'prompt group')}")
    if counts["skipped_rows"]:
        typer.echo(f"skipped: {counted(counts['skipped_rows'], 'unreadable row')}")
    files = [counts[side]["file"] for side in ("train", "test")]
    check = ["check-data", "--data", files[0], "--eval-data", files[1], "--out", out / "report"]
    output.finish(files, ["hf-reward", *check])


def _size(text: str) -> float | int:
    """Parse a fraction if there is a decimal point, else a number of rows."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise typer.BadParameter(
            f"--test-size must be a fraction such as 0.1 or a number of rows such as 500, but is {text!r}."
        ) from None


def _reading_words(columns: list[str] | None, layout: str, min_gap: float | None, split: str) -> list[str]:
    """Return the options that read the same rows, without those at their defaults."""
    words = [word for value in columns or [] for word in ("--columns", value)]
    words += ["--layout", layout] if layout != "auto" else []
    words += ["--min-gap", str(min_gap)] if min_gap is not None else []
    return [*words, "--split", split] if split != "train" else words


def _known_layout(layout: str) -> str:
    from hf_reward.evaluation.data_check.row_reader import require_layout

    with _usage_errors():
        require_layout(layout)
    return layout


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn errors about values of options into usage errors, with exit code 2."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
