"""Metrics as `evaluate` modules: loaded offline by path, in batches, combined, and in several processes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from hf_reward.evaluation.evaluate_modules import NAMES, load_metric, metric_path
from hf_reward.metrics.best_of_n import best_of_n_curve
from hf_reward.metrics.calibration import calibration_metrics
from hf_reward.metrics.preference import preference_metrics

RANDOM = np.random.default_rng(0)
CHOSEN, REJECTED = RANDOM.normal(0.5, 1, 120), RANDOM.normal(0, 1, 120)
GROUPS = list(range(60)) * 2
STYLES = {"chosen": [[1.0, 2.0, 3.0]], "rejected": [[0.0, 2.0, 9.0]], "domain": ["chat"]}
INPUTS: dict[str, dict[str, Any]] = {
    "preference_accuracy": {"chosen": CHOSEN, "rejected": REJECTED},
    "preference_calibration": {"chosen": CHOSEN, "rejected": REJECTED},
    "best_of_n": {"rewards": [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], "gold": [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]},
    "length_baseline": {"chosen_texts": ["longer", "a", "same"], "rejected_texts": ["long", "ab", "mase"]},
    "rm_bench": STYLES,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_loads_offline_by_path(name: str) -> None:
    for metric in (load_metric(name), evaluate.load(str(metric_path(name)))):
        assert isinstance(metric, evaluate.Metric)
        assert metric.description
        assert metric.inputs_description.startswith("\nArgs:")
        assert metric.compute(**INPUTS[name])
    file = metric_path(name) / f"{name}.py"
    assert evaluate.load(str(file)).compute(**INPUTS[name])


@pytest.mark.parametrize("name", NAMES)
def test_batches_equal_one_call(name: str) -> None:
    metric, inputs = load_metric(name), INPUTS[name]
    at_once = metric.compute(**inputs)
    count = len(next(iter(inputs.values())))
    for start in range(0, count, 50):
        metric.add_batch(**{key: value[start : start + 50] for key, value in inputs.items()})
    assert metric.compute() == at_once
    assert metric.compute(**inputs) == at_once


@pytest.mark.parametrize("name", NAMES)
def test_metrics_work_in_memory_and_pickle(name: str) -> None:
    metric = load_metric(name, keep_in_memory=True)
    again = pickle.loads(pickle.dumps(metric))
    assert again.compute(**INPUTS[name]) == metric.compute(**INPUTS[name])


def test_metrics_are_thin_over_the_pure_functions() -> None:
    rewards, ranks = np.stack([CHOSEN, REJECTED], axis=1), np.tile([0, 1], (120, 1))
    expected = preference_metrics(rewards, ranks, groups=np.array(GROUPS))
    found = load_metric("preference_accuracy").compute(chosen=CHOSEN, rejected=REJECTED, groups=GROUPS)
    assert found == {name: expected[name] for name in found}
    assert found["num_prompts"] == 60
    gaps = CHOSEN - REJECTED
    found = load_metric("preference_calibration").compute(chosen=CHOSEN, rejected=REJECTED, groups=GROUPS)
    assert found == calibration_metrics(gaps, np.array(GROUPS))
    curve = load_metric("best_of_n").compute(**INPUTS["best_of_n"])
    expected = best_of_n_curve(np.array(INPUTS["best_of_n"]["rewards"]), np.array(INPUTS["best_of_n"]["gold"]))
    assert curve["best_of_n"] == pytest.approx(expected.mean(axis=0))
    assert curve["oracle_gap"] == pytest.approx(1 - curve["end"])


def test_length_baseline_by_hand() -> None:
    found = load_metric("length_baseline").compute(**INPUTS["length_baseline"])
    assert (found["length_baseline"], found["equal_length_rate"]) == (0.5, pytest.approx(1 / 3))


def test_rm_bench_equals_the_original_code() -> None:
    case = json.loads((Path(__file__).parent / "golden.json").read_text())["rm_bench"]
    rows = case["results"]
    found = load_metric("rm_bench").compute(
        chosen=[each["score_chosen"] for each in rows],
        rejected=[each["score_rejected"] for each in rows],
        domain=[each["domain"] for each in rows],
    )
    assert found["overall"] == pytest.approx(case["expected"]["total_avg_acc"], abs=1e-9)
    assert found["hard"] == pytest.approx(case["expected"]["hard_acc"], abs=1e-9)


def test_combined_as_instances_and_as_paths() -> None:
    inputs = {"chosen": CHOSEN, "rejected": REJECTED, "groups": GROUPS}
    names = ("preference_accuracy", "preference_calibration")
    alone: dict[str, Any] = {}
    for name in names:
        alone |= load_metric(name).compute(**inputs)
    for parts in ([load_metric(name) for name in names], [str(metric_path(name)) for name in names]):
        found = evaluate.combine(parts).compute(**inputs)
        assert found["accuracy"] == alone["accuracy"]
        assert found["num_prompts"] == 60
        assert found["slope_ci_low"] == alone["slope_ci_low"]  # both got the groups
    texts = {"chosen_texts": ["aa"] * 120, "rejected_texts": ["a"] * 120}
    both = evaluate.combine([load_metric("preference_accuracy"), load_metric("length_baseline")])
    assert both.compute(**inputs, **texts)["length_baseline"] == 1.0


@pytest.mark.slow
def test_the_first_of_two_processes_gets_the_result_of_both(tmp_path: Path) -> None:
    program = (
        "import json, sys; from hf_reward.evaluation.evaluate_modules import load_metric; rank = int(sys.argv[1]); "
        "metric = load_metric('preference_accuracy', num_process=2, process_id=rank, experiment_id='both', "
        "cache_dir=sys.argv[2]); "
        "metric.add_batch(chosen=[1.0, 2.0 + rank], rejected=[0.0, 2.5]); print(json.dumps(metric.compute()))"
    )
    command = [sys.executable, "-c", program]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE) for rank in range(2)]
    found = [json.loads(each.communicate(timeout=100)[0].splitlines()[-1]) for each in ranks]
    assert found[1] is None
    assert (found[0]["accuracy"], found[0]["num_pairs"]) == (0.75, 4)


def test_rewards_keep_double_precision() -> None:
    # 32 bits would make these two a tie.
    found = load_metric("preference_accuracy").compute(chosen=[1.0 + 1e-12], rejected=[1.0])
    assert (found["accuracy"], found["tie_rate"]) == (1.0, 0.0)


def test_unusable_inputs_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"There is no metric 'accuracy'. Available: preference_accuracy"):
        load_metric("accuracy")
    with pytest.raises(ValueError, match="Rewards must be finite, but 1 row "):
        load_metric("preference_accuracy").compute(chosen=[float("nan")], rejected=[0.0])
    with pytest.raises(ValueError, match="the same number of responses"):
        load_metric("best_of_n").compute(rewards=[[1.0], [1.0, 2.0]], gold=[[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"`domain` must be one of"):
        load_metric("rm_bench").compute(**{**STYLES, "domain": ["poetry"]})
    with pytest.raises(ValueError, match="There are no pairs"):
        load_metric("length_baseline").compute(chosen_texts=[], rejected_texts=[])
