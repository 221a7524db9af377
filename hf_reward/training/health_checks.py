"""Log entries of a run -> warnings about its health.

Each detector is a pure function that checks the log entries so far for one kind of problem. `health_callback` calls
the detectors during training. Every threshold is a named constant, documented with its reason.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

History = Sequence[Mapping[str, Any]]
"""Log entries in order, with `step`, `loss` and the other numbers that `RewardTrainer` logs. `equal_loss` is the loss
with equal rewards for all responses (ln 2 for Bradley-Terry without margins). The following are sums over the rows
since the last log, from `RunFacts.settled_step` on: the number of rows (`gain_rows`), the weights w (`gain_weight`),
w times the gain, where gain = `equal_loss` - loss (`gain`), x = w (gain - `MINIMUM_GAIN`) and x^2 (`gain_excess`,
`gain_square`), and w times the gain that `LARGER` times the rewards would have (`gain_if_larger`)."""

PATIENCE = 5
"""Number of consecutive training logs after the warm-up that must show a problem: one alone may be chance."""
SETTLED_SHARE = 0.1
"""Share of the steps after the warm-up that "loss at equal rewards" leaves out: a slow start is normal."""
COLLAPSED_STD = 1e-3
"""In reward units: a pair two such standard deviations apart has a preference probability of 50.05%."""
MINIMUM_GAIN = 5e-3
"""In nats: the loss of a calibrated model with an accuracy of 55% is 0.005 below ln 2."""
FIRST_TEST_ROWS = 64
"""Rows before the first test for "loss at equal rewards": the mean of fewer is not close to normal."""
FALSE_ALARMS = 0.05
"""Largest rate of false alarms of "loss at equal rewards" in runs whose rows gain `MINIMUM_GAIN`."""
LARGER = 4.0
"""Factor on the rewards whose gain is compared with that of the rewards."""
LARGER_GAIN = 2.0
"""Multiple of the gain that `LARGER` times the rewards reach if the head lags. Near the best scale the gain is a
parabola of the scale, so this happens for rewards below 0.29 of the best scale (a calibration slope above 3.5)."""
LAGGING_GAIN = 0.01
"""In nats: the least difference of both gains that counts; 0.01 is the gain of a calibrated model of 57% accuracy."""
LAGGING_SHARE = 0.25
"""Share of the steps after the warm-up before which a lagging head is not tested: it needs time to grow."""
SATURATED_MARGIN = 20.0
"""In reward units: sigmoid(-20) = 2e-9, so such a pair has almost no gradient."""
DIVERGED_FACTOR = 2.0
"""Multiple of the loss of equal rewards above which the model is confidently wrong."""
HEAD_GROWTH = 10.0
"""Growth of the head's norm since step 0 (with several processes: since its first log), or since 1 if it started
below 1: a new head with weights of 0.02 in 2,500 dimensions has norm 1."""
FITTED_SHARE = 0.1
"""Share of the loss of equal rewards below which the training rows count as memorised."""
ACCURACY_DROP = 0.02
"""Drop of the evaluation accuracy below its best that counts as a fall, if the loss has risen too."""
LENGTH_RULE_GAP = 0.5
"""Accuracy where the preferred response is longer, minus accuracy where it is shorter: 1 for the length rule itself."""
INFORMATIVE_RULE = 0.6
"""Accuracy of a length rule (or of its opposite) below which it is too close to chance to explain the model's."""
FEW_PROMPTS = 20
"""Number of prompts below which an interval is not reliable."""


@dataclass(frozen=True, kw_only=True)
class HealthWarning:
    """A problem of a run; each kind is logged once."""

    kind: str
    step: int
    seen: str
    """The observed numbers."""
    cause: str
    """The likely cause."""
    cure: str
    """The remedy."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"Step {self.step}, {self.kind}: {self.seen} Likely cause: {self.cause} Remedy: {self.cure}"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Properties of a run that the detectors need."""

    max_steps: int = 0
    warmup_steps: int = 0
    scales_loss: bool = False
    """Whether the run uses float16, whose loss scaler produces infinite gradients and skips those steps."""
    rows: Sequence[int] = ()
    """Data rows of the last step on this process."""

    @property
    def settled_step(self) -> float:
        """The step from which a lack of learning counts as a problem."""
        return self.warmup_steps + SETTLED_SHARE * (self.max_steps - self.warmup_steps)


def check_health(history: History, facts: RunFacts) -> list[HealthWarning]:
    """Run all detectors on the log.

    Args:
        history: Log entries so far; the last one is new.
        facts: Properties of the run.

    Returns:
        A warning for each kind of problem.
    """
    found = [warning for detect in DETECTORS if (warning := detect(history, facts)) is not None]
    kinds = {warning.kind for warning in found}
    implied = {"loss at equal rewards", "head lags"} if "reward collapse" in kinds else set()
    return [warning for warning in found if warning.kind not in implied]


