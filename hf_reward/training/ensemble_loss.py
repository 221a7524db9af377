"""The trainer's part for several reward heads: their losses, and saving and restoring each of them.

`head_ensemble` knows the layer and its file; here they meet `Trainer`. With one head nothing here does anything.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.modeling.head_ensemble import (
    HEADS_FILE,
    bootstrap_counts,
    every_head,
    heads_file,
    load_heads,
    save_heads,
)
from hf_reward.modeling.rewards import compute_head_rewards
from hf_reward.training.resume import ResumableTrainer


class EnsembleTrainer(ResumableTrainer):
    """Adds to `ResumableTrainer` that each of several heads learns from its own resampling of the rows."""

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, as `Trainer` does; several heads on a sharded model are refused.

        Raises:
            ValueError: If there are several heads and FSDP or DeepSpeed.
        """
        super().create_accelerator_and_postprocess()
        sharded = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None
        if self.args.num_reward_heads > 1 and sharded is not None:
            raise ValueError(
                f"`num_reward_heads={self.args.num_reward_heads}` is not possible with {sharded}: the heads would be "
                "sharded, and saved as if they were one. Use plain `accelerate launch` (DDP), or set it to 1."
            )

    # --- the losses ---

    def _head_rewards(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Rewards of a batch by each head in training, `(M, G, K)`; in evaluation by their mean, `(1, G, K)`."""
        with every_head(model) if model.training else nullcontext():
            return compute_head_rewards(model, inputs)

    def _loss_of_heads(
        self, loss_function: PreferenceLoss, rewards: Tensor, inputs: Mapping[str, Any], normalizer: Any
    ) -> Tensor:
        """Mean over heads of the loss of each on its own resampling of the rows.

        Every head's sum is divided by the weights of the rows as they are, of which its resampled ones are equal in
        the mean. So one number divides all, whatever the batch is split into.
        """
        others: dict[str, Any] = {name: inputs.get(name) for name in ("margins", "probabilities", "lengths")}
        if len(rewards) == 1:
            weights = inputs["weights"]
            return loss_function(rewards[0], inputs["ranks"], weights=weights, normalizer=normalizer, **others)
        if normalizer is None:
            normalizer = self._group_weights(inputs).sum()
        counts = bootstrap_counts(self.args.seed, inputs["sources"], inputs["row"], len(rewards))
        losses = [
            loss_function(each, inputs["ranks"], weights=inputs["weights"] * count, normalizer=normalizer, **others)
            for each, count in zip(rewards, counts, strict=True)
        ]
        return torch.stack(losses).mean()

    def _group_weights(self, inputs: Mapping[str, Any]) -> Tensor:
        """Weight of each group of a batch, shape `(G,)`, before any resampling."""
        return self.loss_function.weights(inputs["ranks"], inputs.get("probabilities"), inputs["weights"])

    # --- what lies beside the model ---

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        if self.args.should_save and folder is not None:
            save_heads(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore_heads(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._restore_heads(str(self.state.best_model_checkpoint), self.model)

    def _restore_heads(self, folder: str, model: Any) -> None:
        """Replace the mean head that was loaded by the heads themselves."""
        count, path = self.args.num_reward_heads, heads_file(Path(folder))
        if (path is None) != (count == 1):
            found = "has one head" if path is None else f"has several heads ({HEADS_FILE})"
            raise ValueError(
                f"The checkpoint {folder} {found}, but `num_reward_heads` is {count}, so training could not go on "
                "as it was. Set it as in the run that wrote the checkpoint, or start a new run from the model of that "
                "folder."
            )
        if path is not None:
            load_heads(model, path)
