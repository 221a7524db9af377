"""Feature cache: a frozen backbone runs once per row, and results equal those without the cache."""

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from cached_runs import (
    backbone_tokens,
    cached_trainer,
    close,
    computed_tokens,
    frozen,
    rewards,
    stored,
    uncached_rewards,
)
from conftest import CHAT_TEMPLATE, randomize_head
from datasets import Dataset
from paths import PATHS
from peft import LoraConfig
from test_trainer import ranked_lists
from test_trainer_distributed import free_port
from training_runs import largest_difference, load, losses, weights
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_reward import DataCollatorForPreference, RewardTrainer
from hf_reward.modeling.dropout import disable_dropout
from hf_reward.modeling.reward_head import as_reward_model, freeze_all_but_head
from hf_reward.preprocessing.prefix_tree import LEAST_SAVED
from hf_reward.training.feature_cache import (
    feature_fingerprint,
    why_not_cached,
)

pytestmark = pytest.mark.usefixtures("cache")


# --- the same result -------------------------------------------------------------------------------------------------

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "mistral with a sliding window": ("mistral", {}),
    "gemma2, which cannot be packed": ("gemma2", {}),
    "padded": ("llama", {"packing": False}),
    "padded without buckets": ("llama", {"packing": False, "length_bucketing": False}),
    "packed with buckets": ("llama", {"length_bucketing": True}),
    "grouped by length": ("llama", {"train_sampling_strategy": "group_by_length"}),
    "a small token budget": ("llama", {"max_tokens_per_batch": 40}),
    "a small token budget, padded": (
        "llama",
        {"max_tokens_per_batch": 40, "packing": False, "length_bucketing": False},
    ),
    "accumulated": ("llama", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "plackett_luce": ("llama", {"loss_type": "plackett_luce"}),
    "two learning rates and weight decay": ("llama", {"head_learning_rate": 3e-2, "weight_decay": 0.1}),
    "all columns kept": ("llama", {"remove_unused_columns": False}),
}


FAST = ("llama", "gemma2, which cannot be packed", "padded", "a small token budget")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_cached_run_equals_an_uncached_one(make_model_folder, tmp_path, name):
    arch, changes = RUNS[name]
    folder, results = make_model_folder(arch), []
    before = weights(frozen(folder))
    for cached in (False, True):
        trainer = cached_trainer(
            folder, ranked_lists(10), tmp_path / "run", evaluation=ranked_lists(7), cache_features=cached,
            num_train_epochs=3, eval_strategy="epoch", seed=3,
            **{"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, **changes},
        )  # fmt: skip
        trainer.train()
        measured = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
        results.append((weights(trainer.model), losses(trainer), measured, rewards(trainer)))
    (plain, plain_losses, plain_metrics, plain_rewards), (fast, fast_losses, metrics, found) = results
    assert largest_difference({"score.weight": plain["score.weight"]}, {"score.weight": before["score.weight"]}) > 1e-2
    assert {name for name in fast if not torch.equal(fast[name], before[name])} == {"score.weight"}
    assert largest_difference(fast, plain) < 1e-5
    assert fast_losses == pytest.approx(plain_losses, rel=1e-5, abs=1e-5)
    close(found, plain_rewards)
    assert len(metrics) == len(plain_metrics) == 3
    for one, other in zip(metrics, plain_metrics, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if "second" not in key and "time" not in key:
                assert one[key] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), key


def test_predictions_after_cached_training_equal_those_of_the_model(make_model_folder, tmp_path):
    trainer = cached_trainer(make_model_folder("llama"), ranked_lists(), tmp_path / "run", num_train_epochs=2)
    trainer.train()
    close(torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions), uncached_rewards(trainer))
    close(torch.from_numpy(trainer.predict(ranked_lists()).predictions), uncached_rewards(trainer))


