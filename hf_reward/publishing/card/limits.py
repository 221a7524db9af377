"""Record -> what the model must not be trusted with, and under which terms it may be used."""

from hf_reward.publishing.card.domain import domain_lines
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped
from hf_reward.publishing.card.values import as_list, number


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
