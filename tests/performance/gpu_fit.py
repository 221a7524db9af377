"""One training step of a model with random weights, in a separate process: does it fit in memory?

    python tests/performance/gpu_fit.py SHAPE METHOD result.json

The step is that of `RewardTrainer` with activation checkpointing and AdamW on `ROWS` rows of `speed_rows.HH_LIKE`. One
decoder layer is drawn, quantised for QLoRA, and copied to the depth of the shape, so that no checkpoint is needed.
"""

import copy
import json
import os
import re
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from geometries import FIT_SHAPES, GEOMETRIES
from peft import LoraConfig
from speed_measure import peak_bytes
from speed_rows import HH_LIKE, our_dataset, small_tokenizer, synthetic_groups, synthetic_rows
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hf_reward import RewardConfig, RewardTrainer

ROWS = 8


def attempt(shape: str, method: str) -> dict[str, Any]:
    """Train one step.

    Args:
        shape: Key of `FIT_SHAPES`, or "tiny".
        method: full, lora or qlora.

    Returns:
        `fits`, and if it does, `parameters` of the model, `peak_bytes` and `seconds` of the training.
    """
    try:
        model = make_model({**GEOMETRIES, **FIT_SHAPES}[shape], method)
        start = time.perf_counter()
        train_one_step(model, method)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return {"fits": False}
    parameters = count_parameters({**GEOMETRIES, **FIT_SHAPES}[shape])
    return {
        "fits": True,
        "parameters": parameters,
        "peak_bytes": peak_bytes(),
        "seconds": time.perf_counter() - start,
    }


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, the driver or cuBLAS found no memory; only torch has a class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|ALLOC_FAILED", str(error)))


def count_parameters(shape: dict[str, Any]) -> int:
    """Count the parameters of a classifier without its weights."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**shape, num_labels=1))
    return sum(weight.numel() for weight in model.parameters())


def make_model(shape: dict[str, Any], method: str) -> PreTrainedModel:
    """Make a classifier with random weights: float32 for full training and on a CPU, else bfloat16 or 4 bits."""
    depth = shape["num_hidden_layers"]
    config = AutoConfig.for_model(**{**shape, "num_hidden_layers": 1}, num_labels=1, pad_token_id=0)
    cuda = torch.cuda.is_available()
    with torch.device("cuda" if cuda else "cpu"):
        dtype = torch.bfloat16 if cuda and method != "full" else torch.float32
        model: Any = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    layer = model.base_model.layers[0]
    if method == "qlora":
        quantize(layer)
        model.is_loaded_in_4bit = True  # PEFT chooses its layers by this attribute
    shared = layer.self_attn.config  # one object for all layers, because packing changes the attention there
    layers = [layer, *(copy.deepcopy(layer, {id(shared): shared}) for _ in range(depth - 1))]
    for place, each in enumerate(layers):
        each.self_attn.layer_idx = place
    model.base_model.layers = nn.ModuleList(layers)
    shared.num_hidden_layers = depth
    if getattr(shared, "layer_types", None):
        shared.layer_types = shared.layer_types * depth
    assert model.config is model.base_model.config is shared
    return model


def quantize(module: nn.Module) -> None:
    """Replace all linear layers of a module by NF4 layers, with quantised scales."""
    layers: Any = import_module("bitsandbytes").nn
    for parent in list(module.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                found = layers.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=linear.weight.dtype,
                    quant_type="nf4",
                )
                found.weight = layers.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                found.bias = linear.bias
                setattr(parent, name, found.to(linear.weight.device))  # quantises


def train_one_step(model: PreTrainedModel, method: str) -> None:
    """Train one step on `ROWS` rows of at most 512 tokens."""
    cuda = torch.cuda.is_available()
    vocabulary = model.config.vocab_size
    groups = synthetic_groups(HH_LIKE, ROWS, max_length=512, vocabulary=vocabulary)
    tokenizer = small_tokenizer(synthetic_rows(200))
    tokenizer.pad_token = "<|endoftext|>"
    adapter = LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=1,
            max_length=512,
            over_length="drop",
            activation_checkpointing=True,
            use_cpu=not cuda,
            bf16=cuda,
            report_to="none",
            save_strategy="no",
            plot_curves=False,
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model=model,
            args=args,
            train_dataset=our_dataset([], groups),
            processing_class=tokenizer,
            peft_config=None if method == "full" else adapter,
        )
        trainer.train()


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(attempt(sys.argv[1], sys.argv[2])), encoding="utf-8")
