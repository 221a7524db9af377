"""`hf-reward benchmark`: a command for each benchmark, `all`, and `compare`. Imports wait until a command runs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    AllowPickle,
    AsJson,
    Dtype,
    Model,
    RemoteCode,
    folder_option,
    loading_options,
    parse_columns,
)
from hf_reward.cli.output import quiet, quiet_data

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Measure a reward model with a public benchmark's own arithmetic, or on your own data. "
        'A run writes DIR/scores.jsonl, a line for each data row: {"id": ..., "rewards": [...]} in the response order '
        "that the benchmark's help states; DIR/results.json; and DIR/credits.jsonl, which `compare` reads. "
        "A run that was stopped goes on when the same command is given again."
    ),
)

_OWN_ORDER = (
    "the row's own (`responses`; chosen then rejected; response_a then response_b); "
    "id is the column `id`, else the row's number from 0"
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
        "output_1, output_2; id is `subset/number`, the number being `idx` or the row's place in its file",
    ),
    "ppe_preference": (
        "PPE human preference",
        "response_1, response_2; id is `question_id`; rows that people called a tie are not scored",
    ),
    "ppe_correctness": ("PPE correctness", "response_1, response_2, ...; id is `subset/question_id/model_name`"),
    "pairs": ("Own pairs", _OWN_ORDER),
    "lists": ("Own lists", _OWN_ORDER),
}
"""Name -> title and response order, as the benchmarks themselves say, without importing them for `--help`."""

OwnData = Annotated[
    list[str] | None,
    typer.Option(help="File, folder or Hub id (org/name@revision); may be repeated; by default the benchmark's own."),
]
Scores = Annotated[Path | None, typer.Option(help="Recompute from this scores.jsonl; no model is loaded.")]
ExtraSets = Annotated[
    bool, typer.Option("--extra-sets", help="RewardBench: also its prior sets, for the average with them.")
]
Split = Annotated[str, typer.Option(help="Split of a Hub id or of own data's folder, if not the benchmark's own.")]
Out = Annotated[Path | None, typer.Option(help="Folder for scores.jsonl and results.json.", callback=folder_option)]
MaxLength = Annotated[int | None, typer.Option(help="Another limit in tokens than the checkpoint's.")]
Unscored = Annotated[
    str, typer.Option(help="Rows that cannot be scored: `leave_out` (the result is partial), or count as `wrong`.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Score anew where the folder holds another run.")]
Card = Annotated[bool, typer.Option("--card", help="Also record the result beside the model, where its card reads it.")]


def _command_for(name: str) -> Callable[..., None]:
    def run(
        model: Model = "",
        data: OwnData = None,
        out: Out = None,
        scores: Scores = None,
        subset: Annotated[list[str] | None, typer.Option(help="Only this subset; may be repeated.")] = None,
        extra_sets: ExtraSets = False,
        split: Split = "",
        layout: Annotated[str, typer.Option(help="Row layout of own data, as in training.")] = "auto",
        columns: Annotated[
            list[str] | None, typer.Option(help="Own data: our name=your column; may be repeated.")
        ] = None,
        max_length: MaxLength = None,
        dtype: Dtype = "float32",
        allow_pickle: AllowPickle = False,
        trust_remote_code: RemoteCode = False,
        unscored: Unscored = "leave_out",
        overwrite: Overwrite = False,
        card: Card = False,
        as_json: AsJson = False,
    ) -> None:
        quiet()
        quiet_data()
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

    return run


for _name, (_title, _order) in ORDERS.items():
    app.command(_name, help=f"{_title}. Response order of scores.jsonl: {_order}.")(_command_for(_name))


@app.command("all")
def run_every(
    model: Model = "",
    out: Out = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with a folder or file for each benchmark, by its name; others come from the Hub."),
    ] = None,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    unscored: Unscored = "leave_out",
    overwrite: Overwrite = False,
    card: Card = False,
    as_json: AsJson = False,
) -> None:
    """Run every public benchmark whose data can be had, and say which could not be had and why.

    Exit code 1: none could.
    """
    if not model or out is None:
        raise typer.BadParameter("give --model and --out")
    _check(card, model, out)
    quiet()
    quiet_data()
    from hf_reward.evaluation.benchmarks.results import ResultRule
    from hf_reward.evaluation.benchmarks.running import run_all

    rule = ResultRule(unscored=unscored)
    loading = loading_options(
        dtype, max_length=max_length, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    found = run_all(model, out=out, data=data, rule=rule, overwrite=overwrite, **loading)
    _record(card, model, found.results)
    _print({"results": found.results, "skipped": found.skipped}, as_json, print_all)
    raise typer.Exit(0 if found.results else 1)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a run (`--out`).")],
    b: Annotated[Path, typer.Argument(help="Folder of another run over the same rows.")],
    as_json: AsJson = False,
) -> None:
    """Paired difference of two runs, A minus B, with its 95% interval and p-value, both by prompt."""
    from hf_reward.evaluation.benchmarks.comparing import compare as compare_runs

    _print(compare_runs(a, b), as_json, print_comparison)


def _check(card: bool, model: str, out: Path | None) -> None:
    """Stop before hours of scoring whose result could not be kept."""
    from hf_reward.data.path_safety import require_writable

    if card and not model:
        raise typer.BadParameter("--card needs --model, the folder beside which the result is recorded")
    if card and not Path(model).is_dir():
        raise typer.BadParameter("--card records the result in the model's folder, but --model is none")
    if out is not None:
        require_writable(out / "results.json")


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


# --- for people -----------------------------------------------------------------------------------------------------


def print_results(results: Mapping[str, Any]) -> None:
    """Print one benchmark's numbers as a table."""
    from rich.console import Console
    from rich.table import Table

    rule = next(iter(results["baselines"]))
    table = Table(title=results["title"], title_justify="left")
    table.add_column("", overflow="fold", min_width=20)  # a name is never cut off
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
    console = Console()
    console.print(table)
    for line in _lines(results):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _lines(results: Mapping[str, Any]) -> list[str]:
    lines = [f"Overall: {results['overall_is']}."] if "overall_is" in results else []
    lines += [
        f"{results['n']} rows of {results['prompts']} prompts, {results['comparisons']} comparisons, "
        f"{results['ties']} ties ({_share(results['tie_rate'])}%).",
    ]
    if results["overall_half_credit"] != results["overall"]:
        lines.append(f"With half-credit for ties: {_share(results['overall_half_credit'])}.")
    if results["partial"]:
        lines.append(f"PARTIAL, not comparable with published numbers. Lacks: {', '.join(results['partial'])}.")
    if results["unscored"]["n"]:
        name, why = next(iter(results["unscored"]["first"].items()))
        counted = "counted as wrong" if results["unscored"]["counted_as"] == "wrong" else "left out"
        lines.append(
            f"{results['unscored']['n']} rows could not be scored, {counted}. First: {name}: {why.removesuffix('.')}."
        )
    if results.get("prompts_cut"):
        lines.append(f"{results['prompts_cut']} prompts were cut to fit the model.")
    shared = results.get("shared_responses")
    if shared:
        few = "; fewer than 20 responses, too few to trust it" if shared["too_few_responses"] else ""
        lines.append(
            f"{shared['pairs']} pairs hold only {shared['responses']} different responses. The interval with prompts "
            f"as clusters allows for that; with responses resampled instead, of the same prompts, the overall score is "
            f"within {_interval(shared['ci'])}{few}."
        )
    over = results.get("over_length")
    if over and over["ci"]:
        lines.append(
            f"Over the strongest length rule ({over['rule']}, {_share(over['score'])}): "
            f"{100 * over['difference']:+.1f} ({_points(over['ci'])})."
        )
    lines += results.get("doubts", ())
    if results["too_few_prompts"]:
        lines.append("Fewer than 20 prompts: the intervals cannot be trusted.")
    lines += results["notes"]
    return [*lines, f"Data: {results['data']} ({results['data_revision']}).", f"Arithmetic: {results['checked']}."]


