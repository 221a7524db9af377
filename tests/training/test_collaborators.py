"""The collaborators of `RewardTrainer`, each tested without a Trainer."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import logsigmoid
from torch.utils.data import RandomSampler
from training_runs import load, settings
from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.preprocessing.samplers import FixedOrderSampler, LengthBucketSampler
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.training.background_push import Publisher
from hf_reward.training.batch_checks import BatchCheck
from hf_reward.training.checkpoints import checkpoint_problem
from hf_reward.training.collators import choose_collator, packs
from hf_reward.training.data_loading import BatchLoader, rows_of
from hf_reward.training.ensemble_loss import HeadsLoss
from hf_reward.training.evaluation import LABELS, EvaluationResult, in_dataset_order, with_metrics
from hf_reward.training.feature_cache import FeatureCache
from hf_reward.training.feature_store import FeatureRows
from hf_reward.training.micro_batches import accumulate_micro_batches
from hf_reward.training.prepared_data import PreferenceData
from hf_reward.training.resume import CheckpointWriter
from hf_reward.training.stop_signal import StopAfterCheckpoint, StopSignal


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def data(chat_tokenizer, tmp_path) -> PreferenceData:
    return PreferenceData(settings(tmp_path, balance_lengths=False), prepare_tokenizer(chat_tokenizer))


# --- rows and batches ------------------------------------------------------------------------------------------------


def test_datasets_are_prepared_once_and_summarized_by_name(data, chat_pairs):
    train, held_out = data.prepare(chat_pairs[:6], "train"), data.prepare_evaluation({"one": chat_pairs[6:8]})
    assert (len(train), len(held_out["one"])) == (6, 2)
    assert set(data.summaries) == {"train", "eval_one"}
    assert data.prepared(train, "eval") is train
    assert len(data.prepared(chat_pairs[:3], "test")) == 3
    assert data.prepare(None, "train") is None
    assert data.training_texts


def test_training_rows_are_sorted_by_length_only_where_they_are_padded(data, chat_pairs, accelerator):
    rows, loader = data.prepare(chat_pairs[:8], "train"), BatchLoader(data.args, accelerator)
    padded = DataCollatorForPreference(0)
    batches = loader.training(rows, padded, 4, RandomSampler)
    assert isinstance(loader.epoch_sampler, LengthBucketSampler)
    assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(8))
    data.args.length_bucketing = "false"
    loader.training(rows, padded, 4, RandomSampler)
    assert loader.epoch_sampler is None


def test_evaluation_covers_every_row_and_predictions_are_in_dataset_order(data, chat_pairs, accelerator):
    data.args.dataloader_drop_last, data.args.per_device_eval_batch_size = True, 4
    rows = data.prepare(chat_pairs[:7], "eval")
    batches = BatchLoader(data.args, accelerator).evaluation(rows, DataCollatorForPreference(0))
    assert rows_of(batches)["input_ids"] == rows["input_ids"]
    order = [row for batch in batches for row in batch["row"].tolist()]
    assert sorted(order) == list(range(7))
    assert isinstance(batches.batch_sampler.sampler, FixedOrderSampler)
    labels = tuple(np.array([[0, 1]] * 7) if name == "ranks" else np.array(order) for name in LABELS)
    output = in_dataset_order(EvalLoopOutput(np.array(order)[:, None] * [1.0, 2.0], labels, {}, 7), batches)
    assert output.predictions.tolist() == [[n, 2.0 * n] for n in range(7)]
    assert output.label_ids[-1].tolist() == list(range(7))


def test_unused_columns_are_removed(data, chat_pairs, accelerator):
    rows = data.prepare(chat_pairs[:4], "eval").add_column("note", ["a"] * 4)
    seen: list[set[str]] = []

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(set(batch[0]))
        return DataCollatorForPreference(0)(batch)

    for remove in (True, False):
        data.args.remove_unused_columns = remove
        next(iter(BatchLoader(data.args, accelerator).evaluation(rows, collate)))
    assert "note" not in seen[0]
    assert "note" in seen[-1]


def test_a_packed_collator_is_kept_if_rewards_are_equal_and_cached_features_replace_it(
    data, chat_pairs, accelerator, make_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = load(make_model_folder("llama"), freeze_backbone=True)
    rows = data.prepare(chat_pairs[:4], "train")
    check = BatchCheck(data.args, accelerator, data.tokenizer)
    collator = check.collator_for(rows, model, choose_collator(model, data.args, data.tokenizer), sharded=False)
    assert check.done
    assert packs(collator)
    features = FeatureCache(data.args, accelerator)
    assert features.rows(rows, model, collator, passes=1, sharded=False) is rows
    cached = features.rows(rows, model, collator, passes=2, sharded=False)
    assert isinstance(cached, FeatureRows)
    assert cached[0]["features"].shape == (2, model.config.hidden_size)
    data.args.cache_features = "true"
    with pytest.raises(ValueError, match="the model is sharded over processes"):
        features.rows(rows, model, collator, passes=2, sharded=True)


def test_the_check_of_packing_computes_few_responses_of_long_lists(data, accelerator, make_model_folder, monkeypatch):
    lists = [
        {
            "prompt": [{"role": "user", "content": f"Which number is {number}?"}],
            "responses": [[{"role": "assistant", "content": f"It is {place}."}] for place in range(16)],
            "ranks": list(range(16)),
        }
        for number in range(3)
    ]
    rows, model = data.prepare(lists, "train"), load(make_model_folder("llama"))
    checked: list[list[int]] = []

    def no_problem(_: Any, padded: dict[str, Any], packed: dict[str, Any]) -> None:
        checked.append([len(padded["input_ids"]), len(packed["reward_positions"]), *padded["ranks"].shape])

    monkeypatch.setattr("hf_reward.training.batch_checks.packing_problem", no_problem)
    check = BatchCheck(data.args, accelerator, data.tokenizer)
    check.collator_for(rows, model, choose_collator(model, data.args, data.tokenizer), sharded=False)
    assert checked == [[8, 8, 2, 4]]


# --- loss and metrics ------------------------------------------------------------------------------------------------


def test_the_loss_of_one_head_is_the_plain_loss_and_all_heads_have_one_normalizer(tmp_path):
    args = settings(tmp_path)
    rewards = torch.tensor([[[1.0, 0.0], [0.5, 2.0]]])
    inputs = {"ranks": torch.tensor([[0, 1], [0, 1]]), "weights": torch.tensor([1.0, 3.0])}
    expected = -(logsigmoid(torch.tensor(1.0)) + 3 * logsigmoid(torch.tensor(-1.5))) / 4
    torch.testing.assert_close(HeadsLoss(args).loss(args.loss, rewards, inputs, None), expected)
    assert HeadsLoss(args).total_weight(args.loss, [inputs, inputs], Accelerator(cpu=True)) == 8
    assert HeadsLoss(args).total_weight(args.loss, [], Accelerator(cpu=True)) is None
    with pytest.raises(ValueError, match="not possible with FSDP"):
        HeadsLoss(settings(tmp_path, num_reward_heads=2)).refuse_sharding("FSDP")


def test_micro_batches_without_rows_run_but_add_nothing(accelerator):
    weight = torch.nn.Parameter(torch.tensor(2.0))
    parts = {"micro_batches": [{"x": 3.0}, {"x": 5.0}, {"x": 5.0}], "micro_rows": [[0], [1], []]}

    def step(part: dict[str, Any]) -> torch.Tensor:
        loss = weight * part["x"]
        loss.backward()
        return loss.detach()

    total = accumulate_micro_batches(
        parts, accelerator, torch.nn.Linear(1, 1), step=step, empty_loss=lambda part: weight * part["x"] * 0
    )
    assert total == 16
    assert weight.grad == 8


def test_an_evaluation_has_the_loss_over_its_rows_and_metrics_of_each_source():
    labels: dict[str, np.ndarray] = {name: np.ones(4) for name in LABELS}
    labels |= {"ranks": np.array([[0, 1]] * 4), "lengths": np.array([[5, 3]] * 4), "groups": np.arange(4)}
    labels |= {"words": labels["lengths"], "characters": labels["lengths"], "sources": np.array([0, 0, 1, 1])}
    labels |= {"losses": np.array([1.0, 2.0, 3.0, 4.0]), "loss_weights": np.array([1.0, 1.0, 0.0, 2.0])}
    found = EvaluationResult(np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]]), labels)
    assert found.loss == (1 + 2 + 8) / 4
    metrics = found.metrics({0: "ours"}, None, lambda prediction: {"mine": float(prediction.predictions[0, 0])})
    assert metrics["accuracy"] == 0.75
    assert (metrics["ours_accuracy"], metrics["1_accuracy"], metrics["mine"]) == (0.5, 1.0, 1.0)
    assert found.reward_statistics() == {"mean": 0.5, "std": pytest.approx(0.5), "num_rewards": 8}
    output = with_metrics(EvalLoopOutput(None, None, {"eval_loss": 9.0, "eval_time": 1.0}, 4), {"loss": 2.0}, "eval")
    assert output.metrics == {"eval_loss": 2.0, "eval_time": 1.0}


# --- checkpoints, signal, Hub ----------------------------------------------------------------------------------------


def state_of(folder: Path, step: int) -> TrainerState:
    state = TrainerState(global_step=step, best_global_step=step)
    state.save_to_json(str(folder / "trainer_state.json"))
    return state


def write(folder: Path, step: int) -> TrainerState:
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, folder / name)
    return state_of(folder, step)


def test_a_checkpoint_is_written_to_a_temporary_folder_and_resumed_from_its_final_one(tmp_path):
    model, run = torch.nn.Linear(2, 1), tmp_path / "run"
    writer, state = CheckpointWriter(settings(run)), TrainerState(global_step=3, best_global_step=3)
    assert writer.find("auto") is None
    writer.begin(None, {"settings": {}, "model": {}})
    with writer.staged(run, state, model) as final:
        staged = Path(writer.folder(str(run))) / "checkpoint-3"
        write(staged, 3)
        assert not final.exists()
    assert writer.folder(str(run)) == str(run)
    assert final == run / "checkpoint-3"
    assert checkpoint_problem(final) is None
    assert json.loads((final / "trainer_state.json").read_text())["best_model_checkpoint"] == str(final)
    assert writer.saved_step == 3
    again = CheckpointWriter(settings(run))
    assert again.find(True) == final
    again.begin(final, {"settings": {}, "model": {}})
    assert again.resumed_step == 3
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with (
        pytest.raises(FloatingPointError, match="After step 3 weights are not finite"),
        again.staged(run, state, model),
    ):
        pytest.fail("nothing may be written")
    with pytest.raises(ValueError, match="has weights that are not finite"):
        again.require_finite(model)


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_a_signal_requests_a_checkpoint_and_then_ends_the_process(tmp_path, strategy):
    stop_signal = StopSignal()
    args: Any = SimpleNamespace(save_strategy=strategy, output_dir="run", should_log=True)
    callback, state = StopAfterCheckpoint(stop_signal), TrainerState(global_step=4, max_steps=9)
    with stop_signal:
        callback.on_step_end(args, state, control := TrainerControl(should_evaluate=True))
        assert not control.should_save
        signal.raise_signal(signal.SIGTERM)
        callback.on_step_end(args, state, control)
        assert control.should_save is (strategy == "steps")  # else the evaluation decides, and the next step is saved
        callback.on_step_end(args, state, control)
        assert control.should_save
        assert control.should_evaluate is (strategy == "steps")
        with pytest.raises(SystemExit) as ended:
            callback.on_save(args, state, control)
        callback.on_train_begin(args, state, control := TrainerControl())
        callback.on_evaluate(args, state, control)  # with "best", `Trainer` decides again whether this step is saved
        callback.on_step_end(args, state, control := TrainerControl(should_evaluate=True))
        assert control.should_save
    assert ended.value.code == 143
    callback.on_save(args, state, control)  # outside of training it does nothing


def test_the_publisher_keeps_the_token_and_waits_or_skips_a_checkpoint(tmp_path):
    publisher = Publisher(settings(tmp_path / "my-run"), "hf_secret")
    assert publisher.repository == "my-run"
    assert publisher.is_free_for_a_checkpoint()
    waited: list[bool] = []
    publisher.running = SimpleNamespace(is_done=lambda: False, wait_until_done=lambda: waited.append(True))  # type: ignore[assignment]
    assert not publisher.is_free_for_a_checkpoint()
    publisher.args.hub_always_push = True
    assert publisher.is_free_for_a_checkpoint()
    assert waited == [True]
    publisher.args.hub_strategy = "end"
    assert not publisher.is_free_for_a_checkpoint()
