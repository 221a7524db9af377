"""Several reward heads: the layer, its file, and training, resuming and saving with it."""

import json
import logging
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from training_runs import largest_difference, load, make_trainer, weights
from transformers import AutoModelForSequenceClassification, Trainer

from hf_reward import RewardConfig, save_merged
from hf_reward.modeling.adapters import add_adapter
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.head_ensemble import (
    HEADS_FILE,
    add_heads,
    bootstrap_counts,
    every_head,
    load_heads,
    number_of_heads,
    save_heads,
    saved_state,
    with_saved_heads,
)
from hf_reward.publishing.export import ExportRule, export_reward_model
from hf_reward.publishing.staged_files import PushRule, assemble

IDS = torch.tensor([[5, 6, 7, 8, 9]])
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@torch.no_grad()
def rewards(model: Any, *, each: bool = False) -> torch.Tensor:
    model.eval()
    if not each:
        return model(input_ids=IDS).logits
    with every_head(model):
        return model(input_ids=IDS).logits


def same_heads(one: Any, other: Any) -> bool:
    first, second = saved_state(one), saved_state(other)
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "roberta"])
def test_new_heads_differ_and_their_mean_is_the_head_that_was_there(arch, make_model_folder):
    model = load(make_model_folder(arch))
    randomize_head(model)
    before = rewards(model)
    state = torch.get_rng_state()
    add_heads(model, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(rewards(model), before)
    each = rewards(model, each=True)
    assert each.shape == (1, 5)
    assert each.std() > 1e-3
    torch.testing.assert_close(each.mean(1, keepdim=True), before)
    assert rewards(model).shape == (1, 1)  # outside of `every_head`


def test_the_state_dict_is_the_mean_head_and_loading_shifts_all_heads_equally(make_model_folder):
    model = load(make_model_folder("roberta"))
    names = set(model.state_dict())
    add_heads(model, 3, seed=0)
    state = model.state_dict()
    assert set(state) == names
    apart = saved_state(model)["classifier.out_proj.weight"].clone()
    target = {**state, "classifier.out_proj.weight": torch.ones(1, 32), "classifier.out_proj.bias": torch.tensor([2.0])}
    assert model.load_state_dict(target) == ([], [])
    moved = saved_state(model)["classifier.out_proj.weight"]
    torch.testing.assert_close(moved.mean(0), torch.ones(32))
    torch.testing.assert_close(moved - moved.mean(0), apart - apart.mean(0))
    torch.testing.assert_close(saved_state(model)["classifier.out_proj.bias"], torch.full((3,), 2.0))
    del target["classifier.out_proj.bias"]
    with pytest.raises(RuntimeError, match=r"out_proj\.bias"):
        model.load_state_dict(target)
    with pytest.raises(RuntimeError, match="one row"):
        model.load_state_dict({**state, "classifier.out_proj.weight": torch.ones(3, 32)})


# --- resampling -------------------------------------------------------------------------------------------------------


def test_counts_depend_on_seed_source_row_and_head_alone():
    rows, sources = torch.arange(40), torch.zeros(40, dtype=torch.long)
    counts = bootstrap_counts(0, sources, rows, 4)
    shuffled = torch.randperm(40)
    assert torch.equal(bootstrap_counts(0, sources, shuffled, 4), counts[:, shuffled])
    assert torch.equal(bootstrap_counts(0, sources[7:9], rows[7:9], 4), counts[:, 7:9])
    assert torch.equal(bootstrap_counts(0, sources, rows, 2), counts[:2])
    for other in (bootstrap_counts(1, sources, rows, 4), bootstrap_counts(0, sources + 1, rows, 4), counts.flip(0)):
        assert not torch.equal(other, counts)
    # What earlier versions drew: a change here changes runs that are resumed.
    assert counts[:, :8].int().tolist() == GOLDEN


GOLDEN = [[0, 0, 2, 2, 0, 0, 0, 1], [0, 0, 1, 2, 1, 2, 0, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 3, 3, 0, 0, 0, 1]]


def test_counts_are_poisson_and_independent_over_heads_and_rows():
    counts = bootstrap_counts(7, torch.full((200_000,), 5), torch.arange(200_000), 3).numpy().astype(int)
    found = np.bincount(counts.reshape(-1), minlength=8)[:8] / counts.size
    expected = np.exp(-1) / np.array([1, 1, 2, 6, 24, 120, 720, 5040])
    assert np.abs(found - expected).max() < 0.003  # 4.6 standard errors at P = 0.37
    correlations = np.corrcoef(np.vstack([counts, counts[0, ::-1]]))
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.012
    assert abs(np.corrcoef(counts[0][:-1], counts[0][1:])[0, 1]) < 0.012


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_heads_of_each_ones_resampled_rows(make_model_folder, chat_pairs, tmp_path):
    rows = [{**row, "weight": 1.0 + number % 3} for number, row in enumerate(chat_pairs[:8])]
    trainer = make_trainer(make_model_folder("llama"), rows, tmp_path, num_reward_heads=3, seed=11)
    randomize_head(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    with trainer.packed(), torch.no_grad():
        each = trainer.heads.rewards(trainer.model, batch)
    assert each.shape == (3, 8, 2)
    torch.testing.assert_close(outputs["rewards"], each.mean(0))
    best = batch["ranks"] == 0
    terms = -logsigmoid(each[:, best] - each[:, ~best])  # (3, 8)
    counts = bootstrap_counts(11, batch["sources"], batch["row"], 3)
    expected = (terms * counts * batch["weights"]).sum(1) / batch["weights"].sum()
    torch.testing.assert_close(loss.detach(), expected.mean())
    trainer.model.eval()
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(outputs["rewards"].detach(), each.mean(0))


def test_one_step_is_the_same_in_parts_and_in_every_form_of_batch(make_model_folder, chat_pairs, tmp_path):
    ends = []
    for changes in (
        {},
        {"packing": "false"},
        {"cache_features": "true"},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"max_tokens_per_batch": 200},
    ):
        model = load(make_model_folder("llama"), freeze_backbone=True)
        randomize_head(model)
        options = {"cache_features": "false", "per_device_train_batch_size": 16, **changes}
        trainer = make_trainer(
            model, chat_pairs, tmp_path / "run", num_reward_heads=3, max_steps=1, optim="sgd", learning_rate=1.0,
            max_grad_norm=0.0, **options,
        )  # fmt: skip
        start = saved_state(trainer.model)["score.weight"].clone()
        trainer.train()
        ends.append(saved_state(trainer.model)["score.weight"])
        moved = ends[-1] - start
        assert (moved[0] - moved[1]).abs().max() > 1e-2  # each learns from other rows
        torch.testing.assert_close(ends[-1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_ends_with_the_heads_of_one_never_stopped(make_model_folder, chat_pairs, tmp_path, adapter):
    def trainer(**changes: Any) -> Any:
        return make_trainer(
            make_model_folder("llama"), chat_pairs, tmp_path / "run", num_reward_heads=3, num_train_epochs=2,
            learning_rate=1e-2, save_strategy="steps", save_steps=3, per_device_train_batch_size=4,
            peft_config=LoraConfig(**LORA) if adapter else None, **changes,
        )  # fmt: skip

    whole = trainer()
    whole.train()
    folder = str(tmp_path / "run" / "checkpoint-3")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=folder)
    assert same_heads(resumed.model, whole.model)
    assert largest_difference(weights(resumed.model), weights(whole.model)) == 0
    other = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", per_device_train_batch_size=4,
        peft_config=LoraConfig(**LORA) if adapter else None, allow_changed_run=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="several heads"):
        other.train(resume_from_checkpoint=folder)
    (tmp_path / "run" / "checkpoint-3" / HEADS_FILE).unlink()
    (tmp_path / "run" / "checkpoint-3" / "checkpoint_files.json").unlink()
    with pytest.raises(ValueError, match="has one head, but `num_reward_heads` is 3"):
        trainer().train(resume_from_checkpoint=folder)


def test_the_best_checkpoint_brings_its_heads(make_model_folder, chat_pairs, tmp_path):
    def planted(prediction: Any) -> dict[str, float]:
        return {"planted": float(next(values))}

    values = iter([1.0, 3.0, 2.0])
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], max_steps=3,
        num_reward_heads=3, learning_rate=1e-2, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="planted", compute_metrics=planted,
    )  # fmt: skip
    trainer.train()
    best, last = (load(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 3))
    for model in (best, last):
        with_saved_heads(model)
    assert same_heads(trainer.model, best)
    assert not same_heads(trainer.model, last)


