"""Record and benchmarks -> sentences about the training and evaluation data."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import as_list, number

UNKNOWN = "Its accuracy on other kinds of prompts and responses is unknown."


def domain_lines(facts: CardFacts) -> list[str]:
    """Return sentences that name the training and evaluation data."""
    trained = _sources(facts, "train")
    lines = [f"Trained on {_listed(trained)}."] if trained else []
    lines.append(f"{evaluated_on(facts)} {UNKNOWN}")
    texts = facts.record.training_texts
    if texts:
        lines.append(
            f"{_lengths(texts)}`hf-reward score --compare-training` measures how much the texts of a table differ from "
            "them."
        )
    return lines


def evaluated_on(facts: CardFacts) -> str:
    """Return a sentence that names the evaluation data."""
    parts = []
    if "accuracy" in facts.values:
        held_out = _sources(facts, "eval")
        parts.append(f"held-out pairs of {_listed(held_out)}" if held_out else "unnamed held-out pairs")
    parts += [benchmark_name(each) for each in facts.benchmarks if number(each.get("overall")) is not None]
    if not parts:
        return "It was not evaluated on any data."
    return f"Evaluated {'only ' if len(parts) == 1 else ''}on {_listed(parts)}."


def benchmark_name(result: Mapping[str, Any]) -> str:
    """Return the name of a benchmark, with the name of the data if the user provided them."""
    name, data = escaped(result.get("benchmark") or "unnamed"), result.get("data_name")
    return f"{name} ({escaped(data)})" if data else name


def _sources(facts: CardFacts, kind: str) -> list[str]:
    """Return the names of the sources of the training data, or of all evaluation data."""
    summaries = facts.record.training.get("data") or {}
    found = [summary for name, summary in summaries.items() if name == kind or str(name).startswith(f"{kind}_")]
    names = (source for summary in found for source in as_list(summary.get("sources")))
    return list(dict.fromkeys(escaped(name) for name in names if name))


def _lengths(texts: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("prompt", "response"):
        words = (texts.get(kind) or {}).get("words") or {}
        low, high = number(words.get("p05")), number(words.get("p95"))
        if low is not None and high is not None:
            parts.append(f"{kind}s of {low:,.0f} to {high:,.0f} words")
    return f"90% of the training texts are {' and '.join(parts)}. " if parts else ""


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