def non_finite_gradient(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a gradient norm that is NaN or infinite, with float16 in several logs in a row."""
    logs = [entry for entry in history if "grad_norm" in entry]
    recent = logs[-(PATIENCE if facts.scales_loss else 1) :]
    if not recent or any(math.isfinite(entry["grad_norm"]) for entry in recent):
        return None
    if facts.scales_loss and len(recent) < PATIENCE:
        return None
    last = recent[-1]
    return HealthWarning(
        kind="non-finite gradient",
        step=last["step"],
        seen=f"the gradient norm is {last['grad_norm']}; the data rows of that step are {_short(facts.rows)}.",
        cause="an overflow in half precision, a learning rate that is too high, or a broken row.",
        cure="stop, because the weights are lost, and resume from an earlier checkpoint. Inspect those rows, lower "
        "`learning_rate`, or train in bfloat16 or float32 instead of float16.",
    )


def reward_collapse(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect equal rewards for all training rows after the warm-up."""
    logs = _recent(history, facts, "std_reward")
    if not logs or any(not entry["std_reward"] < COLLAPSED_STD for entry in logs):
        return None
    return HealthWarning(
        kind="reward collapse",
        step=logs[-1]["step"],
        seen=f"the rewards of the training rows have a standard deviation of {logs[-1]['std_reward']:.1e} around "
        f"{logs[-1]['mean_reward']:.3g}, in {len(logs)} logs in a row.",
        cause="the model learns nothing (a learning rate at or near 0, a frozen head, responses cut off by "
        "`max_length`), or the learning rate is so high that the backbone maps all texts to the same hidden state.",
        cure="run `overfit_one_batch`; check `learning_rate` and `head_learning_rate`; inspect two tokenised rows.",
    )


def loss_at_equal_rewards(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a gain over equal rewards that is significantly below `MINIMUM_GAIN`.

    This is a one-sided z test of the mean gain after 64, 128, 256, ... rows. Test number k (from 0) has the level
    `FALSE_ALARMS / 2^(k + 1)`. In runs whose rows gain `MINIMUM_GAIN`, all tests together therefore have at most
    `FALSE_ALARMS` false alarms (Bonferroni).
    """
    logs = [entry for entry in _training(history) if "gain_rows" in entry]
    if not logs or logs[-1] is not history[-1]:
        return None
    rows = sum(entry["gain_rows"] for entry in logs)
    due, before = _tests_due(rows), _tests_due(rows - logs[-1]["gain_rows"])
    if due == before:
        return None
    total, square, gain, weight = (
        sum(entry[name] for entry in logs) for name in ("gain_excess", "gain_square", "gain", "gain_weight")
    )
    deviation = math.sqrt(max(square - total * total / rows, 0.0) * rows / (rows - 1))
    if not total < deviation * NormalDist().inv_cdf(FALSE_ALARMS / 2**due):
        return None
    equal = sum(entry["equal_loss"] * entry["gain_weight"] for entry in logs) / weight
    return HealthWarning(
        kind="loss at equal rewards",
        step=logs[-1]["step"],
        seen=f"the mean training loss of the last {rows:.0f} rows is {equal - gain / weight:.4f}; with equal rewards "
        f"for all responses it is {equal:.4f}, and a model that learns is at least {MINIMUM_GAIN} below that.",
        cause="the model has learned nothing so far: the learning rate is too low, the preferences have no pattern "
        "(shuffled or contradictory labels), or responses differ only in text that `max_length` cut off.",
        cure="run `overfit_one_batch`; if it passes, raise `learning_rate` and run `hf-reward check-data`.",
    )


def _tests_due(rows: float) -> int:
    """Return the number of tests due after some rows: one at `FIRST_TEST_ROWS` and one at each doubling."""
    return max(0, int(rows / FIRST_TEST_ROWS).bit_length())


def loss_diverged(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a loss far above that of equal rewards."""
    logs = _recent(history, facts, "equal_loss")
    if not logs:
        return None
    loss, equal = _mean(logs, "loss"), _mean(logs, "equal_loss")
    if not loss > DIVERGED_FACTOR * equal:
        return None
    return HealthWarning(
        kind="loss far above equal rewards",
        step=logs[-1]["step"],
        seen=f"the mean training loss of the last {len(logs)} logs is {loss:.3g}; with equal rewards for all responses "
        f"it is {equal:.3g}.",
        cause="the learning rate is too high: reward differences are large and often have the wrong sign.",
        cure="restart with a third of `learning_rate` (and of `head_learning_rate`), and a longer warm-up.",
    )


def margin_explosion(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect chosen and rejected rewards so far apart that the loss is flat."""
    logs = [entry for entry in _training(history) if "margin" in entry][-2:]
    # Rows with a target margin have a loss of equal rewards of about that margin, so it is added to the limit.
    if len(logs) < 2 or any(abs(entry["margin"]) < SATURATED_MARGIN + entry.get("equal_loss", 0) for entry in logs):
        return None
    return HealthWarning(
        kind="margin explosion",
        step=logs[-1]["step"],
        seen=f"chosen and rejected responses are {logs[-1]['margin']:.3g} reward units apart on average; at "
        f"{SATURATED_MARGIN:.0f} the loss of a pair is flat. Rewards lie between {logs[-1]['min_reward']:.3g} and "
        f"{logs[-1]['max_reward']:.3g}.",
        cause="a learning rate that is too high (above all of the head), or rows that a single word decides.",
        cure="lower `learning_rate` or `head_learning_rate`, set `center_rewards_coefficient=0.01`, and run "
        "`hf-reward check-data` to measure trivial baselines.",
    )


def head_growth(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a head whose norm has grown by more than `HEAD_GROWTH`."""
    logs = [entry for entry in history if "head_norm" in entry]
    if len(logs) < 2:
        return None
    first, last = max(logs[0]["head_norm"], 1.0), logs[-1]["head_norm"]
    if not last > HEAD_GROWTH * first:
        return None
    return HealthWarning(
        kind="head norm grows",
        step=logs[-1]["step"],
        seen=f"the norm of the head's weights is {last:.3g}; at step {logs[0]['step']} it was "
        f"{logs[0]['head_norm']:.3g}.",
        cause="a learning rate of the head that is too high: the head scales all rewards instead of separating them.",
        cure="lower `head_learning_rate`, or set `weight_decay` or `center_rewards_coefficient`.",
    )


def head_is_zero(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a head whose weights are all zero after the warm-up."""
    logs = _recent(history, facts, "head_norm")
    if not logs or any(entry["head_norm"] != 0 for entry in logs):
        return None
    return HealthWarning(
        kind="head is zero",
        step=logs[-1]["step"],
        seen=f"the head's weights were all 0 in the last {len(logs)} logs, so every reward is its bias or 0.",
        cause="the head is not updated: the learning rate is 0, or a custom optimizer lacks its weights.",
        cure="check `learning_rate` and `head_learning_rate`, and that the optimizer has the head's parameters.",
    )


def lagging_head(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect rewards in the right order whose scale is far too small."""
    first = facts.warmup_steps + LAGGING_SHARE * (facts.max_steps - facts.warmup_steps)
    logs = [entry for entry in _recent(history, facts, "gain_if_larger") if entry["step"] > first]
    if len(logs) < PATIENCE:
        return None
    weight, gain, larger, equal = (
        sum(values)
        for values in zip(
            *((entry["gain_weight"], entry["gain"], entry["gain_if_larger"], entry["equal_loss"]) for entry in logs),
            strict=True,
        )
    )
    if not larger > LARGER_GAIN * gain or not larger - gain > LAGGING_GAIN * weight:
        return None
    equal /= len(logs)
    return HealthWarning(
        kind="head lags",
        step=logs[-1]["step"],
        seen=f"the rewards have a standard deviation of {_mean(logs, 'std_reward'):.2g}. {LARGER:.0f} times as large, "
        f"they would lower the mean training loss of the last {len(logs)} logs from {equal - gain / weight:.3f} to "
        f"{equal - larger / weight:.3f}.",
        cause="the head's learning rate is too low for the length of the run: the order of the rewards is learned, but "
        "not their scale, so probabilities are underconfident.",
        cure="raise `head_learning_rate`, or `learning_rate` if the backbone is frozen; or train for more steps.",
    )


def below_chance(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect an evaluation accuracy significantly below one half; tied rewards count in the model's favour."""
    for entry, prefix in _evaluations(history[-1:]):
        high = entry[f"{prefix}_accuracy_ci_high"] + entry.get(f"{prefix}_tie_rate", 0)
        if entry[f"{prefix}_num_prompts"] < FEW_PROMPTS or not high < 0.5:
            continue
        return HealthWarning(
            kind="accuracy below chance",
            step=entry["step"],
            seen=f"{prefix}_accuracy is {entry[f'{prefix}_accuracy']:.1%} (95% interval up to "
            f"{entry[f'{prefix}_accuracy_ci_high']:.1%}): the model prefers the rejected responses.",
            cause="chosen and rejected are swapped in the evaluation data or in the training data, or ranks are "
            "reversed (rank 0 is best; of `scores` the highest is best).",
            cure="inspect three rows of both; name the columns with `columns`.",
        )
    return None


def stuck_at_length_rule(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect an evaluation accuracy that equals that of the length rule and depends on length."""
    for entry, prefix in _evaluations(history[-1:]):
        rule = entry.get(f"{prefix}_length_baseline", math.nan)
        rule = entry.get(f"{prefix}_length_baseline_strongest", max(rule, 1 - rule) if rule == rule else 0.5)
        low, high = entry[f"{prefix}_accuracy_ci_low"], entry[f"{prefix}_accuracy_ci_high"]
        over = [
            entry.get(f"{prefix}_accuracy_over_length_ci_{end}", bound - rule)
            for end, bound in (("low", low), ("high", high))
        ]
        few = entry[f"{prefix}_num_prompts"] < FEW_PROMPTS
        if few or rule < INFORMATIVE_RULE or not over[0] <= 0 <= over[1] or not _follows_length(entry, prefix):
            continue
        return HealthWarning(
            kind="accuracy of the length rule",
            step=entry["step"],
            seen=f"{prefix}_accuracy is {entry[f'{prefix}_accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}); a "
            f"rule that uses only length has {rule:.1%}, and the model is right mostly where that rule is.",
            cause="length predicts the preferences in the data, so the model may have learned nothing else.",
            cure="set `length_penalty` or `balance_lengths`; see docs/guides/length-bias.md and `hf-reward audit`.",
        )
    return None


def overfitting(history: History, facts: RunFacts) -> HealthWarning | None:
    """Detect a training loss near 0 while the evaluation gets worse."""
    logs = _recent(history, facts, "equal_loss", patience=2)
    if not logs or not _mean(logs, "loss") < FITTED_SHARE * _mean(logs, "equal_loss"):
        return None
    for entry, prefix in _evaluations(history[-1:]):
        earlier = [past for past, name in _evaluations(history[:-1]) if name == prefix]
        best = max((past[f"{prefix}_accuracy"] for past in earlier), default=-math.inf)
        lowest = min((past[f"{prefix}_loss"] for past in earlier), default=math.inf)
        if entry[f"{prefix}_accuracy"] > best - ACCURACY_DROP or entry[f"{prefix}_loss"] <= lowest:
            continue
        return HealthWarning(
            kind="overfitting",
            step=entry["step"],
            seen=f"the training loss is {_mean(logs, 'loss'):.3g}, while {prefix}_accuracy fell from {best:.1%} to "
            f"{entry[f'{prefix}_accuracy']:.1%} and {prefix}_loss rose from {lowest:.3g} to "
            f"{entry[f'{prefix}_loss']:.3g}.",
            cause="the model has memorised the training rows: too many epochs, too few rows, or duplicates.",
            cure="train for one epoch, set `load_best_model_at_end`, lower the LoRA rank, or add rows.",
        )
    return None


DETECTORS: tuple[Callable[[History, RunFacts], HealthWarning | None], ...] = (
    non_finite_gradient,
    reward_collapse,
    loss_at_equal_rewards,
    loss_diverged,
    margin_explosion,
    head_growth,
    head_is_zero,
    lagging_head,
    below_chance,
    stuck_at_length_rule,
    overfitting,
)


def _training(history: History) -> list[Mapping[str, Any]]:
    return [entry for entry in history if "loss" in entry]


def _recent(history: History, facts: RunFacts, name: str, *, patience: int = PATIENCE) -> list[Mapping[str, Any]]:
    """Return the last training logs after the warm-up with a given number; none if there are too few."""
    logs = [entry for entry in _training(history) if name in entry and entry["step"] > facts.warmup_steps]
    return logs[-patience:] if len(logs) >= patience else []


def _evaluations(history: History) -> list[tuple[Mapping[str, Any], str]]:
    """Return evaluation entries with the prefix of each split; the metrics of single sources have no loss."""
    found = []
    for entry in history:
        for name in entry:
            prefix = name.removesuffix("_accuracy_ci_high")
            if prefix != name and f"{prefix}_loss" in entry:
                found.append((entry, prefix))
    return found


def _follows_length(entry: Mapping[str, Any], prefix: str) -> bool:
    """Whether the accuracy depends on whether the preferred response is the longer or the shorter one."""
    sides = {side: entry.get(f"{prefix}_accuracy_preferred_{side}", math.nan) for side in ("longer", "shorter")}
    gap = abs(sides["longer"] - sides["shorter"])
    return math.isnan(gap) or gap >= LENGTH_RULE_GAP  # NaN: the preferred response is on the same side in every pair


def _mean(logs: Iterable[Mapping[str, Any]], name: str) -> float:
    values = [entry[name] for entry in logs]
    return sum(values) / len(values)


def _short(rows: Sequence[int], limit: int = 32) -> str:
    shown = ", ".join(map(str, rows[:limit]))
    return f"[{shown}{', ...' if len(rows) > limit else ''}]"
