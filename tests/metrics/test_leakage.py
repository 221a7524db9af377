"""Evaluation rows that occur in training are counted, logged, and left out of a separate accuracy."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from conftest import randomize_head
from datasets import Dataset
from training_runs import load, make_trainer

from hf_reward.metrics.intervals import clustered_interval
from hf_reward.metrics.leakage import leaked_rows, metrics_without_leaks, shared_with_training, warn_about_leaks

Row = dict[str, str]


def pairs(start: int, count: int) -> list[Row]:
    return [
        {"prompt": f"question {i} of many: ", "chosen": f"the answer is {i}", "rejected": f"no idea {i * 7}"}
        for i in range(start, start + count)
    ]


def prepared(groups: list[int], contents: list[int]) -> Dataset:
    return Dataset.from_dict({"group": groups, "content_hash": contents})


@pytest.fixture
def scorer(make_model_folder, tmp_path):
    def make(train: Any, evaluation: Any = None, **changes: Any) -> Any:
        model = load(make_model_folder("llama"))
        randomize_head(model)
        return make_trainer(model, train, tmp_path / "run", evaluation=evaluation, **changes)

    return make


# --- finding ---------------------------------------------------------------------------------------------------------


def test_rows_leak_by_group_or_by_content():
    train, held = prepared([1, 2, 3], [10, 20, 30]), prepared([3, 4, 5, 6], [31, 10, 50, 60])
    shared = shared_with_training(train, held)
    assert {kind: rows.tolist() for kind, rows in shared.items()} == {
        "prompt group": [True, False, False, False],
        "identical content": [False, True, False, False],
    }
    leaked = leaked_rows(train, held)
    assert leaked is not None
    assert leaked.tolist() == [True, True, False, False]


def test_unshared_and_unknown_rows_give_none():
    train = prepared([1], [10])
    assert leaked_rows(train, prepared([2], [20])) is None
    assert leaked_rows(None, train) is None
    assert leaked_rows(train, train.to_iterable_dataset()) is None
    assert leaked_rows(train, Dataset.from_dict({"ranks": [[0, 1]]})) is None


def test_large_numbers_are_compared_exactly():
    """64-bit hashes, which floats would round to neighbouring values."""
    train, held = prepared([2**60], [-(2**62)]), prepared([2**60 + 1], [-(2**62) + 1])
    assert leaked_rows(train, held) is None


def test_accuracy_without_leaks_by_hand():
    """The remaining rows have gaps 1, -1, 1 in prompts 7, 7, 8: 2 of 3."""
    rewards = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    ranks, groups = np.array([[0, 1]] * 4), np.array([6, 7, 7, 8])
    found = metrics_without_leaks(rewards, ranks, groups, np.array([True, False, False, False]))
    assert found["accuracy_without_leaks"] == pytest.approx(2 / 3)
    assert (found["num_leaked_rows"], found["num_pairs_without_leaks"]) == (1, 3)
    bounds = [found["accuracy_without_leaks_ci_low"], found["accuracy_without_leaks_ci_high"]]
    assert bounds == clustered_interval(np.array([1.0, 0.0, 1.0]), [7, 7, 8]).bounds
    one = metrics_without_leaks(rewards, ranks, groups, np.array([True, True, True, False]))
    assert math.isnan(one["accuracy_without_leaks_ci_low"])


def test_no_row_left_is_a_count_and_no_accuracy():
    found = metrics_without_leaks(np.zeros((2, 2)), np.array([[0, 1]] * 2), np.array([1, 2]), np.array([True, True]))
    assert found == {"num_leaked_rows": 2, "num_pairs_without_leaks": 0}


def test_padded_lists_are_measured():
    rewards = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 0.0]])
    ranks = np.array([[0, 1, 2], [0, 1, -100]])
    found = metrics_without_leaks(rewards, ranks, np.array([1, 2]), np.array([False, False]))
    assert (found["accuracy_without_leaks"], found["num_pairs_without_leaks"]) == (0.75, 4)


# --- logging ---------------------------------------------------------------------------------------------------------


def test_the_warning_counts_and_names_each_set(caplog):
    train = prepared([1, 2], [10, 20])
    with caplog.at_level(logging.WARNING, logger="hf_reward.metrics.leakage"):
        warn_about_leaks(train, {"clean": prepared([3], [30]), "seen": prepared([1, 3, 4], [11, 20, 40])})
    (record,) = caplog.records
    text = record.getMessage()
    assert (
        "2 of 3 rows of the evaluation data 'seen' occur in training (1 by prompt group, 1 by identical content)"
        in text
    )


def test_streams_are_reported_as_unknown(caplog):
    train = prepared([1], [10])
    with caplog.at_level(logging.WARNING, logger="hf_reward.metrics.leakage"):
        warn_about_leaks(train.to_iterable_dataset(), prepared([1], [10]))
        warn_about_leaks(train, None)
        warn_about_leaks(None, train)
    assert [record.getMessage() for record in caplog.records] == [
        "Streams cannot be searched for rows that occur both in training and in the evaluation data, so no accuracy "
        "without leaks is reported. To check for leaks, run `hf-reward check-data` on files."
    ]


# --- in the trainer --------------------------------------------------------------------------------------------------


def test_the_trainer_warns_and_measures_the_other_rows(scorer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_reward.metrics.leakage"):
        trainer = scorer(pairs(0, 12), pairs(8, 12), per_device_eval_batch_size=5)
    assert (
        "4 of 12 rows of the evaluation data occur in training (4 by prompt group, 4 by identical content)"
        in caplog.text
    )
    metrics = trainer.evaluate()
    clean = trainer.evaluate(pairs(12, 8))
    assert metrics["eval_num_leaked_rows"] == 4
    assert metrics["eval_num_pairs_without_leaks"] == 8
    assert metrics["eval_accuracy_without_leaks"] == pytest.approx(clean["eval_accuracy"])
    for side in ("low", "high"):
        assert metrics[f"eval_accuracy_without_leaks_ci_{side}"] == pytest.approx(clean[f"eval_accuracy_ci_{side}"])
    assert "eval_accuracy_without_leaks" not in clean
    assert trainer.evaluate()["eval_num_leaked_rows"] == 4  # the evaluation in between has no effect


def test_rows_out_of_order_are_matched_to_their_rewards(scorer):
    """With length buckets, the order of evaluation differs from the order of the data."""
    held = [{**row, "chosen": row["chosen"] + " indeed" * (place * 5 % 7)} for place, row in enumerate(pairs(0, 20))]
    train = [row for place, row in enumerate(held) if place % 3 == 0]
    trainer = scorer(train, held, length_bucketing="true", per_device_eval_batch_size=3)
    found = trainer.evaluate()
    rest = trainer.evaluate([row for place, row in enumerate(held) if place % 3])
    assert found["eval_num_leaked_rows"] == 7
    assert found["eval_accuracy_without_leaks"] == pytest.approx(rest["eval_accuracy"])


def test_predict_and_each_of_several_sets_are_measured(scorer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_reward.metrics.leakage"):
        trainer = scorer(pairs(0, 8), {"seen": pairs(4, 8), "new": pairs(20, 8)})
    assert "4 of 8 rows of the evaluation data 'seen'" in caplog.text
    assert "'new'" not in caplog.text
    metrics = trainer.evaluate()
    assert metrics["eval_seen_num_leaked_rows"] == 4
    assert "eval_new_num_leaked_rows" not in metrics
    assert trainer.predict(pairs(6, 6)).metrics["test_num_leaked_rows"] == 2
    assert "test_num_leaked_rows" not in trainer.predict(pairs(40, 6)).metrics


def test_equal_content_is_found_although_the_users_groups_differ(scorer):
    train = [{**row, "group": f"a{place}"} for place, row in enumerate(pairs(0, 8))]
    held = [{**row, "group": f"b{place}"} for place, row in enumerate(pairs(4, 8))]
    trainer = scorer(train, held)
    assert trainer.evaluate()["eval_num_leaked_rows"] == 4
    assert trainer.predict(held).metrics["test_num_leaked_rows"] == 4


def test_without_shared_rows_nothing_is_logged(scorer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_reward.metrics.leakage"):
        trainer = scorer(pairs(0, 8), pairs(8, 8))
    assert not [record for record in caplog.records if record.name == "hf_reward.metrics.leakage"]
    assert not [name for name in trainer.evaluate() if "leak" in name]


def test_a_completely_leaked_set_has_no_accuracy_without_leaks(scorer):
    trainer = scorer(pairs(0, 8), pairs(0, 8))
    metrics = trainer.evaluate()
    assert (metrics["eval_num_leaked_rows"], metrics["eval_num_pairs_without_leaks"]) == (8, 0)
    assert "eval_accuracy_without_leaks" not in metrics


def test_the_record_keeps_it(scorer):
    trainer = scorer(pairs(0, 8), pairs(4, 8))
    trainer.evaluate()
    assert trainer.record().evaluation["num_leaked_rows"] == 4
    assert 0 <= trainer.record().evaluation["accuracy_without_leaks"] <= 1
