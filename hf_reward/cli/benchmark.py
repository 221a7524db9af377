"""`hf-reward benchmark`: a command for each benchmark, `all`, and `compare`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.benchmark_tables import print_all, print_comparison, print_results
from hf_reward.cli.judging import (
    AtOnce,
    Budget,
    ExtraBody,
    Judges,
    PerMinute,
    Question,
    TokenFile,
    Votes,
    announcer,
    judge_settings,
    require_servers,
)
from hf_reward.cli.options import (
    DATA_PANEL,
    LOADING_PANEL,
    OUTPUT_PANEL,
    AllowPickle,
    AsJson,
    Columns,
    Command,
    Dtype,
    Group,
    Layout,
    Model,
    Quiet,
    RemoteCode,
    Verbose,
    examples,
    folder_option,
    loading_options,
    one_of,
    parse_columns,
)
from hf_reward.cli.output import Output, start_output

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Run public benchmarks, or measure accuracy on your own data.\n\n"
        "Results of a public benchmark follow the formulas of its authors. A run writes scores.jsonl, results.json and "
        "credits.jsonl (for `compare`) to the output folder. scores.jsonl has a line such as "
        '{"id": "1", "rewards": [0.5, -0.1]} for each row. The help of each benchmark states the order of the '
        "responses. The same command resumes an interrupted run."
    ),
    epilog=examples(
        "hf-reward benchmark rewardbench2 --model outputs/run --out results/rewardbench2",
        "hf-reward benchmark pairs --model outputs/run --data test.jsonl --out results/test",
    ),
)

_OWN_ORDER = (
    "the row's own (`responses`; chosen then rejected; response_a then response_b); "
    "id is the column `id`, or the row number from 0"
)
ORDERS = {
    "rewardbench": ("RewardBench", "chosen, rejected; id is `subset/id`"),
    "rewardbench2": ("RewardBench 2", "chosen responses, then rejected ones; id is `subset/id`"),
    "rm_bench": (
        "RM-Bench",
        "chosen concise, plain, markdown, then rejected concise, plain, markdown; id is `domain/id`",
    ),
    "judgebench": ("JudgeBench", "response_A, response_B; id is `pair_id`"),
    "rmb": ("RMB", "pairs: chosen, reject; lists: `bon_best`, then `loser_list`; id is `set/goal/uid`"),
    "llmbar": (
        "LLMBar",
        "output_1, output_2; id is `subset/number`, with `idx` or the row's index in its file as number",
    ),
    "ppe_preference": (
        "PPE human preference",
        "response_1, response_2; id is `question_id`; rows that annotators called a tie are not scored",
    ),
    "ppe_correctness": ("PPE correctness", "response_1, response_2, ...; id is `subset/question_id/model_name`"),
    "m_rewardbench": ("M-RewardBench", "chosen, rejected; id is `language/source/id`"),
    "judgebench_pro": ("JudgeBench-Pro", "response_A, response_B; id is the row number from 0"),
    "rewardmath": ("RewardMATH", "the ten solutions of a problem in the order of their rows; id is `problem_id`"),
    "rewordbench": (
        "reWordBench",
        "chosen, rejected; id is `transformation/subset/id`, with the transformation `original` for unchanged rows",
    ),
    "vl_rewardbench": (
        "VL-RewardBench",
        "the two responses of `response`; id is `id/row number from 0`, because ids may be repeated",
    ),
    "multimodal_rewardbench": ("Multimodal RewardBench", "Output1, Output2; id is `ID/row number from 0`"),
    "pairs": ("Own pairs", _OWN_ORDER),
    "lists": ("Own lists", _OWN_ORDER),
}
"""Name -> title and response order, repeated here so that `--help` imports no benchmark."""

OwnData = Annotated[
    list[str] | None,
    typer.Option(
        help="File, folder or Hub id (org/name@revision); may be repeated. By default the benchmark's data on the Hub."
    ),
]
Scores = Annotated[
    Path | None, typer.Option(help="Recompute the results from this scores.jsonl, without loading a model.")
]
ExtraSets = Annotated[
    bool,
    typer.Option(
        "--extra-sets",
        help="RewardBench: also score the prior sets and report the average that includes them. M-RewardBench: also "
        "score the set of translations.",
        rich_help_panel=DATA_PANEL,
    ),
]
Split = Annotated[
    str,
    typer.Option(help="Split of the data. Defaults to the benchmark's own.", rich_help_panel=DATA_PANEL),
]
Subset = Annotated[
    list[str] | None, typer.Option(help="Only this subset; may be repeated.", rich_help_panel=DATA_PANEL)
]
Out = Annotated[Path | None, typer.Option(help="Folder for scores.jsonl and results.json.", callback=folder_option)]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Longest sequence in tokens. Defaults to the checkpoint's limit.", rich_help_panel=LOADING_PANEL),
]
Unscored = Annotated[
    str,
    typer.Option(
        help="Rows that cannot be scored: `leave_out` (the result is partial) or `wrong`.",
        rich_help_panel=DATA_PANEL,
        autocompletion=one_of("leave_out", "wrong"),
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace another run in the output folder.", rich_help_panel=OUTPUT_PANEL),
]
Card = Annotated[
    bool,
    typer.Option(
        "--card", help="Record the result in the model folder, for the model card.", rich_help_panel=OUTPUT_PANEL
    ),
]


def _command_for(name: str) -> Callable[..., None]:
    def run(
        model: Model = "",
        data: OwnData = None,
        out: Out = None,
        scores: Scores = None,
        subset: Subset = None,
        extra_sets: ExtraSets = False,
        split: Split = "",
        layout: Layout = "auto",
        columns: Columns = None,
        max_length: MaxLength = None,
        dtype: Dtype = "float32",
        allow_pickle: AllowPickle = False,
        trust_remote_code: RemoteCode = False,
        unscored: Unscored = "leave_out",
        overwrite: Overwrite = False,
        card: Card = False,
        judge: Judges = None,
        budget: Budget = None,
        votes: Votes = 0,
        question: Question = "",
        at_once: AtOnce = 8,
        requests_per_minute: PerMinute = 0.0,
        extra_body: ExtraBody = "",
        token_file: TokenFile = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
        from hf_reward.evaluation.benchmarks.data import DataChoice
        from hf_reward.evaluation.benchmarks.reporting import results_from_scores
        from hf_reward.evaluation.benchmarks.results import ResultRule

        choice = DataChoice(
            data=data or None,
            split=split or None,
            subsets=subset or (),
            extra_sets=extra_sets,
            layout=layout,
            columns=parse_columns(columns),
        )
        require_servers(judge, model, needs_model=card, budget=budget)
        if [bool(model), bool(scores), bool(judge)].count(True) != 1:
            raise typer.BadParameter("give either --model, --judge or --scores")
        _check(card, model, out)
        rule = ResultRule(unscored=unscored)
        asking: dict[str, Any] = {"votes": votes, "question": question, "extra_body": extra_body, "budget": budget}
        asking |= {"at_once": at_once, "requests_per_minute": requests_per_minute}
        if scores is not None:
            results = results_from_scores(name, None, scores, out=out, choice=choice, rule=rule)
        elif out is None:
            raise typer.BadParameter("--model and --judge need --out, the folder for scores.jsonl and results.json")
        elif judge:
            from hf_reward.evaluation.benchmarks.judged import judge_benchmark

            with _opened(judge, out, token_file, **asking) as opened:
                say = announcer(output, "comparison")
                results = judge_benchmark(
                    name, opened, out=out, choice=choice, rule=rule, overwrite=overwrite, announce=say
                )
            _print_judges(results, output)
        else:
            from hf_reward.evaluation.benchmarks.running import run_benchmark

            loading = loading_options(
                dtype, max_length=max_length, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
            )
            results = run_benchmark(name, model, out=out, choice=choice, rule=rule, overwrite=overwrite, **loading)
        _record(card, model, [results])
        _print(results, as_json, print_results)
        output.finish(_files(out), ["hf-reward", "serve", "--model", model] if model else ())

    return run


_PUBLIC, _OWN, _SEVERAL = "Public benchmarks", "Your own data", "Several runs"
_OWN_TITLES = {"pairs": "Measure accuracy on your own pairs.", "lists": "Measure accuracy on your own ranked lists."}
for _name, (_title, _order) in ORDERS.items():
    app.command(
        _name,
        cls=Command,
        rich_help_panel=_OWN if _name in _OWN_TITLES else _PUBLIC,
        help=f"{_OWN_TITLES.get(_name, f'Run {_title}.')}\n\nResponse order in scores.jsonl: {_order}.",
    )(_command_for(_name))


@app.command("all", cls=Command, rich_help_panel=_PUBLIC)
def run_every(
    model: Model = "",
    out: Out = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with a file or folder for each benchmark, named after it; the rest is on the Hub."),
    ] = None,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    unscored: Unscored = "leave_out",
    overwrite: Overwrite = False,
    card: Card = False,
    judge: Judges = None,
    budget: Budget = None,
    votes: Votes = 0,
    question: Question = "",
    at_once: AtOnce = 8,
    requests_per_minute: PerMinute = 0.0,
    extra_body: ExtraBody = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all public benchmarks whose data are available.

    Prints the reason for each benchmark that was not run. Exit code 1: no benchmark was run.
    """
    require_servers(judge, model, needs_model=card, budget=budget)
    if not (model or judge) or out is None:
        raise typer.BadParameter("give --model or --judge, and --out")
    _check(card, model, out)
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.evaluation.benchmarks.results import ResultRule
    from hf_reward.evaluation.benchmarks.running import run_all

    rule = ResultRule(unscored=unscored)
    loading = loading_options(
        dtype, max_length=max_length, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    if judge:
        from hf_reward.evaluation.benchmarks.judged import judge_all

        asking: dict[str, Any] = {"votes": votes, "question": question, "extra_body": extra_body, "budget": budget}
        asking |= {"at_once": at_once, "requests_per_minute": requests_per_minute}
        with _opened(judge, out, token_file, **asking) as opened:
            say = announcer(output, "comparison")
            found = judge_all(opened, out=out, data=data, rule=rule, overwrite=overwrite, announce=say)
    else:
        found = run_all(model, out=out, data=data, rule=rule, overwrite=overwrite, **loading)
    _record(card, model, found.results)
    _print({"results": found.results, "skipped": found.skipped}, as_json, print_all)
    output.finish(
        sorted(out.iterdir()) if out.is_dir() else (), ["hf-reward", "serve", "--model", model] if model else ()
    )
    raise typer.Exit(0 if found.results else 1)


@app.command(
    cls=Command, rich_help_panel=_SEVERAL, epilog=examples("hf-reward benchmark compare results/run1 results/run2")
)
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a run (`--out`).")],
    b: Annotated[Path, typer.Argument(help="Folder of another run over the same rows.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs of a benchmark over the same rows.

    Prints the paired difference A - B with its 95% interval and p-value, both clustered by prompt.
    """
    from hf_reward.evaluation.benchmarks.comparing import compare as compare_runs

    _print(compare_runs(a, b), as_json, print_comparison)


def _check(card: bool, model: str, out: Path | None) -> None:
    """Refuse a run whose result could not be stored, before hours of scoring."""
    from hf_reward.data.path_safety import require_writable

    if card and not model:
        raise typer.BadParameter("--card needs --model, the folder in which the result is recorded")
    if card and not Path(model).is_dir():
        raise typer.BadParameter("--card records the result in the model's folder, but --model is not a folder")
    if out is not None:
        require_writable(out / "results.json")


def _opened(judges: list[str], out: Path, token_file: Path | None, **settings: Any) -> Any:
    """Open judges whose answers are stored in the output folder."""
    from hf_reward.evaluation.benchmarks.judged import REQUESTS_FILE
    from hf_reward.scoring.judging import open_judge
    from hf_reward.scoring.server_token import read_token

    token = read_token(token_file)
    return open_judge(judges, judge_settings(**settings), cache=out / REQUESTS_FILE, token=token)


def _print_judges(results: dict[str, Any], output: Output) -> None:
    """Print the requests and the position bias of the judges of a run."""
    from hf_reward.scoring.judging.judge import JudgeReport
    from hf_reward.scoring.judging.labelling import judge_lines

    if output.as_json or output.quiet:
        return
    for each in results["judges"]:
        for line in judge_lines(JudgeReport.from_dict(each)):
            typer.echo(line, err=True)


def _files(out: Path | None) -> list[Path]:
    names = ("results.json", "scores.jsonl", "credits.jsonl")
    return [] if out is None else [out / name for name in names if (out / name).is_file()]


def _record(card: bool, model: str, results: list[dict[str, Any]]) -> None:
    if not card:
        return
    from hf_reward.evaluation.benchmarks.results import record_for_card

    record_for_card(model, results)


def _print(content: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        show(content)
