"""Estimate memory per GPU and tokens/s: `python recipes/memory_plan.py --shape 8b --gpus 8`.

These are estimates; nothing was run on a GPU. Parameters and the activations that autograd keeps are counted in the
real architecture without allocating memory (`meta` tensors); the rest are the formulas below.

    python recipes/memory_plan.py --shape 70b --gpus 64 --tokens 16384
    python recipes/memory_plan.py --shape qwen2.5-vl-3b --gpus 1
    python recipes/memory_plan.py --model-config path/with/config.json --gpus 4 --lora-r 64 --peak 312e12 --memory 40
"""

import argparse
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from hf_reward.modeling.architectures import classifier_class
from hf_reward.training.memory import STATES_PER_PARAMETER

GIB = 2**30
_LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
_QWEN_TEXT: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "8b": (
        "llama",
        _LLAMA | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "70b": (
        "llama",
        _LLAMA | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
    ),
    "qwen2.5-vl-3b": ("qwen2_5_vl", {"text_config": _QWEN_TEXT, "vision_config": _QWEN_VISION}),
}
"""Model types and configurations: Llama 3, and a vision-language model whose frozen vision tower has no activations."""
METHODS = ("full", "lora", "qlora")
SHARDINGS = ("ddp", "zero2", "fsdp2", "zero3")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters of a one-label classifier."""

    backbone: int
    layer: int
    """Parameters of one decoder layer, which FSDP2 gathers at a time."""
    embeddings: int
    adapter: int
    """Parameters of LoRA on all linear layers of the language model, and of the head."""
    vision: int = 0
    """Parameters of the vision tower, which computes each image once and not for each token."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that autograd keeps for the backward pass, for each token."""

    layer: float
    """In one decoder layer, with FlashAttention (no matrix of attention scores)."""
    boundary: float
    """Between two layers: the only tensor kept with activation checkpointing."""


# --- formulas --------------------------------------------------------------------------------------------------------


def state_bytes(counts: Counts, method: str, sharding: str, gpus: int) -> dict[str, float]:
    """Return bytes of weights, gradients and optimizer states on each GPU, for AdamW in bfloat16 mixed precision.

    DDP and FSDP2 (autocast) hold trained weights, gradients and both Adam states in float32: 4 + 4 + 8 bytes. DDP adds
    a copy of the gradients in its buckets and autocast's bfloat16 copy of the weights. DeepSpeed holds weights and
    gradients in bfloat16 and a float32 copy with both Adam states in the optimizer: 2 + 2 + 12 (Rajbhandari et al.
    (2020), "ZeRO", section 3.1). Frozen weights take 2 bytes, NF4 weights 0.516 (4 bits, and 0.127 bits for the
    quantised scales of blocks of 64; Dettmers et al. (2023), "QLoRA", section 3) with embeddings in bfloat16.

    Args:
        counts: Parameters of the model.
        method: One of `METHODS`.
        sharding: One of `SHARDINGS`.
        gpus: Number of processes that shard the model.

    Returns:
        Bytes by purpose; `gathered` is the current and the next layer, which FSDP2 and ZeRO-3 gather.

    Raises:
        ValueError: If 4-bit weights would be sharded, which is not modelled.
    """
    if method == "qlora" and sharding in ("fsdp2", "zero3"):
        raise ValueError("Sharded 4-bit weights are not modelled. Use 'ddp' or 'zero2', which keep them complete.")
    trained = counts.backbone if method == "full" else counts.adapter
    frozen = {
        "full": 0.0,
        "lora": 2.0 * counts.backbone,
        "qlora": 0.516 * (counts.backbone - counts.embeddings) + 2.0 * counts.embeddings,
    }[method]
    split_all = gpus if sharding in ("fsdp2", "zero3") else 1
    split_states = gpus if sharding != "ddp" else 1
    deepspeed = sharding in ("zero2", "zero3")
    states = 4 * STATES_PER_PARAMETER["adamw_torch"]
    weight, gradient, optimizer = (2, 2, 4 + states) if deepspeed else (4, 4, states)
    extra = {"ddp": 2 + 4}.get(sharding, 0)  # autocast's copy and the buckets
    return {
        "weights": (frozen + weight * trained) / split_all,
        "gradients": gradient * trained / split_states,
        "optimizer": optimizer * trained / split_states,
        "copies": float(extra * trained),
        "gathered": 2 * 2.0 * counts.layer if split_all > 1 else 0.0,
    }


