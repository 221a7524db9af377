"""The study that compares trained models with TRL's: the pairs of settings, their differences, and the figure."""

import json
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).parents[2] / "recipes" / "studies"


@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import trl_comparison
    import trl_figure

    return trl_comparison, trl_figure


def entry(side, gaps, *, epochs=1.0, seed=0, seconds=10.0, rate=1e-4):
    run = {"kind": "full", "rate": rate, "epochs": epochs, "seed": seed, "side": side}
    return {"run": run, "held out": {"gaps": gaps, "std": 1.0}, "seconds": seconds}


PROMPTS = ["a", "a", "b", "b"]


def test_differences_are_ours_minus_trl_at_equal_rates(studies):
    comparison, _ = studies
    entries = [
        entry("hf_reward", [1.0, 1.0, 1.0, -1.0]),
        entry("TRL", [1.0, -1.0, 0.0, -1.0], seconds=25.0),
        entry("TRL", [-1.0] * 4, epochs=0.5, seconds=12.0),
        entry("TRL", [1.0] * 4, rate=1e-3),
    ]
    epochs, time = comparison.differences(comparison.cells_of(entries, "held out"), PROMPTS)[::-1]
    assert (epochs["TRL epochs"], time["TRL epochs"]) == (1.0, 0.5)
    assert (epochs["TRL time"], time["TRL time"]) == (2.5, 1.2)
    assert epochs["accuracy"][0] == pytest.approx(0.75 - 0.375)  # a tie counts one half
    assert time["accuracy"][0] == pytest.approx(0.75)
    losses = [np.logaddexp(0, -np.array(gaps)).mean() for gaps in ([1, 1, 1, -1], [1, -1, 0, -1])]
    assert epochs["log loss"][0] == pytest.approx(losses[0] - losses[1])
    assert epochs["log loss"][1] < epochs["log loss"][0] < epochs["log loss"][2]


def test_only_seeds_of_both_sides_are_compared(studies):
    comparison, _ = studies
    entries = [
        entry("hf_reward", [1.0] * 4),
        entry("hf_reward", [-1.0] * 4, seed=1),
        entry("TRL", [-1.0] * 4),
    ]
    (found,) = comparison.differences(comparison.cells_of(entries, "held out"), PROMPTS)
    assert (found["seeds"], found["accuracy"][0]) == (1, 1.0)


def test_the_figure_marks_what_is_worse_than_the_tolerance(studies, tmp_path):
    comparison, figure = studies
    entries = [entry("hf_reward", [1.0, 2.0, 1.0, -1.0]), entry("TRL", [1.0, -1.0, 0.0, -1.0])]
    found = comparison.differences(comparison.cells_of(entries, "held out"), PROMPTS)
    file = tmp_path / "runs.differences.json"
    file.write_text(json.dumps({"held out": found, "transfer": found}), encoding="utf-8")
    figure.main(["--out", str(tmp_path / "figure.svg"), f"Data={file}"])
    assert (tmp_path / "figure.svg").read_text().startswith("<svg")
    lines = figure.lines_of("Data", str(file))
    assert [line["label"] for line in lines] == ["Data: full, 1e-04", "Data, transfer: full, 1e-04"]
    accuracy, log_loss = figure.draw(lines).axes[:2]
    assert accuracy.patches[0].get_x() + accuracy.patches[0].get_width() == pytest.approx(-0.02)
    assert log_loss.patches[0].get_x() == pytest.approx(0.01)
