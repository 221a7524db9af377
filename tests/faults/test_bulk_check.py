"""The programs behind docs/guides/bulk-scoring.md run, and their results come from their measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "tests" / "faults"


def run_recipe(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import bulk_check

    return bulk_check


def test_synthetic_rows_are_the_same_for_a_seed(check):
    rows = list(check.synthetic_rows(2_000, 3))
    assert rows == list(check.synthetic_rows(2_000, 3)) != list(check.synthetic_rows(2_000, 4))
    assert [row["number"] for row in rows] == list(range(2_000))
    assert any(not row["response"] for row in rows)
    texts = [(row["prompt"], row["response"]) for row in rows]
    assert 50 < len(texts) - len(set(texts)) < 200


@pytest.mark.parametrize(
    ("files", "stage"),
    [
        ([], "planning"),
        (["s.jsonl.parts/_manifest.json"], "between two shards"),
        (["s.jsonl.parts/_manifest.json", "s.jsonl.parts/_done/a-00000.json"], "before the join"),
        (["s.jsonl.parts/_manifest.json", "s.jsonl.parts/.a-00000.jsonl.0a1b2c3d.tmp"], "in a shard"),
        (["s.jsonl.parts/_manifest.json", "s.jsonl.parts/_done/.a-00000.json.0a1b2c3d.tmp"], "writing a marker"),
        (["s.jsonl.parts/_manifest.json", ".scores.jsonl.0a1b2c3d.tmp"], "joining the shards"),
        (["s.jsonl", ".s.jsonl.0a1b2c3d.parts/_manifest.json"], "removing the shards after the join"),
        (["s.jsonl"], "after the end"),
    ],
)
def test_the_stage_of_a_kill_is_determined_from_the_files(check, tmp_path, files, stage):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"names": ["a-00000"]}')
    assert check.stage_of(tmp_path / "s.jsonl") == stage


@pytest.mark.slow
@pytest.mark.faults
def test_kills_are_counted_and_compared(tmp_path):
    done = run_recipe(
        "bulk_check.py", "kills", "--kills", 2, "--out", "folder", "--rows", 400, "--json", tmp_path / "k"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads((tmp_path / "k").read_text())["results"]
    assert found["equal"]
    assert found["kills"] == sum(found["hits"].values()) >= 2


@pytest.mark.slow
@pytest.mark.faults
def test_memory_is_measured_by_rows(tmp_path):
    words = ("memory", "--rows", 200, 400, "--kind", "parquet", "--json", tmp_path / "m", "--png", tmp_path / "m.png")
    done = run_recipe("bulk_check.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "m").read_text())["results"]
    assert [result["counts"]["rows_in"] for result in found] == [200, 400]
    assert all(result["peak_mib"] >= result["loaded_mib"] > 100 for result in found)
    assert (tmp_path / "m.png").stat().st_size > 1_000


@pytest.mark.slow
@pytest.mark.faults
def test_stages_are_measured(tmp_path):
    done = run_recipe("../performance/bulk_stages.py", "--rows", 200, "--rounds", 1, "--json", tmp_path / "s")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "s").read_text())
    assert found["seconds"]["JSONL: all"] > found["seconds"]["both: tokenise"] > 0
