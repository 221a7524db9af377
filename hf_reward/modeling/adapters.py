"""PEFT adapters -> adapters whose reward head is trained and saved."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env
from peft import PeftConfig, PeftModel, PeftModelForSequenceClassification, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_reward.modeling.library_warnings import without_renamed_checkpointing
from hf_reward.modeling.reward_head import (
    PublishesVerified,
    as_reward_model,
    head_modules,
    unwrap_model,
    vision_modules,
)

logger = logging.getLogger(__name__)


def train_head_of(model: PeftModel) -> None:
    """Add the head to the trained and saved modules of a user's adapter, in place. `LoraConfig()` leaves it random.

    Args:
        model: PEFT's wrapper of a reward model. A head that the adapter changes itself (LoRA on `score`) is not added.
    """
    config: Any = model.active_peft_config
    saved, inner = set(config.modules_to_save or []), unwrap_model(model)
    missing = [name for name in head_modules(model) if not saved & {name, name.rsplit(".", 1)[-1]}]
    missing = [name for name in missing if not _is_adapted(inner.get_submodule(name))]
    if not missing:
        return
    adapter = model.active_adapter
    for name in missing:
        parent, _, last = name.rpartition(".")
        wrapper = ModulesToSaveWrapper(inner.get_submodule(name), adapter)
        wrapper.set_adapter(adapter, inference_mode=False)
        setattr(inner.get_submodule(parent), last, wrapper)
    config.modules_to_save, config.task_type = sorted({*saved, *missing}), "SEQ_CLS"
    logger.warning(
        "The adapter neither trained nor saved the reward head (%s), so the rewards would have stayed random. The head "
        "was added to `modules_to_save`.",
        ", ".join(missing),
    )


def _is_adapted(module: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


def frozen_heads_as_buffers(model: PeftModel) -> None:
    """Turn the parameters of PEFT's frozen copy of the head into buffers, in place.

    Then training changes every parameter of the head, which code that compares parameters before and after training
    expects. A disabled adapter still uses the copy. Under FSDP the copy stays a parameter, because accelerate only
    shards parameters and fails at a buffer in the state dict.

    Args:
        model: PEFT's wrapper of a reward model.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    inner = unwrap_model(model)
    for name in head_modules(model):
        for wrapper in inner.get_submodule(name).modules():
            if isinstance(wrapper, ModulesToSaveWrapper):
                _parameters_as_buffers(wrapper.original_module)


def _parameters_as_buffers(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not hasattr(parameter, "ds_id"):  # ZeRO-3 only finds its shards in parameters
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Wrap a reward model with an adapter whose head is trained and saved, for any `task_type`.

    Args:
        model: A reward model.
        peft_config: The adapter configuration; not changed.

    Returns:
        PEFT's wrapper of the model.

    Raises:
        ValueError: If the adapter adds virtual tokens, or only targets the head.
    """
    config = adapter_config(model, peft_config)
    with without_renamed_checkpointing():
        return as_publishable(get_peft_model(model, config, revision=getattr(model, "loaded_revision", None)))


class RewardPeftModel(PublishesVerified, PeftModelForSequenceClassification):
    """PEFT's wrapper with a `push_to_hub` that verifies the model."""


def as_publishable(model: Any) -> PeftModel:
    """Give an adapter model the verifying `push_to_hub`, in place."""
    if type(model) is PeftModelForSequenceClassification:
        model.__class__ = RewardPeftModel
    return model


def adapter_config(model: PreTrainedModel, peft_config: PeftConfig) -> PeftConfig:
    """Copy an adapter configuration so that the head is trained in full and saved.

    PEFT only adds `score` and `classifier`, and only for `task_type='SEQ_CLS'`. The other parts of an encoder's head
    (the poolers of BERT and DeBERTa, ModernBERT's head) would stay random and unsaved.

    Args:
        model: The model to be wrapped.
        peft_config: The user's configuration.

    Returns:
        A copy with `task_type`, `modules_to_save` and `exclude_modules` set, and without the head in its targets. A
        vision tower is excluded too, unless the configuration excludes modules itself.

    Raises:
        ValueError: If the adapter adds virtual tokens, cannot save the head, or only targets the head.
    """
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"{type(peft_config).__name__} adds virtual tokens, which change the position of the reward. Use "
            "LoraConfig or another adapter that changes weights."
        )
    heads = head_modules(model)
    values = peft_config.to_dict()
    if "modules_to_save" not in values:
        raise ValueError(
            f"{type(peft_config).__name__} has no `modules_to_save`, so the reward head would be neither trained nor "
            "saved. Use LoraConfig (`trainable_token_indices` trains single tokens), or another adapter that has it."
        )
    targets = values.get("target_modules")
    named = [targets] if isinstance(targets, str) else list(targets or [])
    changes: dict[str, Any] = {"task_type": "SEQ_CLS"}
    if set(named) & set(heads):
        changes["target_modules"] = _without_heads(named, heads)
    changes["modules_to_save"] = sorted({*(values.get("modules_to_save") or []), *heads})
    if "exclude_modules" in values and not values["exclude_modules"]:
        excluded = [*heads, *vision_modules(model)]
        changes["exclude_modules"] = rf"(.*\.)?({'|'.join(map(re.escape, excluded))})(\..*)?"

    result = copy.deepcopy(peft_config)
    for name, value in changes.items():
        setattr(result, name, value)
    return result


def _without_heads(targets: list[str], heads: list[str]) -> list[str]:
    """Return the targets without the head. LoRA on a new head would not save its random base."""
    rest = [name for name in targets if name not in heads]
    if not rest:
        raise ValueError(
            f"`target_modules` must include backbone modules, but only names the reward head ({', '.join(targets)}). "
            "To train only the head, use `freeze_backbone` without `peft_config`."
        )
    logger.warning(
        "`target_modules` names the reward head (%s). The head is fully trained and saved instead.",
        ", ".join(name for name in targets if name in heads),
    )
    return rest


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Merge an adapter into its base in float32 and return the plain model.

    A merge in bfloat16 rounds every merged weight, which changed rewards by up to 0.13.

    Args:
        model: An adapter model. Its base is changed and must not be used afterwards.

    Returns:
        The merged reward model, float32.
    """
    merged = model.float().merge_and_unload()
    unwrap_saved_modules(merged)
    return as_reward_model(merged)


def number_of_embeddings(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embeddings, also for sharded weights and layers wrapped by an adapter.

    Args:
        model: A model, with or without PEFT's wrapper.

    Returns:
        The number of rows.
    """
    layer: Any = model.get_input_embeddings()
    while isinstance(layer, (AuxiliaryTrainingWrapper, BaseTunerLayer)):
        layer = layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer.get_base_layer()
    return layer.num_embeddings


def unwrap_saved_modules(model: nn.Module) -> None:
    """Replace modules that PEFT left wrapped (the head after LNTuning) by their trained version, in place.

    Args:
        model: A model with a merged adapter.
    """
    for name, wrapper in list(model.named_modules()):
        if isinstance(wrapper, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            plain = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), last, plain)


def require_complete_adapter(model: PeftModel, folder: Path) -> None:
    """Refuse incomplete adapter weights. PEFT would not report missing ones.

    Args:
        model: The model that will load them.
        folder: Their folder. Without `adapter_model.safetensors` in it, nothing is checked.

    Raises:
        ValueError: If weights are missing.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        missing = sorted(get_peft_model_state_dict(model).keys() - set(file.keys()))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} weights of the adapter, such as {missing[0]}. Resume from another "
            "checkpoint, or use the adapter settings of this one."
        )
