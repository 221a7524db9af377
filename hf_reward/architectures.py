"""Configuration of a backbone -> the class of its sequence classifier, made at run time where transformers has none."""

import logging
from typing import Any

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
    cls = mapping[type(config)]
    return cls[0] if isinstance(cls, tuple) else cls


def _register_generic_classifier(config: PretrainedConfig) -> None:
    """Make and register `<Arch>ForSequenceClassification` for a causal backbone (Granite, Cohere, ...)."""
    kind = type(config)
    if kind not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{kind.__name__} belongs to no language model or sequence classifier that transformers knows, so it "
            "cannot score text. Start from a decoder or an encoder."
        )
    base: Any = AutoModel._model_mapping[kind]
    base = base[0] if isinstance(base, tuple) else base
    pretrained = next(
        cls for cls in base.__mro__ if cls.__name__.endswith("PreTrainedModel") and cls is not PreTrainedModel
    )
    causal: Any = AutoModelForCausalLM._model_mapping[kind]
    name = causal.__name__.replace("ForCausalLM", "ForSequenceClassification")
    members = {"__module__": pretrained.__module__, "base_model_prefix": "model", "config_class": kind}
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
