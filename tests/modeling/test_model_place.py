"""Adapters in a Hub cache: the requested revision of the adapter, and the stated revision of its base."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig, PeftConfig, get_peft_model
from saved_models import edit_json, reward_model, save, tokenizer_of
from transformers import AutoModelForCausalLM

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.publishing.stock_scoring import load_adapter

TEXTS = ["What is two plus two?", "Name a river."], ["It is four.", "The Nile, which is long."]


def put_into_cache(folder: Path, cache: Path, repo: str, revision: str, *, subfolder: str = "") -> None:
    """Copy a folder into a cache as the snapshot of a repository's branch."""
    place = cache / f"models--{repo.replace('/', '--')}"
    commit = format(sum(map(ord, revision)), "040x")
    shutil.copytree(folder, place / "snapshots" / commit / subfolder, dirs_exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(commit)


def adapter_of(base: Path, folder: Path, *, seed: int, **config: Any) -> Path:
    """A saved adapter with random weights and a random head, which names `org/base` as its base."""
    reward_model(base, lora=True, seed=seed).save_pretrained(folder)
    tokenizer_of(base).save_pretrained(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="org/base", **config)
    return folder


def rewards(name: Any, **options: Any) -> list[float]:
    return RewardScorer.from_pretrained(str(name), device="cpu", **options).score(*TEXTS).tolist()


@pytest.fixture
def cache(make_model_folder: Any, tmp_path: Path) -> Path:
    """`org/base` with the branches main and v2, and two adapters of it beside the cache."""
    bases = {name: make_model_folder("llama", name, seed=seed) for seed, name in enumerate(["main", "v2"])}
    for name, base in bases.items():
        put_into_cache(base, tmp_path / "cache", "org/base", name)
    return tmp_path / "cache"


def test_the_asked_revision_of_an_adapter_is_loaded(cache: Path, tmp_path: Path) -> None:
    expected = {}
    for seed, revision in enumerate(["main", "old"]):
        folder = adapter_of(tmp_path / "main", tmp_path / f"adapter-{revision}", seed=seed)
        put_into_cache(folder, cache, "org/adapter", revision)
        expected[revision] = rewards(folder, base_model_name_or_path=str(tmp_path / "main"))
    assert rewards("org/adapter", cache_dir=cache) == expected["main"]
    assert rewards("org/adapter", cache_dir=cache, revision="old") == expected["old"]
    assert expected["old"] != expected["main"]


def test_the_subfolder_of_an_adapter_is_loaded(cache: Path, tmp_path: Path) -> None:
    folder = adapter_of(tmp_path / "main", tmp_path / "adapter", seed=1)
    put_into_cache(folder, cache, "org/merged", "main", subfolder="adapter")
    expected = rewards(folder, base_model_name_or_path=str(tmp_path / "main"))
    assert rewards("org/merged", cache_dir=cache, subfolder="adapter") == expected
    assert rewards(tmp_path, cache_dir=cache, subfolder="adapter") == expected


def test_the_base_has_the_revision_that_the_adapter_states(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_of(tmp_path / "v2", tmp_path / "adapter", seed=1, revision="v2")
    put_into_cache(folder, cache, "org/adapter", "old")
    expected = rewards(folder, base_model_name_or_path=str(tmp_path / "v2"))
    assert rewards(folder, cache_dir=cache) == expected
    assert rewards("org/adapter", cache_dir=cache, revision="old") == expected
    assert rewards(folder, base_model_name_or_path=str(tmp_path / "main")) != expected

    tokenizer = tokenizer_of(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    ids = tokenizer("It is four.", return_tensors="pt")
    stock = load_adapter(str(folder), cache_dir=str(cache)).eval()
    ours = AutoModelForRewardScoring.from_pretrained(str(folder), cache_dir=cache, is_trainable=False).eval()
    with torch.no_grad():
        assert stock(**ids).logits.item() == pytest.approx(ours(**ids).logits.item(), abs=1e-6)


def test_an_adapter_states_the_revision_of_the_base_it_was_trained_on(cache: Path, tmp_path: Path) -> None:
    model = AutoModelForRewardScoring.from_pretrained(
        "org/base", cache_dir=cache, revision="v2", peft_config=LoraConfig(init_lora_weights=False)
    )
    randomize_head(model)
    save(model.eval(), tokenizer_of(tmp_path / "v2"), tmp_path / "adapter")
    assert PeftConfig.from_pretrained(tmp_path / "adapter").revision == "v2"
    again = AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter", cache_dir=cache, verify=True)
    assert again is not None


def test_an_adapter_on_an_sft_adapter_of_the_hub(cache: Path, tmp_path: Path) -> None:
    for seed, revision in enumerate(["main", "sft"]):
        torch.manual_seed(seed)
        language: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "main")
        sft = get_peft_model(language, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_alpha=32))
        sft.save_pretrained(tmp_path / revision)
        edit_json(tmp_path / revision / "adapter_config.json", base_model_name_or_path="org/base")
        put_into_cache(tmp_path / revision, cache, "org/sft", revision)
    model = reward_model(Path("org/sft"), lora=True, cache_dir=cache, revision="sft")
    save(model, tokenizer_of(tmp_path / "main"), tmp_path / "adapter")
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (config.base_model_name_or_path, config.revision) == ("org/sft", "sft")
    AutoModelForRewardScoring.from_pretrained(tmp_path / "adapter", cache_dir=cache, verify=True)
