"""`stream_memory.py`, the source of the memory table in docs/guides/resuming.md, runs and measures correctly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "tests" / "performance" / "stream_memory.py"


def measure(tmp_path, *options):
    command = [sys.executable, str(RECIPE), *options, "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.faults
def test_every_pair_is_trained_on_once_streamed_or_mapped(tmp_path):
    found = measure(tmp_path, "--rows", "400", "--kind", "jsonl")
    assert [(each["form"], each["rows"], each["steps"]) for each in found] == [("streamed", 400, 4), ("mapped", 400, 4)]
    for each in found:
        assert 50 < each["own"] < 4_000
        assert 0 < each["first_step"] <= each["seconds"]


@pytest.mark.slow
@pytest.mark.faults
def test_memory_of_a_stream_does_not_grow_with_its_rows(tmp_path):
    few, many = measure(tmp_path, "--rows", "10000", "50000", "--rows_per_file", "500", "--form", "streamed")
    # 40,000 tokenised pairs take more than 100 MiB as Python objects; the allocator keeps about 30 MiB.
    assert many["own"] < few["own"] + 70
