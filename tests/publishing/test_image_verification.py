"""Vision-language models: their rewards of pictures are recorded, verified and described in the card."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_stock import ForkedStock
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from saved_models import edit_json, edit_weights, saved_model
from vision_models import ARCHITECTURES, encoded, picture, save_vision_model, save_vision_reward_model

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, RewardConfig, RewardScorer, RewardTrainer
from hf_reward.modeling.image_probes import image_conversations
from hf_reward.publishing.export import export_reward_model
from hf_reward.publishing.verify import Verification, verify_checkpoint

IMAGES, IDS = "rewards, float32, with images", "token ids, images"


@pytest.fixture(scope="module")
def _forks() -> Iterator[ForkedStock]:
    stock = ForkedStock()
    yield stock
    stock.close()


@pytest.fixture(autouse=True)
def _stock_process(own_stock_process, monkeypatch: pytest.MonkeyPatch, _forks: ForkedStock) -> None:
    """Verify in processes that never imported hf_reward, forked from one that has imported transformers."""
    monkeypatch.setattr("hf_reward.publishing.verify.subprocess", _forks)


@pytest.fixture
def saved(tmp_path: Path, chat_tokenizer: Any) -> Path:
    return save_vision_reward_model(tmp_path, chat_tokenizer)


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.failures}


def _config(folder: Path, **options: Any) -> RewardConfig:
    settings: dict[str, Any] = {"max_length": None, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    settings |= {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2}
    return RewardConfig(output_dir=str(folder), **{**settings, **options})


def trained_adapter(place: Path, tokenizer: Any, architecture: str) -> Path:
    source = save_vision_model(place / "base", tokenizer, architecture)
    rows = [
        {"image": encoded(picture(number)), "prompt": "Which?", "chosen": f"It is {number}.", "rejected": "No."}
        for number in range(4)
    ]
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    trainer = RewardTrainer(str(source), _config(place / "out"), train_dataset=rows, peft_config=adapter)
    trainer.train()
    trainer.save_model()
    return place / "out"


def pictures_of(folder: Path) -> dict[str, Any]:
    record = CheckpointRecord.load(folder)
    assert record is not None
    return record.probes["images"]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=[] if each in ("qwen2_vl", "gemma3") else pytest.mark.slow) for each in ARCHITECTURES],
)
def test_the_stock_processor_and_model_give_the_recorded_rewards(
    architecture: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    folder = save_vision_reward_model(tmp_path, chat_tokenizer, architecture)
    result = verify_checkpoint(folder)
    assert result.equal, str(result)
    assert {IMAGES, IDS} <= {check.name for check in result.checks}
    assert any(
        re.search(r"Another picture changes the reward of the same text by [0-9.]+", note) for note in result.notes
    )
    recorded = pictures_of(folder)
    assert [each["name"] for each in recorded["conversations"]] == list(image_conversations())
    scorer = RewardScorer.from_pretrained(folder, verify=True)
    prompts = [each["messages"][:-1] for each in recorded["conversations"]]
    responses = [each["messages"][-1]["content"] for each in recorded["conversations"]]
    assert scorer.score(prompts, responses) == pytest.approx(recorded["rewards"]["float32"], abs=2e-5)


def test_a_changed_vision_tower_is_found_although_texts_get_the_same_rewards(saved: Path) -> None:
    edit_weights(saved / "model.safetensors", lambda weights: weights["visual.patch_embed.proj.weight"].mul_(1.5))
    assert failed(verify_checkpoint(saved)) == {IMAGES}
    with pytest.raises(ValueError, match=r"its recorded rewards for images.*vision tower"):
        AutoModelForRewardScoring.from_pretrained(saved, verify=True)
    with pytest.raises(ValueError, match="recorded rewards for images"):
        export_reward_model(saved, saved.parent / "exported")


def test_changed_settings_of_the_image_processor_are_found(saved: Path) -> None:
    edit_json(saved / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    assert failed(verify_checkpoint(saved)) == {IMAGES}


def test_another_size_of_images_changes_token_ids(saved: Path) -> None:
    edit_json(saved / "preprocessor_config.json", size={"shortest_edge": 64, "longest_edge": 256})
    assert failed(verify_checkpoint(saved)) == {IMAGES, IDS}


def test_another_implementation_of_the_image_processor_is_reported_only(saved: Path) -> None:
    record = json.loads((saved / "reward_config.json").read_text())
    record["probes"]["images"]["processor"] = "Qwen2VLImageProcessor"
    record["probes"]["images"]["rewards"]["float32"][0] += 0.05
    (saved / "reward_config.json").write_text(json.dumps(record))
    result = verify_checkpoint(saved)
    assert result.equal
    (check,) = [each for each in result.checks if each.name == IMAGES]
    assert check.allowed is None
    assert check.difference is not None
    assert check.difference > 1e-3
    assert any(
        "processed by Qwen2VLImageProcessorPil, and by Qwen2VLImageProcessor when" in note for note in result.notes
    )


def test_a_model_that_ignores_pictures_is_noted(saved: Path) -> None:
    edit_weights(saved / "model.safetensors", lambda weights: weights["visual.merger.mlp.2.weight"].zero_())
    edit_json(saved / "reward_config.json", probes={})
    export_reward_model(saved, saved.parent / "blind")
    assert "Rewards do not depend on the picture" in "".join(verify_checkpoint(saved.parent / "blind").notes)


def test_an_adapter_is_checked_with_its_own_processor_and_not_that_of_its_base(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    folder = trained_adapter(tmp_path, chat_tokenizer, "qwen2_vl")
    RewardScorer.from_pretrained(folder, verify=True)
    edit_json(folder / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="recorded rewards for images"):
        RewardScorer.from_pretrained(folder, verify=True)


def test_pictures_that_cannot_be_processed_fail_a_check_and_texts_are_still_checked(saved: Path) -> None:
    (saved / "preprocessor_config.json").unlink()
    (saved / "processor_config.json").unlink()
    result = verify_checkpoint(saved)
    assert failed(result) == {"images"}
    assert "rewards, float32, each alone" in {check.name for check in result.checks}
    report = export_reward_model(saved, saved.parent / "exported")
    assert "Rewards of pictures are no longer recorded" in "".join(report.notes)


def test_texts_are_scored_without_an_image_library(saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "hf_reward.preprocessing.image_processor", None)  # as if Pillow were missing
    scorer = RewardScorer.from_pretrained(saved)
    assert not scorer.takes_images
    assert "pip install 'hf_reward[images]'" in caplog.text
    assert scorer.score(["What is this?"], ["A house."])


def test_without_a_picture_within_the_length_limit_a_note_says_so(tmp_path: Path, chat_tokenizer: Any) -> None:
    source = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_vl")
    rows = [{"prompt": "Why?", "chosen": f"Yes {number}.", "rejected": "No."} for number in range(4)]
    trainer = RewardTrainer(str(source), _config(tmp_path / "out", max_length=30), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    assert pictures_of(tmp_path / "out")["conversations"] == []
    result = verify_checkpoint(tmp_path / "out")
    assert result.equal, str(result)
    assert "Images were not checked" in "".join(result.notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Prompts may contain images." in card
    assert "recorded rewards of images" not in card


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.pop("processor"),
        lambda images: images.pop("conversations"),
        lambda images: images["rewards"].clear(),
        lambda images: images["rewards"]["float32"].pop(),
        lambda images: images["conversations"][0].pop("messages"),
        lambda images: images["conversations"][0].update(input_ids="a b"),
    ],
)
def test_a_damaged_record_of_pictures_is_refused(saved: Path, change: Any) -> None:
    record = json.loads((saved / "reward_config.json").read_text())
    change(record["probes"]["images"])
    (saved / "reward_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is not a valid record"):
        verify_checkpoint(saved)


def test_without_an_image_processor_only_texts_are_recorded(tmp_path: Path, chat_tokenizer: Any) -> None:
    source = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_vl")
    (source / "preprocessor_config.json").unlink()
    record = CheckpointRecord.load(saved_model(source, tmp_path / "saved"))
    assert record is not None
    assert "images" not in record.probes


def test_the_head_has_the_name_that_vllm_expects_and_files_with_the_old_name_are_loaded(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    assert [name for name in weights if "score" in name] == ["language_model.score.weight"]
    config = json.loads((saved / "config.json").read_text())
    assert config["text_config"]["problem_type"] == "regression"
    assert config["text_config"]["id2label"] == {"0": "reward"}
    weights["score.weight"] = weights.pop("language_model.score.weight")
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    AutoModelForRewardScoring.from_pretrained(saved, verify=True)
    assert verify_checkpoint(saved).equal


@pytest.mark.parametrize("architecture", ["qwen2_vl", "gemma3"])
def test_an_adapter_is_verified_with_pictures(architecture: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    result = verify_checkpoint(trained_adapter(tmp_path, chat_tokenizer, architecture))
    assert result.equal, str(result)
    assert IMAGES in {check.name for check in result.checks}


def test_the_export_of_a_model_that_only_our_server_loads_says_why(tmp_path: Path, chat_tokenizer: Any) -> None:
    folder = save_vision_reward_model(tmp_path, chat_tokenizer, "gemma3")
    with pytest.raises(ValueError, match=r"vLLM 0\.32 fails to load its classifier.*hf-reward serve"):
        export_reward_model(folder, tmp_path / "exported")


@pytest.mark.parametrize("architecture", ["qwen2_vl", "gemma3"])
def test_the_card_shows_how_images_are_scored(architecture: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    folder = save_vision_reward_model(tmp_path, chat_tokenizer, architecture)
    card = (folder / "README.md").read_text()
    assert "Prompts may contain images." in card
    assert pictures_of(folder)["processor"] in card
    is_stock = architecture == "gemma3"
    assert ("processor = AutoProcessor.from_pretrained" in card) == is_stock
    assert ("loading this model requires hf_reward" in card) == (not is_stock)
    row = next(line for line in card.splitlines() if line.startswith("| vLLM |"))
    assert ("cannot load" in row) == is_stock
    assert ("vllm serve" in card) == (not is_stock)
