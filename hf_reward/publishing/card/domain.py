"""Record and benchmarks -> the data on which the model was trained and measured, and that others are not known."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import as_list, number

UNKNOWN = "How well it does on other kinds of prompts and responses is not known."


def domain_lines(facts: CardFacts) -> list[str]:
    """Training and evaluation data by name, and what follows for texts of other kinds, a sentence each."""
    trained = _sources(facts, "train")
    lines = [f"Trained on {_listed(trained)}."] if trained else []
    lines.append(f"{evaluated_on(facts)} {UNKNOWN}")
    texts = facts.record.training_texts
    if texts:
        lines.append(
            f"{_lengths(texts)}`hf-reward score --compare-training` says how far the texts of a table are from those "
            "of training."
        )
    return lines


def evaluated_on(facts: CardFacts) -> str:
    """What the model was measured on, in a sentence."""
    parts = []
    if "accuracy" in facts.values:
        held_out = _sources(facts, "eval")
        parts.append(f"held-out pairs of {_listed(held_out)}" if held_out else "held-out pairs that are not named")
    parts += [benchmark_name(each) for each in facts.benchmarks if number(each.get("overall")) is not None]
    if not parts:
        return "It was not evaluated on any data."
    only = " alone" if len(parts) == 1 else ""
    return f"Evaluated on {_listed(parts)}{only}."


def benchmark_name(result: Mapping[str, Any]) -> str:
    """Name of a benchmark, with that of the data where they are the user's own."""
    name, data = escaped(result.get("benchmark") or "unnamed"), result.get("data_name")
    return f"{name} ({escaped(data)})" if data else name


def _sources(facts: CardFacts, kind: str) -> list[str]:
    """Names of the sources of the training data, or of all evaluation data."""
    summaries = facts.record.training.get("data") or {}
    found = [summary for name, summary in summaries.items() if name == kind or str(name).startswith(f"{kind}_")]
    names = (source for summary in found for source in as_list(summary.get("sources")))
    return list(dict.fromkeys(escaped(name) for name in names if name))


def _lengths(texts: Mapping[str, Any]) -> str:
    said = []
    for kind in ("prompt", "response"):
        words = (texts.get(kind) or {}).get("words") or {}
        low, high = number(words.get("p05")), number(words.get("p95"))
        if low is not None and high is not None:
            said.append(f"{kind}s of {low:,.0f} to {high:,.0f} words")
    return f"90% of the training texts are {' and '.join(said)}. " if said else ""


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
