"""`hf-reward benchmark`: a command for each benchmark, `all`, and `compare`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

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
from hf_reward.cli.output import start_output

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
        help="RewardBench: also score the prior sets and report the average that includes them.",
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
        if bool(model) == bool(scores):
            raise typer.BadParameter("give either --model or --scores")
        _check(card, model, out)
        rule = ResultRule(unscored=unscored)
        if scores is not None:
            results = results_from_scores(name, None, scores, out=out, choice=choice, rule=rule)
        elif out is None:
            raise typer.BadParameter("--model needs --out, the folder for scores.jsonl and results.json")
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
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all public benchmarks whose data are available.

    Prints the reason for each benchmark that was not run. Exit code 1: no benchmark was run.
    """
    if not model or out is None:
        raise typer.BadParameter("give --model and --out")
    _check(card, model, out)
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.evaluation.benchmarks.results import ResultRule
    from hf_reward.evaluation.benchmarks.running import run_all

    rule = ResultRule(unscored=unscored)
    loading = loading_options(
        dtype, max_length=max_length, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    found = run_all(model, out=out, data=data, rule=rule, overwrite=overwrite, **loading)
    _record(card, model, found.results)
    _print({"results": found.results, "skipped": found.skipped}, as_json, print_all)
    output.finish(sorted(out.iterdir()) if out.is_dir() else (), ["hf-reward", "serve", "--model", model])
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


# --- tables -----------------------------------------------------------------------------------------------------------


def print_results(results: Mapping[str, Any]) -> None:
    """Print one benchmark's numbers as a table."""
    from rich.table import Table

    from hf_reward.cli.console import make_console

    rule = next(iter(results["baselines"]))
    table = Table(title=results["title"], title_justify="left")
    table.add_column("", min_width=20)
    for name in ("score", "95% interval", rule):
        table.add_column(name)
    table.add_row(
        "overall (partial)" if results["partial"] else "overall",
        _share(results["overall"]),
        _interval(results["ci"]),
        _share(results["baselines"][rule]),
        end_section=True,
    )
    for part in ("sections", "subsets"):
        lengths = results[f"baseline_{part}"][rule]
        names = list(results[part])
        for name in names:
            bounds = _interval(results[f"{part}_ci"][name])
            last = name == names[-1]
            table.add_row(name, _share(results[part][name]), bounds, _share(lengths.get(name)), end_section=last)
    for name, value in results["measures"].items():
        table.add_row(name, _share(value), _interval(results["measures_ci"][name]), "")
    console = make_console()
    console.print(table)
    for line in _lines(results):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _lines(results: Mapping[str, Any]) -> list[str]:
    from hf_reward.metrics.counts import counted

    lines = [f"Overall: {results['overall_is']}."] if "overall_is" in results else []
    lines += [
        f"{counted(results['n'], 'row')} of {counted(results['prompts'], 'prompt')}, "
        f"{counted(results['comparisons'], 'comparison')}, {counted(results['ties'], 'tie')} "
        f"({_share(results['tie_rate'])}%).",
    ]
    if results["overall_half_credit"] != results["overall"]:
        lines.append(f"With half-credit for ties: {_share(results['overall_half_credit'])}.")
    if results["partial"]:
        lines.append(f"PARTIAL, not comparable with published numbers. Missing: {', '.join(results['partial'])}.")
    if results["unscored"]["n"]:
        name, why = next(iter(results["unscored"]["first"].items()))
        use = "counted as wrong" if results["unscored"]["counted_as"] == "wrong" else "left out"
        lines.append(
            f"{counted(results['unscored']['n'], 'row')} could not be scored, {use}. First: {name}: "
            f"{why.removesuffix('.')}."
        )
    if results.get("prompts_cut"):
        lines.append(f"Cut to fit the model: {counted(results['prompts_cut'], 'prompt')}.")
    shared = results.get("shared_responses")
    if shared:
        few = "; fewer than 20 responses are too few for an interval" if shared["too_few_responses"] else ""
        lines.append(
            f"Only {counted(shared['responses'], 'different response')} in {counted(shared['pairs'], 'pair')}. The "
            "interval clustered by prompt accounts for this. With responses of the same prompts resampled instead, the "
            f"interval is {_interval(shared['ci'])}{few}."
        )
    over = results.get("over_length")
    if over and over["ci"]:
        lines.append(
            f"Difference to the strongest length baseline ({over['rule']}, {_share(over['score'])}): "
            f"{100 * over['difference']:+.1f} ({_points(over['ci'])})."
        )
    lines += results.get("doubts", ())
    if results["too_few_prompts"]:
        lines.append("Fewer than 20 prompts are too few for intervals.")
    lines += results["notes"]
    return [*lines, f"Data: {results['data']} ({results['data_revision']}).", f"Arithmetic: {results['checked']}."]


def print_all(found: Mapping[str, Any]) -> None:
    """Print the overall numbers of several benchmarks, and the reasons for those that were not run."""
    from rich.table import Table

    from hf_reward.cli.console import make_console

    table = Table("benchmark", "overall", "95% interval", "longer response", "rows", "ties")
    for each in found["results"]:
        name = each["title"] + (" (partial)" if each["partial"] else "")
        length = next(iter(each["baselines"].values()))
        numbers = (_share(each["overall"]), _interval(each["ci"]), _share(length), str(each["n"]), str(each["ties"]))
        table.add_row(name, *numbers)
    console = make_console()
    if found["results"]:
        console.print(table)
    for name, reason in found["skipped"].items():
        console.print(f"  Not run: {name}. {reason}", highlight=False, soft_wrap=True, markup=False)


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two runs as a table."""
    from rich.table import Table

    from hf_reward.cli.console import make_console
    from hf_reward.metrics.counts import counted

    table = Table("", "A", "B", "A - B", "95% interval", "p", title=found["title"], title_justify="left")
    first, second = found["a"]["overall"], found["b"]["overall"]
    table.add_row("overall", *_compared(first, second, found), end_section=True)
    for name, each in found["sections"].items():
        table.add_row(name, *_compared(each["a"], each["b"], each))
    console = make_console()
    console.print(table)
    lines = [
        f"{counted(found['n'], 'row')} of {counted(found['prompts'], 'prompt')}; interval and p-value are "
        "clustered by prompt."
    ]
    if found["too_few_prompts"]:
        lines.append("Fewer than 20 prompts: too few for a verdict.")
    if test := found["mcnemar"]:
        lines.append(
            f"Every prompt has one row. Only A is right on {counted(test['only_a_right'], 'prompt')}, only B on "
            f"{test['only_b_right']}; McNemar's exact test p = {test['p_value']:.3g}."
        )
    for line in lines:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if found["partial"]:
        console.print(
            f"  PARTIAL. Missing: {', '.join(found['partial'])}.", highlight=False, soft_wrap=True, markup=False
        )


def _compared(a: float, b: float, found: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    tail = "-" if found["p_value"] is None else f"{found['p_value']:.3g}"
    return _share(a), _share(b), f"{100 * found['difference']:+.1f}", _points(found["ci"]), tail


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _points(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
