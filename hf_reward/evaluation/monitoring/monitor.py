"""Follow a run step by step: drift tests of all series, and warnings about features that drift and are rewarded."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from hf_reward.data.row_text import contents_of
from hf_reward.evaluation.monitoring.features import MONITORED, monitored_features
from hf_reward.evaluation.monitoring.series import Drift, SeriesTest
from hf_reward.evaluation.monitoring.steps import SERIES, MeasuredResponse, StepRow, step_row
from hf_reward.metrics.drift_test import drift_evidence

logger = logging.getLogger(__name__)

STATISTICS = ("mean", "shift", "evidence", "association", "drift", "warning")
"""Statistics of a series, see `RewardMonitor.statistics`."""


@dataclass(frozen=True, kw_only=True)
class DriftWarning:
    """A feature of the responses that drifts in the direction in which the reward rises."""

    step: int
    feature: str
    direction: int
    since: int
    """Step of the change that explains the values best."""
    reference: float
    """Mean of the feature in the reference window."""
    recent: float
    """Mean of the feature in the last steps, as many as in the reference window."""
    association: float
    """Correlation of feature and reward within prompts, mean of the last steps."""
    reward_reference: float
    reward_recent: float

    def __str__(self) -> str:
        moved, with_it = ("risen", "rises") if self.direction > 0 else ("fallen", "falls")
        return (
            f"Step {self.step}: {self.feature} has {moved} since about step {self.since} (mean {self.reference:.3g} in "
            f"the reference window, {self.recent:.3g} now), and responses to the same prompt get more reward if it "
            f"{with_it} (correlation {self.association:+.2f}). Reward: {self.reward_reference:.3g} then, "
            f"{self.reward_recent:.3g} now. Read some responses, and compare them with an independent measure of "
            "quality: the policy may exploit the reward model."
        )


class RewardMonitor:
    """Watches the responses of a policy that is trained or sampled against a reward model.

    In each step it records length, formatting, repetition, boilerplate, refusals, the reward, and the margin (best
    minus median reward of a prompt's responses). A sequential test for each of these series finds drifts: if nothing
    changes and prompts are independent, any of them rejects in at most `level` of all runs, however long they are. A
    warning needs such a drift, and a reward that pays for it: responses to the same prompt get more reward the further
    they are in its direction, by a second test at the same level.
    """

    def __init__(
        self,
        *,
        level: float = 0.05,
        reference_steps: int = 5,
        min_association: float = 0.3,
        seed: int = 0,
        history: Iterable[StepRow] = (),
    ) -> None:
        """Create a monitor.

        Args:
            level: Probability of a false alarm in a run.
            reference_steps: Number of steps at the start with which later ones are compared.
            min_association: Least correlation of a feature with the reward within prompts for a warning.
            seed: Seed of the random numbers that order equal values.
            history: Steps of an interrupted run, from `history` of its monitor. They are read again without messages.

        Raises:
            ValueError: If a value is outside of its range.
        """
        if not 0 < level < 1 or reference_steps < 2 or not 0 <= min_association < 1:
            raise ValueError(
                "`level` must be in (0, 1), `reference_steps` 2 or more, and `min_association` in [0, 1), but they are "
                f"{level}, {reference_steps} and {min_association}."
            )
        self.level, self.reference_steps, self.min_association = level, reference_steps, min_association
        self.threshold = math.log(len(SERIES) / level)
        """Evidence of a drift, in nats; Bonferroni correction over the series."""
        self.history: list[StepRow] = []
        """Statistics of all steps; lists of JSON objects."""
        self.drifts: dict[str, Drift] = {}
        """Series -> its first drift."""
        self.warnings: list[DriftWarning] = []
        """One warning at most for each feature."""
        random = np.random.default_rng(seed)
        self._tests = {name: SeriesTest(self.threshold, random) for name in SERIES}
        self._association_scores: dict[str, list[float]] = {name: [] for name in MONITORED}
        for row in history:
            self.add_row(row)

    def update(
        self, prompts: Sequence[Any], responses: Sequence[Any], rewards: Sequence[float | None], step: int
    ) -> list[DriftWarning]:
        """Add the responses of a step, and log new warnings.

        Args:
            prompts: Prompt of each response, text or messages. Responses to the same prompt are compared.
            responses: Texts or messages.
            rewards: Their rewards. Responses with None, NaN or infinity are left out.
            step: Number of the step, for messages and `history`.

        Returns:
            The new warnings.

        Raises:
            ValueError: If there are not equally many prompts, responses and rewards.
        """
        found = self.add(measured(prompts, responses, rewards), step)
        for warning in found:
            logger.warning("%s", warning)
        return found

    def add(self, responses: Sequence[MeasuredResponse], step: int) -> list[DriftWarning]:
        """Add the measured responses of a step; a step without responses is left out.

        Args:
            responses: From `measured`.
            step: Number of the step.

        Returns:
            The new warnings. They are not logged.
        """
        return self.add_row(step_row(responses, step)) if responses else []

    def add_row(self, row: StepRow) -> list[DriftWarning]:
        """Add the statistics of a step.

        Args:
            row: From `step_row`.

        Returns:
            The new warnings. They are not logged.
        """
        is_reference = len(self.history) < self.reference_steps
        for name, test in self._tests.items():
            test.add(row["units"][name], int(row["step"]), is_reference=is_reference)
            if test.drift is not None:
                self.drifts.setdefault(name, test.drift)
        self.history.append(row)
        reported = {warning.feature for warning in self.warnings}
        for name, score in row["association_score"].items():
            if math.isfinite(score):
                self._association_scores[name].append(score)
        found = [self._warning(name) for name in MONITORED if name in self.drifts and name not in reported]
        new = [warning for warning in found if self._is_paid(warning)]
        self.warnings += new
        return new

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the state after the last step, as statistic -> series -> value; NaN where there is none.

        Returns:
            `mean`: mean in the last step. `shift`: mean of the last steps minus that of the reference window, in
            standard deviations of its steps. `evidence`: logarithm of the test martingale in nats; a drift from
            `threshold` on. `association`: correlation with the reward within prompts, mean of the last steps, for
            features. `drift`: 0, or the direction of the drift. `warning`: whether there was a warning, for features.
        """
        if not self.history:
            return {name: {} for name in STATISTICS}
        warned = {warning.feature for warning in self.warnings}
        return {
            "mean": {name: self.history[-1][name] for name in SERIES},
            "shift": {name: self._shift(name) for name in SERIES},
            "evidence": {name: test.evidence.log_value for name, test in self._tests.items()},
            "association": {name: self._association(name) for name in MONITORED},
            "drift": {name: self.drifts[name].direction if name in self.drifts else 0 for name in SERIES},
            "warning": {name: float(name in warned) for name in MONITORED},
        }

    def metrics(self) -> dict[str, float]:
        """Return the finite `statistics` as `monitor/SERIES/STATISTIC`, for loggers, and `monitor/warnings`."""
        found = {
            f"monitor/{name}/{statistic}": float(value)
            for statistic, each in self.statistics().items()
            for name, value in each.items()
            if math.isfinite(value)
        }
        return found | {"monitor/warnings": float(len(self.warnings))}

    # --- internal -----------------------------------------------------------------------------------------------------

    def _is_paid(self, warning: DriftWarning) -> bool:
        """Return whether the reward pays for a drift: a sequential test shows it, and the correlation is large enough.

        The test is needed because the correlation of a few responses is large by chance.
        """
        scores = np.array(self._association_scores[warning.feature])
        found = drift_evidence(scores, np.ones(len(scores), dtype=np.int64))
        is_shown = found.log_value >= math.log(1 / self.level) and found.direction == warning.direction
        return is_shown and warning.association * warning.direction >= self.min_association

    def _warning(self, name: str) -> DriftWarning:
        drift = self.drifts[name]
        (reference, recent), (reward_then, reward_now) = (self._windows(each) for each in (name, "reward"))
        return DriftWarning(
            step=int(self.history[-1]["step"]),
            feature=name,
            direction=drift.direction,
            since=drift.since,
            reference=float(reference.mean()),
            recent=float(recent.mean()),
            association=self._association(name),
            reward_reference=float(reward_then.mean()),
            reward_recent=float(reward_now.mean()),
        )

    def _windows(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the finite values of a series in the reference window and in the last steps."""
        values = np.array([row[name] for row in self.history])
        values = values[np.isfinite(values)]
        return values[: self.reference_steps], values[-self.reference_steps :]

    def _shift(self, name: str) -> float:
        reference, recent = self._windows(name)
        spread = float(reference.std(ddof=1)) if len(reference) == self.reference_steps else 0.0
        return float(recent.mean() - reference.mean()) / spread if spread > 0 else float("nan")

    def _association(self, name: str) -> float:
        """Return the mean association of the last steps, NaN if fewer than half of them have one."""
        last = np.array([row["association"][name] for row in self.history[-self.reference_steps :]])
        last = last[np.isfinite(last)]
        return float(last.mean()) if 2 * len(last) >= self.reference_steps else float("nan")


def measured(
    prompts: Sequence[Any], responses: Sequence[Any], rewards: Sequence[float | None]
) -> list[MeasuredResponse]:
    """Measure the features of responses.

    Args:
        prompts: Prompt of each response, text or messages.
        responses: Texts or messages.
        rewards: Their rewards.

    Returns:
        One entry for each response with a finite reward.

    Raises:
        ValueError: If there are not equally many prompts, responses and rewards.
    """
    return [
        MeasuredResponse(_prompt_key(prompt), monitored_features(contents_of(response)), float(reward))
        for prompt, response, reward in zip(prompts, responses, rewards, strict=True)
        if reward is not None and math.isfinite(reward)
    ]


def _prompt_key(prompt: Any) -> int:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
