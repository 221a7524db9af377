"""Tables of benchmark results in the terminal. rich is imported when a table is printed."""

from collections.abc import Mapping
from typing import Any


def print_results(results: Mapping[str, Any]) -> None:
    """Print one benchmark's numbers as a table."""
    from rich.table import Table

    from hf_reward.cli.console import make_console

    rule = next(iter(results["baselines"]))
    unverified = " (not verified)" if results.get("not_verified") else ""
    table = Table(title=f"{results['title']}{unverified}", title_justify="left")
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
    if results.get("not_verified"):
        lines.append(f"NOT VERIFIED: {results['not_verified']}.")
    return [*lines, f"Data: {results['data']} ({results['data_revision']}).", f"Arithmetic: {results['checked']}."]


def print_all(found: Mapping[str, Any]) -> None:
    """Print the overall numbers of several benchmarks, and the reasons for those that were not run."""
    from rich.table import Table

    from hf_reward.cli.console import make_console

    table = Table("benchmark", "overall", "95% interval", "longer response", "rows", "ties")
    for each in found["results"]:
        marks = [word for word, key in (("partial", "partial"), ("not verified", "not_verified")) if each.get(key)]
        name = each["title"] + (f" ({', '.join(marks)})" if marks else "")
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
