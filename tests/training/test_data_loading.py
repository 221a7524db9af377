"""Length buckets put rows of similar length together without changing results; evaluation returns dataset order."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
from conftest import randomize_head
from datasets import IterableDataset
from test_trainer import ranked_lists
from torch.utils.data import DataLoader, RandomSampler
from training_runs import load, make_trainer, settings
from transformers.trainer_pt_utils import LengthGroupedSampler
from uneven_rows import alone, jumping, numbers, rows_seen, scorer

from hf_reward import RewardTrainer


def order_of(loader: DataLoader) -> list[int]:
    return [row for batch in loader for row in batch["row"].tolist()]


def spread(trainer: RewardTrainer) -> float:
    """Return the mean difference between the longest and the shortest row of a batch, in tokens."""
    longest = [max(map(len, row)) for row in trainer.train_dataset["input_ids"]]
    batches = [[longest[row] for row in batch["row"].tolist()] for batch in trainer.get_train_dataloader()]
    return float(np.mean([max(batch) - min(batch) for batch in batches]))


PADDED = [("bert", {}), ("llama", {"packing": "false"}), ("gemma2", {})]


@pytest.mark.parametrize(("arch", "changes"), PADDED)
def test_padded_batches_hold_rows_of_similar_length_by_default_and_each_row_once(
    make_model_folder, tmp_path, arch, changes
):
    trainer = scorer(make_model_folder(arch), jumping(64), tmp_path, per_device_train_batch_size=4, **changes)
    assert sorted(order_of(trainer.get_train_dataloader())) == list(range(64))
    plain = scorer(
        make_model_folder(arch), jumping(64), tmp_path, per_device_train_batch_size=4, length_bucketing=False, **changes
    )
    assert isinstance(plain._get_train_sampler(), RandomSampler)
    assert spread(trainer) < 0.2 * spread(plain)


@pytest.mark.parametrize("budget", [None, 120])
@pytest.mark.parametrize(("arch", "changes"), PADDED)
def test_predictions_are_in_dataset_order_although_rows_are_sorted_by_length(
    make_model_folder, tmp_path, arch, changes, budget
):
    rows, seen = jumping(11), []
    trainer = scorer(
        make_model_folder(arch), jumping(8), tmp_path, evaluation=rows, per_device_eval_batch_size=4,
        compute_metrics=lambda prediction: seen.append(prediction) or {"mine": 1.0}, max_tokens_per_batch=budget,
        **changes,
    )  # fmt: skip
    order = order_of(trainer.get_eval_dataloader())
    longest = [max(map(len, row)) for row in trainer.eval_dataset["input_ids"]]
    assert [longest[row] for row in order] == sorted(longest, reverse=True)
    assert order != list(range(11))

    expected = alone(trainer, trainer.eval_dataset)
    assert expected.std() > 0.1
    metrics, output = trainer.evaluate(), trainer.predict(rows)
    assert metrics["eval_mine"] == 1.0
    assert output.label_ids[-1].tolist() == list(range(11))
    lengths = [[len(ids) - row["prefix_length"] for ids in row["input_ids"]] for row in trainer.eval_dataset]
    assert output.label_ids[1].tolist() == lengths
    assert np.abs(output.predictions - expected).max() < 1e-4
    assert len(seen) == 2
    for prediction in seen:
        assert np.abs(prediction.predictions - expected).max() < 1e-4
        assert prediction.label_ids.tolist() == trainer.eval_dataset["ranks"][:]
    assert metrics["eval_accuracy"] == pytest.approx(float((expected[:, 0] > expected[:, 1]).mean()))


@pytest.mark.parametrize("steps", [1, 2])
def test_lists_of_different_sizes_are_returned_in_dataset_order(make_model_folder, tmp_path, steps):
    rows = [{**row, "prompt": "and so on " * (k * 5 % 7)} for k, row in enumerate(ranked_lists(10))]
    trainer = scorer(
        make_model_folder("llama"), rows, tmp_path, packing="false", per_device_eval_batch_size=3,
        eval_accumulation_steps=steps,
    )  # fmt: skip
    output = trainer.predict(rows)
    present = output.label_ids[0] != -100
    assert present.sum(1).tolist() == [len(row["responses"]) for row in rows]
    assert np.abs(output.predictions - alone(trainer, trainer.train_dataset))[present].max() < 1e-4


def test_metrics_match_each_reward_with_its_rank_and_source(make_model_folder, tmp_path):
    rows = [{**row, "prompt": "and so on " * (k * 5 % 7)} for k, row in enumerate(ranked_lists(10))]
    mixture, found, seen = [{"data": rows[:4], "name": "alpha"}, {"data": rows[4:], "name": "beta"}], [], []
    for bucketing in (False, True):
        trainer = scorer(
            make_model_folder("llama"), rows, tmp_path, evaluation=mixture, packing="false", length_bucketing=bucketing,
            per_device_eval_batch_size=4, compute_metrics=lambda prediction: seen.append(prediction) or {},
        )  # fmt: skip
        metrics = numbers(trainer.evaluate())
        found.append(metrics)
    assert "eval_alpha_accuracy" in found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6, nan_ok=True)
    assert seen[1].label_ids.tolist() == seen[0].label_ids.tolist()
    present = seen[0].label_ids != -100
    assert [labels[kept].tolist() for labels, kept in zip(seen[1].label_ids, present, strict=True)] == [
        row["ranks"] for row in rows
    ]
    assert np.abs(seen[1].predictions - seen[0].predictions)[present].max() < 1e-4


def test_the_order_of_one_evaluation_does_not_affect_the_next(make_model_folder, tmp_path):
    sets = {"one": jumping(11), "two": jumping(7)[::-1]}
    trainer = scorer(make_model_folder("bert"), jumping(8), tmp_path, evaluation=sets, per_device_eval_batch_size=4)
    trainer.evaluate()
    for name, rows in sets.items():
        predictions = trainer.predict(rows).predictions
        assert np.abs(predictions - alone(trainer, trainer.eval_dataset[name])).max() < 1e-4


def test_prediction_without_built_in_metrics_is_in_dataset_order_too(make_model_folder, tmp_path):
    trainer = scorer(make_model_folder("bert"), jumping(8), tmp_path, per_device_eval_batch_size=4)
    trainer.compute_metrics = None
    output = trainer.predict(jumping(8))
    assert output.label_ids[-1].tolist() == list(range(8))
    assert np.abs(output.predictions - alone(trainer, trainer.train_dataset)).max() < 1e-4
    trainer.args.prediction_loss_only = True
    assert trainer.predict(jumping(8)).predictions is None


def test_predictions_of_a_custom_loader_keep_its_order(make_model_folder, tmp_path):
    class Mine(RewardTrainer):
        def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
            data = super().get_test_dataloader(test_dataset).dataset
            return self.accelerator.prepare(DataLoader(data, batch_size=4, collate_fn=self.data_collator))

    model = load(make_model_folder("bert"))
    randomize_head(model)
    trainer = Mine(model, settings(tmp_path), train_dataset=jumping(11))
    output = trainer.predict(trainer.train_dataset)
    assert output.label_ids[-1].tolist() == list(range(11))
    assert np.abs(output.predictions - alone(trainer, trainer.train_dataset)).max() < 1e-4


def test_evaluation_ignores_drop_last(make_model_folder, tmp_path):
    trainer = scorer(
        make_model_folder("bert"), jumping(10), tmp_path, evaluation=jumping(10), per_device_eval_batch_size=4,
        per_device_train_batch_size=4, dataloader_drop_last=True, max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert 8 <= trainer.evaluate()["eval_num_pairs"] <= 10
    output = trainer.predict(trainer.eval_dataset)
    expected = alone(trainer, trainer.eval_dataset)
    assert np.abs(output.predictions - expected[output.label_ids[-1]]).max() < 1e-4
    assert output.label_ids[-1].tolist() == sorted(output.label_ids[-1].tolist())


def test_an_explicit_sampling_strategy_overrides_buckets(make_model_folder, tmp_path):
    folder = make_model_folder("bert")
    trainer = scorer(folder, jumping(), tmp_path, train_sampling_strategy="sequential")
    assert order_of(trainer.get_train_dataloader()) == list(range(32))
    trainer = scorer(folder, jumping(), tmp_path, train_sampling_strategy="group_by_length")
    assert isinstance(trainer._get_train_sampler(), LengthGroupedSampler)


@pytest.mark.slow
def test_each_epoch_has_different_batches_and_a_seed_repeats_them(make_model_folder, tmp_path):
    def rows_per_step(**changes: Any) -> list[list[int]]:
        trainer = scorer(
            make_model_folder("bert"), jumping(), tmp_path, per_device_train_batch_size=4, num_train_epochs=3, **changes
        )
        seen = rows_seen(trainer)
        trainer.train()
        return seen

    steps = rows_per_step(seed=3)
    epochs = [steps[start : start + 8] for start in (0, 8, 16)]
    assert len(steps) == 24
    assert all(sorted(chain(*epoch)) == list(range(32)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows_per_step(seed=3) == steps
    assert rows_per_step(seed=4) != steps
    assert rows_per_step(seed=4, data_seed=3) == steps


def test_impossible_buckets_are_refused(make_model_folder, tmp_path, text_pairs):
    with pytest.raises(ValueError, match="both set which rows"):
        settings(tmp_path, length_bucketing=True, train_sampling_strategy="group_by_length")
    stream = IterableDataset.from_generator(lambda: iter(text_pairs))
    with pytest.raises(ValueError, match="which a stream does not allow"):
        make_trainer(make_model_folder("llama"), text_pairs, tmp_path, evaluation=stream, length_bucketing=True)


def test_persistent_workers_are_not_reused_for_other_rows(make_model_folder, tmp_path, text_pairs):
    trainer = make_trainer(
        make_model_folder("llama"), text_pairs, tmp_path, evaluation=text_pairs,
        dataloader_num_workers=1, dataloader_persistent_workers=True,
    )  # fmt: skip
    assert trainer.evaluate()["eval_num_pairs"] == 16
    assert trainer.evaluate(text_pairs[:5])["eval_num_pairs"] == 5
    assert trainer.evaluate()["eval_num_pairs"] == 16


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_packed_batches_are_bucketed_only_on_request(make_model_folder, tmp_path, value):
    folder = make_model_folder("llama")
    shuffled = spread(scorer(folder, jumping(64), tmp_path, per_device_train_batch_size=4))
    asked = scorer(folder, jumping(64), tmp_path, per_device_train_batch_size=4, length_bucketing=value)
    assert spread(asked) < 0.2 * shuffled
    assert (
        np.abs(asked.predict(jumping(9)).predictions - alone(asked, asked.train_dataset.select(range(9)))).max() < 1e-4
    )
