"""Rewards of training batches -> statistics for the log, summed on the device without synchronisation.

These are running sums over batches and processes; `metrics` computes statistics of a complete split.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_reward.losses.functions import PADDING_RANK, strict_pairs

_NAMES = ("loss", "weight", "correct", "pairs", "gap", "reward", "square", "rewards", "tokens", "computed")


class BatchStatistics:
    """Sums over the training batches since the last log and since the last epoch."""

    def __init__(self) -> None:
        self._log: Tensor | None = None
        self._epoch: Tensor | None = None
        self._extremes: Tensor | None = None
        self._tokens = 0
        self.for_next_log: dict[str, float] = {}
        """Numbers to add to the next log entry."""

    def begin(self, log_history: Sequence[Mapping[str, Any]], tokens: int = 0) -> None:
        """Start counting tokens, at 0 or at the count of a resumed run.

        Args:
            log_history: The run's log entries; their last count is used if the checkpoint has none.
            tokens: The count in the checkpoint.
        """
        self._tokens = tokens or next(
            (int(entry["num_tokens"]) for entry in reversed(log_history) if "num_tokens" in entry), 0
        )

    def add(
        self,
        loss: Tensor,
        weight: Tensor,
        rewards: Tensor,
        ranks: Tensor,
        num_tokens: Tensor | None = None,
        computed: int = 0,
    ) -> None:
        """Add one batch.

        Args:
            loss: Sum of its groups' losses times their weights, shape `()`.
            weight: Sum of its group weights, shape `()`.
            rewards: Rewards, shape `(G, K)`.
            ranks: Ranks, -100 is padding, shape `(G, K)`.
            num_tokens: Tokens of each group's sequences, shape `(G,)`, int64; None if the collator does not count them.
            computed: Tokens that the backbone has processed for this batch.
        """
        pairs, present = strict_pairs(ranks), ranks != PADDING_RANK
        gaps = (rewards.unsqueeze(2) - rewards.unsqueeze(1))[pairs]
        exact = torch.float32 if rewards.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        shown = rewards[present].to(exact)
        counts = [(gaps > 0).sum(), pairs.sum(), gaps.sum(), shown.sum(), shown.square().sum(), present.sum()]
        counts.append(present.sum() * 0 if num_tokens is None else num_tokens.sum())
        counts.append(counts[-1].new_tensor(computed))
        sums = torch.stack([number.to(exact) for number in (loss, weight, *counts)])
        extremes = torch.stack([-shown.min(), shown.max()]).to(rewards.dtype)
        self._log = sums if self._log is None else self._log + sums
        self._epoch = sums if self._epoch is None else self._epoch + sums
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)

    def since_last_log(self, accelerator: Accelerator) -> dict[str, float]:
        """Return statistics over all processes.

        Args:
            accelerator: Of the run.

        Returns:
            Strict accuracy, margin, rewards and the share of computed tokens since the last call, and total tokens.
        """
        if self._log is None or self._extremes is None:
            return {}
        sums = _reduced(accelerator, self._log)
        gathered: Any = accelerator.gather(self._extremes.unsqueeze(0))
        extremes = gathered.max(0).values.tolist()
        self._log = self._extremes = None
        self._tokens += int(sums["tokens"])
        mean = sums["reward"] / sums["rewards"]
        variance = sums["square"] / sums["rewards"] - mean**2
        return {
            "accuracy": sums["correct"] / max(sums["pairs"], 1),
            "margin": sums["gap"] / max(sums["pairs"], 1),
            "mean_reward": mean,
            "std_reward": math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan,
            "min_reward": -extremes[0],
            "max_reward": extremes[1],
            **({"num_tokens": self._tokens} if self._tokens else {}),
            **({"computed_token_share": sums["computed"] / sums["tokens"]} if sums["tokens"] else {}),
        }

    def tokens(self, accelerator: Accelerator) -> int:
        """Return the number of training tokens so far, over all processes, logged or not."""
        return self._tokens + (0 if self._log is None else int(_reduced(accelerator, self._log)["tokens"]))

    def since_last_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        """Return mean loss and accuracy since the last call, over all processes."""
        if self._epoch is None:
            return {}
        sums = _reduced(accelerator, self._epoch)
        self._epoch = None
        return {
            "epoch_loss": sums["loss"] / max(sums["weight"], 1e-12),
            "epoch_accuracy": sums["correct"] / max(sums["pairs"], 1),
        }


def _reduced(accelerator: Accelerator, sums: Tensor) -> dict[str, Any]:
    total: Any = accelerator.reduce(sums, reduction="sum")
    return dict(zip(_NAMES, total.tolist(), strict=True))
