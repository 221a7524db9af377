"""Checks before the first batch: token ids are valid, and padding or packing in a batch does not change rewards."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.modeling.packing_check import ROUNDING_TOLERANCE, kernel_error, packing_problem
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.modeling.row_check import TokenSequence, batch_problem, require_readable
from hf_reward.training.collators import inner_collator, packs, padded_collator, with_token_budget
from hf_reward.training.data_loading import first_rows
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)


class BatchCheck:
    """Checks rows and batches against the model of a run.

    Args:
        args: Settings of the run.
        accelerator: Of the run.
        tokenizer: The prepared tokenizer.
    """

    def __init__(self, args: RewardConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase) -> None:
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        self.done = False
        """Whether batches were compared; rows are checked for every dataset."""

    def collator_for(self, data: Any, model: nn.Module, collator: Any, *, sharded: bool) -> Any:
        """Check the rows, and in the first call the batches.

        Args:
            data: Prepared rows.
            model: The reward model without accelerate's wrappers.
            collator: The run's collator.
            sharded: Whether the model is sharded over processes, so that one alone cannot run it.

        Returns:
            The collator; a padded one if the packed one would change the rewards.

        Raises:
            ValueError: If the model cannot process a row, rewards depend on the batch, or `packing` is True and changes
                the rewards.
        """
        require_readable(unwrap_model(model), data, self.tokenizer, sharded=sharded)
        if self.done:
            return collator
        self.done = True
        problem = None
        if self.accelerator.is_main_process and not sharded:
            problem = batch_problem(unwrap_model(model), _sequences(data))
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            raise ValueError(problem)
        return self._padded_if_packing_fails(data, model, collator, sharded) if packs(collator) else collator

    def _padded_if_packing_fails(self, data: Any, model: nn.Module, collator: Any, sharded: bool) -> Any:
        problem = None
        if self.accelerator.is_main_process:  # FSDP with memory-efficient loading has the weights only here
            problem = self._kernel_problem(model)
            if problem is None and not sharded:
                problem = self._packing_problem(data, model, collator)
        [problem] = broadcast_object_list([problem])
        if problem is None:
            return collator
        if self.args.choice("packing") is True:
            raise ValueError(
                f"`{setting('packing', True)}` would change the rewards: {problem}. Use `{setting('packing', 'auto')}`."
            )
        logger.warning("Batches are padded, not packed: %s.", problem)
        return with_token_budget(self._padded(collator), self.args)

    def _padded(self, collator: Any) -> Callable[..., Any]:
        """Return a padded collator that treats images as the run's collator does."""
        return padded_collator(self.args, self.tokenizer, getattr(inner_collator(collator), "images", None))

    def _kernel_problem(self, model: nn.Module) -> str | None:
        """Check the attention kernel of this device, also for a model that FSDP or ZeRO has not placed on it yet."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        device, bare = self.args.device, unwrap_model(model)
        dtype = kinds.get(str(self.accelerator.mixed_precision), bare.dtype)
        if device.type != "cuda" or dtype not in kinds.values():
            return None
        config: Any = bare.config.get_text_config()
        heads = config.num_attention_heads
        error = kernel_error(
            device,
            dtype,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        return (
            None if error <= ROUNDING_TOLERANCE else f"the attention kernel of this device has an error of {error:.1e}"
        )

    def _packing_problem(self, data: Any, model: nn.Module, collator: Any) -> str | None:
        rows = [_with_few_responses(row) for row in first_rows(data, 2)]
        padded = self._padded(collator)(rows)
        with self.accelerator.autocast():  # uses the kernels of training
            return packing_problem(unwrap_model(model), padded, inner_collator(collator)(rows))


_CHECKED_RESPONSES = 4
"""Responses of a row in the check of packing: a padded batch of long lists would take longer than many steps."""


def _with_few_responses(row: dict[str, Any]) -> dict[str, Any]:
    columns = ("input_ids", "token_type_ids", "ranks", "words", "characters")
    return {name: value[:_CHECKED_RESPONSES] if name in columns and value else value for name, value in row.items()}


def _sequences(data: Any) -> list[TokenSequence]:
    """Return some sequences of the data, each with its token types."""
    return [
        (ids, None if row["token_type_ids"] is None else row["token_type_ids"][place])
        for row in first_rows(data, 8)
        for place, ids in enumerate(row["input_ids"])
    ]
