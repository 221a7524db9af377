"""The study of docs/guides/judges.md: a scripted judge with known noise, and its students."""

import json
from pathlib import Path

import numpy as np
import pytest

RECIPES = Path(__file__).parents[2] / "recipes" / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import distillation

    return distillation


def test_scripted_rewards_are_hand_computed(study):
    assert study.scripted_reward("one two three Four") == 2.0  # log2(4), no repeated word
    assert study.scripted_reward("no No no no") == pytest.approx(2 - 2 * 3 / 4)


def test_labels_of_one_judge_agree(study):
    truth = np.random.default_rng(1).normal(0, 2, 100_000)
    shares, votes, verdicts = (study.judge_labels(name, truth, 0.5, seed=0) for name in study.STUDENTS)
    assert np.log(shares / (1 - shares)) - truth == pytest.approx(0, abs=4)
    assert np.std(np.log(shares / (1 - shares)) - truth) == pytest.approx(0.5, abs=0.01)
    near = np.abs(shares - 0.8) < 0.02
    assert votes[near].mean() == pytest.approx(0.8, abs=0.01)
    assert verdicts[near].mean() == 1.0
    assert set(votes) == set(verdicts) == {0.0, 1.0}


def test_expected_losses_are_hand_computed(study):
    truth = np.log(3.0) * np.array([1, 1, -1, -1])  # P(first is better) = 3/4 or 1/4
    gaps = {name: np.zeros((4, 2)) for name in study.STUDENTS}
    gaps[study.PROBABILITIES] = np.stack([truth, truth], axis=1)
    found = study.evaluate(gaps, truth, ["a", "a", "b", "b"])
    best = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert found[study.PROBABILITIES]["log_loss"] == pytest.approx(best)
    assert found[study.PROBABILITIES]["excess"] == pytest.approx(0)
    assert found[study.PROBABILITIES]["agreement"] == 1.0
    assert found[study.VOTES]["difference"] == pytest.approx(np.log(2) - best)
    assert found[study.VOTES]["agreement"] == 0.0


def test_the_table_is_written(study, make_model_folder, tmp_path, capsys):
    rows = [
        {"prompt": f"Which {n % 6}?", "chosen": f"A good answer {n}.", "rejected": f"No {n * 7 % 5}"} for n in range(60)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--base", str(make_model_folder("llama")), "--data", str(data), "--out", str(tmp_path / "out")]
    study.main([*words, "--layers", "1", "--epochs", "20"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())["students"]
    assert list(found) == list(study.STUDENTS)
    assert found[study.PROBABILITIES]["agreement"] > 0.9  # the better responses are easy to tell apart
    assert all(len(each["by_seed"]) == 3 for each in found.values())
    assert "60 held-out pairs of 6 prompts" in capsys.readouterr().out