def activation_bytes(kept: Kept, layers: int, tokens: int, checkpointing: bool) -> float:
    """Return bytes of activations on each GPU.

    Without checkpointing, every layer keeps its activations. With it, every layer keeps its input, and one layer at a
    time is recomputed (Chen et al. (2016), "Training deep nets with sublinear memory cost").

    Args:
        kept: Bytes that a layer keeps per token.
        layers: Number of decoder layers.
        tokens: Tokens in a micro-batch: those of the packed row, or rows x padded length.
        checkpointing: Whether activations are recomputed.
    """
    if not checkpointing:
        return layers * tokens * kept.layer
    return tokens * (layers * kept.boundary + kept.layer)


def flops_per_token(parameters: int, method: str, checkpointing: bool, layers: int, hidden: int, length: int) -> float:
    """Return the floating-point operations of the hardware per token.

    A forward pass has 2 per parameter (Kaplan et al. (2020), "Scaling laws", table 1) and 2 x layers x hidden x length
    for causal attention. A backward pass has as many for the gradients of activations, and again as many for the
    gradients of trainable weights. Checkpointing adds a forward pass. The totals are 6N for full training and 8N with
    checkpointing, 4N and 6N with LoRA.

    Args:
        parameters: Parameters of the layers; embeddings are looked up, not multiplied.
        method: One of `METHODS`.
        checkpointing: Whether activations are recomputed.
        layers: Number of decoder layers.
        hidden: Hidden size.
        length: Sequence length in tokens.
    """
    passes = 2 + int(checkpointing)
    attention = 2 * layers * hidden * length * (passes + 1)
    return 2 * parameters * (passes + int(method == "full")) + attention


# --- counting --------------------------------------------------------------------------------------------------------


def count_parameters(config: PretrainedConfig, lora_r: int) -> Counts:
    """Count the parameters of an architecture without its weights.

    Args:
        config: The model's configuration.
        lora_r: Rank of an adapter on every linear layer of the language model: r x (inputs + outputs) for each.
    """
    model = make_model(config)
    base: Any = model.base_model
    decoder = base.get_decoder()
    linear = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    head = sum(parameter.numel() for parameter in model.parameters()) - (
        backbone := sum(parameter.numel() for parameter in model.base_model.parameters())
    )
    return Counts(
        backbone=backbone,
        layer=sum(parameter.numel() for parameter in decoder.layers[0].parameters()),
        embeddings=model.get_input_embeddings().weight.numel(),  # type: ignore[union-attr]
        vision=backbone - sum(parameter.numel() for parameter in decoder.parameters()),
        adapter=head + sum(lora_r * (module.in_features + module.out_features) for module in linear),
    )


def count_activations(config: PretrainedConfig, tokens: int = 64) -> Kept:
    """Count the bytes that autograd keeps in one decoder layer, in bfloat16, as the difference of two layers and one.

    Args:
        config: The model's configuration.
        tokens: Number of tokens in the count; the result does not depend on it.
    """
    AttentionInterface.register("plan", _flash_like_attention)
    totals = []
    for layers in (1, 2):
        short = copy.deepcopy(config)
        text = short.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        short._attn_implementation = "plan"
        totals.append(sum(kept_bytes(make_model(short), tokens)))
    return Kept(layer=(totals[1] - totals[0]) / tokens, boundary=2.0 * config.get_text_config().hidden_size)