def test_each_of_several_evaluation_sets_has_its_own_features(make_model_folder, tmp_path):
    parts = {"first": ranked_lists(3), "second": ranked_lists(7)[3:]}
    found = []
    for cached in (True, False):
        trainer = cached_trainer(
            make_model_folder("llama"), ranked_lists(), tmp_path / "run", evaluation=parts, cache_features=cached
        )  # fmt: skip
        metrics = trainer.evaluate() | trainer.evaluate(ranked_lists(5), metric_key_prefix="raw")
        found.append({key: value for key, value in metrics.items() if key.endswith(("mean_reward", "accuracy"))})
    assert {"eval_first_mean_reward", "eval_second_mean_reward", "raw_mean_reward"} <= found[0].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_worker_processes_can_read_the_features(make_model_folder, tmp_path):
    folder, found = make_model_folder("llama"), []
    for workers in (0, 2):
        trainer = cached_trainer(
            folder, ranked_lists(), tmp_path / "run", num_train_epochs=2, per_device_train_batch_size=4,
            dataloader_num_workers=workers,
        )  # fmt: skip
        trainer.train()
        found.append((losses(trainer), rewards(trainer)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    close(found[1][1], found[0][1])


@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(make_model_folder, tmp_path, step):
    folder = make_model_folder("llama")

    def trainer() -> RewardTrainer:
        return cached_trainer(
            folder, ranked_lists(12), tmp_path / "run", per_device_train_batch_size=4, num_train_epochs=3,
            save_strategy="steps", save_steps=1,
        )  # fmt: skip

    complete, resumed = trainer(), trainer()
    complete.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert resumed.state.global_step == 9
    assert largest_difference(weights(resumed.model), weights(complete.model)) == 0
    assert losses(resumed) == losses(complete)


# --- number of backbone runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_the_backbone_runs_once_per_row_for_any_number_of_epochs(make_model_folder, tmp_path, packing):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", packing=packing, num_train_epochs=4,
        eval_strategy="epoch", evaluation=ranked_lists(11)[8:], per_device_eval_batch_size=4,
    )  # fmt: skip
    rows = [*trainer.train_dataset, *trainer.eval_dataset]
    own = sum(len(ids) for row in rows for ids in row["input_ids"])
    repeated = sum((len(row["ranks"]) - 1) * row["prefix_length"] for row in rows)
    assert repeated > 0
    trainer.checks.done = True
    with backbone_tokens(trainer.model) as seen:
        trainer.train()
    assert len(seen) == 3
    # A prefix that saves fewer than 8 tokens is not shared; rows of a batch may share more than their prefixes.
    assert sum(seen) < own - repeated + LEAST_SAVED * len(rows) if packing else own <= sum(seen) < 2 * own

    again = cached_trainer(
        tmp_path / "llama", ranked_lists(), tmp_path / "run", packing=packing, num_train_epochs=2,
        eval_strategy="epoch", evaluation=ranked_lists(11)[8:],
    )  # fmt: skip
    again.checks.done = True
    with backbone_tokens(again.model) as seen:
        again.train()
    assert seen == []


def test_features_are_computed_within_the_token_budget(make_model_folder, tmp_path):
    trainer = cached_trainer(make_model_folder("llama"), ranked_lists(), tmp_path / "run", max_tokens_per_batch=100)
    longest = max(row["length"] for row in trainer.train_dataset)
    trainer.checks.done = True
    with backbone_tokens(trainer.model) as seen:
        trainer.evaluate()
    assert len(seen) > 2
    assert max(seen) <= max(100, longest)


@pytest.mark.parametrize(
    ("changes", "computed_twice"),
    [
        ({"num_train_epochs": 1}, True),
        ({"num_train_epochs": 2}, False),
        ({"max_steps": 2}, True),
        ({"max_steps": 3}, False),
        ({"num_train_epochs": 2, "cache_features": False}, True),
    ],
)
def test_auto_caches_if_training_has_more_than_one_pass(make_model_folder, tmp_path, cache, changes, computed_twice):
    changes = {"cache_features": "auto", "per_device_train_batch_size": 4, **changes}
    trainer = cached_trainer(make_model_folder("llama"), ranked_lists(8), tmp_path / "run", **changes)
    trainer.train()
    assert bool(stored(cache)) is not computed_twice
    assert (computed_tokens(trainer) > 0) is computed_twice


def test_loading_the_best_checkpoint_does_not_run_the_backbone_again(make_model_folder, tmp_path):
    trainer = cached_trainer(
        make_model_folder("llama"), ranked_lists(), tmp_path / "run", num_train_epochs=2, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    assert computed_tokens(trainer) == 0
    close(rewards(trainer), uncached_rewards(trainer))


# --- fingerprint of the features -------------------------------------------------------------------------------------


def nudged(model: Any) -> Any:
    """Change one backbone weight by the smallest amount."""
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(10.0))
    return model


def otherwise_configured(model: Any) -> Any:
    """Return the same weights with another configuration."""
    model.config.rms_norm_eps = 1e-2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-2
    return model


def with_other_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = copy.deepcopy(rows)
    rows[4]["chosen"][0]["content"] += "!"
    return rows


CHANGES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "one backbone weight": (lambda path: nudged(frozen(path)), list, {}),
    "the configuration": (lambda path: otherwise_configured(frozen(path)), list, {}),
    "the text of a row": (frozen, with_other_text, {}),
    "the order of the rows": (frozen, lambda rows: rows[::-1], {}),
    "fewer rows": (frozen, lambda rows: rows[:-1], {}),
    "truncation": (frozen, list, {"max_length": 58}),
    "precision of the backbone": (lambda path: frozen(path, dtype="bfloat16"), list, {}),
    "precision of the run": (frozen, list, {"bf16": True}),
    "chat template": (frozen, list, {"chat_template_path": CHAT_TEMPLATE.replace("<|im_end|>", "?<|im_end|>")}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_affects_the_features_recomputes_them(make_model_folder, chat_pairs, tmp_path, cache, name):
    make_model, make_rows, changes = CHANGES[name]
    folder = make_model_folder("llama")
    if "chat_template_path" in changes:
        template = tmp_path / "template.jinja"
        template.write_text(changes["chat_template_path"])
        changes = {"chat_template_path": str(template)}
    assert computed_tokens(cached_trainer(folder, chat_pairs, tmp_path / "run")) > 0
    trainer = cached_trainer(make_model(folder), make_rows(chat_pairs), tmp_path / "run", **changes)
    assert computed_tokens(trainer) > 0
    assert len(stored(cache)) == 2
    found = rewards(trainer)
    plain = cached_trainer(
        make_model(folder), make_rows(chat_pairs), tmp_path / "run", cache_features=False, **changes
    )  # fmt: skip
    tolerance = 0.05 * float(found.abs().max()) if "precision" in name else 1e-5
    torch.testing.assert_close(found, rewards(plain), rtol=1e-5, atol=tolerance)


UNRELATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the head": ({"head": 2}, {}),
    "a maximal length that cuts nothing": ({}, {"max_length": 900}),
    "padded batches of another size": ({}, {"packing": False, "per_device_eval_batch_size": 3}),
    "the loss": ({}, {"loss_type": "hinge", "seed": 9}),
}


@pytest.mark.parametrize("name", UNRELATED)
def test_a_change_that_does_not_affect_the_features_keeps_them(make_model_folder, chat_pairs, tmp_path, name):
    options, changes = UNRELATED[name]
    folder = make_model_folder("llama")
    first = cached_trainer(folder, chat_pairs, tmp_path / "run")
    assert computed_tokens(first) > 0
    trainer = cached_trainer(frozen(folder, **options), chat_pairs, tmp_path / "run", **changes)
    assert computed_tokens(trainer) == 0
    close(rewards(trainer), uncached_rewards(trainer))


def test_rows_with_other_ranks_and_weights_use_the_same_features(make_model_folder, tmp_path):
    folder, rows = make_model_folder("llama"), ranked_lists()
    turned = [{**row, "ranks": [-rank for rank in row["ranks"]], "weight": 3.0} for row in rows]
    first, second = (cached_trainer(folder, data, tmp_path / "run") for data in (rows, turned))
    assert computed_tokens(first) > 0
    assert computed_tokens(second) == 0
    one, other = first.evaluate(), second.evaluate()
    assert other["eval_accuracy"] == pytest.approx(1 - one["eval_accuracy"])
    assert 0 < one["eval_accuracy"] != 0.5


def test_one_trainer_distinguishes_rows_with_equal_features(make_model_folder, tmp_path):
    rows = ranked_lists()
    turned = [{**row, "ranks": [-rank for rank in row["ranks"]]} for row in rows]
    trainer = cached_trainer(make_model_folder("llama"), rows, tmp_path / "run")
    one, other = trainer.evaluate(), trainer.evaluate(turned)
    assert other["eval_accuracy"] == pytest.approx(1 - one["eval_accuracy"])
    assert 0 < one["eval_accuracy"] != 0.5


def test_a_copy_of_the_model_in_another_folder_finds_the_features(make_model_folder, chat_pairs, tmp_path):
    assert computed_tokens(cached_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run")) > 0
    other = make_model_folder("llama", name="moved")
    assert computed_tokens(cached_trainer(other, chat_pairs, tmp_path / "run")) == 0


@pytest.mark.parametrize(
    "other",
    [
        [[[5, 6, 7], [5, 8]], [[9, 4], [9, 3, 3]]],
        [[[5, 6], [7, 5, 8]], [[9, 4], [9, 3, 3]]],
        [[[5, 6, 7], [5, 8], [9, 4]], [[9, 3, 2]]],
        [[[9, 4], [9, 3, 2]], [[5, 6, 7], [5, 8]]],
        [[[5, 8], [5, 6, 7]], [[9, 4], [9, 3, 2]]],
        [[[5, 6, 7], [5, 8]], [[9, 4], [9, 3, 2], [0]]],
    ],
    ids=["token", "border of a sequence", "border of a row", "rows", "responses", "one more response"],
)
def test_the_fingerprint_distinguishes_token_ids(make_model_folder, other):
    model = frozen(make_model_folder("llama"))

    def fingerprint(rows: list[list[list[int]]]) -> str:
        data = Dataset.from_dict({"input_ids": rows, "prefix_length": [1] * len(rows)})
        return feature_fingerprint(model, data, "no")

    rows = [[[5, 6, 7], [5, 8]], [[9, 4], [9, 3, 2]]]
    assert fingerprint(rows) == fingerprint(copy.deepcopy(rows)) != fingerprint(other)
    chosen = Dataset.from_dict({"input_ids": [*other, *rows], "prefix_length": [1] * (len(other) + 2)})
    chosen = chosen.select([len(other), len(other) + 1])
    assert feature_fingerprint(model, chosen, "no") == fingerprint(rows)


# --- impossible caches ----------------------------------------------------------------------------------------------


def own_collator(rows: list[dict[str, Any]]) -> Any:
    return DataCollatorForPreference(0)(rows)


class DoubledWeights(DataCollatorForPreference):
    """A custom collator that counts tokens, as `max_tokens_per_batch` requires."""

    def __call__(self, rows: Any) -> Any:
        batch = super().__call__(rows)
        return {**batch, "weights": batch["weights"] * 2}


def loader_with(arch: str = "llama", **options: Any) -> Callable[..., Any]:
    def make(make_model_folder: Callable[..., Path]) -> Any:
        model = load(make_model_folder(arch), **{"freeze_backbone": True, **options})
        randomize_head(model)
        return model

    return make


def one_layer_trained(make_model_folder: Callable[..., Path]) -> Any:
    model = frozen(make_model_folder("llama"))
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    return model


def attention_dropout(make_model_folder: Callable[..., Path]) -> Any:
    folder = make_model_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return frozen(folder)


LORA = LoraConfig(r=2, target_modules=["q_proj"])
IMPOSSIBLE: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "encoder": (loader_with("bert"), {}, "the model is an encoder"),
    "trained backbone": (loader_with(freeze_backbone=False), {}, "the backbone is trained"),
    "one trained layer": (one_layer_trained, {}, "the backbone is trained"),
    "adapter": (loader_with(freeze_backbone=False), {"peft_config": LORA}, "the model has an adapter"),
    "dropout modules": (loader_with("gpt2"), {"disable_dropout": False}, "dropout is on"),
    "dropout attributes": (attention_dropout, {"disable_dropout": False}, "dropout is on"),
    "own collator": (loader_with(), {"data_collator": own_collator}, "the data collator is a custom one"),
    "own collator with tokens": (
        loader_with(),
        {"data_collator": DoubledWeights(0)},
        "the data collator is a custom one",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_true_is_refused_with_the_reason(make_model_folder, text_pairs, tmp_path, name):
    make_model, changes, reason = IMPOSSIBLE[name]
    with pytest.raises(ValueError, match=f"`cache_features=True` is not possible: .*{reason}"):
        cached_trainer(make_model(make_model_folder), text_pairs[:6], tmp_path / "run", **changes).train()


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_auto_trains_without_a_cache_if_it_is_not_possible(
    make_model_folder, text_pairs, tmp_path, cache, caplog, name
):
    make_model, changes, _ = IMPOSSIBLE[name]
    changes = {"num_train_epochs": 2, **changes}
    results = []
    with caplog.at_level(logging.WARNING, logger="hf_reward"):
        for choice in ("auto", False):
            trainer = cached_trainer(
                make_model(make_model_folder), text_pairs[:6], tmp_path / "run", cache_features=choice, **changes
            )
            trainer.train()
            results.append((losses(trainer), weights(trainer.model)))
    assert stored(cache) == []
    assert results[0][0] == results[1][0]
    assert largest_difference(results[0][1], results[1][1]) == 0
    assert not [record for record in caplog.records if "feature" in record.message]


def test_a_stream_cannot_be_cached(make_model_folder, text_pairs, tmp_path, cache):
    stream = Dataset.from_list(text_pairs).to_iterable_dataset()
    folder = make_model_folder("llama")
    with pytest.raises(ValueError, match="the data is a stream"):
        cached_trainer(folder, stream, tmp_path / "run", max_steps=4).train()
    trainer = cached_trainer(folder, stream, tmp_path / "run", max_steps=4, cache_features="auto")
    trainer.train()
    assert trainer.state.global_step == 4
    assert stored(cache) == []


def test_a_streamed_evaluation_works_with_cached_training(make_model_folder, text_pairs, tmp_path, cache):
    stream = Dataset.from_list(text_pairs[:5]).to_iterable_dataset()
    results = []
    for choice in ("auto", False):
        trainer = cached_trainer(
            make_model_folder("llama"), text_pairs, tmp_path / "run", evaluation=stream, num_train_epochs=2,
            cache_features=choice, max_tokens_per_batch=80,
        )  # fmt: skip
        trainer.train()
        results.append(trainer.evaluate())
        assert len(stored(cache)) == 1
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], abs=1e-5)


def test_a_sharded_model_cannot_be_cached(make_model_folder, text_pairs, tmp_path):
    trainer = cached_trainer(make_model_folder("llama"), text_pairs, tmp_path / "run")
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="sharded over processes"):
        trainer.get_train_dataloader()


