"""Logged numbers of a run -> what is wrong with it, in plain words.

Pure functions: each detector looks at the log entries so far and finds one kind of trouble or none. `health_monitor`
feeds them while a run trains. Every threshold is named here, with its reason.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

History = Sequence[Mapping[str, Any]]
"""Log entries in order, with `step`, `loss` and what `RewardTrainer` logs; `equal_loss` is what `loss` would be if all
rewards were equal (ln 2 for Bradley-Terry without margins). Of the rows since the last log that belong to the settled
part of the run there are `gain_rows`, their number, and sums over them: of the weights w (`gain_weight`), of w times
the gain, which is the loss of equal rewards minus the loss (`gain`), and of x = w (gain - `LEAST_GAIN`) and x^2
(`gain_excess`, `gain_square`)."""

PATIENCE = 5
"""So many training logs in a row, all after the warm-up, have to show the same before it is said: one is chance."""
SETTLED_SHARE = 0.1
"""So much of the training after the warm-up has to be over before 'learns nothing' is said: a slow start is none."""
COLLAPSED_STD = 1e-3
"""Rewards in reward units: a pair two such deviations apart is a preference of 50.05%, so nothing is told apart."""
LEAST_GAIN = 5e-3
"""In nats: a model that is right in 55% of pairs and knows it has a loss 0.005 below ln 2."""
FIRST_LOOK = 64
"""Rows after which 'learns nothing' may be said for the first time: fewer have no normal mean."""
FALSE_ALARMS = 0.05
"""Share of the runs with a gain of `LEAST_GAIN` in which 'learns nothing' may be said."""
SATURATED_MARGIN = 20.0
"""In reward units: sigmoid(-20) = 2e-9, so such a pair has no gradient left and only weights grow."""
DIVERGED_FACTOR = 2.0
"""A loss of twice that of equal rewards: the model is confidently wrong."""
HEAD_GROWTH = 10.0
"""Growth of the head's norm since the beginning (in several processes: since its first log), or since 1 if it began
below: a fresh head of 0.02 in 2500 dimensions has norm 1."""
FITTED_SHARE = 0.1
"""A training loss below this share of the loss of equal rewards: the training rows are known by heart."""
FALLEN_ACCURACY = 0.02
"""Evaluation accuracy below its best by this much, with a higher loss too, is a fall."""
LENGTH_RULE_GAP = 0.5
"""Accuracy where the preferred response is longer, minus where it is shorter: 1 for the length rule itself."""
INFORMATIVE_RULE = 0.6
"""A length rule right (or wrong) in fewer pairs than this is too near to chance to be mistaken for something."""
FEW_PROMPTS = 20
"""Fewer prompts than this carry no interval that could be trusted."""


@dataclass(frozen=True, kw_only=True)
class HealthWarning:
    """One kind of trouble, said once in a run."""

    kind: str
    step: int
    seen: str
    """The numbers."""
    cause: str
    """What is the likely cause."""
    cure: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"Step {self.step}, {self.kind}: {self.seen} Likely cause: {self.cause} Cure: {self.cure}"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the detectors have to know about a run."""

    max_steps: int = 0
    warmup_steps: int = 0
    scales_loss: bool = False
    """float16: its loss scaler tries out infinite gradients and skips those steps."""
    rows: Sequence[int] = ()
    """Data rows of the last step on this process."""

    @property
    def settled_step(self) -> float:
        """The step after which a run that learns shows it."""
        return self.warmup_steps + SETTLED_SHARE * (self.max_steps - self.warmup_steps)


def check_health(history: History, facts: RunFacts) -> list[HealthWarning]:
    """Everything that the log shows to be wrong now.

    Args:
        history: Log entries so far; the last one is new.
        facts: The run.

    Returns:
        A warning for each kind of trouble.
    """
    found = [warning for detect in DETECTORS if (warning := detect(history, facts)) is not None]
    kinds = {warning.kind for warning in found}
    implied = {"loss at equal rewards"} if "reward collapse" in kinds else set()
    return [warning for warning in found if warning.kind not in implied]


def non_finite_gradient(history: History, facts: RunFacts) -> HealthWarning | None:
    """The norm of the gradient is NaN or infinite; with float16 several times in a row."""
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
        cure="stop: the weights are lost, go on from an earlier checkpoint. Look at those rows, lower `learning_rate`, "
        "or train in bfloat16 or float32 instead of float16.",
    )


def reward_collapse(history: History, facts: RunFacts) -> HealthWarning | None:
    """All training rewards are the same after the warm-up."""
    logs = _recent(history, facts, "std_reward")
    if not logs or any(not entry["std_reward"] < COLLAPSED_STD for entry in logs):
        return None
    return HealthWarning(
        kind="reward collapse",
        step=logs[-1]["step"],
        seen=f"the rewards of the training rows have a standard deviation of {logs[-1]['std_reward']:.1e} around "
        f"{logs[-1]['mean_reward']:.3g}, in {len(logs)} logs in a row.",
        cause="nothing is learned (a learning rate of or near 0, a frozen head, responses cut off by `max_length`), or "
        "a learning rate so high that every text now looks the same to the backbone.",
        cure="run `overfit_one_batch`; check `learning_rate` and `head_learning_rate`; look at two tokenised rows.",
    )