def kept_bytes(model: PreTrainedModel, tokens: int) -> Iterator[int]:
    """Yield the bytes of each tensor that a forward pass keeps, without parameters, each storage once."""
    seen = {id(parameter.untyped_storage()): parameter for parameter in model.parameters()}
    own = {parameter.untyped_storage()._cdata for parameter in seen.values()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    positions, mask = ids, torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        base: Any = model.base_model
        decoder = base.get_decoder()
        decoder(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        yield from (tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


class _Flash(torch.autograd.Function):
    """Keeps the tensors of FlashAttention: queries, keys, values, result, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:3], dtype=torch.float32))
        return result


def _flash_like_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    # The backward pass uses (tokens, heads, size), so the result is kept in the layout of the next layer.
    return _Flash.apply(query, key, value).transpose(1, 2).reshape(1, query.shape[2], -1), None  # type: ignore[union-attr]


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """Make the one-label classifier of a configuration without allocating memory."""
    with torch.device("meta"):
        return classifier_class(config)._from_config(config, dtype=torch.bfloat16)


# --- the table -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Print a row for each method and sharding that fits the options."""
    options = parse(argv)
    if options.model_config:
        config = AutoConfig.from_pretrained(options.model_config)
    else:
        kind, sizes = SHAPES[options.shape]
        config = AutoConfig.for_model(kind, **copy.deepcopy(sizes))
    config.num_labels = 1
    counts, kept = count_parameters(config, options.lora_r), count_activations(config)
    layers, hidden = config.get_text_config().num_hidden_layers, config.get_text_config().hidden_size
    multiplied = counts.backbone - counts.vision - counts.embeddings
    table = Table(
        title=f"GiB on each of {options.gpus} GPUs, {options.tokens:,} tokens in a micro-batch; an estimate, not run",
        caption=f"{counts.backbone:,} parameters; LoRA r={options.lora_r}: {counts.adapter:,}. A layer keeps "
        f"{kept.layer:,.0f} bytes for a token, {kept.boundary:,.0f} with checkpointing. Tokens/s of all GPUs together "
        f"at {options.mfu:.0%} of {options.peak:.3g} FLOP/s each. Fits: {options.reserve:.0%} of {options.memory:g} GB "
        "stay free.",
    )
    for name in ("method", "sharding", "checkpointing", "weights", "gradients", "optimizer", "copies", "gathered"):
        table.add_column(name, justify="left" if name in ("method", "sharding") else "right")
    for name in ("activations", "total", "fits", "tokens/s"):
        table.add_column(name, justify="right")
    for method, sharding, checkpointing in combinations():
        states = state_bytes(counts, method, sharding, options.gpus)
        activations = activation_bytes(kept, layers, options.tokens, checkpointing)
        total = sum(states.values()) + activations
        cost = flops_per_token(multiplied, method, checkpointing, layers, hidden, options.length)
        fits = total <= options.memory * 1e9 * (1 - options.reserve)
        table.add_row(
            *(method, sharding, "yes" if checkpointing else "no"),
            *(f"{value / GIB:.1f}" for value in (*states.values(), activations, total)),
            *("yes" if fits else "no", f"{options.mfu * options.peak * options.gpus / cost:,.0f}"),
        )
    Console(width=150).print(table)


def combinations() -> Iterator[tuple[str, str, bool]]:
    """Yield the valid combinations of method, sharding and checkpointing."""
    for method in METHODS:
        for sharding in SHARDINGS:
            if method != "qlora" or sharding == "ddp":
                yield from ((method, sharding, checkpointing) for checkpointing in (False, True))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="8b", help="for models without a file")
    parser.add_argument("--model-config", help="folder or Hub id of a model with config.json, instead of --shape")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="in a micro-batch on each GPU")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence, for the cost of attention")
    parser.add_argument("--lora-r", type=int, default=32)
    parser.add_argument("--memory", type=float, default=80.0, help="of a GPU, in GB (10^9 bytes)")
    parser.add_argument("--reserve", type=float, default=0.1, help="share kept for kernels, NCCL and fragmentation")
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of a GPU; default H100 SXM, dense bfloat16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached: an assumption")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
