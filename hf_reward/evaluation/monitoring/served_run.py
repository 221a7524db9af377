"""Monitors for the runs of a server's clients, which send responses without step numbers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_reward.data.interface import setting
from hf_reward.evaluation.monitoring.monitor import RewardMonitor, measured
from hf_reward.evaluation.monitoring.steps import MeasuredResponse

logger = logging.getLogger(__name__)


class ServedRun:
    """Divides the responses of a run into steps of equal size, in the order of their arrival, and monitors them.

    Args:
        name: Name of the run, for messages.
        step_responses: Number of responses in a step.
    """

    def __init__(self, name: str, step_responses: int) -> None:
        self.name, self.step_responses = name, step_responses
        self.monitor = RewardMonitor()
        self._waiting: list[MeasuredResponse] = []

    def add(
        self, prompts: Sequence[Any], responses: Sequence[Any], rewards: Sequence[float]
    ) -> Mapping[str, Mapping[str, float]]:
        """Add responses, and log new warnings.

        Args:
            prompts: Prompt of each response, text or messages.
            responses: Texts or messages.
            rewards: Their rewards.

        Returns:
            `RewardMonitor.statistics` after the last complete step.
        """
        self._waiting += measured(prompts, responses, rewards)
        while len(self._waiting) >= self.step_responses:
            step, self._waiting = self._waiting[: self.step_responses], self._waiting[self.step_responses :]
            for warning in self.monitor.add(step, len(self.monitor.history)):
                logger.warning("Run %s: %s", self.name, warning)
        return self.monitor.statistics()


def run_monitors(step_responses: int) -> Callable[[str], ServedRun]:
    """Return the argument `observe` of `serve` and `create_app`, which monitors each run.

    Args:
        step_responses: Number of responses in a step.

    Returns:
        A function that creates the monitor of a run, given its name.

    Raises:
        ValueError: If the number is below 2.
    """
    if step_responses < 2:
        raise ValueError(f"`{setting('run_step', step_responses)}` must be 2 or more.")
    return lambda name: ServedRun(name, step_responses)
