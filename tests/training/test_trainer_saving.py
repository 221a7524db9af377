"""Saved models: each checkpoint has probe rewards, record and card, and can be verified."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import randomize_head
from foreign_models import llama3_tokenizer
from peft import LoraConfig
from test_trainer_budgets import SHARDED, in_two_processes
from training_runs import QUIET, load, losses, make_trainer, settings
from transformers import AutoTokenizer

from hf_reward import AutoModelForRewardScoring, CheckpointRecord, RewardTrainer
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.modeling.probes import LONGEST
from hf_reward.preprocessing.tokenizer import adds_special_tokens
from hf_reward.publishing.verify import verify_checkpoint

TOKEN = "hf_tOkEnThatMustNotBeWritten"


def trained(folder: Path, rows, out: Path, **changes):
    model = load(folder)
    randomize_head(model)
    trainer = make_trainer(model, rows, out, evaluation=rows[:6], max_steps=2, **changes)
    trainer.train()
    return trainer


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_every_checkpoint_has_record_probes_and_card(make_model_folder, tmp_path, chat_pairs, adapter):
    changes = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if adapter else {}
    trainer = trained(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, **changes,
    )  # fmt: skip
    trainer.save_model()
    records = {}
    for place in ("checkpoint-1", "checkpoint-2", "."):
        folder = tmp_path / "run" / place
        records[place] = record = CheckpointRecord.load(folder)
        assert [each["name"] for each in record.probes["conversations"]] == [*PROBES, LONGEST]
        assert record.training["steps"] == (1 if place == "checkpoint-1" else 2)
        assert record.evaluation["step"] == record.training["steps"]
        assert 0 <= record.evaluation["accuracy"] <= 1
        assert "Results on held-out pairs" in (folder / "README.md").read_text()
        AutoModelForRewardScoring.from_pretrained(folder, verify=True)
    rewards = {place: record.probes["rewards"]["float32"] for place, record in records.items()}
    assert rewards["checkpoint-1"] != rewards["checkpoint-2"] == rewards["."]
    assert all(map(math.isfinite, rewards["."]))
    assert "adapter" in records["."].training["settings"] or not adapter


def test_the_saved_model_is_verified_in_a_fresh_process(make_model_folder, tmp_path, chat_pairs):
    trainer = trained(make_model_folder("llama"), chat_pairs, tmp_path / "run")
    trainer.save_model()
    found = verify_checkpoint(tmp_path / "run")
    assert found.equal, str(found)


@pytest.mark.parametrize("kind", ["conversations", "text"])
def test_the_saved_tokenizer_adds_nothing_to_the_chat_template(
    make_model_folder, tmp_path, chat_pairs, text_pairs, kind
):
    rows = chat_pairs if kind == "conversations" else text_pairs
    trainer = trained(make_model_folder("llama", tokenizer=llama3_tokenizer("[PAD]")), rows, tmp_path / "run")
    trainer.save_model()
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert adds_special_tokens(saved) == (kind == "text")
    assert adds_special_tokens(trainer.processing_tokenizer)
    found = verify_checkpoint(tmp_path / "run")
    assert found.equal, str(found)


def test_under_autocast_float32_rewards_are_recorded_too(make_model_folder, tmp_path, chat_pairs):
    trainer = trained(make_model_folder("llama"), chat_pairs, tmp_path / "run", bf16=True)
    rewards = trainer.record().probes["rewards"]
    assert rewards.keys() == {"float32", "bfloat16"}
    assert rewards["float32"] != rewards["bfloat16"], "accelerate's autocast around the model was not taken off"
    plain = make_trainer(trainer.model, chat_pairs, tmp_path / "plain").record().probes["rewards"]
    assert rewards["float32"] == pytest.approx(plain["float32"], abs=1e-6)
    assert trainer.evaluate()["eval_loss"] > 0, "and was put on again"


def test_scoring_the_probes_does_not_change_training(make_model_folder, tmp_path, chat_pairs):
    folder, every = make_model_folder("llama"), {"save_strategy": "steps", "save_steps": 1}
    lora = {"peft_config": LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5)}
    with_saves = trained(folder, chat_pairs, tmp_path / "a", **every, **lora)
    without = trained(folder, chat_pairs, tmp_path / "b", **lora)
    assert losses(with_saves) == losses(without)


def test_a_hub_token_is_not_pickled_with_the_model(make_model_folder, tmp_path, chat_pairs):
    trainer = trained(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", hub_token=TOKEN, save_strategy="steps", save_steps=1
    )
    trainer.save_model()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert trainer.publisher.token == TOKEN
    assert trainer.args.hub_token is None


def test_user_metadata_is_in_every_card(make_model_folder, tmp_path, chat_pairs):
    card = {"license": "apache-2.0", "dataset": "org/pairs", "language": "en"}
    trainer = trained(make_model_folder("llama"), chat_pairs, tmp_path / "run", model_card=card)
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "- org/pairs" in card
    trainer.create_model_card(model_name="A better name", tags=["mine"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "# A better name" in card
    assert "license: apache-2.0" in card
    assert "- mine" in card


def test_strategies_that_publish_training_state_need_permission(tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match="hub_training_state"):
            settings(tmp_path, push_to_hub=True, hub_strategy=strategy)
        settings(tmp_path, push_to_hub=True, hub_strategy=strategy, hub_training_state=True)
    settings(tmp_path, push_to_hub=True)


def save_in_shards(folder: str, out: str) -> None:
    """Train two steps with FSDP2 in each of two processes, and save."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    model = load(Path(folder))
    randomize_head(model)
    args = settings(Path(out) / "run", max_steps=2, save_strategy="steps", save_steps=1, **SHARDED)
    # accelerate shards only on accelerators; on CPUs it silently keeps complete models.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rows = [{"prompt": f"{n} ", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 9)]
    trainer = RewardTrainer(model, args, train_dataset=rows)
    trainer.train()
    assert trainer.is_sharded()
    trainer.save_model(str(Path(out) / "saved"))
    torch.distributed.barrier()  # both wait for each other before they exit
    torch.distributed.destroy_process_group()


