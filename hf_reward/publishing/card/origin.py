"""Record -> origin of the weights, limits of use and licence."""

import re
from typing import Any

from hf_reward.publishing.card.domain import domain_lines
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.hub_names import averaged_models, base_models, stated_base
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import as_list, number

_STEPS = {
    "original base instead of the quantised one": "replacing the quantised base by the original one",
    "dequantised": "dequantising the base",
    "quantised weights, dequantised": "dequantising the base",
    "merge": "merging the adapter",
}
"""Steps of `export` in words. Other names are not shown, because they may contain a local path."""
_CAST = re.compile(r"cast to (\w+)")
_TO_AVERAGE = re.compile(r"from .* to the average", re.DOTALL)


def origin_sentences(facts: CardFacts) -> str:
    """Return sentences about the origin of the weights."""
    record, origin, models = facts.record, facts.record.origin, base_models(facts.record)
    named = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    base = named or ("a local model" if stated_base(record) else "a base model that was not recorded")
    differences = {str(name): number(value) for name, value in (origin.get("differences") or {}).items()}
    known = {name: value for name, value in differences.items() if value is not None}
    spread = [known.pop(name) for name in list(known) if _TO_AVERAGE.fullmatch(name)]
    if origin.get("averaged"):
        parts = f"{len(as_list(origin['averaged']))} models"
        parts += f" ({named})" if averaged_models(record) else f" that were fine-tuned from {base}"
        apart = f"; their rewards differ from this one's by up to {max(spread):.2g}" if spread else ""
        sentences = [f"The weights are the average of {parts}{apart}."]
    elif origin.get("imported_from"):
        form = escaped(origin["imported_from"])
        sentences = [f"Converted from the format {form}, not trained with hf_reward; base model: {base}."]
        sentences += _offset_sentence(origin)
    else:
        sentences = [f"An adapter for {base}." if facts.is_adapter else f"Fine-tuned from {base}."]
    return " ".join([*sentences, *_change_sentence(known)])


def import_lines(facts: CardFacts) -> list[str]:
    """Return notes on reproducing the rewards of the original of an imported model."""
    origin = facts.record.origin
    if not origin.get("imported_from"):
        return []
    place = escaped(origin.get("read_at") or "")
    notes = [escaped(note) for note in as_list(origin.get("notes"))]
    return [*([f"The original model computes its reward at the {place}."] if place else []), *filter(None, notes)]


def _offset_sentence(origin: dict[str, Any]) -> list[str]:
    offset = number(origin.get("offset"))
    if not offset:
        return []
    sign = "+" if offset > 0 else "-"
    return [f"The original model's reward is this model's reward {sign} {abs(offset):.6g}."]


def _change_sentence(differences: dict[str, float]) -> list[str]:
    """Return a sentence on how much each step changed the rewards of the probes."""
    clauses = [f"{_step_in_words(name)} changed rewards by at most {value:.2g}" for name, value in differences.items()]
    if not clauses:
        return []
    text = "; ".join(clauses)
    return [f"{text[0].upper()}{text[1:]} (on probe conversations, relative to `max(1, abs(reward))`)."]


def _step_in_words(name: str) -> str:
    cast = _CAST.fullmatch(name)
    return f"casting to {cast[1]}" if cast else _STEPS.get(name, "another step")


def limit_lines(facts: CardFacts) -> list[str]:
    """Return the limits of this model: domain, length, languages and precision.

    Args:
        facts: Inputs of the card.

    Returns:
        One sentence each. The template contains the limits of all reward models.
    """
    record, lines = facts.record, domain_lines(facts)
    longest = number(record.format.get("max_length"))
    if longest:
        lines.append(f"Trained on sequences of up to {longest:,.0f} tokens. Rewards of longer sequences are untested.")
    languages = ", ".join(map(escaped, as_list(record.card.get("language"))))
    lines.append(f"Languages: {languages or 'not stated; use the model only for the languages of its data'}.")
    if record.dtype != "float32":
        lines.append(
            f"The weights are saved in {escaped(record.dtype)}. Programs that compute in this precision round rewards, "
            "so responses of similar quality may get equal rewards."
        )
    return lines


def license_sentence(facts: CardFacts) -> str:
    """Return the licence that the user states, with a note on the terms of the base model and the data.

    Args:
        facts: Inputs of the card; `facts.record.card` contains the user's values.

    Returns:
        Two sentences.
    """
    card = facts.record.card
    name = escaped(card.get("license_name") or card.get("license") or "")
    link = escaped(card.get("license_link") or "")
    own = f"{name}{f' ({link})' if link else ''}." if name else "Not stated. Ask the authors before you use this model."
    return f"{own} The terms of the base model and of the data also apply."
