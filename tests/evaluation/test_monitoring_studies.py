"""The studies of the reward monitor, and the Python examples of its guide."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reward_monitor_null as null
import reward_monitor_outcome as study
import reward_monitor_runs as runs

from hf_reward import MonitoredReward, RewardMonitor

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "reward-hacking.md"


def entry(seed: int = 0, growth: float = 1.0, speed: str = "medium") -> dict[str, Any]:
    """A run whose quality falls linearly from 1 to 0 between the steps 10 and 50, while the length grows."""
    random = np.random.default_rng(seed)
    steps = [
        [
            [place // 8, length, 0.0, 0.0, 0.0, 0.0, 0.1 * length + random.normal()]
            for place, length in enumerate((random.integers(20, 40, 64) + int(growth * max(0, step - 10))).tolist())
        ]
        for step in range(60)
    ]
    quality = [1 - min(max(step - 10, 0) / 40, 1) for step in range(60)]
    return {"run": {"arm": "hacked", "seed": seed, "speed": speed}, "steps": steps, "quality": quality}


def test_half_of_the_regret_and_the_first_warning():
    found = study.outcome_of(entry())
    assert (found.peak, found.half) == (0, 30)
    assert found.lowest == pytest.approx(52, abs=1)
    warned = found.warned_at("length")
    assert warned is not None
    assert 10 < warned < 30
    assert found.lost_at(30) == pytest.approx(0.5)
    assert found.lost_at(0) == 0
    without = study.outcome_of(entry() | {"quality": [1.0] * 60})
    assert without.half is None, "no regret"
    assert study.outcome_of(entry(), prompts=2).monitor.history[0]["responses"] == 16


def test_means_at_the_ends_are_over_fewer_steps():
    assert study.smoothed(np.array([0.0, 3.0, 6.0, 9.0])).tolist() == [3.0, 4.5, 4.5, 6.0]


def test_tables_and_figure(tmp_path, capsys):
    file = tmp_path / "hacked.jsonl"
    rows = [entry(seed, speed=speed) for seed, speed in enumerate(runs.SPEEDS)]
    rows.append({**entry(9, growth=0.0), "run": {"arm": "frozen", "seed": 9, "speed": "slow"}})
    file.write_text("".join(json.dumps(each) + "\n" for each in [*rows, {"kind": "independent"}]))
    runs.main(["table", str(file), "--figure", str(tmp_path / "figure.svg")])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| all |")]
    assert "| 3 | 3 | 3 of 3 (29 to 100%) | 3 of 3 (29 to 100%) | 30 |" in row
    assert any(line.startswith("| frozen, `min_association=0.3` | 1 | 0 (0 to 98%) | 0 (0 to 98%)") for line in lines)
    assert "half of the regret" in (tmp_path / "figure.svg").read_text()


def test_the_simulation_of_false_alarms(tmp_path, capsys):
    words = ["--streams", "2", "--only", "sorted", "texts", "--out", str(tmp_path / "null.jsonl")]
    null.main(words)
    first = capsys.readouterr().out
    assert "| sorted | 2 | 100.0%" in first
    null.main(words)
    assert capsys.readouterr().out == first
    assert len((tmp_path / "null.jsonl").read_text().splitlines()) == 2, "kinds in the file are not simulated again"


@pytest.mark.slow
@pytest.mark.interop
def test_a_run_of_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 2)
    file = tmp_path / "hacked.jsonl"
    for _ in range(2):
        runs.main(["run", "--arm", "hacked", "--seeds", "1", "--out", str(file)])
    (line,) = file.read_text().splitlines()
    found = json.loads(line)
    assert [len(step) for step in found["steps"]] == [64, 64]
    assert len(found["quality"]) == 2
    assert {row[0] for row in found["steps"][0]} == set(range(8))


def test_examples_of_the_guide(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (resuming,) = [block for block in blocks if "resumed_at" in block]
    (updating,) = [block for block in blocks if "best_of_n" not in block and "for step" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").mkdir()

    class Scorer:
        def score(self, prompts: Any, responses: Any) -> list[float]:
            return [float(len(each)) for each in responses]

    scope: dict[str, Any] = {"scorer": Scorer(), "batches": [(["a", "b"], [["x", "xyz"], ["xy", "z"]])] * 3}
    exec(updating, scope)
    assert capsys.readouterr().out.strip() == "1.0"
    old: RewardMonitor = scope["monitor"]
    rows = [{**row, "step": 99 + place} for place, row in enumerate(old.history)]
    (tmp_path / "policy" / "monitor.json").write_text(json.dumps(rows))
    scope = {"scorer": lambda prompts, completions: [1.0]}
    exec(resuming, scope)
    watched: MonitoredReward = scope["watched"]
    assert [row["step"] for row in watched.monitor.history] == [99]
    assert len(json.loads((tmp_path / "policy" / "monitor.json").read_text())) == 1
