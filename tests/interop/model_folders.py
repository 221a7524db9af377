"""The saved models that each program loads."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from cases import IMAGE_MODELS, MODELS
from environments import PLACE, ROOT
from foreign_models import llama3_tokenizer
from safetensors.torch import load_file, save_file
from saved_models import reward_model, tokenizer_of
from transformers import AutoModelForCausalLM, LlamaConfig
from vision_models import save_vision_reward_model

from hf_reward.publishing.export import ExportRule, save_adapter, save_merged, write_verified
from hf_reward.publishing.saved_model import load_saved

QUICK_START = ROOT / "outputs" / "quickstart"


def make_folders() -> dict[str, Path]:
    """Save the models with the current code, unless that was done before.

    Returns:
        Their folders, and as `policy` that of a tiny language model.
    """
    weights = QUICK_START / "model.safetensors"
    if not (weights.is_file() and (QUICK_START / "adapter").is_dir()):
        raise SystemExit(
            f"The programs load the quick start's model and its adapter, but there is no {weights}. Run `make "
            "quickstart` first."
        )
    place = PLACE / "models"
    folders = {name: place / name.replace(" ", "-") for name in (*MODELS, *IMAGE_MODELS, "policy")}
    stamp, digest = place / "sources.sha256", _digest(weights)
    if stamp.is_file() and stamp.read_text() == digest:
        return folders
    shutil.rmtree(place, ignore_errors=True)
    write_verified(load_saved(QUICK_START), folders["quick start"], ExportRule(), verify=False)
    save_adapter(load_saved(QUICK_START / "adapter"), folders["adapter"])
    _write_language_model(folders["policy"])
    save_merged(reward_model(folders["policy"]), tokenizer_of(folders["policy"]), folders["BOS"], verify=False)
    for name, architecture in IMAGE_MODELS.items():
        _write_image_model(folders[name], architecture)
    stamp.write_text(digest)
    return folders


def _write_image_model(folder: Path, architecture: str) -> None:
    """Save a tiny vision-language reward model as after a training."""
    with tempfile.TemporaryDirectory() as place:
        saved = save_vision_reward_model(Path(place), llama3_tokenizer("[PAD]"), architecture)
        shutil.copytree(saved, folder)
    if architecture == "llava_onevision":  # the names of published checkpoints, which a trained model keeps
        file = folder / "model.safetensors"
        weights = {_published(name): each for name, each in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})


def _published(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def _digest(weights: Path) -> str:
    """Return a hash of the code that saves models, and of the time when the quick start was trained."""
    code = sorted((ROOT / "hf_reward").rglob("*.py"))
    content = b"".join(path.read_bytes() for path in [*code, Path(__file__)])
    return hashlib.sha256(content + str(weights.stat().st_mtime).encode()).hexdigest()


def _write_language_model(folder: Path) -> None:
    tokenizer = llama3_tokenizer("[PAD]")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM supports on a CPU
        max_position_embeddings=2048,
        initializer_range=0.2,  # rewards that differ clearly between texts
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},  # not the default of transformers
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