def test_sharded_checkpoints_have_no_record_of_a_model(make_model_folder, tmp_path, chat_pairs, monkeypatch):
    """`Trainer` writes no model and creates no folder for it."""
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run")
    plugin = SimpleNamespace(state_dict_type="StateDictType.SHARDED_STATE_DICT")
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_model_saved_from_shards_has_the_same_rewards(make_model_folder, tmp_path):
    in_two_processes("save_in_shards", tmp_path, make_model_folder("llama"), tmp_path, timeout=120, module=__name__)
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-1"):
        record = json.loads((folder / "reward_config.json").read_text())
        probes = record["probes"]
        assert len(probes["rewards"]["float32"]) == len(probes["conversations"]) >= 8
        found = verify_checkpoint(folder)
        assert found.equal, str(found)


def test_every_source_and_user_metric_is_in_the_record(make_model_folder, tmp_path, chat_pairs):
    rows = [{**row, "source": "ab"[number % 2]} for number, row in enumerate(chat_pairs)]
    trainer = trained(
        make_model_folder("llama"), rows, tmp_path / "run", compute_metrics=lambda _: {"mine": 0.5, "odd": math.inf}
    )
    trainer.evaluate()
    trainer.save_model()
    evaluation = CheckpointRecord.load(tmp_path / "run").evaluation
    assert evaluation["mine"] == 0.5
    assert evaluation["odd"] is None, "JSON has no infinity"
    assert {"a_accuracy", "b_accuracy", "a_num_pairs"} <= evaluation.keys()
    assert "| a | " in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("card", [{"license": "Apache 2.0 or so"}, {"dataset": "no such thing!"}, "license: mit"])
def test_invalid_card_metadata_is_refused_at_the_start(tmp_path, card):
    with pytest.raises(ValueError, match="model_card"):
        settings(tmp_path, model_card=card)


@pytest.mark.parametrize("words", [["--hub_token", TOKEN], [f"--hub-token={TOKEN}"], ["--hub-token", TOKEN]])
def test_the_command_of_a_run_is_stored_without_its_token(words):
    spec = importlib.util.spec_from_file_location("train", Path(__file__).parents[2] / "recipes" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    command = train.command_line(["--config", "x.yaml", *words, "--seed", "1"])
    assert command == "accelerate launch recipes/train.py --config x.yaml --seed 1"
    assert TOKEN not in train.command_line(["--model_init_kwargs", f'{{"token": "{TOKEN}"}}'])


def test_settings_of_the_run_are_in_the_record(make_model_folder, tmp_path, chat_pairs):
    trainer = trained(make_model_folder("llama"), chat_pairs, tmp_path / "run", gradient_accumulation_steps=2)
    kept = trainer.record().training["settings"]
    assert kept["rows_per_step"] == 2 * QUIET["per_device_train_batch_size"]
    assert kept["precision"] == "float32"
