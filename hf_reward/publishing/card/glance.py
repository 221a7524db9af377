"""All parts -> the four lines at the top: what it scores, how well, with which bias, and what it was made of."""

import math

from hf_reward.metrics.preference import accuracy_reading
from hf_reward.publishing.card.biases import bias_sentences
from hf_reward.publishing.card.domain import UNKNOWN, evaluated_on
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.origin import origin_sentences
from hf_reward.publishing.card.usage import probability
from hf_reward.publishing.card.values import interval, share


def glance_lines(facts: CardFacts) -> list[tuple[str, str]]:
    """Label and text of each line."""
    reads = "A conversation" if facts.record.template_hash else "A prompt with its response"
    return [
        (
            "What it scores",
            f"{reads}, as one raw number. Of two answers to the same prompt the better one should get the higher "
            f"number: P(a is preferred to b) = `{probability(facts)}`. A reward alone means nothing.",
        ),
        ("How good it is", f"{_reading(facts.values)} {evaluated_on(facts)} {UNKNOWN}"),
        ("What it is biased to", " ".join(bias_sentences(facts)[:2])),
        ("What it was made of", origin_sentences(facts)),
    ]


def _reading(values: dict[str, float]) -> str:
    """The accuracy, never without the length rule or the warning that it is missing."""
    if "accuracy" not in values:
        return "Not evaluated."
    names = ("accuracy_ci_low", "accuracy_ci_high")
    has_interval = all(name in values for name in names)
    if {"num_pairs", "num_prompts", "length_baseline"} <= set(values) and 0 <= values["accuracy"] <= 1:
        return accuracy_reading(values if has_interval else {**values, **dict.fromkeys(names, math.nan)})
    bounds = interval(values.get(names[0]), values.get(names[1]))
    return (
        f"Accuracy {share(values['accuracy'])} on held-out pairs"
        f"{f' (95% interval {bounds})' if bounds else ''}; the length rule was not measured on them, so "
        "this may be length alone."
    )
