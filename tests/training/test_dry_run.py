"""Dry run: it passes a working run, finds errors that would appear late, and leaves no files."""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from test_health_callback import polite_pairs
from training_runs import load, make_trainer, settings

from hf_reward import RewardTrainer
from hf_reward.preprocessing.preparation import prepare_preferences
from hf_reward.publishing.verify import Check, Verification, verify_checkpoint
from hf_reward.training.dry_run import DryRun, dry_run
from hf_reward.training.dry_run_steps import longest_rows
from hf_reward.training.memory import count_parameters, optimizer_bytes, optimizer_state, peak_memory
from hf_reward.training.steps import checkpoints_kept, total_steps

TRAIN = Path(__file__).parents[2] / "recipes" / "train.py"


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("train_recipe", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def words(make_model_folder, tmp_path) -> list[str]:
    """A command line for a tiny run."""
    train = write(tmp_path / "train.jsonl", polite_pairs(40))
    held_out = write(tmp_path / "eval.jsonl", polite_pairs(20, 100))
    return [
        *("--model_name_or_path", str(make_model_folder("llama")), "--train_data", train, "--eval_data", held_out),
        *("--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"),
        *("--learning_rate", "1e-2", "--dry_run"),
    ]


def run(words: list[str], monkeypatch: Any) -> tuple[int, DryRun]:
    """The exit code and what was found."""
    module, kept = recipe(), []

    def keep(*given: Any, **options: Any) -> DryRun:
        kept.append(dry_run(*given, **options))
        return kept[0]

    monkeypatch.setattr(module, "dry_run", keep)
    with pytest.raises(SystemExit) as end:
        module.main(words)
    return end.value.code, kept[0]


def without_reload(monkeypatch: Any) -> None:
    """Skip the fresh process, which takes most of the time."""
    passed = Check(name="rewards", passed=True, detail="", difference=0.0)
    monkeypatch.setattr(
        "hf_reward.training.dry_run.verify_checkpoint",
        lambda folder, **_: Verification(folder=str(folder), checks=[passed]),
    )


def failures(found: DryRun) -> dict[str, str]:
    return {stage.name: stage.detail for stage in found.stages if not stage.passed}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--use_lora", "--activation_checkpointing", "true"]])
def test_a_working_run_passes_every_stage_and_leaves_no_files(words, tmp_path, monkeypatch, more):
    before = sorted(tmp_path.iterdir())
    code, found = run([*words, *more], monkeypatch)
    assert failures(found) == {}
    assert code == 0
    names = [stage.name for stage in found.stages]
    assert names == ["output folder", "data", "model and rows", "memory estimate", "2 steps, longest rows",
                     "evaluation batch", "checkpoint", "reload", "disk space", "duration"]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_saved_model_that_scores_differently_fails(words, monkeypatch):
    def spoiled(folder: Path, **options: Any) -> Verification:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            tensors | {"score.weight": tensors["score.weight"] + 0.1}, folder / "model.safetensors", {"format": "pt"}
        )
        return verify_checkpoint(folder, **options)

    monkeypatch.setattr("hf_reward.training.dry_run.verify_checkpoint", spoiled)
    code, found = run(words, monkeypatch)
    assert code == 1
    assert set(failures(found)) == {"reload"}
    assert "largest difference" in failures(found)["reload"]


def test_a_full_disk_an_unwritable_folder_and_a_missing_token_fail(words, tmp_path, monkeypatch):
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    without_reload(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr("hf_reward.training.dry_run.get_token", lambda: None)
    (tmp_path / "run").write_text("a file where the folder should be")
    code, found = run([*words, "--push_to_hub", "true", "--hub_model_id", "user/model"], monkeypatch)
    assert code == 1
    failed = failures(found)
    assert set(failed) == {"output folder", "Hub token", "disk space"}
    assert "run is a file" in failed["output folder"]
    assert "hf auth login" in failed["Hub token"]
    assert "free 0.0 MiB. Set `save_total_limit`" in failed["disk space"]
    assert (tmp_path / "run").read_text() == "a file where the folder should be"


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs Linux's /proc, where not even root can make a folder"
)
def test_a_location_where_no_folder_can_be_created_fails(words, monkeypatch):
    without_reload(monkeypatch)
    code, found = run([*words, "--output_dir", "/proc/nope/run"], monkeypatch)
    assert code == 1
    assert set(failures(found)) == {"output folder"}
    assert "/proc is not writable" in failures(found)["output folder"]


