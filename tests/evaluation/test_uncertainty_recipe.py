"""The study of docs/guides/ensembles.md: held-out groups, one baseline, and a consistent table."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "studies" / "uncertainty.py"


def run(folder: Path, data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [
        "--base",
        folder,
        "--data",
        data,
        "--out",
        out,
        "--heads",
        "3",
        "--folds",
        "2",
        *options,
    ]
    command = [sys.executable, str(RECIPE), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.extended  # 47 s
def test_every_pair_is_scored_once_and_the_shares_add_up(make_model_folder, tmp_path):
    rows = [
        {"prompt": f"Which {n % 6}?", "chosen": f"A good answer {n}.", "rejected": f"No {n * 7 % 5}"} for n in range(24)
    ]
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = make_model_folder("llama")
    done = run(folder, data, out, "--freeze_backbone")
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (found["pairs"], found["groups"]) == (24, 6)
    for name, way in found["ways"].items():
        for share, risk in way["risk"].items():
            coverage = float(share.rstrip("%")) / 100
            if name != "margin of one head":  # has its own errors
                assert way["caught"][share] == pytest.approx(1 - risk * coverage / found["error"])
        assert way["aurc"]["ci_low"] is way["aurc"]["ci_high"] is None, "six prompts are too few"
    assert found["ways"]["random"]["aurc"]["estimate"] == pytest.approx(found["error"])
    assert (out / "risk_coverage.png").stat().st_size > 5_000

    again = run(folder, data, out, "--freeze_backbone")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "training on" in done.stdout
    assert "training on" not in again.stdout  # both folds were finished
    assert "made with different settings" in run(folder, data, out, "--seed", "1").stderr