def loss_at_equal_rewards(history: History, facts: RunFacts) -> HealthWarning | None:
    """Rows gain less than `LEAST_GAIN` over equal rewards, beyond chance.

    A one-sided z test of the mean gain, made when 64, 128, 256, ... rows have been seen. Look number k (from 0) has the
    level `FALSE_ALARMS / 2^(k + 1)`, so that all looks together have at most `FALSE_ALARMS` (Bonferroni) on runs whose
    rows gain as much as that.
    """
    logs = [entry for entry in _training(history) if "gain_rows" in entry]
    if not logs or logs[-1] is not history[-1]:
        return None
    rows = sum(entry["gain_rows"] for entry in logs)
    look, before = _looks(rows), _looks(rows - logs[-1]["gain_rows"])
    if look == before:
        return None
    total, square, gain, weight = (
        sum(entry[name] for entry in logs) for name in ("gain_excess", "gain_square", "gain", "gain_weight")
    )
    deviation = math.sqrt(max(square - total * total / rows, 0.0) * rows / (rows - 1))
    if not total < deviation * NormalDist().inv_cdf(FALSE_ALARMS / 2**look):
        return None
    equal = sum(entry["equal_loss"] * entry["gain_weight"] for entry in logs) / weight
    return HealthWarning(
        kind="loss at equal rewards",
        step=logs[-1]["step"],
        seen=f"the mean training loss of the last {rows:.0f} rows is {equal - gain / weight:.4f}; with equal rewards "
        f"for all responses it is {equal:.4f}, and a model that learns is at least {LEAST_GAIN} below that.",
        cause="nothing is learned so far: a learning rate that is too low, preferences without a pattern (shuffled or "
        "contradictory labels), or responses that differ only in what `max_length` cut off.",
        cure="run `overfit_one_batch`; if it passes, raise `learning_rate` and run `hf-reward check-data`.",
    )


def _looks(rows: float) -> int:
    """Number of looks that are due by a number of rows: 1 from `FIRST_LOOK` rows on, and one more for each doubling."""
    return max(0, int(rows / FIRST_LOOK).bit_length())


def loss_diverged(history: History, facts: RunFacts) -> HealthWarning | None:
    """The loss is far above that of equal rewards."""
    logs = _recent(history, facts, "equal_loss")
    if not logs:
        return None
    loss, equal = _mean(logs, "loss"), _mean(logs, "equal_loss")
    if not loss > DIVERGED_FACTOR * equal:
        return None
    return HealthWarning(
        kind="loss far above equal rewards",
        step=logs[-1]["step"],
        seen=f"the mean training loss of the last {len(logs)} logs is {loss:.3g}; giving every response the same "
        f"reward would have {equal:.3g}.",
        cause="the learning rate is too high: rewards are large and often on the wrong side.",
        cure="start again with a third of `learning_rate` (and of `head_learning_rate`), and a longer warm-up.",
    )


def margin_explosion(history: History, facts: RunFacts) -> HealthWarning | None:
    """Rewards of the two sides are so far apart that the loss is flat."""
    logs = [entry for entry in _training(history) if "margin" in entry][-2:]
    # Where rows ask for a margin the loss of equal rewards is about that margin, so it is allowed on top.
    if len(logs) < 2 or any(abs(entry["margin"]) < SATURATED_MARGIN + entry.get("equal_loss", 0) for entry in logs):
        return None
    return HealthWarning(
        kind="margin explosion",
        step=logs[-1]["step"],
        seen=f"preferred and rejected responses are {logs[-1]['margin']:.3g} reward units apart on average; at "
        f"{SATURATED_MARGIN:.0f} the loss of a pair is flat. Rewards lie between {logs[-1]['min_reward']:.3g} and "
        f"{logs[-1]['max_reward']:.3g}.",
        cause="a learning rate that is too high (of the head above all), or rows that one word gives away.",
        cure="lower `learning_rate` or `head_learning_rate`, set `center_rewards_coefficient=0.01`, and run "
        "`hf-reward check-data` for rules that need no reading.",
    )


def head_growth(history: History, facts: RunFacts) -> HealthWarning | None:
    """The head's norm has grown out of proportion."""
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
        cause="a learning rate of the head that is too high: it scales rewards instead of telling responses apart.",
        cure="lower `head_learning_rate`, or set `weight_decay` or `center_rewards_coefficient`.",
    )


def head_is_zero(history: History, facts: RunFacts) -> HealthWarning | None:
    """The head's weights are all zero after the warm-up."""
    logs = _recent(history, facts, "head_norm")
    if not logs or any(entry["head_norm"] != 0 for entry in logs):
        return None
    return HealthWarning(
        kind="head is zero",
        step=logs[-1]["step"],
        seen=f"the head's weights were all 0 in the last {len(logs)} logs, so every reward is its bias or 0.",
        cause="the head gets no update: a learning rate of 0, or an optimizer of your own that lacks its weights.",
        cure="check `learning_rate` and `head_learning_rate`, and that the optimizer holds the head's parameters.",
    )


