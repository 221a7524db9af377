"""The study of docs/guides/judges.md: a calibrated judge of the stated accuracy, and its students."""

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


def test_the_judge_has_its_accuracy_and_is_calibrated(study):
    shares = study.judge_probabilities(200_000, 0.75, seed=0)
    assert (shares > 0.5).mean() == pytest.approx(0.75, abs=0.005)
    # Of the verdicts that have a probability of about 0.8, about 0.8 are right.
    sure = np.maximum(shares, 1 - shares)
    near = np.abs(sure - 0.8) < 0.02
    assert (shares[near] > 0.5).mean() == pytest.approx(0.8, abs=0.01)


def test_the_differences_are_paired_and_clustered(study):
    gaps = {name: np.zeros((4, 2)) for name in study.STUDENTS}
    gaps[study.PROBABILITIES] = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    found = study.evaluate(gaps, ["a", "a", "b", "b"])
    losses = np.log1p(np.exp(-np.array([1, 1, 1, 2])))
    assert found[study.PROBABILITIES]["log_loss"] == pytest.approx(losses.mean())
    assert found[study.PROBABILITIES]["difference"] == pytest.approx(losses.mean() - np.log(2))
    assert found[study.PROBABILITIES]["accuracy"] == 1.0
    assert found[study.VERDICTS]["difference"] == 0.0
    assert found[study.VERDICTS]["accuracy"] == 0.5


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
    assert found[study.HUMAN]["accuracy"] > 0.9  # good and bad answers are easy to tell apart
    assert all(len(each["by_seed"]) == 3 for each in found.values())
    assert "60 held-out pairs of 6 prompts" in capsys.readouterr().out
