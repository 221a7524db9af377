"""Adapters of PEFT -> adapters whose reward head is trained and saved, whoever made them."""

import logging
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from hf_reward.modeling.reward_head import bare_model, head_modules

logger = logging.getLogger(__name__)


def train_head_of(model: PeftModel) -> None:
    """Let a caller's own adapter train and save the head too, in place: `LoraConfig()` alone leaves it random.

    Args:
        model: PEFT's wrapper of a reward model. A head that the adapter itself changes (LoRA on `score`) is left alone.
    """
    config: Any = model.active_peft_config
    saved, inner = set(config.modules_to_save or []), bare_model(model)
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
        "The adapter neither trained nor saved the reward head (%s), so its rewards would have stayed random: the head "
        "was added to its `modules_to_save`.",
        ", ".join(missing),
    )


def _is_adapted(module: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


def forget_frozen_heads(model: PeftModel) -> None:
    """Make the frozen copy of the head that PEFT keeps beside the trained one buffers, in place.

    So every parameter of the head is one that training changes, as code that compares parameters before and after
    training expects. The copy is still there when the adapter is disabled.

    Args:
        model: PEFT's wrapper of a reward model.
    """
    inner = bare_model(model)
    for name in head_modules(model):
        for wrapper in inner.get_submodule(name).modules():
            if isinstance(wrapper, ModulesToSaveWrapper):
                _parameters_as_buffers(wrapper.original_module)


def _parameters_as_buffers(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not hasattr(parameter, "ds_id"):  # ZeRO-3 finds its shards as parameters only
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
