"""The summary sentence of the model card and its overview of the results."""

import math

from hf_reward.metrics.preference import accuracy_reading
from hf_reward.publishing.card.biases import bias_sentences
from hf_reward.publishing.card.domain import UNKNOWN, evaluated_on
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.origin import origin_sentences
from hf_reward.publishing.card.usage import probability
from hf_reward.publishing.card.values import interval, share


def summary_sentence(facts: CardFacts) -> str:
    """Return the first sentence of the card."""
    scored = "a conversation" if facts.record.template_hash else "a response to a prompt"
    return (
        f"A reward model that gives {scored} one number, its reward. The higher the reward of a response, the more the "
        "model prefers it to other responses to the same prompt."
    )


def glance_lines(facts: CardFacts) -> list[tuple[str, str]]:
    """Return label and text of each line."""
    return [
        ("Evaluation", f"{_reading(facts.values)}{_leaks(facts.values)} {evaluated_on(facts)} {UNKNOWN}"),
        ("Biases", " ".join(bias_sentences(facts)[:2])),
        ("Origin", origin_sentences(facts)),
        (
            "Interpretation",
            f"The probability that response a is preferred to response b to the same prompt is `{probability(facts)}`. "
            "A single reward has no meaning.",
        ),
    ]


def _leaks(values: dict[str, float]) -> str:
    """Return a warning if rows of the evaluation also occur in the training data; see `metrics.leakage`."""
    leaked = int(values.get("num_leaked_rows", 0))
    if not leaked:
        return ""
    clean = values.get("accuracy_without_leaks")
    without = "" if clean is None else f" Without them, the accuracy is {share(clean)}."
    return f" **{leaked} rows of the evaluation also occur in the training data.**{without}"


def _reading(values: dict[str, float]) -> str:
    """Return the accuracy with the length baseline, or with a warning if the baseline was not measured."""
    if "accuracy" not in values:
        return "Not evaluated."
    names = ("accuracy_ci_low", "accuracy_ci_high")
    has_interval = all(name in values for name in names)
    if {"num_pairs", "num_prompts", "length_baseline"} <= set(values) and 0 <= values["accuracy"] <= 1:
        return accuracy_reading(values if has_interval else {**values, **dict.fromkeys(names, math.nan)})
    bounds = interval(values.get(names[0]), values.get(names[1]))
    return (
        f"Accuracy {share(values['accuracy'])} on held-out pairs"
        f"{f' (95% interval {bounds})' if bounds else ''}. The length baseline was not measured, so the model may only "
        "prefer longer responses."
    )
