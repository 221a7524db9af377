"""`hf-reward check-data` and `hf-reward split`: what can be done with data before there is a model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import Columns, Layout, folder_option, parse_columns
from hf_reward.cli.output import quiet_data

Data = Annotated[str, typer.Option("--data", help="File, folder or Hub id of preference data.")]
MinGap = Annotated[
    float | None,
    typer.Option(help="Rated rows: make pairs of the responses to a prompt whose scores differ by so much or more."),
]
Split = Annotated[str, typer.Option(help="Split of a Hub id or of a folder that has several.")]
Seed = Annotated[int, typer.Option(help="For what is drawn at random.")]


def check_data(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for data_report.json and data_report.html.", callback=folder_option)
    ],
    eval_data: Annotated[str, typer.Option(help="Evaluation data, to find what it shares with the other.")] = "",
    tokenizer: Annotated[str, typer.Option(help="Folder or Hub id of a tokenizer, to measure lengths in tokens.")] = "",
    max_length: Annotated[int, typer.Option(help="Longest sequence in tokens, with --tokenizer.")] = 1024,
    over_length: Annotated[
        str, typer.Option(help="What training would do with longer rows: truncate_prompt, drop or error.")
    ] = "truncate_prompt",
    columns: Columns = None,
    layout: Layout = "auto",
    min_gap: MinGap = None,
    split: Split = "train",
    eval_split: Annotated[str, typer.Option(help="The same for the evaluation data.")] = "test",
    seed: Seed = 42,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 if something stands under `Fix these first`.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")] = False,
) -> None:
    """Say what is wrong with preference data before any number of a model is trusted.

    Exit code 0: done, whatever was found. 1: the data cannot be read. 2: wrong options. 3: with --strict, something
    is to be fixed first.
    """
    from hf_reward.data.path_safety import require_writable
    from hf_reward.data.sources import Source
    from hf_reward.evaluation.data_check import check_data as check
    from hf_reward.evaluation.data_check import print_report, write_report
    from hf_reward.preprocessing.tokenization import FormatRule

    quiet_data()
    defaults: dict[str, Any] = {"columns": parse_columns(columns), "layout": _known_layout(layout), "min_gap": min_gap}
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
    written = write_report(report, out)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report)
        typer.echo("Written: " + ", ".join(map(str, written)))
    if strict and report.fix_first:
        raise typer.Exit(3)


def split(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two files.", callback=folder_option)],
    test_size: Annotated[
        str, typer.Option(help="Rows to hold out: a share such as 0.1, or a number of rows such as 500.")
    ] = "0.1",
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates", help="Keep prompts and long responses that nearly equal each other together."
        ),
    ] = False,
    seed: Seed = 42,
    columns: Columns = None,
    layout: Layout = "auto",
    min_gap: MinGap = None,
    split: Split = "train",
    format: Annotated[str, typer.Option(help="Of the files: jsonl or parquet.")] = "jsonl",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read, instead of stopping.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier split.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Split preference data so that no prompt is on both sides: train and test files in a folder.

    Exit code 0: written. 1: the data cannot be read or split. 2: wrong options.
    """
    from hf_reward.data.split_files import SplitRule, write_split

    quiet_data()
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
        typer.echo(f"{part['file']}: {part['rows']:,} rows, {part['prompt_groups']:,} prompt groups")
    if counts["skipped_rows"]:
        typer.echo(f"left out: {counts['skipped_rows']:,} rows that cannot be read")


def _size(text: str) -> float | int:
    """A share if it has a decimal point, else a number of rows."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise typer.BadParameter(
            f"--test-size must be a share such as 0.1 or a number of rows such as 500, but is {text!r}."
        ) from None


def _known_layout(layout: str) -> str:
    from hf_reward.evaluation.data_check.row_reader import require_layout

    with _usage_errors():
        require_layout(layout)
    return layout


@contextmanager
def _usage_errors() -> Iterator[None]:
    """A value that an option cannot have is exit code 2, not 1."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
