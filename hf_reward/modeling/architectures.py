"""Configuration of a backbone -> the class of its sequence classifier, made at run time where transformers has none."""

import copy
import logging
import re
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

logger = logging.getLogger(__name__)


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The architecture's own sequence classifier; for causal backbones without one, transformers' generic one."""
    mapping: Any = AutoModelForSequenceClassification._model_mapping
    if type(config) not in mapping:
        _register_generic_classifier(config)
    return _only_class(mapping[type(config)])


def _register_generic_classifier(config: PretrainedConfig) -> None:
    """Make and register `<Arch>ForSequenceClassification` for a causal backbone (Granite, Cohere, ...)."""
    kind = type(config)
    if kind not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{kind.__name__} belongs to no language model or sequence classifier that transformers knows, so it "
            "cannot score text. Start from a decoder or an encoder."
        )
    base, causal = _only_class(AutoModel._model_mapping[kind]), _only_class(AutoModelForCausalLM._model_mapping[kind])
    pretrained = next(
        cls for cls in base.__mro__ if cls.__name__.endswith("PreTrainedModel") and cls is not PreTrainedModel
    )
    name = re.sub(r"(ForCausalLM|ForConditionalGeneration|Decoder)$", "", causal.__name__) + "ForSequenceClassification"
    members = {
        "__module__": pretrained.__module__,
        "base_model_prefix": _backbone_name(causal, base, config),
        "config_class": kind,
    }
    made = type(name, (GenericForSequenceClassification, pretrained), members)
    # `register` itself ignores the configurations of transformers in some releases (5.17), so it is gone round.
    mapping: Any = AutoModelForSequenceClassification._model_mapping
    mapping._extra_content[kind] = made
    logger.warning(
        "transformers has no %s; one was made. Stock transformers loads the saved folder only after `import hf_reward` "
        "and `hf_reward.register_classifier(%s)`.",
        name,
        kind.__name__,
    )


def _only_class(found: Any) -> Any:
    """The class that a mapping gives; some configurations have several, of which the first is the usual one."""
    return found[0] if isinstance(found, tuple) else found


def _backbone_name(causal: type[PreTrainedModel], base: type[PreTrainedModel], config: PretrainedConfig) -> str:
    """Under which name the language model holds its backbone, and so under which its checkpoints hold the weights.

    Mostly that is `base_model_prefix` (`backbone` of Mamba), but Llama 4 states another one there than it uses.
    """
    try:
        with torch.device("meta"):
            children = causal(copy.deepcopy(config)).named_children()
            found = [name for name, child in children if type(child) is base]
    except Exception:  # some classes cannot be made without memory (Dots1)
        return causal.base_model_prefix
    if len(found) != 1:
        raise ValueError(
            f"transformers has no sequence classifier for {type(config).__name__}, and none can be made: "
            f"{causal.__name__} is the decoder of an encoder-decoder model, or has more inputs than text. Start from a "
            "decoder or an encoder."
        )
    return found[0]


def has_stock_class(config: PretrainedConfig) -> bool:
    """Whether transformers itself, with nothing of ours imported, has a sequence classifier for a configuration."""
    return config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def register_classifier(config_class: type[PretrainedConfig]) -> None:
    """Let `AutoModelForSequenceClassification` load saved reward models of a backbone that has no such class.

    Args:
        config_class: The backbone's configuration class, such as `GraniteConfig`.
    """
    if config_class not in AutoModelForSequenceClassification._model_mapping:
        _register_generic_classifier(config_class())
