"""The study of length-bias mitigations: each model is trained once, one is corrected, and the table is filled."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_length_penalty import longer_is_better

from hf_reward import CheckpointRecord

RECIPES = Path(__file__).parents[2] / "recipes" / "studies"
SETTINGS = ["--", "--use_cpu", "true", "--max_steps", "1", "--plot_curves", "false", "--max_length", "128"]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import length_mitigations
    import train

    monkeypatch.setattr(length_mitigations, "run_training", train.main)
    return length_mitigations


def test_training_runs_the_recipe_in_a_separate_process(monkeypatch):
    import length_mitigations

    commands = []
    monkeypatch.setattr(length_mitigations.subprocess, "run", lambda command, check: commands.append(command))
    length_mitigations.run_training(["--seed", "1"])
    [[_, script, *words]] = commands
    assert Path(script).is_file()
    assert (Path(script).name, words) == ("train.py", ["--seed", "1"])


@pytest.mark.slow
def test_every_variant_is_trained_once_and_measured(study, make_model_folder, tmp_path, capsys, monkeypatch):
    for name, rows in (("train", longer_is_better(120)), ("test", longer_is_better(30, seed=1))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--train_data", str(tmp_path / "train.jsonl"), "--eval_data", str(tmp_path / "test.jsonl")]
    words = ["--base", str(make_model_folder("llama")), *data, "--out", str(tmp_path / "out"), "--max_train_rows", "60"]
    seen = []

    def measure(folder, data, corrected):
        assert data == [str(tmp_path / "test.jsonl")]
        seen.append((folder.name, corrected))
        return {"padding": 0.5}

    monkeypatch.setattr(study, "measure", measure)
    study.main([*words, "--length_penalty", "2", *SETTINGS])
    names = ["none", "length_penalty=2", "balance_lengths", "posthoc"]
    assert seen == [("none", False), ("length_penalty_2", False), ("balance_lengths", False), ("none", True)]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == names
    assert all(found["padding"] == 0.5 and found["num_pairs"] == 30 for found in results.values())
    assert results["posthoc"]["correlation"] != results["none"]["correlation"]
    record = CheckpointRecord.load(tmp_path / "out" / "none")
    assert record is not None
    assert record.length_correction["data"] == "training data not used for training"
    assert record.length_correction["num_responses"] == 120
    balanced = CheckpointRecord.load(tmp_path / "out" / "balance_lengths")
    assert balanced is not None
    assert balanced.training["data"]["train"]["rows"] == 60
    monkeypatch.setattr(study, "run_training", lambda words: pytest.fail("trained again"))
    study.main([*words, "--length_penalty", "2", *SETTINGS])
    assert "none: already trained" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="trained with other settings"):
        study.main([*words, "--length_penalty", "2", *SETTINGS, "--learning_rate", "1"])
    assert np.isfinite(results["none"]["accuracy"])


def test_settings_that_differ_between_variants_are_rejected(study, capsys):
    words = ["--base", "b", "--train_data", "t", "--eval_data", "e", "--out", "o", "--", "--seed", "3"]
    with pytest.raises(SystemExit):
        study.read_options(words)
    assert "--seed after `--`" in capsys.readouterr().err