def test_a_folder_in_use_fails_and_is_not_changed(words, tmp_path, monkeypatch):
    without_reload(monkeypatch)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept.txt").write_text("mine")
    _, found = run(words, monkeypatch)
    assert "is not empty" in failures(found)["output folder"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept.txt"]


def test_other_evaluation_columns_and_a_missing_template_fail(
    words, tmp_path, monkeypatch, make_model_folder, text_tokenizer, chat_pairs
):
    other = write(tmp_path / "other.jsonl", [{"question": "a", "good": "b", "bad": "c"}])
    code, found = run([*words, "--eval_data", other], monkeypatch)
    assert code == 1
    assert "good" in failures(found)["model and rows"]
    assert found.stages[-1].name == "model and rows"  # the rest needs a model

    chats = write(tmp_path / "chats.jsonl", chat_pairs)
    bare = str(make_model_folder("gpt2", tokenizer=text_tokenizer))
    _, found = run([*words, "--model_name_or_path", bare, "--train_data", chats, "--eval_data", chats], monkeypatch)
    assert "chat template" in failures(found)["model and rows"]

    _, found = run([*words, "--train_data", str(tmp_path / "nowhere.jsonl")], monkeypatch)
    assert "nowhere.jsonl" in failures(found)["data"]


def test_too_little_memory_is_reported_before_it_runs_out(words, monkeypatch):
    monkeypatch.setattr("hf_reward.training.dry_run_steps.free_memory", lambda device: (1000, 10**9))
    _, found = run(words, monkeypatch)
    assert "alone need" in failures(found)["memory estimate"]
    assert found.stages[-1].name == "memory estimate"


def test_gradients_that_do_not_reach_the_backbone_fail(make_model_folder, tmp_path):
    """Activation checkpointing had this effect on adapters: transformers#42489."""
    model = load(make_model_folder("llama"))
    model.model.register_forward_hook(lambda *given: type(given[-1])(last_hidden_state=given[-1][0].detach()))
    args = settings(tmp_path / "run", packing="false")

    def build(changed: Any, *sources: Any) -> RewardTrainer:
        return RewardTrainer(model=model, args=changed, train_dataset=polite_pairs(16))

    found = dry_run(args, lambda: ([], []), build)
    assert "No gradient reached the" in failures(found)["2 steps, longest rows"]


def test_a_stream_is_tried_on_its_first_rows(words, monkeypatch):
    without_reload(monkeypatch)
    code, found = run([*words, "--streaming", "true", "--max_steps", "30"], monkeypatch)
    assert failures(found) == {}
    assert code == 0
    assert "40 training rows (the first 1000 of each stream)" in found.stages[1].detail
    assert "in 30 steps" in found.stages[-1].detail


def test_the_old_name_of_the_stages_gives_a_deprecation_warning():
    found = DryRun()
    found.attempt("data", lambda: (1, "one row"))
    with pytest.warns(DeprecationWarning, match=r"use `DryRun\.stages`"):
        assert found.stations is found.stages


def test_longest_rows_are_those_with_the_longest_sequence(chat_tokenizer):
    rows = polite_pairs(6)
    rows[4]["chosen"] += " and" * 80
    rows[2]["rejected"] += " and" * 50
    prepared, _ = prepare_preferences(Dataset.from_list(rows), chat_tokenizer)
    assert longest_rows(prepared, 2)["row"] == [4, 2]
    assert len(longest_rows(prepared, 100)) == 6


@pytest.mark.parametrize(
    ("changes", "steps", "kept"),
    [
        ({"save_strategy": "no"}, 25, 0),
        ({"save_strategy": "steps", "save_steps": 10}, 25, 3),
        ({"save_strategy": "steps", "save_steps": 0.1}, 25, 9),  # every 3 steps, and the last one
        ({"save_strategy": "epoch", "num_train_epochs": 4}, 25, 4),
        ({"save_strategy": "epoch", "num_train_epochs": 4, "save_total_limit": 2}, 25, 3),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True,
          "eval_strategy": "steps", "eval_steps": 1}, 25, 3),
    ],
)  # fmt: skip
def test_number_of_checkpoints_on_disk_at_one_time(tmp_path, changes, steps, kept):
    assert checkpoints_kept(settings(tmp_path, **changes), steps) == kept


def test_steps_of_a_run(tmp_path):
    args = settings(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_train_epochs=3)
    assert total_steps(args, 100) == 21  # 13 batches, 7 steps in an epoch
    assert total_steps(settings(tmp_path, max_steps=5), 100) == 5


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adagrad"])
def test_the_estimated_optimizer_state_equals_the_actual_one(make_model_folder, tmp_path, name):
    trainer = make_trainer(make_model_folder("llama"), polite_pairs(8), tmp_path / "run", optim=name)
    trainer.train()
    steps = 4 * sum(1 for weight in trainer.model.parameters()) if name != "sgd" else 0  # a float32 counter for each
    assert optimizer_state(trainer.optimizer) == optimizer_bytes(name, trainer.model) + steps
    assert optimizer_bytes("adafactor", trainer.model) is None


def test_the_estimate_counts_trainable_weights_only(make_model_folder):
    model = load(make_model_folder("llama"), freeze_backbone=True)
    assert count_parameters(model) == (sum(weight.numel() for weight in model.parameters()), 32)
    assert optimizer_bytes("adamw_torch", model) == 2 * 4 * 32
    assert optimizer_bytes("adamw_8bit", model) == 2 * 32


def test_a_peak_that_is_over_before_the_end_is_measured():
    with peak_memory(torch.device("cpu")) as peak:
        block = np.ones(256 * 2**20, dtype=np.uint8)
        torch.ones(1200, 1200) @ torch.ones(1200, 1200)
        time.sleep(1)  # a busy machine samples seldom
        del block
    assert peak.growth > 128 * 2**20  # less than the block, because the kernel may reclaim other pages meanwhile


@pytest.mark.slow
def test_a_failed_dry_run_gives_exit_code_1_on_the_command_line(words, tmp_path):
    import subprocess

    command = [sys.executable, str(TRAIN), *words, "--train_data", str(tmp_path / "nowhere.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "duration" not in done.stdout  # stages that need the data did not run