_SMALL: dict[str, Any] = {"vocab_size": 60, "num_labels": 1, "pad_token_id": 0}
_HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DROPOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "starcoder2, residual": ("starcoder2", {**_HIDDEN, "num_key_value_heads": 2, "residual_dropout": 0.4}),
    "starcoder2, embedding": ("starcoder2", {**_HIDDEN, "num_key_value_heads": 2, "embedding_dropout": 0.4}),
    "gpt_bigcode, attention": (
        "gpt_bigcode",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.4, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "bloom, hidden": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.4}),
    "opt, complete layers": (
        "opt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.5,
        },
    ),
    "gpt_neox, hidden": ("gpt_neox", {**_HIDDEN, "hidden_dropout": 0.4}),
}


@pytest.mark.parametrize("switched_off", [False, True])
@pytest.mark.parametrize("name", DROPOUTS)
def test_a_backbone_is_cached_only_without_active_dropout(name, switched_off):
    arch, options = DROPOUTS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, **{**_SMALL, **options})
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config))
    freeze_all_but_head(model)
    if switched_off:
        disable_dropout(model)
    data = Dataset.from_dict({"input_ids": [[[1]]]})
    model.train()
    with torch.no_grad():
        runs = [model.base_model(torch.arange(1, 20)[None]).last_hidden_state for _ in range(6)]
    is_random = not all(torch.equal(run, runs[0]) for run in runs)
    assert is_random is not switched_off
    assert why_not_cached(model, data) == ("the backbone's dropout is on" if is_random else None)