def test_sharded_models_are_refused(make_model_folder, chat_pairs, tmp_path, monkeypatch):
    own = Trainer.create_accelerator_and_postprocess

    def sharded(self: Any) -> None:
        own(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match="not possible with FSDP"):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path, num_reward_heads=2)
    with pytest.raises(ValueError, match="1 or more"):
        RewardConfig(output_dir=str(tmp_path), num_reward_heads=0)


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "bert", "roberta"])
def test_an_ensemble_is_saved_as_a_stock_model_and_a_file_with_the_heads(arch, make_model_folder, text_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder(arch), text_pairs, tmp_path / "out", num_reward_heads=4, learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model()
    mean, each = rewards(trainer.model), rewards(trainer.model, each=True)
    torch.testing.assert_close(each.mean(1, keepdim=True), mean)
    stock, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert [*info["unexpected_keys"], *info["missing_keys"]] == []
    torch.testing.assert_close(rewards(stock), mean)
    again = load(tmp_path / "out", verify=True)
    assert number_of_heads(again) == 1
    torch.testing.assert_close(rewards(again), mean)
    with_saved_heads(again)
    assert same_heads(again, trainer.model)
    record = CheckpointRecord.load(tmp_path / "out")
    assert record is not None
    assert record.reward_heads == 4
    assert record.training["settings"]["reward_heads"] == 4
    # A server that takes every file of weights beside config.json gets the model alone.
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.slow
def test_an_adapter_its_merge_and_its_export_carry_the_heads(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", num_reward_heads=3, learning_rate=1e-2,
        peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    each = rewards(trainer.model, each=True)
    adapter = load(tmp_path / "adapter", is_trainable=False)
    with_saved_heads(adapter)
    torch.testing.assert_close(rewards(adapter, each=True), each)
    export_reward_model(tmp_path / "adapter", tmp_path / "half", ExportRule(dtype="bfloat16", allow_unserved=True))
    half = load(tmp_path / "half")
    with_saved_heads(half)
    assert same_heads(half, trainer.model)  # float32 to the last bit, whatever the backbone's precision
    merged = save_merged(trainer.model, trainer.processing_tokenizer, tmp_path / "merged", record=trainer.record())
    for folder in (merged, merged / "adapter"):
        model = load(folder)
        with_saved_heads(model)
        torch.testing.assert_close(rewards(model, each=True), each, rtol=1e-4, atol=1e-5)
    assert CheckpointRecord.load(merged).reward_heads == 3  # pyright: ignore[reportOptionalMemberAccess]
    assemble(merged, tmp_path / "published", "user/name", PushRule())
    published = load(tmp_path / "published")
    with_saved_heads(published)
    assert same_heads(published, trainer.model)


def test_a_save_over_an_ensemble_leaves_no_heads_of_it(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    tokenizer = make_trainer(model, chat_pairs, tmp_path / "run").processing_tokenizer
    several = load(make_model_folder("llama"))
    randomize_head(several)
    add_heads(several, 2, seed=0)
    for each, heads in ((several, 2), (model, 1)):
        save_merged(each, tokenizer, tmp_path / "merged", verify=False)
        assert (tmp_path / "merged" / HEADS_FILE).exists() == (heads == 2)
        assert json.loads((tmp_path / "merged" / "reward_config.json").read_text())["reward_heads"] == heads
    save_heads(several, tmp_path / "merged")
    save_heads(model, tmp_path / "merged")
    assert not (tmp_path / "merged" / HEADS_FILE).exists()


def test_training_continues_with_the_saved_heads_if_their_number_is_set(
    make_model_folder, chat_pairs, tmp_path, caplog
):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", num_reward_heads=3, learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = make_trainer(tmp_path / "saved", chat_pairs, tmp_path / "run", num_reward_heads=3, seed=5)
    assert same_heads(again.model, trainer.model)
    wrapped = make_trainer(
        tmp_path / "saved", chat_pairs, tmp_path / "run", num_reward_heads=3, peft_config=LoraConfig(**LORA)
    )
    assert same_heads(wrapped.model, trainer.model)
    for count in (1, 2):
        with caplog.at_level(logging.WARNING, logger="hf_reward"):
            other = make_trainer(tmp_path / "saved", chat_pairs, tmp_path / "run", num_reward_heads=count)
        assert f"saved with 3 reward heads, but `num_reward_heads` is {count}" in caplog.text
        caplog.clear()
        torch.testing.assert_close(rewards(other.model), rewards(trainer.model))
    with pytest.raises(ValueError, match="already has 3 reward heads, but `num_reward_heads=1`"):
        make_trainer(trainer.model, chat_pairs, tmp_path / "run", processing_class=trainer.processing_tokenizer)


def test_heads_that_are_damaged_missing_or_of_another_model_are_not_taken(make_model_folder, tmp_path, caplog):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    add_heads(model, 3, seed=0)
    path = save_heads(model, tmp_path / "one")
    assert path is not None
    other = load(make_model_folder("llama"))
    randomize_head(other, seed=2)
    with pytest.raises(ValueError, match="must equal the head of the model"):
        load_heads(other, path)
    add_heads(model_of_two := load(make_model_folder("llama")), 2, seed=0)
    with pytest.raises(ValueError, match=r"score.weight \(2, 32\), but those in .* have score.weight \(3, 32\)"):
        load_heads(model_of_two, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        load_heads(other, path)
    adapted = add_adapter(load(make_model_folder("llama")), LoraConfig(**LORA))
    add_heads(adapted, 3, seed=0)
    assert list(saved_state(adapted)) == ["score.weight"]


def test_a_missing_file_of_heads_is_reported(make_model_folder, chat_pairs, tmp_path, caplog):
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "out", num_reward_heads=2)
    trainer.save_model()
    shutil.rmtree(tmp_path / "out" / "reward_heads")
    with caplog.at_level(logging.WARNING, logger="hf_reward"):
        model = load(tmp_path / "out")
    assert "is an ensemble of 2 reward heads, but the file with the heads" in caplog.text
    with_saved_heads(model)
    assert number_of_heads(model) == 1