def print_all(found: Mapping[str, Any]) -> None:
    """Print the overall numbers of several benchmarks, and which could not be run."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "overall", "95% interval", "longer response", "rows", "ties")
    for each in found["results"]:
        name = each["title"] + (" (partial)" if each["partial"] else "")
        length = next(iter(each["baselines"].values()))
        numbers = (_share(each["overall"]), _interval(each["ci"]), _share(length), str(each["n"]), str(each["ties"]))
        table.add_row(name, *numbers)
    console = Console()
    if found["results"]:
        console.print(table)
    for name, reason in found["skipped"].items():
        console.print(f"  Not run: {name}. {reason}", highlight=False, soft_wrap=True, markup=False)


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two runs as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "A", "B", "A - B", "95% interval", "p", title=found["title"], title_justify="left")
    first, second = found["a"]["overall"], found["b"]["overall"]
    table.add_row("overall", *_compared(first, second, found), end_section=True)
    for name, each in found["sections"].items():
        table.add_row(name, *_compared(each["a"], each["b"], each))
    console = Console()
    console.print(table)
    lines = [f"{found['n']} rows of {found['prompts']} prompts; interval and p-value leave out whole prompts."]
    if found["too_few_prompts"]:
        lines.append("Fewer than 20 prompts: too few for a verdict.")
    if test := found["mcnemar"]:
        lines.append(
            f"Every prompt has one row. Only A gets {test['only_a_right']} wholly right, only B "
            f"{test['only_b_right']}; McNemar's exact test p = {test['p_value']:.3g}."
        )
    for line in lines:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if found["partial"]:
        console.print(
            f"  PARTIAL. Lacks: {', '.join(found['partial'])}.", highlight=False, soft_wrap=True, markup=False
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
