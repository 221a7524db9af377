"""Tiny saved reward models with random heads."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import randomize_head
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hf_reward import AutoModelForRewardScoring, prepare_tokenizer
from hf_reward.modeling.checkpoint_record import describe


def reward_model(source: Path, *, lora: bool = False, seed: int = 1, scale: float = 0.1, **options: Any) -> Any:
    """A model with a random head whose rewards have the size of one, as trained ones do."""
    if lora:
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(seed)
    model: Any = AutoModelForRewardScoring.from_pretrained(source, **options).eval()
    randomize_head(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score." in name or "classifier." in name:
                parameter *= scale
    return model


def tokenizer_of(source: Path) -> Any:
    """The prepared tokenizer of a folder."""
    return prepare_tokenizer(AutoTokenizer.from_pretrained(source))


def save(model: Any, tokenizer: Any, folder: Path, **options: Any) -> Path:
    """Save a model or adapter with its tokenizer and record, as the trainer does."""
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    describe(model, tokenizer, half=torch.bfloat16).save(folder)
    return folder


def saved_model(source: Path, folder: Path, *, save_options: dict[str, Any] | None = None, **options: Any) -> Path:
    """A saved reward model made from a language model's folder."""
    return save(reward_model(source, **options), tokenizer_of(source), folder, **(save_options or {}))


def copied(folder: Path, target: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(folder, target))


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level fields of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content.update(changes)
    lost = {name for name, value in changes.items() if value is None}
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in lost}))


def edit_weights(path: Path, change: Any) -> None:
    """Rewrite a safetensors file with what `change` makes of its tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
