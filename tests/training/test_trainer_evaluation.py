"""Evaluation: every row once, predictions in dataset order, and metrics of the complete split."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from datasets import Dataset
from test_trainer import ranked_lists, with_ties
from training_runs import load, make_trainer

from hf_reward import CheckpointRecord, RewardScorer, preference_metrics
from hf_reward.evaluation.benchmarks.running import run_benchmark


def of_lengths(count: int) -> list[dict[str, str]]:
    """Return text pairs of irregular length."""
    return [
        {
            "prompt": f"{'word ' * (number * 7 % 11)}number {number}: ",
            "chosen": "yes " * (1 + number * 5 % 7) + str(number),
            "rejected": "no " * (1 + number * 3 % 5) + str(number),
        }
        for number in range(count)
    ]


@pytest.fixture
def scorer(make_model_folder, tmp_path):
    """Make a trainer with a random head, so that its rewards differ."""

    def make(train: Any, evaluation: Any = None, **changes: Any) -> Any:
        model = load(make_model_folder("llama"))
        randomize_head(model)
        return make_trainer(model, train, tmp_path / "run", evaluation=evaluation, **changes)

    return make


def scored_alone(trainer: Any, data: Dataset) -> np.ndarray:
    """Return the rewards of a prepared dataset, each sequence scored alone, with 0 at padding."""
    rows = data["input_ids"]
    rewards = np.zeros((len(rows), max(map(len, rows))))
    with torch.no_grad():
        for row, sequences in enumerate(rows):
            for place, ids in enumerate(sequences):
                rewards[row, place] = trainer.model(input_ids=torch.tensor([ids])).logits.item()
    return rewards


def expected_metrics(trainer: Any, data: Dataset) -> dict[str, float]:
    """Return the metrics of a prepared dataset from rewards scored one by one."""
    rewards = scored_alone(trainer, data)
    ranks, lengths, words, characters = (np.full(rewards.shape, -100) for _ in range(4))
    for row, (values, ids, prefix) in enumerate(
        zip(data["ranks"], data["input_ids"], data["prefix_length"], strict=True)
    ):
        ranks[row, : len(values)] = values
        lengths[row, : len(values)] = [len(sequence) - prefix for sequence in ids]
        words[row, : len(values)], characters[row, : len(values)] = data["words"][row], data["characters"][row]
    groups = np.asarray(data["group"])
    return preference_metrics(rewards, ranks, lengths, groups, words=words, characters=characters)


def same_numbers(found: dict[str, float], expected: dict[str, float], prefix: str) -> None:
    for name, value in expected.items():
        assert found[prefix + name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("count", [10, 9, 8, 3])
def test_predictions_are_one_row_per_dataset_row_in_dataset_order(scorer, strategy, count):
    trainer = scorer(of_lengths(16), train_sampling_strategy=strategy, per_device_eval_batch_size=4)
    output = trainer.predict(of_lengths(count))
    data = trainer.get_test_dataloader(of_lengths(count)).dataset
    assert output.label_ids[-1].tolist() == list(range(count))
    assert np.abs(output.predictions - scored_alone(trainer, data)).max() < 1e-5
    assert output.predictions.std() > 0.1


def test_predictions_on_lists_of_different_sizes_have_reward_0_at_padding(scorer):
    trainer = scorer(ranked_lists(), per_device_eval_batch_size=3)
    output = trainer.predict(trainer.train_dataset)
    ranks = output.label_ids[0]
    assert output.predictions.shape == ranks.shape == (8, 4)
    assert (ranks != -100).sum(1).tolist() == [len(row["responses"]) for row in ranked_lists()]
    present = ranks != -100
    assert np.abs(output.predictions - scored_alone(trainer, trainer.train_dataset))[present].max() < 1e-5


@pytest.mark.parametrize("rows", [of_lengths(10), ranked_lists(10)], ids=["pairs", "lists"])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_metrics_cover_the_complete_split_for_any_batch_size(scorer, rows, size):
    trainer = scorer(rows, rows, per_device_eval_batch_size=size)
    metrics = trainer.evaluate()
    same_numbers(metrics, expected_metrics(trainer, trainer.eval_dataset), "eval_")


def test_the_evaluation_loss_of_plain_pairs_is_the_log_loss_also_with_a_short_last_batch(scorer):
    metrics = scorer(of_lengths(16), of_lengths(10), per_device_eval_batch_size=4).evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_log_loss"], rel=1e-5)


def test_intervals_are_clustered_by_prompt(scorer):
    rows = [{**row, "group": f"prompt {place // 4}"} for place, row in enumerate(of_lengths(16))]
    assert scorer(of_lengths(4), rows).evaluate()["eval_num_prompts"] == 4


def test_benchmark_pairs_gives_the_accuracy_the_interval_and_the_length_difference_of_the_trainer(scorer, tmp_path):
    """One model and 24 pairs of 6 prompts: training logs the numbers of `benchmark pairs`, with the interval."""
    rows = [{**row, "prompt": f"prompt {place // 4}: "} for place, row in enumerate(of_lengths(24))]
    trainer = scorer(of_lengths(4), rows)
    metrics = trainer.evaluate()
    model = RewardScorer(trainer.model, trainer.processing_tokenizer, trainer.record())
    found = run_benchmark("pairs", model, rows, out=tmp_path / "pairs")
    assert found["overall"] == metrics["eval_accuracy"]
    assert 0 < found["overall"] < 1
    bounds = [metrics["eval_accuracy_ci_low"], metrics["eval_accuracy_ci_high"]]
    assert found["ci"] == pytest.approx(bounds, abs=1e-12)
    assert found["prompts"] == metrics["eval_num_prompts"] == 6
    names = [f"eval_accuracy_over_length{end}" for end in ("", "_ci_low", "_ci_high")]
    over = found["over_length"]
    assert [over["difference"], *over["ci"]] == pytest.approx([metrics[name] for name in names], abs=1e-12)
    assert over["score"] == pytest.approx(metrics["eval_length_baseline_strongest"])


def test_several_evaluation_sets_are_each_measured_under_their_name(scorer):
    trainer = scorer(of_lengths(8), {"one": of_lengths(6), "two": ranked_lists(5)})
    metrics = trainer.evaluate()
    for name, data in trainer.eval_dataset.items():
        same_numbers(metrics, expected_metrics(trainer, data), f"eval_{name}_")


def test_a_mixture_is_also_measured_source_by_source(scorer):
    mixture = [{"data": of_lengths(6), "name": "alpha"}, {"data": ranked_lists(5), "name": "beta"}]
    trainer = scorer(of_lengths(8), mixture, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    same_numbers(metrics, expected_metrics(trainer, trainer.eval_dataset), "eval_")
    for name, start, stop in (("alpha", 0, 6), ("beta", 6, 11)):
        part = expected_metrics(trainer, trainer.eval_dataset.select(range(start, stop)))
        same_numbers(metrics, {key: part[key] for key in ("accuracy", "num_pairs", "length_baseline")}, f"eval_{name}_")
    assert not any(key.startswith("eval_alpha") for key in scorer(of_lengths(8), of_lengths(6)).evaluate())


def test_a_source_with_only_ties_does_not_stop_the_evaluation_of_the_others(scorer):
    ties = [{**row, "ranks": [0, 0]} for row in with_ties(4)]
    mixture = [{"data": with_ties(6), "name": "mixed"}, {"data": ties, "name": "ties"}]
    metrics = scorer(with_ties(6), mixture, loss_type="davidson").evaluate()
    assert metrics["eval_mixed_num_pairs"] == metrics["eval_num_pairs"] == 4
    assert "eval_ties_accuracy" not in metrics


def test_user_metrics_are_added_and_get_only_rewards_and_ranks(scorer):
    seen = {}

    def mine(prediction: Any) -> dict[str, float]:
        seen["shapes"] = (prediction.predictions.shape, prediction.label_ids.shape)
        return {"best_is_first": float((prediction.predictions.argmax(1) == prediction.label_ids.argmin(1)).mean())}

    trainer = scorer(of_lengths(8), of_lengths(10), compute_metrics=mine, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert seen["shapes"] == ((10, 2), (10, 2))
    assert metrics["eval_best_is_first"] == metrics["eval_accuracy"]
    assert "eval_length_baseline" in metrics


def test_raw_rows_files_and_prepared_data_evaluate_the_same(scorer, tmp_path):
    rows = of_lengths(6)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    trainer = scorer(of_lengths(8), rows)
    expected = trainer.evaluate()["eval_log_loss"]
    assert trainer.evaluate(rows)["eval_log_loss"] == expected
    assert trainer.evaluate(Dataset.from_list(rows))["eval_log_loss"] == expected
    assert trainer.evaluate(str(path))["eval_log_loss"] == expected
    assert trainer.evaluate({"named": rows})["eval_named_log_loss"] == expected
    assert trainer.predict(rows).metrics["test_log_loss"] == expected
    assert trainer.predict(str(path)).metrics["test_log_loss"] == expected


def test_the_saved_record_states_mean_and_deviation_of_the_evaluated_rewards(scorer, tmp_path):
    trainer = scorer(of_lengths(8), ranked_lists(8))
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    rewards = scored_alone(trainer, trainer.eval_dataset)
    present = np.array([[place < len(row["responses"]) for place in range(4)] for row in ranked_lists(8)])
    record = CheckpointRecord.load(tmp_path / "saved")
    assert record is not None
    assert record.reward_statistics["mean"] == pytest.approx(rewards[present].mean(), rel=1e-4)
    assert record.reward_statistics["std"] == pytest.approx(rewards[present].std(), rel=1e-4)
    assert record.reward_statistics["num_rewards"] == present.sum() == 23


def test_evaluation_without_metrics_gives_only_the_loss(scorer):
    trainer = scorer(of_lengths(8), of_lengths(6), prediction_loss_only=True)
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"])
    assert "eval_accuracy" not in metrics


@pytest.mark.parametrize("steps", [1, 2])
def test_moving_predictions_to_the_cpu_during_evaluation_changes_nothing(scorer, steps):
    rows = ranked_lists(10)
    complete = scorer(rows, rows, per_device_eval_batch_size=3).evaluate()
    parts = scorer(rows, rows, per_device_eval_batch_size=3, eval_accumulation_steps=steps).evaluate()
    assert parts["eval_log_loss"] == complete["eval_log_loss"]


def test_empty_evaluation_data_is_refused_raw_and_prepared(scorer):
    trainer = scorer(of_lengths(8), of_lengths(6))
    with pytest.raises(ValueError, match=r"must have at least one row|has no rows"):
        scorer(of_lengths(8), [])
    with pytest.raises(ValueError, match=r"must have at least one row|has no rows"):
        trainer.evaluate(Dataset.from_list([]))
    with pytest.raises(ValueError, match=r"must have at least one row|has no rows"):
        trainer.evaluate(trainer.eval_dataset.select([]))
    with pytest.raises(ValueError, match="eval: none of 0 rows can be used"):
        scorer(of_lengths(8), trainer.eval_dataset.select([]))


def test_a_reward_that_is_not_finite_stops_the_evaluation(scorer):
    trainer = scorer(of_lengths(8), of_lengths(6))
    with torch.no_grad():
        trainer.model.score.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="6 rows have NaN"):
        trainer.evaluate()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_of_an_evaluation_does_not_depend_on_the_batches(make_model_folder, tmp_path, size):
    rows = [{**row, "weight": 0.5 + 2 * (place % 3)} for place, row in enumerate(with_ties(7)) if place % 3 != 2]
    model = load(make_model_folder("llama"))
    randomize_head(model)
    trainer = make_trainer(
        model, rows, tmp_path / "run", evaluation=rows, per_device_eval_batch_size=size, center_rewards_coefficient=0.1
    )
    found = trainer.evaluate()["eval_loss"]
    better, worse = trainer.predict(trainer.eval_dataset).predictions.T.astype(float)
    weights = np.array([row["weight"] for row in rows])
    each = np.log1p(np.exp(worse - better)) + 0.1 * (better + worse) ** 2
    assert found == pytest.approx((weights * each).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("form", ["false", "auto"], ids=["padded", "packed"])
def test_a_stream_passed_to_evaluate_is_measured_like_a_table(scorer, form):
    rows = ranked_lists(10)
    trainer = scorer(of_lengths(16), packing=form, per_device_eval_batch_size=4)
    table = trainer.predict(Dataset.from_list(rows))
    stream = Dataset.from_list(rows).to_iterable_dataset()
    streamed = trainer.predict(stream)
    assert streamed.label_ids[-1].tolist() == table.label_ids[-1].tolist() == list(range(10))
    assert np.abs(streamed.predictions - table.predictions).max() < 1e-5 < table.predictions.std()
    metrics = trainer.evaluate(stream)
    same_numbers(metrics, expected_metrics(trainer, trainer.get_test_dataloader(rows).dataset), "eval_")


def test_sorting_a_stream_passed_to_evaluate_is_refused(scorer):
    trainer = scorer(of_lengths(16), length_bucketing=True)
    with pytest.raises(ValueError, match="needs rows that can be sorted"):
        trainer.evaluate(Dataset.from_list(of_lengths(4)).to_iterable_dataset())


def test_rows_of_different_lengths_are_never_dispatched_by_one_process(scorer, caplog):
    trainer = scorer(of_lengths(8), ranked_lists(6), accelerator_config={"dispatch_batches": True})
    assert "dispatch_batches=True" in caplog.text
    same_numbers(trainer.evaluate(), expected_metrics(trainer, trainer.eval_dataset), "eval_")


def test_the_loss_without_metrics_is_over_rows_too(scorer):
    """A mean over batches would weight the last batch of two rows like the others of three."""
    rows = [{**row, "weight": 0.5 + number % 3} for number, row in enumerate(ranked_lists(8))]
    complete = scorer(of_lengths(8), rows, per_device_eval_batch_size=3).evaluate()
    alone = scorer(of_lengths(8), rows, per_device_eval_batch_size=3, prediction_loss_only=True).evaluate()
    assert alone["eval_loss"] == pytest.approx(complete["eval_loss"], rel=1e-6)
