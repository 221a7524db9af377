"""A reward function for TRL that feeds a monitor, with one or several processes."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import gather_object

from hf_reward.evaluation.monitoring.monitor import RewardMonitor, measured

logger = logging.getLogger(__name__)


class MonitoredReward:
    """A reward function for `reward_funcs` of TRL's `GRPOTrainer` and `RLOOTrainer` that watches its own rewards.

    The rewards are those of the wrapped function. In training, each process measures its responses, and all add the
    measurements of all processes to their monitors, which are therefore equal. The main process logs warnings. The
    statistics reach the trainer's loggers (TensorBoard, trackio, W&B) through TRL's `log_metric`. Calls during an
    evaluation are not monitored.
    """

    def __init__(self, reward: Callable[..., Sequence[float | None]], monitor: RewardMonitor | None = None) -> None:
        """Wrap a reward function.

        Args:
            reward: A function or object for TRL's `reward_funcs` that is not asynchronous, such as a `RewardScorer`.
            monitor: The monitor; by default one with default settings.

        Raises:
            TypeError: If the function is asynchronous or no function, such as a model.
        """
        call = getattr(reward, "__call__", None)  # noqa: B004 - the method is inspected
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(call):
            raise TypeError("`reward` must not be asynchronous. Wrap it in a function that waits for the rewards.")
        if call is None or hasattr(reward, "forward"):
            raise TypeError(
                f"`reward` must be a function of prompts and completions, but is a {type(reward).__name__}. For a "
                "model, use RewardScorer."
            )
        self.reward = reward
        self.monitor = RewardMonitor() if monitor is None else monitor
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)  # the name in TRL's logs

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Sequence[float | None]:
        """Return the rewards of the wrapped function.

        Args:
            prompts: TRL's prompts, texts or messages.
            completions: TRL's completions.
            **columns: Other arguments of TRL, passed on. `trainer_state` has the step, `log_metric` logs.

        Returns:
            One reward for each completion.
        """
        rewards = self.reward(prompts=prompts, completions=completions, **columns)
        log_metric = columns.get("log_metric")
        if _is_evaluating(log_metric):
            return rewards
        state = columns.get("trainer_state")
        step = len(self.monitor.history) if state is None else state.global_step
        warnings = self.monitor.add(gather_object(measured(prompts, completions, rewards)), step)
        if PartialState().is_main_process:
            for warning in warnings:
                logger.warning("%s", warning)
        if log_metric is not None:
            for name, value in self.monitor.metrics().items():
                log_metric(name, value)
        return rewards


def _is_evaluating(log_metric: Any) -> bool:
    """Return whether TRL evaluates: `log_metric` is a method of the trainer, whose model is then not in training."""
    model = getattr(getattr(log_metric, "__self__", None), "model", None)
    return model is not None and not model.training
