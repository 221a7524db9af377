"""The recipe behind the memory figures of docs/FAULTS.md runs and measures what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes" / "stream_memory.py"


@pytest.mark.slow
def test_every_pair_is_trained_on_once_in_either_form(tmp_path):
    command = [sys.executable, str(RECIPE), "--rows", "400", "--kind", "jsonl", "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(each["form"], each["rows"], each["steps"]) for each in found] == [("streamed", 400, 4), ("mapped", 400, 4)]
    for each in found:
        assert 50 < each["own"] < 4_000
        assert 0 < each["first_step"] <= each["seconds"]
