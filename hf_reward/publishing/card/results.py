"""Evaluation and benchmarks -> tables and sentences of the card, with the baselines."""

from typing import Any

from hf_reward.metrics.preference import LENGTH_BASELINES
from hf_reward.publishing.card.domain import benchmark_name
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import NO_VALUE, as_list, cells, counted, interval, number, share

_OF_SOURCE = ("accuracy_ci_low", "accuracy_ci_high", "num_pairs", "length_baseline")
_INTERVAL = 2
"""Column of the interval in both tables of held-out pairs."""


def accuracy_rows(facts: CardFacts) -> list[list[str]]:
    """Return name, accuracy, interval and sample of the model and its baselines; empty without an accuracy."""
    values = facts.values
    if "accuracy" not in values:
        return []
    sizes = (counted(values.get("num_pairs"), "pair"), counted(values.get("num_prompts"), "prompt"))
    bounds = interval(values.get("accuracy_ci_low"), values.get("accuracy_ci_high"))
    size = ", ".join(each for each in sizes if each)
    rows = [cells("**this model** (a tie is wrong)", share(values["accuracy"]), bounds, size)]
    rows += _metric_row(values, "this model, ties count half", "accuracy_half_credit", "num_pairs")
    for unit, name in LENGTH_BASELINES.items():
        rows += _metric_row(values, f"length baseline: prefer the longer response ({unit})", name, "num_pairs")
    for each in facts.record.baselines:
        if number(each.get("accuracy")) is not None:
            name = f"baseline: {escaped(each.get('name') or 'unnamed')}"
            bounds = interval(each.get("ci_low"), each.get("ci_high"))
            rows.append(cells(name, share(each["accuracy"]), bounds, counted(each.get("num_pairs"), "pair")))
    for side in ("longer", "shorter"):
        name = f"this model where the preferred response is {side}"
        rows += _metric_row(values, name, f"accuracy_preferred_{side}", f"num_preferred_{side}")
    return rows


def _metric_row(values: dict[str, float], label: str, name: str, count: str) -> list[list[str]]:
    return [cells(label, share(values[name]), None, counted(values.get(count), "pair"))] if name in values else []


def measure_lines(facts: CardFacts) -> list[str]:
    """Return sentences on the metrics other than accuracy."""
    forms = {
        "tie_rate": "{:.1%} of the pairs get equal rewards.",
        "log_loss": "Log loss {:.3f} nats per pair; an uninformative model scores ln 2 = 0.693.",
        "brier_score": "Brier score {:.3f}; an uninformative model scores 0.250.",
        "margin": "Mean reward difference between the preferred and the other response: {:+.3f}.",
    }
    values = facts.values
    return [form.format(values[name]) for name, form in forms.items() if name in values]


def source_rows(facts: CardFacts) -> list[list[str]]:
    """Return name, accuracy, interval, length baseline and sample of each source of a mixture."""
    values, rows = facts.values, []
    for key in sorted(values):
        name = key.removesuffix("_accuracy")
        if name and name != key and f"{name}_num_pairs" in facts.record.evaluation:  # otherwise a user-defined metric
            part = {each: values.get(f"{name}_{each}") for each in _OF_SOURCE}
            bounds = interval(part["accuracy_ci_low"], part["accuracy_ci_high"])
            size = counted(part["num_pairs"], "pair")
            rows.append(cells(escaped(name), share(values[key]), bounds, share(part["length_baseline"]), size))
    return rows


def has_intervals(facts: CardFacts) -> bool:
    """Return whether the tables of held-out pairs contain an interval."""
    return any(row[_INTERVAL] != NO_VALUE for row in [*accuracy_rows(facts), *source_rows(facts)])


def benchmark_views(facts: CardFacts) -> list[dict[str, Any]]:
    """Return the table row, sections and missing parts of each benchmark."""
    return [_benchmark_view(each) for each in facts.benchmarks]


def _benchmark_view(result: dict[str, Any]) -> dict[str, Any]:
    name, ties = benchmark_name(result), number(result.get("ties"))
    bounds = as_list(result.get("ci"))
    return {
        "row": cells(
            name + (" (partial)" if result.get("partial") else ""),
            share(result.get("overall")),
            interval(*bounds) if len(bounds) == 2 else None,
            counted(result.get("n"), "pair"),
            None if ties is None else f"{ties:g}",
            _shares(result.get("baselines") or {}),
        ),
        "name": name,
        "sections": _shares(result.get("sections") or {}),
        "missing": ", ".join(map(escaped, as_list(result.get("partial")))),
        "not_verified": escaped(result.get("not_verified") or ""),
    }


def _shares(values: dict[str, Any]) -> str:
    return ", ".join(f"{escaped(name)} {share(value)}" for name, value in values.items() if share(value))
