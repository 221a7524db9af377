"""Rewards of an evaluation in dataset order, and metrics with intervals, with and without leaked rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from hf_reward.losses.functions import PADDING_RANK
from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.metrics.leakage import metrics_without_leaks
from hf_reward.metrics.preference import preference_metrics, strict_pairs
from hf_reward.preprocessing.samplers import counted_stream, fixed_order

LABELS = ("ranks", "lengths", "groups", "sources", "words", "characters", "losses", "loss_weights", "row")
"""Labels that `prediction_step` returns in this order, each with one leading entry per dataset row."""

_PER_SOURCE = (
    *("accuracy", "accuracy_ci_low", "accuracy_ci_high", "num_pairs", "num_prompts", "length_baseline"),
    "log_loss",
)


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation in dataset order."""

    rewards: Any
    """Shape `(R, K)` with 0 at padding, or the output of the user's `preprocess_logits_for_metrics`."""
    labels: dict[str, np.ndarray]
    """`LABELS` by name."""

    @property
    def loss(self) -> float:
        """Loss over all rows, each counted once; `Trainer`'s mean over batches depends on the batch sizes."""
        losses, weights = self.labels["losses"], self.labels["loss_weights"]
        return float((losses * weights).sum(dtype=np.float64) / max(weights.sum(dtype=np.float64), 1e-12))

    def reward_statistics(self) -> dict[str, float]:
        """Return mean, standard deviation and number of the rewards."""
        present = self.labels["ranks"] != PADDING_RANK
        of_split = self._of_split
        return {"mean": of_split["mean_reward"], "std": of_split["std_reward"], "num_rewards": int(present.sum())}

    def metrics(
        self,
        source_names: Mapping[int, str],
        leaked: np.ndarray | None,
        further: Callable[[EvalPrediction], dict[str, float]] | None,
    ) -> dict[str, float]:
        """Return metrics of the split, of each source, of rows not seen in training, and the user's own metrics.

        Args:
            source_names: Names of the sources by their numbers.
            leaked: Whether each row was seen in training, shape `(R,)`, bool; None if unknown.
            further: The user's `compute_metrics`.

        Returns:
            Numbers by name.
        """
        rewards, labels = self.rewards, self.labels
        metrics = dict(self._of_split)
        if leaked is not None and len(leaked) == len(rewards):
            metrics |= metrics_without_leaks(rewards, labels["ranks"], labels["groups"], leaked)
        present = np.unique(labels["sources"])
        for number in present if len(present) > 1 else ():
            rows = labels["sources"] == number
            if len(strict_pairs(labels["ranks"][rows]).row) == 0:  # only ties: no accuracy
                continue
            part = _split_metrics(rewards[rows], {name: values[rows] for name, values in labels.items()})
            name = source_names.get(int(number), str(number))
            metrics |= {f"{name}_{key}": part[key] for key in _PER_SOURCE}
        if further is not None:
            metrics |= further(EvalPrediction(predictions=rewards, label_ids=labels["ranks"]))
        return metrics

    @cached_property
    def _of_split(self) -> dict[str, float]:
        return _split_metrics(self.rewards, self.labels)


def batch_labels(loss_function: PreferenceLoss, rewards: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the labels of a batch that an evaluation gathers.

    Args:
        loss_function: The run's loss.
        rewards: Rewards, shape `(G, K)`.
        inputs: The collated batch.

    Returns:
        `LABELS` in order, each with one leading entry per dataset row.
    """
    group = [inputs.get(name) for name in ("margins", "probabilities", "weights")]
    losses, weights = loss_function.of_groups(rewards, inputs["ranks"], *group)
    labels = {**inputs, "losses": losses, "loss_weights": weights}
    return tuple(labels[name] for name in LABELS)


def in_dataset_order(output: EvalLoopOutput, dataloader: DataLoader) -> EvalLoopOutput:
    """Restore the dataset order, and drop repeated rows of a stream evaluated by several processes.

    Args:
        output: Result of `Trainer.evaluation_loop`.
        dataloader: The data loader of the evaluation.

    Returns:
        The output with predictions and labels in dataset order, and reward 0 at padding.
    """
    order, stream = fixed_order(dataloader), counted_stream(dataloader)

    def restored(values: Any) -> Any:
        if isinstance(values, tuple):
            return tuple(restored(part) for part in values)
        if values is not None and stream is not None:
            return values[: stream.count]
        return values if values is None or order is None else values[np.argsort(order)]

    rewards, labels = restored(output.predictions), restored(output.label_ids)
    if isinstance(labels, tuple):
        rewards = without_padding(rewards, labels[0])
    return output._replace(predictions=rewards, label_ids=labels)


def with_metrics(output: EvalLoopOutput, metrics: Mapping[str, Any], prefix: str) -> EvalLoopOutput:
    """Add metrics to an evaluation, with the prefix of `Trainer`.

    Args:
        output: An evaluation.
        metrics: Numbers by name; they replace metrics of the same name.
        prefix: Prefix of the names; it is not added twice.

    Returns:
        The evaluation.
    """
    plain: Any = denumpify_detensorize(dict(metrics))
    named = {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": value for name, value in plain.items()}
    return output._replace(metrics={**named, **(output.metrics or {}), **named})


def without_padding(rewards: Any, ranks: np.ndarray) -> Any:
    """Set rewards at padding to 0; `Trainer` pads batches of shorter lists with -100.

    Args:
        rewards: Rewards, shape `(R, K)`; another shape, from the user's preprocessing, is not changed.
        ranks: Ranks, -100 is padding, shape `(R, K)`.

    Returns:
        Rewards of the same shape.
    """
    if np.shape(rewards) != ranks.shape:
        return rewards
    return np.where(ranks == PADDING_RANK, np.zeros_like(rewards), rewards)


def _split_metrics(rewards: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    sizes = {unit: labels[unit] for unit in ("words", "characters")}
    return preference_metrics(rewards, labels["ranks"], labels["lengths"], labels["groups"], **sizes)
