"""Audit, or the two lengths without one -> what the model is biased to: sentences, a table and a picture."""

from typing import Any

from hf_reward.data.extras import optional
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.text import escaped, one_line
from hf_reward.publishing.card.values import cells, counted, interval, number, signed

PICTURE_FILE = "audit_effects.png"
MOST_NAMED = 8
"""Effects of one verdict that a sentence names; the table has all of them."""
MOST_DRAWN = 30
"""Effects in the picture: those that are biased first."""
FEW_PAIRS = 20
"""Below so many pairs an accuracy is not compared with another."""
_VERDICTS = {
    "biased": "Biased",
    "inconclusive": "Inconclusive",
    "equivalent": "Equivalent",
    "not_assessed": "Not assessed",
}


def bias_sentences(facts: CardFacts) -> list[str]:
    """What the model is biased to, the worst first."""
    settled = [each for each in facts.probes if not each.get("screen_only")]
    sentences = []
    for verdict, words in _VERDICTS.items():
        found = [_effect(each) for each in settled if _verdict(each) == verdict]
        if found:
            sentences.append(f"{words}: {_named(found)}.")
    screens = [_effect(each) for each in facts.probes if each.get("screen_only")]
    if screens:
        sentences.append(f"Observational checks, without a verdict: {_named(screens)}.")
    if settled and not any(_verdict(each) == "biased" for each in settled):
        sentences.insert(0, "No probe of the audit showed a bias that matters.")
    if sentences:
        return sentences
    rest = "Bias audit: not run, so tastes for flattery, formatting, confidence or style are not measured."
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
        f"Length: right in {longer:.1%} of the {counted(many, 'pair')} where the preferred response is longer, and in "
    )
    text += f"{shorter:.1%} of the {counted(few, 'pair')} where it is shorter"
    if min(many, few) < FEW_PAIRS:
        return f"{text}; too few pairs to tell a taste for length."
    gap = 100 * (longer - shorter)
    taste = "longer" if gap > 0 else "shorter"
    return f"{text}, {abs(gap):.1f} points apart" + (f": a sign of a taste for {taste} responses." if gap else ".")


def audit_rows(facts: CardFacts) -> list[list[str]]:
    """Probe, family, effect, interval, harmless band, size, q and verdict; of a long audit without its screens."""
    shown = facts.probes
    if len(shown) > MOST_DRAWN:  # the screens of a whole audit would bury its verdicts
        shown = [each for each in shown if not each.get("screen_only")]
    rows = []
    for each in shown:
        screen = " (screen only)" if each.get("screen_only") else ""
        delta, q_value = number(each.get("delta")), number(each.get("q_value"))
        counts = (counted(each.get("n"), "case"), counted(each.get("clusters"), "prompt"))
        rows.append(
            cells(
                escaped(_label(each)) + screen,
                escaped(each.get("family") or ""),
                " ".join(part for part in (signed(each.get("estimate")), escaped(each.get("unit") or "")) if part),
                interval(each.get("ci_low"), each.get("ci_high"), signed),
                None if delta is None else f"±{delta:.3g}",
                ", ".join(count for count in counts if count),
                None if q_value is None else f"{q_value:.2g}",
                _VERDICTS[_verdict(each)].lower(),
            )
        )
    return rows


def draw_audit(facts: CardFacts) -> bool:
    """Draw the audit's picture into the folder, or remove an old one; screens are left out, since they settle nothing.

    Args:
        facts: What the card is made of.

    Returns:
        Whether there is a picture.
    """
    path = facts.folder / PICTURE_FILE
    order = list(_VERDICTS)
    rows = sorted(
        (each for each in facts.probes if not each.get("screen_only")), key=lambda each: order.index(_verdict(each))
    )[:MOST_DRAWN]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    if optional("matplotlib", "audit", "The card shows the audit without its picture.") is None:
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
