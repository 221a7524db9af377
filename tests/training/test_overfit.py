"""`overfit_one_batch`: it passes for a model that learns, explains a failure, and does not change its arguments."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from test_health_callback import polite_pairs
from training_runs import load, make_trainer, settings, weights

from hf_reward import overfit_one_batch
from hf_reward.training.overfit import OverfitReport


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_a_model_that_can_learn_passes(make_model_folder, tmp_path, arch):
    folder = make_model_folder(arch)
    report = overfit_one_batch(str(folder), settings(tmp_path / "run", learning_rate=3e-3), polite_pairs(32))
    assert report.passed, str(report)
    assert report.accuracy == 1
    assert report.end_loss < 0.1 < report.start_loss
    assert report.rows == list(range(8))
    assert report.advice == []
    assert not (tmp_path / "run").exists()


def test_lora_passes_and_the_arguments_are_unchanged(make_model_folder, tmp_path):
    model = load(make_model_folder("llama"))
    args, rows = settings(tmp_path / "run", learning_rate=1e-2, label_smoothing=0.2), polite_pairs(16)
    before, given_args, given_rows = weights(model), copy.deepcopy(args.to_dict()), copy.deepcopy(rows)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    report = overfit_one_batch(model, args, rows, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert report.passed, str(report)
    assert weights(model).keys() == before.keys()  # no adapter was added to it
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert args.to_dict() == given_args
    assert rows == given_rows
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_self_test_does_not_change_the_training_of_a_trainer(make_model_folder, tmp_path, when):
    folder = make_model_folder("llama")
    options: dict[str, Any] = {"learning_rate": 3e-3, "max_steps": 6, "gradient_accumulation_steps": 2, "seed": 3}
    plain = make_trainer(folder, polite_pairs(64), tmp_path / "plain", **options)
    plain.train()
    tested = make_trainer(folder, polite_pairs(64), tmp_path / "tested", **options)
    if when == "after":
        tested.train()
    report = overfit_one_batch(tested)
    assert report.passed, str(report)  # for a trained trainer too: the forward of the copy ran, not the original's
    if when == "before":
        tested.train()
    assert all(torch.equal(value, weights(plain.model)[name]) for name, value in weights(tested.model).items())


def failed(folder: Any, rows: Any, tmp_path: Any, steps: int = 12, **changes: Any) -> OverfitReport:
    report = overfit_one_batch(
        str(folder), settings(tmp_path / "run", **{"learning_rate": 3e-3, **changes}), rows, steps=steps
    )
    assert not report.passed
    return report


def test_a_learning_rate_of_zero_fails_with_advice(make_model_folder, tmp_path):
    report = failed(make_model_folder("llama"), polite_pairs(8), tmp_path, learning_rate=0.0)
    assert report.start_loss == report.end_loss
    assert report.steps == 12
    [advice] = report.advice
    assert advice.startswith("No weight changed: `learning_rate` is 0.0")
    assert "FAILED" in str(report)
    assert advice in str(report)


def test_contradictory_rows_are_named(make_model_folder, tmp_path):
    rows = polite_pairs(6)
    rows += [{**rows[4], "chosen": rows[4]["rejected"], "rejected": rows[4]["chosen"]}]
    report = failed(make_model_folder("llama"), rows, tmp_path, steps=40)
    [advice] = report.advice
    assert advice.startswith("The data rows [4, 6] contradict each other")
    assert report.accuracy < 1


def test_a_learning_rate_that_is_too_high_or_too_low_is_recognised(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    slow = failed(folder, polite_pairs(8), tmp_path, learning_rate=1e-6, head_learning_rate=1e-6)
    assert "falls too slowly" in slow.advice[0]
    assert "too high" in failed(folder, polite_pairs(8), tmp_path, learning_rate=1.0).advice[0]


def test_rows_without_a_preference_are_refused(make_model_folder, tmp_path):
    ties = [{"prompt": "a", "responses": ["b", "c"], "ranks": [0, 0]}] * 3
    args = settings(tmp_path / "run", loss_type="davidson")
    with pytest.raises(ValueError, match="None of the first 3 training rows states a preference"):
        overfit_one_batch(str(make_model_folder("llama")), args, ties)
    same = [{**row, "rejected": row["chosen"]} for row in polite_pairs(3)]
    with pytest.raises(ValueError, match="3 identical responses"):
        overfit_one_batch(str(make_model_folder("llama", "same")), settings(tmp_path / "run"), same)
    for useless in ({"rows": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="`rows` and `steps` must be 1 or more"):
            overfit_one_batch("unused", **useless)
    with pytest.raises(ValueError, match="needs rows"):
        overfit_one_batch(str(make_model_folder("llama", "again")), args)


def test_the_entropy_of_stated_probabilities_is_added_to_the_limit_of_the_loss(make_model_folder, tmp_path):
    rows = [
        {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"], "probability": 0.9}
        for row in polite_pairs(8)
    ]
    args = settings(tmp_path / "run", learning_rate=3e-3)
    report = overfit_one_batch(str(make_model_folder("llama")), args, rows, loss_below=0.02)
    assert report.passed, str(report)
    assert report.end_loss > 0.325  # the entropy of 0.9
