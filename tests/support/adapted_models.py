"""A model with a random adapter and head, and the rewards of a few texts."""

from pathlib import Path

import torch
from conftest import randomize_head
from peft import LoraConfig

from hf_reward import AutoModelForRewardScoring

TEXTS = ["Paris is the capital.", "Two is even, and three is not.", "No.", "ice melts at zero " * 5]


def rewards(model: torch.nn.Module, tokenizer) -> torch.Tensor:
    inputs = tokenizer(TEXTS, padding=True, add_special_tokens=False, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model.eval()(**inputs).logits[:, 0]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs() <= 1e-5 * other.abs().clamp(min=1)).all())


def load(folder: Path, **options):
    return AutoModelForRewardScoring.from_pretrained(folder, **options).eval()


def shrink_head(model: torch.nn.Module) -> None:
    """Bring rewards to the scale of one, as trained ones have: the bound has a floor there, rounding has not."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score." in name or "classifier." in name:
                parameter *= 0.1


def load_with_adapter(folder: Path, **options):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = load(folder, peft_config=lora, **options)
    randomize_head(model)
    shrink_head(model)
    return model
