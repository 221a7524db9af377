"""The training loss of one or several reward heads, and their state in checkpoints.

With one head it is the plain loss. The layer and its file format are in `modeling.head_ensemble`.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.modeling.head_ensemble import HEADS_FILE, bootstrap_counts, every_head, heads_file, load_heads
from hf_reward.modeling.rewards import compute_head_rewards
from hf_reward.training.training_args import RewardConfig


class HeadsLoss:
    """Loss of M heads, each on its own bootstrap resample of the rows.

    Args:
        args: Settings of the run.
    """

    def __init__(self, args: RewardConfig) -> None:
        self.args = args

    def refuse_sharding(self, by: str | None) -> None:
        """Refuse several heads on a sharded model.

        Args:
            by: "FSDP" or "DeepSpeed"; None if the model is not sharded.

        Raises:
            ValueError: If there are several heads and the model is sharded.
        """
        if self.args.num_reward_heads > 1 and by is not None:
            raise ValueError(
                f"`num_reward_heads={self.args.num_reward_heads}` is not possible with {by}: the heads would be "
                "sharded and saved as one. Use plain `accelerate launch` (DDP), or set it to 1."
            )

    def rewards(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Return the rewards of each head in training, `(M, G, K)`; in evaluation of their mean, `(1, G, K)`."""
        with every_head(model) if model.training else nullcontext():
            return compute_head_rewards(model, inputs)

    def loss(
        self, loss_function: PreferenceLoss, rewards: Tensor, inputs: Mapping[str, Any], normalizer: Any
    ) -> Tensor:
        """Return the mean over heads of the loss of each head on its own resample of the rows.

        Each head's sum is divided by the sum of the original row weights, which is the expected sum of its resampled
        weights. All heads thus have the same normalizer, and the loss does not depend on how the batch is split.

        Args:
            loss_function: The loss of one head.
            rewards: Rewards, shape `(M, G, K)`.
            inputs: The collated batch.
            normalizer: Divisor of each head's sum; None for the sum of the weights of this batch.

        Returns:
            The loss, shape `()`.
        """
        others: dict[str, Any] = {name: inputs.get(name) for name in ("margins", "probabilities", "lengths")}
        if len(rewards) == 1:
            weights = inputs["weights"]
            return loss_function(rewards[0], inputs["ranks"], weights=weights, normalizer=normalizer, **others)
        if normalizer is None:
            normalizer = group_weights(loss_function, inputs).sum()
        counts = bootstrap_counts(self.args.seed, inputs["sources"], inputs["row"], len(rewards))
        losses = [
            loss_function(each, inputs["ranks"], weights=inputs["weights"] * count, normalizer=normalizer, **others)
            for each, count in zip(rewards, counts, strict=True)
        ]
        return torch.stack(losses).mean()

    def total_weight(
        self, loss_function: PreferenceLoss, batches: Sequence[Mapping[str, Any]], accelerator: Accelerator
    ) -> Tensor | None:
        """Return the sum of the group weights of an accumulated batch over all processes, its normalizer.

        Args:
            loss_function: The run's loss.
            batches: The collated batches of one optimizer step on this process.
            accelerator: Of the run.

        Returns:
            The sum, shape `()`; None for no batches.
        """
        if not batches:
            return None
        total = torch.stack([group_weights(loss_function, batch).sum() for batch in batches]).sum()
        total = total.to(self.args.device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            gathered: Any = accelerator.gather(total)
            total = gathered.sum()
        return total

    def require_fitting(self, folder: Path) -> None:
        """Refuse a checkpoint with another number of heads.

        Args:
            folder: The checkpoint.

        Raises:
            ValueError: If the checkpoint has one head and the settings several, or vice versa.
        """
        count, path = self.args.num_reward_heads, heads_file(folder)
        if (path is None) != (count == 1):
            found = "has one head" if path is None else f"has several heads ({HEADS_FILE})"
            raise ValueError(
                f"The checkpoint {folder} {found}, but `num_reward_heads` is {count}, so training cannot resume from "
                "it. Set it to the value of the run that wrote the checkpoint, or start a new run from the model in "
                "that folder."
            )

    def restore(self, folder: Path, model: nn.Module) -> None:
        """Replace the mean head loaded from a checkpoint by its separate heads, in place."""
        self.require_fitting(folder)
        path = heads_file(folder)
        if path is not None:
            load_heads(model, path)


def group_weights(loss_function: PreferenceLoss, inputs: Mapping[str, Any]) -> Tensor:
    """Return the weight of each group of a batch, before resampling.

    Args:
        loss_function: The run's loss.
        inputs: The collated batch.

    Returns:
        Shape `(G,)`.
    """
    return loss_function.weights(inputs["ranks"], inputs.get("probabilities"), inputs["weights"])
