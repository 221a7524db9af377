"""`hf-reward label`, and the options for judges of `label`, `audit` and `benchmark`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import DATA_PANEL, OUTPUT_PANEL, AsJson, Columns, Layout, Quiet, Verbose, parse_columns
from hf_reward.cli.output import Output, start_output

JUDGE_PANEL = "Judge"

Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="URL of a judge: /v1/chat/completions, /v1/decisions or /v1/systemone, with #MODEL at its end; a server "
        "of `hf-reward serve`; a folder or Hub id of a reward model; or decision:MODEL. Several are averaged.",
        rich_help_panel=JUDGE_PANEL,
    ),
]
Votes = Annotated[
    int,
    typer.Option(
        help="Sampled answers of a chat judge in each order; 0 reads log-probabilities.", rich_help_panel=JUDGE_PANEL
    ),
]
Question = Annotated[str, typer.Option(help="The criterion, instead of the default.", rich_help_panel=JUDGE_PANEL)]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Largest number of requests, repeated attempts included. More are refused.", rich_help_panel=JUDGE_PANEL
    ),
]
AtOnce = Annotated[int, typer.Option(help="Simultaneous requests to a judge.", rich_help_panel=JUDGE_PANEL)]
PerMinute = Annotated[
    float, typer.Option(help="Most requests per minute to each judge; 0 for no limit.", rich_help_panel=JUDGE_PANEL)
]
Price = Annotated[
    str,
    typer.Option(
        help="INPUT,OUTPUT: prices of a million tokens, to compute the cost, such as 0.15,0.60.",
        rich_help_panel=JUDGE_PANEL,
    ),
]
ExtraBody = Annotated[
    str, typer.Option(help="JSON object whose fields are added to each request.", rich_help_panel=JUDGE_PANEL)
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the judge's API token; or set HF_REWARD_SERVER_TOKEN.", rich_help_panel=JUDGE_PANEL),
]


def label(
    data: Annotated[str, typer.Option(help="File, folder or Hub id of pairs, with or without preferences.")] = "",
    out: Annotated[Path | None, typer.Option(help="A .jsonl file for the labelled rows.")] = None,
    judge: Judges = None,
    votes: Votes = 0,
    question: Question = "",
    budget: Budget = None,
    at_once: AtOnce = 8,
    requests_per_minute: PerMinute = 0.0,
    prices: Price = "",
    extra_body: ExtraBody = "",
    token_file: TokenFile = None,
    columns: Columns = None,
    layout: Layout = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub dataset.", rich_help_panel=DATA_PANEL)] = "train",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output of an earlier run.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Label pairs with the probabilities of a judge.

    Asks in both orders, averages the probabilities, and reports position bias, tokens, cost and failures. Answers are
    kept in OUT.requests.jsonl: the same command resumes an interrupted run. Pairs with a failed request get no label
    and are written to a quarantine file.

    Exit code 0: all pairs are labelled. 1: the data or the judge cannot be used, or the budget is too small. 2: wrong
    options. 3: some rows have no label.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    if not data or not judge or out is None:
        raise typer.BadParameter("give --judge, --data and --out; `hf-reward label --help` shows all options")
    settings = judge_settings(
        votes=votes,
        question=question,
        budget=budget,
        at_once=at_once,
        requests_per_minute=requests_per_minute,
        prices=prices,
        extra_body=extra_body,
    )
    from hf_reward.cli.scoring import QUARANTINED
    from hf_reward.scoring.judging.labelling import LabelFiles, label_rows, report_lines
    from hf_reward.scoring.server_token import read_token

    reading: dict[str, Any] = {"columns": parse_columns(columns), "layout": layout, "split": split}
    token = read_token(token_file)
    announce = announcer(output, "pair")
    report = label_rows(data, out, judge, settings, token=token, overwrite=overwrite, announce=announce, **reading)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif not quiet:
        for line in report_lines(report):
            typer.echo(line)
    files, incomplete = LabelFiles(out=out), bool(report.failed or report.unusable)
    written = [files.out, files.report, *([files.quarantine] if incomplete else [])]
    output.finish(written, ["hf-reward", "check-data", "--data", out])
    raise typer.Exit(QUARANTINED if incomplete else 0)


def announcer(output: Output, noun: str) -> Callable[[int, int], None]:
    """Return a function that prints the number of comparisons and requests before the first request.

    Args:
        output: The form of the output.
        noun: The word for what is judged, such as "pair".

    Returns:
        The function.
    """
    from hf_reward.metrics.counts import counted

    def announce(judged: int, requests: int) -> None:
        if not (output.quiet or output.as_json):
            typer.echo(f"{counted(judged, noun)}: {counted(requests, 'request')} to send.", err=True)

    return announce


def require_servers(judges: list[str] | None, model: str, *, needs_model: bool = False, budget: int | None) -> None:
    """Check the options of a command that takes a model or a judge.

    Args:
        judges: The judges.
        model: The model.
        needs_model: Whether other options apply to models only.
        budget: Limit of requests.

    Raises:
        typer.BadParameter: If both are given, a single judge is a local reward model, or an option does not apply.
    """
    if budget is not None and not judges:
        raise typer.BadParameter("--budget needs --judge: a model sends no requests")
    if not judges:
        return
    if model:
        raise typer.BadParameter("give either --model or --judge")
    if needs_model:
        raise typer.BadParameter("an option that changes rewards or the model's folder needs --model")
    if len(judges) == 1 and "://" not in judges[0] and not judges[0].startswith("decision:"):
        raise typer.BadParameter(f"{judges[0]!r} is a reward model: pass it as --model")


def judge_settings(*, prices: str = "", extra_body: str, question: str, **settings: Any) -> Any:
    """Return the settings of the options for judges.

    Args:
        prices: `INPUT,OUTPUT`, or empty.
        extra_body: A JSON object, or empty.
        question: The criterion, or empty for the default.
        **settings: Other fields of `JudgeSettings`.

    Returns:
        The `JudgeSettings`.

    Raises:
        typer.BadParameter: If a value is invalid.
    """
    from hf_reward.scoring.judging.requests import JudgeSettings

    settings |= {"question": question} if question else {}
    try:
        return JudgeSettings(prices=_prices(prices), extra_body=_fields(extra_body), **settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _prices(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        given, written = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"`--prices` must be two numbers such as 0.15,0.60, but is {text!r}.") from None
    return given, written


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"`--extra-body` must be a JSON object, but is {text!r} ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"`--extra-body` must be a JSON object, but is {text!r}.")
    return found


def audit_with_judges(
    judges: list[str],
    settings: Any,
    token_file: Path | None,
    run: tuple[str, str, Any, list[str], dict[str, Any]],
    output: Output,
) -> None:
    """Run `hf-reward audit --judge`.

    Args:
        judges: The judges.
        settings: Settings of their requests.
        token_file: File with their token.
        run: Data, output folder, rule, probe files and options for reading the data.
        output: The form of the output.
    """
    from hf_reward.cli.console import make_console
    from hf_reward.data.path_safety import require_writable
    from hf_reward.evaluation.audit import read_probe_data, write_audit
    from hf_reward.evaluation.audit.judged import audit_judge, cache_path
    from hf_reward.evaluation.audit.report.table import print_audit
    from hf_reward.scoring.judging import open_judge
    from hf_reward.scoring.judging.labelling import judge_lines
    from hf_reward.scoring.server_token import read_token

    data, out, rule, probe_files, reading = run
    require_writable(Path(out) / "audit.json")
    own = [replace(read_probe_data(path), name=Path(path).name) for path in probe_files]
    with open_judge(judges, settings, cache=cache_path(out), token=read_token(token_file)) as opened:
        report = audit_judge(
            opened, data, rule=rule, probe_data=own, announce=announcer(output, "comparison"), **reading
        )
        counts = opened.judge.reports()
    written = write_audit(report, out)
    if output.as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_audit(report.to_dict(), make_console())
        for line in [line for each in counts for line in judge_lines(each)]:
            typer.echo(line)
    output.finish([path for path in written if path.suffix == ".html" or path.name == "audit.json"])
