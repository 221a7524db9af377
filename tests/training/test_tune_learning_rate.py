"""The search for learning rates: every trial on the same held-out prompts, resumable, with one table."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_expit

RECIPES = Path(__file__).parents[2] / "recipes" / "studies"
pytest.importorskip("optuna")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import tune_learning_rate

    return tune_learning_rate


@pytest.fixture
def words(make_model_folder, tmp_path) -> list[str]:
    rows = [
        {"prompt": f"Which {n // 2}?", "chosen": f"A good answer {n}.", "rejected": f"No {n * 7 % 5}"}
        for n in range(48)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = ["--model_name_or_path", str(make_model_folder("llama")), "--train_data", str(data), "--use_cpu", "true"]
    return ["--out", str(tmp_path / "out"), "--", *run, "--max_steps", "3", "--max_length", "64"]


def with_options(words: list[str], *options: str) -> list[str]:
    return [*options, *words]


def results(words: list[str]) -> dict[str, Any]:
    return json.loads((Path(words[words.index("--out") + 1]) / "results.json").read_text())


GRID = ("--learning_rates", "1e-3", "--head_learning_rates", "1e-3", "1e-1")


def test_two_trials_share_the_held_out_prompts_and_the_table_has_both(study, words, capsys):
    study.main(with_options(words, *GRID))
    found = results(words)
    first, second = found["trials"]
    assert {first["head_learning_rate"], second["head_learning_rate"]} == {1e-3, 1e-1}
    assert first["log_loss"] <= second["log_loss"]
    assert found["chosen"] == {name: first[name] for name in study.RATES}
    out = Path(words[1])
    files = [np.load(out / f"trial_{each['trial']}.npz") for each in (first, second)]
    assert (files[0]["prompts"] == files[1]["prompts"]).all()
    assert len(files[0]["gaps"]) == 10  # a fifth of 24 prompts with two pairs each
    for row, file in zip((first, second), files, strict=True):
        assert row["log_loss"] == pytest.approx(-log_expit(file["gaps"]).mean(), abs=1e-6)
        assert row["accuracy"] == pytest.approx((file["gaps"] > 0).mean())
    assert second["difference"] == pytest.approx(second["log_loss"] - first["log_loss"])
    low, high = second["difference_ci"]
    assert (low + high) / 2 == pytest.approx(second["difference"], abs=1e-6)
    assert not [path for path in out.iterdir() if path.is_dir()]  # no model is kept
    shown = capsys.readouterr().out
    assert "at the edge of the searched values" in shown
    assert f"head_learning_rate: {first['head_learning_rate']:.3g}" in shown.splitlines()[-1]


# --- without models ---


@pytest.fixture
def valley(study, words, monkeypatch):
    """A search whose log loss is known: lowest at 1e-4 and 1e-2, infinite above a rate of 1."""
    measured: list[tuple[float, ...]] = []

    def measure(search, rates, file):
        measured.append(tuple(rates))
        if rates[1] > 1:
            return {"log_loss": math.inf, "seconds": 1.0}
        loss = 0.5 + 0.1 * math.log10(rates[0] / 1e-4) ** 2 + 0.1 * math.log10(rates[1] / 1e-2) ** 2
        gap = math.log(math.exp(-loss) / (1 - math.exp(-loss)))
        np.savez(file, gaps=gap + np.linspace(-0.01, 0.01, 40), prompts=np.arange(40))
        return {"log_loss": loss, "accuracy": 0.7, "std_reward": 1.0, "seconds": 1.0}

    monkeypatch.setattr(study, "measure", measure)
    return measured


def test_a_grid_resumes_and_grows(study, words, valley, capsys):
    rates = ("--learning_rates", "1e-5", "1e-4", "--head_learning_rates", "1e-3", "1e-2")
    study.main(with_options(words, *rates))
    assert valley == [(1e-5, 1e-3), (1e-5, 1e-2), (1e-4, 1e-3), (1e-4, 1e-2)]
    capsys.readouterr()
    study.main(with_options(words, *rates))
    assert len(valley) == 4
    assert "The chosen learning_rate 0.0001 is at the edge of the searched values: add higher ones." in (
        capsys.readouterr().out
    )
    study.main(with_options(words, *rates[:3], "1e-3", *rates[3:], "1e-1"))
    assert len(valley) == 9
    assert results(words)["chosen"] == {"learning_rate": 1e-4, "head_learning_rate": 1e-2}
    assert results(words)["edges"] == []
    assert "0 of the other 8 trials have a difference whose interval includes 0." in capsys.readouterr().out


def test_an_interrupted_trial_runs_again(study, words, valley, monkeypatch):
    measure = study.measure
    calls = iter(range(10))

    def stopped(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(study, "measure", stopped)
    rates = ("--learning_rates", "1e-4", "--head_learning_rates", "1e-3", "1e-2", "1e-1")
    with pytest.raises(KeyboardInterrupt):
        study.main(with_options(words, *rates))
    study.main(with_options(words, *rates))
    assert valley == [(1e-4, 1e-3), (1e-4, 1e-2), (1e-4, 1e-1)]
    assert len(results(words)["trials"]) == 3


def test_a_stopped_search_draws_the_same_values_as_one_that_was_not_stopped(study, words, valley, tmp_path):
    space = ("--learning_rates", "1e-6", "1e-2", "--head_learning_rates", "1e-4", "1e-1", "--sampler", "tpe")
    study.main(with_options(words, *space, "--trials", "8"))
    whole = valley.copy()
    valley.clear()
    other = ["--out", str(tmp_path / "other"), *words[2:]]
    for count in ("3", "7", "8"):
        study.main(with_options(other, *space, "--trials", count))
    assert valley == whole
    assert len(set(whole)) == 8
    assert all(1e-6 <= rate <= 1e-2 and 1e-4 <= head <= 1e-1 for rate, head in whole)


def test_a_diverged_trial_is_the_last_of_the_table(study, words, valley, capsys):
    study.main(with_options(words, "--learning_rates", "1e-4", "--head_learning_rates", "1e-2", "10"))
    assert "diverged" in capsys.readouterr().out
    last = results(words)["trials"][-1]
    assert (last["head_learning_rate"], last["log_loss"], last["difference"]) == (10, None, None)
    with pytest.raises(SystemExit, match="became infinite in every trial"):
        study.main(["--out", f"{words[1]}-2", "--head_learning_rates", "10", *words[2:]])


def test_trials_of_another_run_are_refused(study, words, valley):
    study.main(with_options(words, *GRID))
    with pytest.raises(SystemExit, match="has trials of a run with other settings"):
        study.main([*with_options(words, *GRID), "--seed", "1"])
    with pytest.raises(SystemExit, match="has trials of a run with other settings"):
        study.main(with_options(words, *GRID, "--test_size", "0.4"))


def test_a_frozen_backbone_has_one_rate_to_search(study, words, valley):
    frozen = [*words, "--freeze_backbone", "true", "--learning_rate", "1e-3"]
    study.main(frozen)
    assert valley == [(1e-3, 1e-3), (1e-3, 1e-2), (1e-3, 1e-1)]
    assert results(words)["edges"] == []
    with pytest.raises(SystemExit, match=r"trains the head only\. Leave out --learning_rates"):
        study.main(with_options(frozen, "--learning_rates", "1e-4"))


def test_evaluation_rows_are_left_for_the_chosen_model(study, words, valley, capsys):
    study.main([*with_options(words, *GRID), "--eval_data", "nowhere.jsonl"])
    assert "`eval_data` is not read; training rows are held out instead." in capsys.readouterr().out
    assert results(words)["settings"]["test_size"] == 0.2


def test_default_values_surround_those_of_the_run(study, words, valley):
    study.main([*words, "--learning_rate", "3e-4"])
    assert sorted({rate for rate, _ in valley}) == pytest.approx([1e-4, 3e-4, 9e-4])
    assert sorted({head for _, head in valley}) == pytest.approx([3e-4, 3e-3, 3e-2])
    valley.clear()
    other = ["--out", f"{words[1]}-2", *words[2:]]
    study.main([*other, "--freeze_backbone", "true", "--head_learning_rate", "3e-3"])
    assert sorted({head for _, head in valley}) == pytest.approx([1e-3, 3e-3, 9e-3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "o", "--", "--output_dir=x"], "--output_dir has no effect"),
        (["--out", "o", "--learning_rates", "0"], "learning rates must be above 0, but 0 is not"),
        (["--out", "o", "--sampler", "random"], "invalid choice"),
    ],
)
def test_wrong_options(study, options, message, capsys):
    with pytest.raises(SystemExit):
        study.main(options)
    assert message in capsys.readouterr().err
