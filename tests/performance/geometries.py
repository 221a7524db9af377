"""Shapes of models from their public configurations, without torch."""

from typing import Any

_SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
_QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "smollm2-135m": {**_SMOLLM2, "num_hidden_layers": 30},
    "smollm2-8-layers": {**_SMOLLM2, "num_hidden_layers": 8},
    "qwen2.5-0.5b": {
        **_QWEN,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "qwen2.5-1.5b": {
        **_QWEN,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""Shapes from the models' public configurations. Weights are random: speed does not depend on them."""

FROZEN_IN_HALF = ("llama-3.1-8b",)
"""Geometries that train only with LoRA, on bfloat16 weights."""

_LLAMA = GEOMETRIES["llama-3.1-8b"]


def _qwen(layers: int, hidden: int, intermediate: int, heads: int, key_heads: int, vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    return {"model_type": "qwen2", "vocab_size": vocabulary, **sizes, **heads_of}


FIT_SHAPES: dict[str, dict[str, Any]] = {
    **{name: GEOMETRIES[name] for name in ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b")},
    "qwen2.5-3b": _qwen(36, 2048, 11008, 16, 2, 151936),
    "qwen2.5-7b": _qwen(28, 3584, 18944, 28, 4, 152064),
    "llama-3.1-8b": _LLAMA,
    "qwen2.5-14b": _qwen(48, 5120, 13824, 40, 8, 152064),
    "qwen2.5-32b": _qwen(64, 5120, 27648, 40, 8, 152064),
    "llama-3.1-70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
"""Shapes from public configurations, smallest first."""
