"""Configuration of a backbone -> class of its sequence classifier, created at run time if transformers has none."""

import copy
import logging
import re
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

logger = logging.getLogger(__name__)

_HEAD_IN_LANGUAGE_MODEL = ("qwen2_vl", "qwen2_5_vl", "internvl", "llava_onevision")
"""Model types whose head vLLM (0.32) expects in the language model. transformers has no classifier for them, whose name
for the head would have to be kept."""


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the sequence classifier of the architecture, or transformers' generic one for other causal backbones."""
    mapping: Any = AutoModelForSequenceClassification._model_mapping
    if type(config) not in mapping:
        _register_generic_classifier(config)
    found = _only_class(mapping[type(config)])
    if config.model_type in _HEAD_IN_LANGUAGE_MODEL:
        _load_renamed_head(found.__name__, config.model_type)
    return found


def _register_generic_classifier(config: PretrainedConfig) -> None:
    """Create and register `<Arch>ForSequenceClassification` for a causal backbone (Granite, Cohere, ...)."""
    kind = type(config)
    mappings: Any = (AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping)
    languages = next((mapping for mapping in mappings if kind in mapping), None)
    if languages is None:
        raise ValueError(
            f"A reward model requires a language model or sequence classifier in transformers, but {kind.__name__} "
            "belongs to neither. Start from a decoder or an encoder."
        )
    base, causal = _only_class(AutoModel._model_mapping[kind]), _only_class(languages[kind])
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
    # In some releases (5.17), `register` ignores the configurations of transformers, so it is bypassed.
    mapping: Any = AutoModelForSequenceClassification._model_mapping
    mapping._extra_content[kind] = made
    _use_conversion_of(causal.__name__, name)
    logger.warning(
        "transformers has no %s, so hf_reward created this class. Stock transformers loads the saved folder only after "
        "`import hf_reward` and `hf_reward.register_classifier(%s)`.",
        name,
        kind.__name__,
    )


def _load_renamed_head(classifier: str, model_type: str) -> None:
    """Let a classifier load files in which the head has vLLM's name, and also those with its own name."""
    conversion = get_checkpoint_conversion_mapping(classifier) or get_checkpoint_conversion_mapping(model_type) or []
    if all(each.source_patterns != _renamed_head().source_patterns for each in conversion):
        register_checkpoint_conversion_mapping(classifier, [_renamed_head(), *conversion], overwrite=True)


def save_head_for_servers(model: PreTrainedModel) -> None:
    """Let a model save its head with the name that vLLM expects, in place. Most architectures have only one name."""
    used = getattr(model, "_weight_conversions", None)  # none if the model was not loaded: then all are used
    if model.config.model_type in _HEAD_IN_LANGUAGE_MODEL and used is not None:
        others = [each for each in used if each.target_patterns != ["score"]]
        loaded: Any = model
        loaded._weight_conversions = [_renamed_head(), *others]  # transformers keeps only those of the loaded file


def _renamed_head() -> WeightRenaming:
    return WeightRenaming(r"^language_model\.score", "score")


def _use_conversion_of(language_model: str, classifier: str) -> None:
    """Let a classifier rename the weights of checkpoints as the language model of its architecture (Qwen2-VL, ...)."""
    if get_checkpoint_conversion_mapping(classifier) is None:
        conversion = get_checkpoint_conversion_mapping(language_model)
        if conversion is not None:
            register_checkpoint_conversion_mapping(classifier, conversion)


def _only_class(found: Any) -> Any:
    """Return the class in a mapping. If a configuration has several, the first one is the default."""
    return found[0] if isinstance(found, tuple) else found


def _backbone_name(causal: type[PreTrainedModel], base: type[PreTrainedModel], config: PretrainedConfig) -> str:
    """Return the attribute name of the backbone in the language model, which is the prefix of its checkpoints.

    It is usually `base_model_prefix` (`backbone` in Mamba), but Llama 4 uses a different name.
    """
    try:
        with torch.device("meta"):
            children = causal(copy.deepcopy(config)).named_children()
            found = [name for name, child in children if type(child) is base]
    except Exception:  # some classes cannot be built without memory (Dots1)
        return causal.base_model_prefix
    if len(found) != 1:
        raise ValueError(
            f"transformers has no sequence classifier for {type(config).__name__}, and hf_reward cannot create one: "
            f"{causal.__name__} is the decoder of an encoder-decoder model, or requires inputs other than text. Start "
            "from a decoder or an encoder."
        )
    return found[0]


def has_stock_class(config: PretrainedConfig) -> bool:
    """Return whether transformers (without hf_reward) has a sequence classifier for a configuration."""
    return config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def register_classifier(config_class: type[PretrainedConfig]) -> None:
    """Let `AutoModelForSequenceClassification` load saved reward models of a backbone without a stock class.

    Args:
        config_class: Configuration class of the backbone, such as `GraniteConfig`.
    """
    if config_class not in AutoModelForSequenceClassification._model_mapping:
        _register_generic_classifier(config_class())
