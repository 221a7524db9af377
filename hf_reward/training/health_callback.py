"""Training events -> warnings about a run's health, from the detectors in `health_checks`.

In a step it only stores references and adds numbers on the device; it synchronises only where the trainer logs.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.modeling.reward_head import head_parameters
from hf_reward.training.health_checks import LARGER, MINIMUM_GAIN, HealthWarning, RunFacts, check_health

logger = logging.getLogger(__name__)

_GAINS = ("gain_rows", "gain", "gain_weight", "gain_excess", "gain_square", "gain_if_larger")
_MOST_BATCHES = 1024
"""Limit of batches whose rows are stored for one step: a caller of `compute_loss` alone never starts a new step."""


class HealthMonitor(TrainerCallback):
    """Logs each kind of problem once, with the observed numbers, the likely cause and the remedy.

    Args:
        enabled: Whether to check anything.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.warnings: list[HealthWarning] = []
        self._history: list[dict[str, Any]] = []
        self._rows: deque[Tensor] = deque(maxlen=_MOST_BATCHES)
        self._rows_before: deque[Tensor] = deque(maxlen=_MOST_BATCHES)
        self._settled = False
        self._sums: Tensor | None = None  # loss of equal rewards, weight of the groups and `_GAINS` since the last log

    def add(self, inputs: Mapping[str, Tensor], rewards: Tensor, loss_function: PreferenceLoss) -> None:
        """Add a training batch.

        Args:
            inputs: The collated batch.
            rewards: Its rewards, shape `(G, K)`.
            loss_function: The run's loss.
        """
        self._rows.append(inputs["row"])
        if not self.enabled:
            return
        group = [inputs.get(name) for name in ("margins", "probabilities", "weights")]
        equal, weights = loss_function.of_groups(torch.zeros_like(rewards), inputs["ranks"], *group)
        gain, if_larger = (
            equal - loss_function.of_groups(scale * rewards, inputs["ranks"], *group)[0] for scale in (1, LARGER)
        )
        excess = weights * (gain - MINIMUM_GAIN)
        settled = [(weights > 0).sum(), (weights * gain).sum(), weights.sum(), excess.sum(), excess.square().sum()]
        settled.append((weights * if_larger).sum())
        if not self._settled:
            settled = [each * 0 for each in settled]
        numbers = [(weights * equal).sum(), weights.sum(), *settled]
        sums = torch.stack([number.to(equal.dtype) for number in numbers]).detach()
        self._sums = sums if self._sums is None else self._sums + sums

    def measure(self, model: nn.Module, sharded: bool) -> dict[str, float]:
        """Measure the head for the log.

        Args:
            model: The model.
            sharded: Whether processes hold shards of it, so that none has the complete head.

        Returns:
            `head_norm`, the norm of the head's weights and bias, or nothing.
        """
        if not self.enabled or sharded:
            return {}
        return {"head_norm": head_norm(model)}

    def earlier_cause(self, model: nn.Module) -> str:
        """Explain a non-finite loss by weights that were not finite before the step.

        Args:
            model: The model.

        Returns:
            Sentences to append to an error, with a leading space; empty if all weights are finite.
        """
        broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
        if not broken:
            return ""
        rows = _numbers(self._rows_before)
        return (
            f" Weights were already not finite ({broken[0]} and {len(broken) - 1} others), so the gradient of an "
            f"earlier step was not finite. The rows of the previous step are {rows}: inspect those first."
        )

    def require_finite(
        self,
        loss: Tensor,
        rewards: Tensor,
        inputs: Mapping[str, Tensor],
        model: nn.Module,
        state: TrainerState,
        run: str,
    ) -> None:
        """Stop at a loss that is not finite, before the step changes the weights.

        Args:
            loss: Loss of the batch, shape `()`.
            rewards: Its rewards, shape `(G, K)`.
            inputs: The collated batch.
            model: The model.
            state: State of the run.
            run: Folder of earlier checkpoints.

        Raises:
            FloatingPointError: If the loss is not finite; the message names the rows.
        """
        if torch.isfinite(loss):
            return
        bad = ~torch.isfinite(rewards).all(1)
        rows = inputs["row"][bad if bad.any() else slice(None)].tolist()
        raise FloatingPointError(
            f"The loss is {loss.item()} at step {state.global_step}, from the data rows {rows}. Training stopped "
            f"before this step changed the weights; earlier checkpoints in {state.best_model_checkpoint or run} are "
            "unchanged. Inspect those rows, lower the learning rate, or train in bfloat16 or float32 instead of "
            f"float16.{self.earlier_cause(model)}"
        )

    @property
    def rows(self) -> list[int]:
        """Data rows of the last step on this process."""
        return _numbers(self._rows)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the norm of the current head, or from the log of a resumed run."""
        self._history, self._sums = [dict(entry) for entry in state.log_history], None
        if self.enabled and not self._history and args.world_size == 1:  # else the head may be sharded
            self._history.append({"step": 0, "head_norm": head_norm(kwargs["model"])})
        self._rows.clear()
        self._rows_before.clear()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rows of the previous step, and forget older ones."""
        facts = RunFacts(max_steps=state.max_steps, warmup_steps=args.get_warmup_steps(state.max_steps))
        self._settled = state.global_step >= facts.settled_step
        self._rows, self._rows_before = deque(maxlen=_MOST_BATCHES), self._rows

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the new entry, and log warnings on the main process."""
        if not self.enabled or not logs:
            return
        entry = {**logs, "step": state.global_step}
        if "loss" in logs:
            entry |= self._since_last_log()
        self._history.append(entry)
        if not state.is_world_process_zero:
            return
        rows = self.rows if not math.isfinite(logs.get("grad_norm", 0.0)) else []
        facts = RunFacts(
            max_steps=state.max_steps,
            warmup_steps=args.get_warmup_steps(state.max_steps),
            scales_loss=bool(args.fp16),
            rows=rows,
        )
        logged = {warning.kind for warning in self.warnings}
        for warning in check_health(self._history, facts):
            if warning.kind not in logged:
                self.warnings.append(warning)
                logger.warning("%s", warning)

    def _since_last_log(self) -> dict[str, float]:
        if self._sums is None:
            return {}
        total, weight, *gains = self._sums.tolist()
        self._sums = None
        found = dict(zip(_GAINS, gains, strict=True)) if gains[0] else {}
        return {"equal_loss": total / weight, **found} if weight > 0 else {}


def head_norm(model: nn.Module) -> float:
    """Return the Euclidean norm of all trainable weights and biases of the head.

    Args:
        model: A reward model, with or without an adapter.

    Returns:
        The norm.
    """
    with torch.no_grad():
        norms = [parameter.float().norm() for _, parameter in head_parameters(model)]
        return float(torch.stack(norms).norm()) if norms else 0.0


def _numbers(batches: Iterable[Tensor]) -> list[int]:
    return sorted(row for batch in batches for row in batch.tolist())