def below_chance(history: History, facts: RunFacts) -> HealthWarning | None:
    """Evaluation accuracy is below one half, beyond chance; ties of rewards are not held against it."""
    for entry, prefix in _evaluations(history[-1:]):
        high = entry[f"{prefix}_accuracy_ci_high"] + entry.get(f"{prefix}_tie_rate", 0)
        if entry[f"{prefix}_num_prompts"] < FEW_PROMPTS or not high < 0.5:
            continue
        return HealthWarning(
            kind="accuracy below chance",
            step=entry["step"],
            seen=f"{prefix}_accuracy is {entry[f'{prefix}_accuracy']:.1%} (95% interval up to "
            f"{entry[f'{prefix}_accuracy_ci_high']:.1%}): the model prefers the rejected side.",
            cause="chosen and rejected are swapped in the evaluation data or in the training data, or ranks are read "
            "the wrong way round (0 is best; for `scores` the highest is).",
            cure="look at three rows of both; name the columns with `columns`.",
        )
    return None


def stuck_at_length_rule(history: History, facts: RunFacts) -> HealthWarning | None:
    """Evaluation accuracy equals that of preferring the longer (or the shorter) response, and depends on length."""
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
            f"rule that looks only at length has {rule:.1%}, and the model is right where length is.",
            cause="length decides the preferences in the data, so the model need not learn more than that.",
            cure="set `length_penalty` or `balance_lengths`; see docs/guides/length-bias.md and `hf-reward audit`.",
        )
    return None


def overfitting(history: History, facts: RunFacts) -> HealthWarning | None:
    """The training loss is almost 0 while evaluation gets worse."""
    logs = _recent(history, facts, "equal_loss", patience=2)
    if not logs or not _mean(logs, "loss") < FITTED_SHARE * _mean(logs, "equal_loss"):
        return None
    for entry, prefix in _evaluations(history[-1:]):
        earlier = [past for past, name in _evaluations(history[:-1]) if name == prefix]
        best = max((past[f"{prefix}_accuracy"] for past in earlier), default=-math.inf)
        lowest = min((past[f"{prefix}_loss"] for past in earlier), default=math.inf)
        if entry[f"{prefix}_accuracy"] > best - FALLEN_ACCURACY or entry[f"{prefix}_loss"] <= lowest:
            continue
        return HealthWarning(
            kind="overfitting",
            step=entry["step"],
            seen=f"the training loss is {_mean(logs, 'loss'):.3g}, while {prefix}_accuracy fell from {best:.1%} to "
            f"{entry[f'{prefix}_accuracy']:.1%} and {prefix}_loss rose from {lowest:.3g} to "
            f"{entry[f'{prefix}_loss']:.3g}.",
            cause="the training rows are learned by heart: too many epochs, too few rows, or duplicates among them.",
            cure="train one epoch, set `load_best_model_at_end`, lower the rank of LoRA, or add rows.",
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
    below_chance,
    stuck_at_length_rule,
    overfitting,
)


def _training(history: History) -> list[Mapping[str, Any]]:
    return [entry for entry in history if "loss" in entry]


def _recent(history: History, facts: RunFacts, name: str, *, patience: int = PATIENCE) -> list[Mapping[str, Any]]:
    """The last training logs after the warm-up that carry a number; none if there are too few of them."""
    logs = [entry for entry in _training(history) if name in entry and entry["step"] > facts.warmup_steps]
    return logs[-patience:] if len(logs) >= patience else []


def _evaluations(history: History) -> list[tuple[Mapping[str, Any], str]]:
    """Entries of whole evaluation splits with the beginning of their names; those of single sources have no loss."""
    found = []
    for entry in history:
        for name in entry:
            prefix = name.removesuffix("_accuracy_ci_high")
            if prefix != name and f"{prefix}_loss" in entry:
                found.append((entry, prefix))
    return found


def _follows_length(entry: Mapping[str, Any], prefix: str) -> bool:
    """Whether the model is right where the preferred response is on the usual side of length, and wrong elsewhere."""
    sides = {side: entry.get(f"{prefix}_accuracy_preferred_{side}", math.nan) for side in ("longer", "shorter")}
    gap = abs(sides["longer"] - sides["shorter"])
    return math.isnan(gap) or gap >= LENGTH_RULE_GAP  # NaN: length points the same way in every pair


def _mean(logs: Iterable[Mapping[str, Any]], name: str) -> float:
    values = [entry[name] for entry in logs]
    return sum(values) / len(values)


def _short(rows: Sequence[int], limit: int = 32) -> str:
    shown = ", ".join(map(str, rows[:limit]))
    return f"[{shown}{', ...' if len(rows) > limit else ''}]"
