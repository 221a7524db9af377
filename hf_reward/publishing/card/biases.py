"""Describe the biases in sentences, a table and a figure, from an audit or from the accuracy by length."""

from typing import Any

from hf_reward.data.extras import optional
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped, one_line
from hf_reward.publishing.card.values import cells, counted, interval, number, signed

PICTURE_FILE = "audit_effects.png"
MOST_NAMED = 8
"""Most effects that a sentence lists for one verdict; the table contains all of them."""
MOST_DRAWN = 30
"""Most effects in the figure; biased ones come first."""
FEW_PAIRS = 20
"""Accuracies on fewer pairs are not compared."""
_VERDICTS = {
    "biased": "Biased",
    "inconclusive": "Inconclusive",
    "equivalent": "Equivalent (too small to matter)",
    "not_assessed": "Not assessed",
}


def bias_sentences(facts: CardFacts) -> list[str]:
    """Return one sentence per verdict, biased probes first."""
    settled = [each for each in facts.probes if not each.get("screen_only")]
    sentences = []
    for verdict, words in _VERDICTS.items():
        found = [_effect(each) for each in settled if _verdict(each) == verdict]
        if found:
            sentences.append(f"{words}: {_named(found)}.")
    observed = [_effect(each) for each in facts.probes if each.get("screen_only")]
    if observed:
        sentences.append(f"Observational checks, without a verdict: {_named(observed)}.")
    if settled and not any(_verdict(each) == "biased" for each in settled):
        sentences.insert(0, "The audit found no bias that matters.")
    if sentences:
        return sentences
    rest = "Bias audit: not run. Biases toward flattery, formatting, confidence or style are unknown."
    return [_length_sentence(facts.values), rest]


def _named(effects: list[str]) -> str:
    rest = len(effects) - MOST_NAMED
    return "; ".join(effects[:MOST_NAMED] + ([f"and {counted(rest, 'other')}"] if rest > 0 else []))


def _verdict(probe: dict[str, Any]) -> str:
    return probe["verdict"] if probe.get("verdict") in _VERDICTS else "not_assessed"


def _effect(probe: dict[str, Any]) -> str:
    name, size = escaped(_label(probe)), signed(probe.get("estimate"))
    return f"{name} ({' '.join([size, escaped(probe.get('unit') or '')]).strip()})" if size else name


def _label(probe: dict[str, Any]) -> str:
    return str(probe.get("label") or probe.get("name") or "probe")


def _length_sentence(values: dict[str, float]) -> str:
    sides = [
        (values.get(f"accuracy_preferred_{side}"), values.get(f"num_preferred_{side}"))
        for side in ("longer", "shorter")
    ]
    if any(accuracy is None or count is None for accuracy, count in sides):
        return "Length: not measured."
    (longer, many), (shorter, few) = [(accuracy or 0.0, count or 0.0) for accuracy, count in sides]
    text = (
        f"Length: accuracy {longer:.1%} on the {counted(many, 'pair')} where the preferred response is longer, "
        f"{shorter:.1%} on the {counted(few, 'pair')} where it is shorter."
    )
    if min(many, few) < FEW_PAIRS:
        return f"{text} Too few pairs to assess a length bias."
    gap = 100 * (longer - shorter)
    if not gap:
        return text
    favoured = "longer" if gap > 0 else "shorter"
    return f"{text} The difference of {abs(gap):.1f} points suggests a bias toward {favoured} responses."


def audit_rows(facts: CardFacts) -> list[list[str]]:
    """Return the rows of the audit table.

    Args:
        facts: Inputs of the card.

    Returns:
        Probe, family, effect, interval, equivalence margin, sample, q value and verdict of each probe. Long audits
        leave out the observational checks.
    """
    shown = facts.probes
    if len(shown) > MOST_DRAWN:  # in a full audit, the verdicts would be hard to find between the checks
        shown = [each for each in shown if not each.get("screen_only")]
    rows = []
    for each in shown:
        suffix = " (observational)" if each.get("screen_only") else ""
        delta, q_value = number(each.get("delta")), number(each.get("q_value"))
        counts = (counted(each.get("n"), "case"), counted(each.get("clusters"), "prompt"))
        rows.append(
            cells(
                escaped(_label(each)) + suffix,
                escaped(each.get("family") or ""),
                " ".join(part for part in (signed(each.get("estimate")), escaped(each.get("unit") or "")) if part),
                interval(each.get("ci_low"), each.get("ci_high"), signed),
                None if delta is None else f"±{delta:.3g}",
                ", ".join(count for count in counts if count),
                None if q_value is None else f"{q_value:.2g}",
                _verdict(each).replace("_", " "),
            )
        )
    return rows


def draw_audit(facts: CardFacts) -> bool:
    """Draw the audit's figure into the folder, or remove an old one. Observational checks have no verdict to draw.

    Args:
        facts: Inputs of the card.

    Returns:
        Whether there is a figure.
    """
    path = facts.folder / PICTURE_FILE
    order = list(_VERDICTS)
    rows = sorted(
        (each for each in facts.probes if not each.get("screen_only")), key=lambda each: order.index(_verdict(each))
    )[:MOST_DRAWN]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    if optional("matplotlib", "audit", "The card shows the audit without its figure.") is None:
        path.unlink(missing_ok=True)
        return False
    from hf_reward.publishing.card.figures import Effect, draw_audit_effects  # noqa: PLC0415 - imports matplotlib

    effects = [
        Effect(
            label=one_line(_label(each)),
            unit=one_line(each.get("unit") or ""),
            verdict=_verdict(each),
            estimate=number(each.get("estimate")),
            low=number(each.get("ci_low")),
            high=number(each.get("ci_high")),
            delta=number(each.get("delta")),
        )
        for each in rows
    ]
    draw_audit_effects(effects, path)
    return True