# --- two processes ---------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from test_feature_cache import SIZES, shared_run
from training_runs import weights

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for rows in SIZES:
    trainer, report = shared_run(rows, folder, out / "run")
    rank = trainer.args.process_index
    (out / f"{{rows}}-{{rank}}.json").write_text(json.dumps(report))
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), out / f"{{rows}}-{{rank}}.pt")
trainer.end()
"""
SIZES = (8, 7, 1)


def shared_run(rows: int, folder: Path, out: Path) -> tuple[RewardTrainer, dict[str, Any]]:
    """Run three steps of eight rows and an evaluation of other rows, for any number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = cached_trainer(
        folder, ranked_lists(8), out, evaluation=ranked_lists(8 + rows)[8:], num_train_epochs=3, optim="sgd",
        learning_rate=0.1, per_device_train_batch_size=8 // processes, per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer.checks.done = True
    with backbone_tokens(trainer.model) as seen:
        trainer.train()
        metrics = trainer.evaluate()
        output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    return trainer, {
        "world_size": trainer.args.world_size,
        "computed": sum(seen),
        "losses": losses(trainer),
        "rows": output.label_ids[-1].tolist(),
        "rewards": output.predictions.tolist(),
        "metrics": {key: metrics[key] for key in ("eval_accuracy", "eval_mean_reward", "eval_log_loss")},
    }


@pytest.mark.slow
def test_two_processes_share_the_work_and_give_the_result_of_one(make_model_folder, tmp_path, monkeypatch, cache):
    folder, script, shared = make_model_folder("llama"), tmp_path / "worker.py", tmp_path / "shared-cache"
    script.write_text(WORKER.format(paths=PATHS))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_port", str(free_port()), str(script), str(folder), str(tmp_path)),
    ]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(shared),
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(stored(shared)) == 4  # the training rows and three sets of evaluation rows
    sizes = []
    for features in stored(shared):
        assert sorted(path.name for path in features.iterdir()) == [
            "manifest.json", "part-0-of-2.bin", "part-1-of-2.bin"
        ]  # fmt: skip
        parts = json.loads((features / "manifest.json").read_text())["parts"]
        sizes.append(tuple(part["sequences"] for part in parts))
    assert (0, 4) in sizes  # one process gets the single row

    for rows in SIZES:
        trainer, one = shared_run(rows, folder, tmp_path / "run")
        reports = [json.loads((tmp_path / f"{rows}-{rank}.json").read_text()) for rank in (0, 1)]
        parameters = [torch.load(tmp_path / f"{rows}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert [one["world_size"], *(report["world_size"] for report in reports)] == [1, 2, 2]
        assert largest_difference(parameters[0], parameters[1]) == 0
        assert largest_difference(parameters[0], weights(trainer.model)) < 1e-5
        for report in reports:
            assert report["losses"] == pytest.approx(one["losses"], rel=1e-5)
            assert report["rows"] == one["rows"] == list(range(rows))
            torch.testing.assert_close(
                torch.tensor(report["rewards"]), torch.tensor(one["rewards"]), rtol=1e-5, atol=1e-5
            )
            assert report["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-6, nan_ok=True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", shared)
        _, reread = shared_run(rows, folder, tmp_path / "run")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        assert reread["computed"] == 0 < one["computed"]
        assert reread["losses"] == pytest.approx(one["losses"], rel=1e-5)
