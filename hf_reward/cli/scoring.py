"""`hf-reward score | rank`: what people use a reward model for."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
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
    RemoteCode,
    loading_options,
    parse_columns,
)
from hf_reward.cli.output import (
    as_list,
    print_quarantine,
    print_ranking,
    print_scores,
    print_summary,
    quiet,
)

SHOWN_ROWS = 20
"""Rows that are printed where no output is named."""
STANDARD_OUTPUT = "-"
"""What `--out` says for rows on standard output; everything else that is said then goes to standard error."""
QUARANTINED = 3
"""Exit code of a run that is finished, but put rows aside."""

Data = Annotated[
    str, typer.Option(help="A JSONL, CSV or Parquet file, a folder of them, a Hub id, or - for standard input.")
]
Out = Annotated[
    str,
    typer.Option(
        help="A .jsonl or .parquet file, a folder for shards, or - for standard output (JSONL); without it the first "
        "rows are printed."
    ),
]
RewardColumn = Annotated[str, typer.Option(help="Name of the added column of rewards.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Score empty responses instead of putting them aside.")]
CompareTraining = Annotated[
    bool,
    typer.Option("--compare-training", help="Say how the scored texts differ from those of training."),
]
Split = Annotated[str, typer.Option(help="Split of a Hub id.")]
InputFormat = Annotated[str, typer.Option(help="What standard input holds: jsonl, csv or parquet.")]
OutputFormat = Annotated[str, typer.Option(help="What a folder of shards holds: jsonl or parquet.")]
RowsPerShard = Annotated[int, typer.Option(help="Rows of a shard: what a kill can cost.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's output.")]
Part = Annotated[str, typer.Option(help="i/n: score every n-th shard from the i-th on, for jobs that share a folder.")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a model on the Hub.")]


def score(
    model: Model,
    data: Data = "",
    out: Out = "",
    prompt: Annotated[str, typer.Option(help="Instead of --data: one prompt.")] = "",
    response: Annotated[list[str] | None, typer.Option(help="Its response; may be repeated.")] = None,
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
) -> None:
    """Score rows: `prompt` and `response`, `prompt` and `responses`, `messages`, or `text` that is formatted already.

    The output keeps the columns and adds `id` and `reward`. Exit code 0: every row is scored. 3: finished, but rows
    were put aside, with the reason of each. 1: an error; what was finished is kept. 2: the command is wrong.
    """
    quiet()
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
            raise typer.BadParameter("--compare-training is for --data: a few responses say too little")
        _score_one(model, prompt, response, options, allow_empty=allow_empty, as_json=as_json)
        return
    settings: dict[str, Any] = {"columns": parse_columns(columns), "reward_column": reward_column, "split": split}
    settings |= {"input_format": input_format, "output_format": output_format, "rows_per_shard": rows_per_shard}
    settings |= {"allow_empty": allow_empty, "resume": resume, "overwrite": overwrite}
    _score_table(model, data, out, options, settings, part=part, as_json=as_json, compare_training=compare_training)


def rank(
    model: Model,
    data: Data,
    out: Out = "",
    columns: Columns = None,
    reward_column: RewardColumn = "reward",
    rank_column: Annotated[str, typer.Option(help="Name of the added column of ranks.")] = "rank",
    best_column: Annotated[str, typer.Option(help="Name of the added column with the place of the best.")] = "best",
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
) -> None:
    """Rank lists: rows of `prompt` and `responses`.

    The output keeps the columns and adds `id`, `reward` (of each response), `rank` (0 is best, equal rewards share
    one) and `best` (the place of the best). Exit codes are those of `score`.
    """
    quiet()
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
    _score_table(model, data, out, options, settings, part=part, as_json=as_json)


# --- inside ---------------------------------------------------------------------------------------------------------


def _require_one_source(data: str, prompt: str, response: list[str] | None, out: str) -> None:
    if bool(data) == bool(response):
        raise typer.BadParameter("give --data, or --prompt and one or more --response")
    if response and not prompt:
        raise typer.BadParameter("--response needs the --prompt that it answers")
    if response and out:
        raise typer.BadParameter("--out is for --data; rewards of --response are printed")


def _score_one(
    model: str, prompt: str, responses: list[str], options: dict[str, Any], *, allow_empty: bool, as_json: bool
) -> None:
    from hf_reward.scoring.reward_scorer import RewardScorer

    ranking = RewardScorer.from_pretrained(model, **options).rank(prompt, responses, allow_empty=allow_empty)
    rewards = [float(reward) for reward in ranking.rewards]
    if as_json:
        typer.echo(json.dumps({"prompt": prompt, "responses": responses, "rewards": rewards, "order": ranking.order}))
        return
    print_ranking(prompt, responses, rewards)


def _score_table(
    model: str,
    data: str,
    out: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    *,
    part: str,
    as_json: bool,
    compare_training: bool = False,
) -> None:
    from hf_reward.data.training_texts import require_summary
    from hf_reward.scoring.bulk import BulkSettings, check_before_scoring, parse_part, score_files
    from hf_reward.scoring.reward_scorer import RewardScorer

    printed, rows_only = out in ("", STANDARD_OUTPUT), as_json or out == STANDARD_OUTPUT
    if printed and (part or settings["resume"] or settings["overwrite"]):
        raise typer.BadParameter("--part, --resume and --overwrite need a file or folder as --out")
    if out == STANDARD_OUTPUT and settings["output_format"] not in ("", "jsonl"):
        raise typer.BadParameter("--out - writes JSONL; for Parquet name a file: --out scored.parquet")
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
        _print_report(report, compared, as_json=as_json and not printed, err=printed)
    raise typer.Exit(QUARANTINED if report.counts.quarantined else 0)


def _print_report(report: Any, compared: Any, *, as_json: bool, err: bool) -> None:
    """What the run did, and how the texts differ from those of training if that was asked for."""
    from hf_reward.data.training_texts import comparison_lines

    if as_json:
        told = {} if compared is None else {"training_comparison": [each.to_dict() for each in compared]}
        typer.echo(json.dumps(report.to_dict() | told, indent=2))
        return
    print_summary(report, err=err)
    for line in comparison_lines(compared) if compared is not None else ():
        typer.echo(line, err=err)


def _compared(scorer: Any, scored: Path, rule: Any) -> Any:
    """Rows of the output, evenly spaced, beside the texts that the model was trained on."""
    from hf_reward.data.score_request import requests_of_row
    from hf_reward.data.training_texts import SAMPLE_ROWS, compare_texts, texts_of
    from hf_reward.scoring.bulk.inputs import open_tables

    places = [(table, span) for table in open_tables(scored) for span in table.spans(_SPAN_ROWS)]
    step = max(1, -(-len(places) * _SPAN_ROWS // SAMPLE_ROWS))
    texts: dict[str, list[str]] = {"prompt": [], "response": []}
    for table, span in places[::step]:
        for found in table.read(span):
            requests = [] if found.row is None else requests_of_row(found.row, rule.columns)
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
    """The rows of a run without a file: JSON lines for machines, the first as a table for people."""
    if not path.exists():
        return
    if as_lines:
        with path.open("rb") as lines:  # as they are, whatever the terminal's encoding
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
        typer.echo(f"... and {more:,} more rows. Name a file with --out to keep them all.")


_REQUEST_COLUMNS = ("prompt", "response", "responses", "messages", "text")
