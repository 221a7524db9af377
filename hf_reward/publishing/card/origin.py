"""Record -> origin of the weights and its effect on rewards, limits of use and license."""

import re
from typing import Any

from hf_reward.publishing.card.domain import domain_lines
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.hub_names import averaged_models, base_models, said_base
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import as_list, number

_STEPS = {
    "original base instead of the quantised one": "taking the original base in place of the quantised one",
    "dequantised": "dequantising the base",
    "quantised weights, dequantised": "dequantising the base",
    "merge": "merging the adapter",
}
"""Steps of `export` in words. A name that is not here is not shown: it may hold a path of this machine."""
_CAST = re.compile(r"cast to (\w+)")
_TO_AVERAGE = re.compile(r"from .* to the average", re.DOTALL)


def origin_sentences(facts: CardFacts) -> str:
    """What the model was made of."""
    record, origin, models = facts.record, facts.record.origin, base_models(facts.record)
    named = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    base = named or ("a local model" if said_base(record) else "a base model that was not recorded")
    differences = {str(name): number(value) for name, value in (origin.get("differences") or {}).items()}
    known = {name: value for name, value in differences.items() if value is not None}
    spread = [known.pop(name) for name in list(known) if _TO_AVERAGE.fullmatch(name)]
    if origin.get("averaged"):
        parts = f"{len(as_list(origin['averaged']))} models"
        parts += f" ({named})" if averaged_models(record) else f" that were fine-tuned from {base}"
        apart = f"; their rewards differ from this one's by up to {max(spread):.2g}" if spread else ""
        sentences = [f"The weights are the average of {parts}{apart}."]
    elif origin.get("imported_from"):
        sentences = [f"Converted from the format {escaped(origin['imported_from'])}, not trained here; base: {base}."]
        sentences += _offset_sentence(origin)
    else:
        sentences = [f"An adapter for {base}." if facts.is_adapter else f"Fine-tuned from {base}."]
    return " ".join([*sentences, *_change_sentence(known)])


def import_lines(facts: CardFacts) -> list[str]:
    """What a user has to know to get the rewards of the original of an imported model."""
    origin = facts.record.origin
    if not origin.get("imported_from"):
        return []
    place = escaped(origin.get("read_at") or "")
    notes = [escaped(note) for note in as_list(origin.get("notes"))]
    return [*([f"The original reads its reward at the {place}."] if place else []), *filter(None, notes)]


def _offset_sentence(origin: dict[str, Any]) -> list[str]:
    offset = number(origin.get("offset"))
    if not offset:
        return []
    sign = "plus" if offset > 0 else "minus"
    return [f"The original's reward is this model's {sign} {abs(offset):.6g}."]


def _change_sentence(differences: dict[str, float]) -> list[str]:
    """How far each step moved the probes' rewards."""
    clauses = [f"{_step_in_words(name)} moved rewards by at most {value:.2g}" for name, value in differences.items()]
    if not clauses:
        return []
    said = "; ".join(clauses)
    return [f"{said[0].upper()}{said[1:]} (on probe conversations, relative to `max(1, abs(reward))`)."]


def _step_in_words(name: str) -> str:
    cast = _CAST.fullmatch(name)
    return f"casting to {cast[1]}" if cast else _STEPS.get(name, "another step")


def limit_lines(facts: CardFacts) -> list[str]:
    """What is not known of other domains, long texts, other languages and rounded weights, a sentence each.

    Args:
        facts: What the card is made of.

    Returns:
        The lines; limits that every reward model has stand in the template.
    """
    record, lines = facts.record, domain_lines(facts)
    longest = number(record.format.get("max_length"))
    if longest:
        lines.append(f"Trained on sequences of up to {longest:,.0f} tokens; what it gives longer ones is not known.")
    languages = ", ".join(map(escaped, as_list(record.card.get("language"))))
    lines.append(f"Languages: {languages or 'not stated; trust it only in those of its data'}.")
    if record.dtype != "float32":
        lines.append(
            f"The weights are saved in {escaped(record.dtype)}: programs that also compute in it round rewards, and "
            "close answers may tie."
        )
    return lines


def license_sentence(facts: CardFacts) -> str:
    """The licence that the user states, and whose terms apply beside it.

    Args:
        facts: What the card is made of; `facts.record.card` holds what the user says.

    Returns:
        A sentence or two, with or without a licence.
    """
    card = facts.record.card
    name = escaped(card.get("license_name") or card.get("license") or "")
    link = escaped(card.get("license_link") or "")
    own = f"{name}{f' ({link})' if link else ''}." if name else "Not stated: ask its authors before you use it."
    return f"{own} The terms of the base model and of the data apply too."
