"""Fixes for silent errors of reward models with FSDP2 and ZeRO-3.

Nothing here runs for unsharded models.
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
def gathered_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gather parameters under ZeRO-3, so they can be changed within this context.

    Args:
        parameters: The parameters. Changes of the first process apply to all processes.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports] # noqa: PLC0415

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def is_sharded(model: nn.Module, wrapped: nn.Module) -> bool:
    """Return whether a model is sharded, so a single process cannot run it.

    Args:
        model: The model.
        wrapped: The model with the wrappers of accelerate.

    Returns:
        True under FSDP and ZeRO-3.
    """
    if is_deepspeed_zero3_enabled() or isinstance(wrapped, FullyShardedDataParallel):
        return True
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def saves_only_shards(plugin: Any) -> bool:
    """Return whether `Trainer.save_model` saves no model, because checkpoints contain the shards of each process.

    Args:
        plugin: FSDP settings of accelerate; None without FSDP.

    Returns:
        True for FSDP without `FULL_STATE_DICT`.
    """
    return plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type)


def check_fsdp_settings(plugin: Any, model: Any) -> None:
    """Refuse FSDP settings that would lose the weights of an adapter, and warn if no complete model is saved.

    Args:
        plugin: FSDP settings of accelerate; None without FSDP.
        model: The model to train.

    Raises:
        ValueError: If activation checkpointing of FSDP is used with an adapter.
    """
    if plugin is None:
        return
    if plugin.activation_checkpointing and isinstance(model, PeftModel):
        # It renames the layers, so PEFT would only find and save the head.
        raise ValueError(
            "An adapter cannot be combined with `fsdp_activation_checkpointing: true` in the launch configuration: "
            "PEFT would only save the head. Set it to false, and set `activation_checkpointing=True` in the settings "
            "of the "
            "run, which saves the same memory."
        )
    if "SHARDED" in str(plugin.state_dict_type):
        logger.warning(
            "With `fsdp_state_dict_type: SHARDED_STATE_DICT` in the launch configuration, training can be resumed, but "
            "`Trainer` does not save a complete model. Use FULL_STATE_DICT, or merge the shards of the last checkpoint "
            "with `accelerate merge-weights`."
        )


class HeadInFloat32(TrainerCallback):
    """Keeps head and rewards in float32 under FSDP2 with half precision.

    accelerate uses one mixed-precision policy for all modules. It would round rewards to bfloat16, where adjacent
    numbers around 8 differ by 0.06, and the weights of the head.
    """

    def on_train_begin(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Change the policy of the outermost module before the first forward pass.

        Args:
            *args: Unused.
            model: The wrapped model.
            **kwargs: Unused.
        """
        if isinstance(model, FSDPModule):
            keep_head_in_float32(model)


def keep_head_in_float32(model: FSDPModule) -> None:
    """Set the policy of the outermost FSDP2 module to float32, in place.

    accelerate wraps layers, embeddings and final norm separately, so the outermost module only contains the head (and
    the pooler of an encoder). Its inputs do not change.

    Args:
        model: The wrapped model, before its first forward pass.
    """
    policy = MixedPrecisionPolicy(output_dtype=torch.float32)
    # torch has no public interface to change the policy of a sharded module.
    state: Any = model._get_fsdp_state()
    state._mp_policy = policy
    for group in getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]:
        if group is not None:
            group.mp_policy = policy
