"""Settings of a model and its adapter that affect the computation.

Two models with equal weights may differ in these settings. They are therefore compared before training or scoring
resumes and before cached scores are used.
"""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import nn

from hf_reward.modeling.reward_head import unwrap_model

_NOT_COMPUTING = frozenset(
    {
        *("transformers_version", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache", "name_or_path"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "tokenizer_class", "finetuning_task", "task_specific_params"),
        *("id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict", "tie_word_embeddings"),
        *("attn_implementation", "chunk_size_feed_forward", "quantization_config", "sentence_transformers"),
    }
)
"""Fields of a configuration that do not affect the computation, or only its rounding. Precision and weights are
compared separately."""
_PLACES = frozenset({"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"})


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return the settings of a model that affect its computation (positions, normalisation, dropout), by name."""
    bare: Any = unwrap_model(model)  # type: ignore[arg-type]
    return _computing(bare.config.to_dict())


def adapter_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a model's adapter without locations, or None."""
    if not isinstance(model, PeftModel):
        return None
    return {
        name: sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value
        for name, value in model.active_peft_config.to_dict().items()
        if name not in _PLACES and value is not None
    }


def _computing(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(name): _computing(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if not str(name).startswith("_") and name not in _NOT_COMPUTING
    }
