"""`hf-reward score | rank`: rewards of rows and lists of responses."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    DATA_PANEL,
    LOADING_PANEL,
    OUTPUT_PANEL,
    AllowPickle,
    AsJson,
    BaseModel,
    BatchTokens,
    Columns,
    Device,
    Dtype,
    LengthCorrection,
    MaxLength,
    Model,
    Quiet,
    RemoteCode,
    Verbose,
    loading_options,
    one_of,
    parse_columns,
)
from hf_reward.cli.output import (
    Output,
    as_list,
    print_quarantine,
    print_ranking,
    print_scores,
    print_summary,
    start_output,
)

SHOWN_ROWS = 20
"""Rows that are printed without `--out`."""
STANDARD_OUTPUT = "-"
"""Value of `--out` for rows on standard output; all other text then goes to standard error."""
QUARANTINED = 3
"""Exit code of a finished run in which rows were rejected."""

Data = Annotated[
    str, typer.Option(help="JSONL, CSV or Parquet file, a folder of them, a Hub id, or - for standard input.")
]
Out = Annotated[
    str,
    typer.Option(
        help="A .jsonl or .parquet file, a folder for shards, or - for JSONL on standard output. Without it, the first "
        "rows are printed."
    ),
]
RewardColumn = Annotated[str, typer.Option(help="Name of the added column of rewards.", rich_help_panel=OUTPUT_PANEL)]
AllowEmpty = Annotated[
    bool,
    typer.Option("--allow-empty", help="Score empty responses instead of rejecting them.", rich_help_panel=DATA_PANEL),
]
CompareTraining = Annotated[
    bool,
    typer.Option("--compare-training", help="Compare the scored texts with the training texts."),
]
Split = Annotated[str, typer.Option(help="Split of a Hub dataset.", rich_help_panel=DATA_PANEL)]
InputFormat = Annotated[
    str,
    typer.Option(
        help="Format of standard input: jsonl, csv or parquet.",
        rich_help_panel=DATA_PANEL,
        autocompletion=one_of("jsonl", "csv", "parquet"),
    ),
]
OutputFormat = Annotated[
    str,
    typer.Option(
        help="Format of a folder of shards: jsonl or parquet.",
        rich_help_panel=OUTPUT_PANEL,
        autocompletion=one_of("jsonl", "parquet"),
    ),
]
RowsPerShard = Annotated[
    int,
    typer.Option(help="Rows in a shard; an interrupted run loses at most one shard.", rich_help_panel=OUTPUT_PANEL),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.", rich_help_panel=OUTPUT_PANEL)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output of an earlier run.", rich_help_panel=OUTPUT_PANEL)
]
Part = Annotated[
    str,
    typer.Option(
        help="i/n: score only part i of n, to divide the shards between several jobs with one output folder.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Revision = Annotated[
    str, typer.Option(help="Branch, tag or commit of a model on the Hub.", rich_help_panel=LOADING_PANEL)
]


def score(
    model: Model,
    data: Data = "",
    out: Out = "",
    prompt: Annotated[str, typer.Option(help="A single prompt, instead of --data.")] = "",
    response: Annotated[list[str] | None, typer.Option(help="A response to --prompt; may be repeated.")] = None,
    columns: Columns = None,
    reward_column: RewardColumn = "reward",
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    max_length: MaxLength = 0,
    allow_empty: AllowEmpty = False,
    length_correction: LengthCorrection = False,
    compare_training: CompareTraining = False,
    split: Split = "train",
    input_format: InputFormat = "jsonl",
    output_format: OutputFormat = "",
    rows_per_shard: RowsPerShard = 10_000,
    part: Part = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    revision: Revision = "",
    base_model: BaseModel = "",
    trust_remote_code: RemoteCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score responses from a file, a folder, the Hub or the command line.

    Rows have one of: `prompt` and `response`; `prompt` and `responses`; `messages`; already formatted `text`.
    The output has the same columns and also `id` and `reward`.

    Exit code 0: all rows are scored. 1: error; finished shards are kept. 2: wrong options. 3: finished, but rows were
    rejected; the quarantine file states the reason for each row.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    options = loading_options(
        dtype,
        device=device,
        batch_tokens=batch_tokens,
        max_length=max_length,
        revision=revision,
        base_model_name_or_path=base_model,
        trust_remote_code=trust_remote_code,
        length_correction=length_correction,
        allow_pickle=allow_pickle,
    )
    _require_one_source(data, prompt, response, out)
    if response:
        if compare_training:
            raise typer.BadParameter("--compare-training needs --data; a few responses are too little to compare")
        _score_one(model, prompt, response, options, allow_empty=allow_empty, output=output)
        return
    settings: dict[str, Any] = {"columns": parse_columns(columns), "reward_column": reward_column, "split": split}
    settings |= {"input_format": input_format, "output_format": output_format, "rows_per_shard": rows_per_shard}
    settings |= {"allow_empty": allow_empty, "resume": resume, "overwrite": overwrite}
    again = ["hf-reward", "score", "--model", model, "--data", data, *_given(columns), "--out", "scored.jsonl"]
    _score_table(
        model, data, out, options, settings, part=part, output=output, again=again, compare_training=compare_training
    )


def rank(
    model: Model,
    data: Data,
    out: Out = "",
    columns: Columns = None,
    reward_column: RewardColumn = "reward",
    rank_column: Annotated[
        str, typer.Option(help="Name of the added column of ranks.", rich_help_panel=OUTPUT_PANEL)
    ] = "rank",
    best_column: Annotated[
        str,
        typer.Option(
            help="Name of the added column with the index of the best response.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = "best",
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    max_length: MaxLength = 0,
    allow_empty: AllowEmpty = False,
    length_correction: LengthCorrection = False,
    split: Split = "train",
    input_format: InputFormat = "jsonl",
    output_format: OutputFormat = "",
    rows_per_shard: RowsPerShard = 10_000,
    part: Part = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    revision: Revision = "",
    base_model: BaseModel = "",
    trust_remote_code: RemoteCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rank lists of responses to the same prompt.

    Rows have `prompt` and `responses`. The output has the same columns and also `id`, `reward` (of each response),
    `rank` (0 is best; equal rewards share a rank) and `best` (the index of the best response). The exit codes are those
    of `score`.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    options = loading_options(
        dtype,
        device=device,
        batch_tokens=batch_tokens,
        max_length=max_length,
        revision=revision,
        base_model_name_or_path=base_model,
        trust_remote_code=trust_remote_code,
        length_correction=length_correction,
        allow_pickle=allow_pickle,
    )
    settings: dict[str, Any] = {"columns": parse_columns(columns), "reward_column": reward_column, "split": split}
    settings |= {"input_format": input_format, "output_format": output_format, "rows_per_shard": rows_per_shard}
    settings |= {"allow_empty": allow_empty, "resume": resume, "overwrite": overwrite}
    settings |= {"rank": True, "rank_column": rank_column, "best_column": best_column}
    again = ["hf-reward", "rank", "--model", model, "--data", data, *_given(columns), "--out", "ranked.jsonl"]
    _score_table(model, data, out, options, settings, part=part, output=output, again=again)


# --- inside ---------------------------------------------------------------------------------------------------------


def _require_one_source(data: str, prompt: str, response: list[str] | None, out: str) -> None:
    if bool(data) == bool(response):
        raise typer.BadParameter("give --data, or --prompt and one or more --response")
    if response and not prompt:
        raise typer.BadParameter("--response needs --prompt")
    if response and out:
        raise typer.BadParameter("--out needs --data; the rewards of --response are printed")


def _given(columns: Sequence[str] | None) -> list[str]:
    """Return the words of `--columns`, for the command to try next."""
    return [word for column in columns or () for word in ("--columns", column)]


def _score_one(
    model: str, prompt: str, responses: list[str], options: dict[str, Any], *, allow_empty: bool, output: Output
) -> None:
    from hf_reward.scoring.reward_scorer import RewardScorer

    ranking = RewardScorer.from_pretrained(model, **options).rank(prompt, responses, allow_empty=allow_empty)
    rewards = [float(reward) for reward in ranking.rewards]
    if output.as_json:
        typer.echo(json.dumps({"prompt": prompt, "responses": responses, "rewards": rewards, "order": ranking.order}))
        return
    print_ranking(prompt, responses, rewards)
    output.finish(then=["hf-reward", "serve", "--model", model])


def _score_table(
    model: str,
    data: str,
    out: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    *,
    part: str,
    output: Output,
    again: Sequence[str],
    compare_training: bool = False,
) -> None:
    from hf_reward.data.training_texts import require_summary
    from hf_reward.scoring.bulk import BulkSettings, check_before_scoring, parse_part, score_files
    from hf_reward.scoring.reward_scorer import RewardScorer

    printed, rows_only = out in ("", STANDARD_OUTPUT), output.as_json or out == STANDARD_OUTPUT
    if printed and (part or settings["resume"] or settings["overwrite"]):
        raise typer.BadParameter("--part, --resume and --overwrite need a file or folder as --out")
    if out == STANDARD_OUTPUT and settings["output_format"] not in ("", "jsonl"):
        raise typer.BadParameter("--out - writes JSONL; for Parquet, name a file: --out scored.parquet")
    rule = BulkSettings(**settings, part=parse_part(part) if part else None)
    with _output("" if printed else out) as target:
        check_before_scoring(data, target, rule)
        scorer = RewardScorer.from_pretrained(model, **options)
        if compare_training:
            require_summary({} if scorer.record is None else scorer.record.training_texts)
        report = score_files(scorer, data, target, rule)
        if printed:
            _print_rows(target, rule, rows_only)
            print_quarantine(target.with_name("scored.quarantine.jsonl"), SHOWN_ROWS)
        compared = _compared(scorer, target, rule) if compare_training and _is_main_process() else None
    if _is_main_process():
        if output.as_json or not output.quiet:
            _print_report(report, compared, as_json=output.as_json and not printed, err=printed)
        if out == "":
            output.finish(then=again)
        elif not printed:
            output.finish(
                [out, *([report.quarantine] if report.quarantine else [])], ["hf-reward", "serve", "--model", model]
            )
    raise typer.Exit(QUARANTINED if report.counts.quarantined else 0)


def _print_report(report: Any, compared: Any, *, as_json: bool, err: bool) -> None:
    """Print the counts of a run, and the comparison with the training texts if there is one."""
    from hf_reward.data.training_texts import comparison_lines

    if as_json:
        extra = {} if compared is None else {"training_comparison": [each.to_dict() for each in compared]}
        typer.echo(json.dumps(report.to_dict() | extra, indent=2))
        return
    print_summary(report, err=err)
    for line in comparison_lines(compared) if compared is not None else ():
        typer.echo(line, err=err)


def _compared(scorer: Any, scored: Path, rule: Any) -> Any:
    """Compare evenly spaced rows of the output with the texts that the model was trained on."""
    from hf_reward.data.score_request import requests_of_row
    from hf_reward.data.training_texts import SAMPLE_ROWS, compare_texts, texts_of
    from hf_reward.scoring.bulk.inputs import open_tables

    places = [(table, span) for table in open_tables(scored) for span in table.spans(_SPAN_ROWS)]
    step = max(1, -(-len(places) * _SPAN_ROWS // SAMPLE_ROWS))
    texts: dict[str, list[str]] = {"prompt": [], "response": []}
    for table, span in places[::step]:
        for found in table.read(span):
            requests = [] if found.row is None else requests_of_row(found.row, rule.columns, local_files=True)
            for place, request in enumerate(each for each in requests if not each.formatted):
                parts = texts_of(request.as_row(conversational=False))
                texts["prompt"] += parts["prompt"] if place == 0 else []
                texts["response"] += parts["response"]
    return compare_texts(scorer.record.training_texts, texts)


_SPAN_ROWS = 20


@contextmanager
def _output(out: str) -> Iterator[Path]:
    if out:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "scored.jsonl"


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _print_rows(path: Path, rule: Any, as_lines: bool) -> None:
    """Print the rows of a run without an output file: all as JSON lines, or the first ones as a table."""
    if not path.exists():
        return
    if as_lines:
        with path.open("rb") as lines:  # bytes, so that the terminal's encoding does not matter
            for line in lines:
                typer.echo(line, nl=False)
        return
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, SHOWN_ROWS)]
        more = sum(1 for _ in lines)
    names = {name: (rule.columns or {}).get(name, name) for name in _REQUEST_COLUMNS}
    if rule.rank:
        for row in rows:
            print_ranking(row.get(names["prompt"]), list(as_list(row[names["responses"]])), row[rule.reward_column])
    elif rows:
        print_scores(rows, names, rule.reward_column)
    if more:
        typer.echo(f"... and {more:,} more rows. --out FILE keeps all rows.")


_REQUEST_COLUMNS = ("prompt", "response", "responses", "messages", "text")
