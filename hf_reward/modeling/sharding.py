"""A model that no process holds whole: what FSDP2 and ZeRO-3 would do to a reward model without a word, and its cure.

Nothing here runs where the model is whole.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

logger = logging.getLogger(__name__)


@contextmanager
def whole_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let parameters be written: under ZeRO-3 loading leaves each process a part, and the parameter itself is empty.

    Args:
        parameters: The parameters. What the first process writes into them holds for all.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports] # noqa: PLC0415

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def is_sharded(model: nn.Module, wrapped: nn.Module) -> bool:
    """Whether no process holds the whole model, so that one alone cannot run it.

    Args:
        model: The model.
        wrapped: The same with accelerate's wrappers.

    Returns:
        True under FSDP and ZeRO-3.
    """
    if is_deepspeed_zero3_enabled() or isinstance(wrapped, FullyShardedDataParallel):
        return True
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def saves_shards_alone(plugin: Any) -> bool:
    """Whether `Trainer.save_model` writes nothing, because checkpoints hold the shards of each process.

    Args:
        plugin: accelerate's settings of FSDP; None without it.

    Returns:
        True for FSDP without `FULL_STATE_DICT`.
    """
    return plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type)


def refuse_what_sharding_loses(plugin: Any, model: Any) -> None:
    """Stop before a run under FSDP2 whose adapter would be saved without its weights; say so where nothing is saved.

    Args:
        plugin: accelerate's settings of FSDP; None without it.
        model: The model to train.

    Raises:
        ValueError: If FSDP's own activation checkpointing meets an adapter.
    """
    if plugin is None:
        return
    if plugin.activation_checkpointing and isinstance(model, PeftModel):
        # It renames the layers, PEFT looks for the old names, and only the head would be in the adapter's file.
        raise ValueError(
            "`fsdp_activation_checkpointing: true` in the launch configuration hides an adapter's weights from PEFT, "
            "so checkpoints would hold the head alone. Set it to false there, and `activation_checkpointing=True` in "
            "the run's settings, which saves the same memory."
        )
    if "SHARDED" in str(plugin.state_dict_type):
        logger.warning(
            "`fsdp_state_dict_type: SHARDED_STATE_DICT` in the launch configuration: training can be resumed, but "
            "`Trainer` saves no model that can be loaded elsewhere. Use FULL_STATE_DICT, or merge the shards of the "
            "last checkpoint with `accelerate merge-weights`."
        )


class HeadInFloat32(TrainerCallback):
    """Leaves the head, and the rewards, of a model under FSDP2 in float32 when training in half precision begins.

    accelerate gives all parts of a model one policy. Its output type would round rewards to bfloat16, where numbers
    around 8 are 0.06 apart, and its parameter type would round the head's weights.
    """

    def on_train_begin(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Change the policy of the model's outermost part, before its first forward pass.

        Args:
            *args: Unused.
            model: The wrapped model.
            **kwargs: Unused.
        """
        if isinstance(model, FSDPModule):
            keep_head_in_float32(model)


def keep_head_in_float32(model: FSDPModule) -> None:
    """Let the outermost part of a model under FSDP2 compute and return float32, in place.

    Layers, embeddings and final norm are parts of their own in accelerate, so the outermost one holds the head (and an
    encoder's pooler). What it gets from within stays as it is.

    Args:
        model: The wrapped model, before its first forward pass.
    """
    policy = MixedPrecisionPolicy(output_dtype=torch.float32)
    # torch has no public way to give a part that is sharded already another policy.
    state: Any = model._get_fsdp_state()
    state._mp_policy = policy
    for group in getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]:
        if group is not None:
            group.mp_policy = policy
