"""Evaluation and reward statistics -> on which scale rewards lie, and what a gap between two is worth."""

from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.values import decimals, interval, number

_LN_2 = 0.6931


def temperature(facts: CardFacts) -> float | None:
    """The fitted temperature by which gaps are divided, None if there is none."""
    kept = facts.record.calibration or facts.record.reward_statistics  # older records had it among the statistics
    found = number(kept.get("temperature"))
    return found if found and found > 0 else None


def probability(facts: CardFacts) -> str:
    """The formula by which two rewards become a probability."""
    fitted = temperature(facts)
    return f"sigmoid({'reward_a - reward_b' if fitted is None else f'(reward_a - reward_b) / {fitted:.3g}'})"


def scale_lines(facts: CardFacts) -> list[str]:
    """Mean and spread, calibration and temperature, a sentence each."""
    values, fitted = facts.values, temperature(facts)
    lines = _spread_lines(facts)
    loss = values.get("log_loss")
    if loss is not None:
        worth = "say more than a coin" if loss < _LN_2 else "are no better than a coin's: use rewards to rank only"
        lines.append(f"Calibration: log loss {loss:.3f} against ln 2 = 0.693, so the probabilities {worth}.")
    lines.append("Temperature: " + ("not fitted." if fitted is None else f"{fitted:.3g}, fitted: divide gaps by it."))
    stored = facts.record.length_correction
    if stored:
        lines.append(
            f"Length correction: stored, fitted on {stored.get('num_responses')} responses; these numbers are without "
            "it, and `RewardScorer.from_pretrained(..., length_correction=True)` applies it."
        )
    return lines


def _spread_lines(facts: CardFacts) -> list[str]:
    values, kept = facts.values, facts.record.reward_statistics
    mean = values.get("mean_reward", number(kept.get("mean")))
    std = values.get("std_reward", number(kept.get("std")))
    if mean is None or std is None:
        return ["Mean and spread of rewards: not measured."]
    limits = interval(values.get("min_reward"), values.get("max_reward"), decimals)
    reach = f", from {limits}" if limits else ""
    lines = [f"On held-out responses: mean {mean:.3f}, standard deviation {std:.3f}{reach}."]
    if std > 0:
        lines.append(f"To normalise for RL: `(reward {'-' if mean >= 0 else '+'} {abs(mean):.4g}) / {std:.4g}`.")
    return lines
