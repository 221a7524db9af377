"""Training, saving and scoring of vision-language reward models."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from vision_models import encoded, picture, save_vision_model, save_vision_reward_model

from hf_reward import RewardConfig, RewardScorer, RewardTrainer


def _rows(count: int) -> list[dict[str, Any]]:
    colours = ("red", "green", "blue", "orange", "purple", "black")
    return [
        {
            "images": [encoded(picture(number))],
            "prompt": "<image>Which colour is the first shape?",
            "chosen": f"It is {colours[number % 6]}.",
            "rejected": f"It is {colours[(number + 1) % 6]}.",
        }
        for number in range(count)
    ]


def _config(folder: Path, **options: Any) -> RewardConfig:
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "report_to": "none", "use_cpu": True}
    return RewardConfig(output_dir=str(folder), **{**settings, "logging_steps": 1, "max_length": None, **options})


def test_the_image_token_in_a_text_is_a_bad_row(tmp_path: Path, chat_tokenizer: Any) -> None:
    model = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_vl")
    bad = {"prompt": "How do I write an image tag?", "chosen": "Use <image> in the text.", "rejected": "No."}
    rows = [*_rows(3), bad]
    with pytest.raises(ValueError, match=r"Row 3: The text contains '<image>', which the model reserves for images"):
        RewardTrainer(str(model), _config(tmp_path / "out"), train_dataset=rows)
    trainer = RewardTrainer(str(model), _config(tmp_path / "out", skip_bad_rows=True), train_dataset=rows)
    assert len(trainer.train_dataset) == 3  # type: ignore[arg-type]


def test_the_recipe_for_qwen_trains_a_tiny_model(tmp_path: Path, chat_tokenizer: Any) -> None:
    """Rows have the columns of RLAIF-V."""
    import train

    model = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_5_vl")
    table = [{**row, "image": row["images"][0], "question": "Which colour is the first shape?"} for row in _rows(40)]
    data = [{name: row[name] for name in ("image", "question", "chosen", "rejected")} for row in table]
    Dataset.from_list(data).to_parquet(tmp_path / "rows.parquet")
    recipe = Path(__file__).parents[2] / "recipes" / "qwen2.5_vl_3b_lora.yaml"
    changes = {"model_name_or_path": model, "train_data": tmp_path / "rows.parquet", "output_dir": tmp_path / "out"}
    changes |= {"gradient_accumulation_steps": 1, "dataset_num_proc": 1, "max_steps": 2, "use_cpu": True}
    train.main(
        ["--config", str(recipe), *(word for name, value in changes.items() for word in (f"--{name}", str(value)))]
    )
    record = json.loads((tmp_path / "out" / "reward_config.json").read_text())
    assert record["evaluation"]["num_pairs"] == 2
    assert "images" in record["probes"]
    scorer = RewardScorer.from_pretrained(tmp_path / "out", verify=True)
    assert scorer.takes_images
    assert (tmp_path / "out" / "adapter" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_with_images_is_resumed(lora: bool, tmp_path: Path, chat_tokenizer: Any) -> None:
    """The checkpoints of Qwen2-VL have other names than the model."""
    model = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_vl")
    adapter = LoraConfig(r=2, target_modules="all-linear") if lora else None

    def make(name: str) -> RewardTrainer:
        config = _config(tmp_path / name, save_strategy="steps", save_steps=1, learning_rate=1e-2, seed=1)
        return RewardTrainer(str(model), config, train_dataset=_rows(8), peft_config=adapter)

    complete, resumed = make("complete"), make("resumed")
    complete.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "complete" / "checkpoint-2"))
    assert resumed.state.global_step == complete.state.global_step == 4
    expected: Any = dict(complete.model.named_parameters())  # type: ignore[union-attr]
    for name, value in resumed.model.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl", "smolvlm", "gemma3"])
def test_a_trained_model_scores_as_in_training_and_the_tower_runs_once_per_image(
    architecture: str, tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_vision_model(tmp_path / "base", chat_tokenizer, architecture)
    rows = _rows(8)
    config = _config(tmp_path / "out", save_strategy="no")  # each save scores pictures of its own
    trainer = RewardTrainer(str(model), config, train_dataset=[*rows, *rows[:2]])
    backbone: Any = trainer.model.base_model  # type: ignore[union-attr]
    calls: list[int] = []
    features = type(backbone).get_image_features

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        return features(self, *args, **options)

    counting.__signature__ = inspect.signature(features)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(backbone), "get_image_features", counting)
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    trainer.train()
    assert len(calls) == 8  # two epochs of ten rows with eight images
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed
    assert all("language_model" in name or "text_model" in name for name in changed)
    trainer.save_model()
    expected = trainer.predict(rows).predictions
    scorer = RewardScorer.from_pretrained(tmp_path / "out")
    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": row["images"][0]}, _text(row)]}] for row in rows
    ]
    found = [scorer.score(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected")]
    assert torch.tensor(found).T.numpy() == pytest.approx(expected, abs=2e-5)
    assert len({round(float(each), 4) for each in found[0]}) > 4


def _text(row: dict[str, Any]) -> dict[str, str]:
    return {"type": "text", "text": row["prompt"].removeprefix("<image>")}


def test_lora_changes_the_language_model_only(tmp_path: Path, chat_tokenizer: Any) -> None:
    model = save_vision_model(tmp_path / "base", chat_tokenizer, "smolvlm")
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])  # the vision tower has these names too
    trainer = RewardTrainer(str(model), _config(tmp_path / "out"), train_dataset=_rows(4), peft_config=adapter)
    adapted = {name for name, _ in trainer.model.named_parameters() if "lora_" in name}  # type: ignore[union-attr]
    assert adapted
    assert all(".text_model." in name for name in adapted)
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(_rows(4)).predictions
    scorer = RewardScorer.from_pretrained(tmp_path / "out")
    rows = _rows(4)
    found = scorer.score([row_messages(row) for row in rows], [row["chosen"] for row in rows])
    assert found == pytest.approx(expected[:, 0], abs=2e-5)


def row_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": row["images"][0]}, _text(row)]}]


def test_a_text_model_refuses_images(tmp_path: Path, saved_llama: Path) -> None:
    with pytest.raises(ValueError, match="Row 0: The row has an image, but no image processor was loaded"):
        RewardTrainer(str(saved_llama), _config(tmp_path), train_dataset=_rows(2))


def test_the_command_line_scores_rows_with_images(tmp_path: Path, chat_tokenizer: Any) -> None:
    folder = save_vision_reward_model(tmp_path, chat_tokenizer)
    rows = _rows(3)
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").write_bytes(row["images"][0])
    given = tmp_path / "rows.jsonl"
    given.write_text(
        "".join(
            json.dumps({"images": [str(tmp_path / f"{n}.png")], "prompt": row["prompt"], "response": row["chosen"]})
            + "\n"
            for n, row in enumerate(rows)
        )
    )
    out = tmp_path / "scores.jsonl"
    command = [sys.executable, "-m", "hf_reward.cli", "score", "--model", folder, "--data", given, "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["reward"] for line in out.read_text().splitlines()]
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    expected = scorer.score([row_messages(row) for row in rows], [row["chosen"] for row in rows])
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_train_vision_is_refused_where_it_would_have_no_effect(
    tmp_path: Path, chat_tokenizer: Any, saved_llama: Path
) -> None:
    args = _config(tmp_path / "out", train_vision=True)
    with pytest.raises(ValueError, match="requires a vision-language model"):
        RewardTrainer(str(saved_llama), args, train_dataset=_rows(2))
    model = save_vision_model(tmp_path / "base", chat_tokenizer, "qwen2_vl")
    adapter = LoraConfig(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="an adapter or `freeze_backbone` freezes it"):
        RewardTrainer(str(model), args, train_dataset=_rows(2), peft_config=adapter)
