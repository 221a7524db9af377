"""Bulk scoring with several processes, signals and standard input."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_runs import FakeScorer, content_of, read_jsonl, settings, text_rows, write_jsonl
from paths import PATHS

from hf_reward.scoring.bulk import score_files
from hf_reward.scoring.bulk.processes import Worker, part_lock

PREAMBLE = f"""
import sys, time
sys.path[:0] = {PATHS!r}
from bulk_runs import FakeScorer, settings
from hf_reward.scoring.bulk import score_files
"""


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", [*text_rows(30), b"{half\n"])


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PREAMBLE + text)
    return path


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_in_any_order_give_what_one_process_gives(source, tmp_path):
    (tmp_path / "one").mkdir()
    score_files(FakeScorer(), source, tmp_path / "one" / "out", settings())
    scorers = [FakeScorer() for _ in range(3)]
    reports = {
        number: score_files(scorers[number], source, tmp_path / "three" / "out", settings(part=(number, 3)))
        for number in (2, 0, 1)
    }
    assert [len(scorer.calls) for scorer in scorers] == [3, 3, 2]  # shards 0 3 6, 1 4 7, 2 5
    assert [reports[number].complete for number in (2, 0, 1)] == [False, False, True]
    assert sum(report.counts.rows_in for report in reports.values()) == 31
    assert content_of(tmp_path / "one") == content_of(tmp_path / "three")


def test_a_restarted_part_repeats_nothing(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))
    scorer = FakeScorer()
    report = score_files(scorer, source, tmp_path / "out", settings(part=(0, 2), resume=True))
    assert not scorer.calls
    assert report.finished_before == 4


def test_a_part_of_another_run_is_refused(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))
    with pytest.raises(ValueError, match=r"scorer\.weights"):
        score_files(FakeScorer(weights="other"), source, tmp_path / "out", settings(part=(1, 2)))


def test_the_number_of_parts_can_change(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 4)))
    report = score_files(FakeScorer(), source, tmp_path / "out", settings(resume=True))
    assert report.complete
    assert report.finished_before == 2
    assert report.counts.rows_in == 31


def test_parts_need_a_folder(source, tmp_path):
    with pytest.raises(ValueError, match="must be a folder"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(part=(0, 2)))


@pytest.mark.slow
@pytest.mark.faults
def test_parts_that_start_at_the_same_time_share_one_plan(source, tmp_path):
    text = "score_files(FakeScorer(), sys.argv[1], sys.argv[2], settings(part=(int(sys.argv[3]), 3)))"
    command = [sys.executable, program(tmp_path, text), source, tmp_path / "out"]
    started = [subprocess.Popen([*map(str, command), str(number)]) for number in range(3)]
    assert [each.wait(timeout=120) for each in started] == [0, 0, 0]
    found = [row for path in sorted((tmp_path / "out").glob("*.jsonl")) for row in read_jsonl(path)]
    assert [row["id"] for row in found] == [f"in.jsonl:{n}" for n in range(30)]
    assert not [name for name in content_of(tmp_path / "out") if name.endswith((".tmp", ".lock"))]


def test_one_part_plans_while_the_others_wait(source, tmp_path, monkeypatch):
    from threading import Thread

    from hf_reward.scoring.bulk import run

    real, plans = run.plan_run, []

    def slow(*args):
        plans.append(1)
        time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(run, "plan_run", slow)
    scored = [
        Thread(target=score_files, args=(FakeScorer(), source, tmp_path / "out", settings(part=(number, 4))))
        for number in range(4)
    ]
    for thread in scored:
        thread.start()
    for thread in scored:
        thread.join()
    assert len(plans) == 1
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 8
    assert not [name for name in content_of(tmp_path / "out") if name.endswith(".lock")]


def test_the_same_part_cannot_run_twice_at_once(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))
    with part_lock(tmp_path / "out", Worker(number=1, count=2, is_independent=True)):
        with pytest.raises(RuntimeError, match="Another process is scoring into"):
            score_files(FakeScorer(), source, tmp_path / "out", settings(part=(1, 2)))
        score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))
    assert score_files(FakeScorer(), source, tmp_path / "out", settings(part=(1, 2))).complete


def test_a_run_in_progress_is_not_overwritten(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "out", settings())
    before = content_of(tmp_path / "out")
    with part_lock(tmp_path / "out", Worker(number=1, count=2, is_independent=True)):
        with pytest.raises(RuntimeError, match="Another process is scoring into"):
            score_files(FakeScorer(weights="new"), source, tmp_path / "out", settings(overwrite=True))
        (tmp_path / "out" / ".part-1-of-2.lock").unlink()
        assert content_of(tmp_path / "out") == before
    score_files(FakeScorer(weights="new"), source, tmp_path / "out", settings(overwrite=True))


def test_a_distributed_scorer_is_an_error(source, tmp_path):
    scorer = FakeScorer()
    scorer.distributed = True
    with pytest.raises(ValueError, match="without `distributed=True`"):
        score_files(scorer, source, tmp_path / "out", settings(part=(0, 2)))
    score_files(scorer, source, tmp_path / "out", settings())


def test_a_worker_scores_every_nth_shard():
    assert Worker(number=1, count=3).own(range(8)) == [1, 4, 7]
    assert [Worker(number=1, count=2).is_leader, Worker(number=1, count=2, is_independent=True).is_leader] == [
        False,
        True,
    ]


# --- accelerate ------------------------------------------------------------------------------------------------------


def launched(script: Path, *words: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Launch processes as `accelerate launch` does for GPUs; on CPUs it would use MPI."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launch, str(script), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "out", ["o.jsonl", *(pytest.param(name, marks=pytest.mark.faults) for name in ("o.parquet", "folder"))]
)
def test_launched_processes_share_the_shards_and_one_joins_them(source, tmp_path, out):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    score_files(FakeScorer(), source, tmp_path / "one" / out, settings())
    text = """
scorer = FakeScorer()
report = score_files(scorer, sys.argv[1], sys.argv[2], settings(**eval(sys.argv[3])))
sys.stdout.write(f"shards here {len(scorer.calls)} {report.complete}\\n")  # in one write
"""
    script = program(tmp_path, text)
    done = launched(script, source, tmp_path / "two" / out, {})
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[2] for line in done.stdout.splitlines() if "shards here" in line) == ["4", "4"]
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    done = launched(script, source, tmp_path / "two" / out, {"resume": True})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shards here 0 True") == 2
    done = launched(script, source, tmp_path / "two" / out, {"overwrite": True, "rows_per_shard": 100}, processes=3)
    assert done.returncode == 0, done.stderr  # one shard, so two of the processes have none
    assert len(list((tmp_path / "two").rglob("*.quarantine.jsonl")) + list((tmp_path / "two").rglob("_q*/*"))) == 1


@pytest.mark.slow
@pytest.mark.faults
def test_a_failed_process_stops_the_others_and_the_run_resumes_later(source, tmp_path):
    text = """
from accelerate import PartialState
class Failing(FakeScorer):
    def score_requests(self, requests, **options):
        if PartialState().process_index == 1 and len(self.calls) == 2 and sys.argv[3] == "fail":
            raise RuntimeError("this device is gone")
        return super().score_requests(requests, **options)
score_files(Failing(), sys.argv[1], sys.argv[2], settings(resume=True))
"""
    script = program(tmp_path, text)
    done = launched(script, source, tmp_path / "o.jsonl", "fail")
    assert done.returncode != 0
    assert "this device is gone" in done.stderr
    assert not (tmp_path / "o.jsonl").exists()
    assert launched(script, source, tmp_path / "o.jsonl", "go").returncode == 0
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 30


def test_launched_processes_without_a_process_group_are_an_error(source, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"2 processes were launched.*PartialState\(cpu=True\)"):
        score_files(FakeScorer(), source, tmp_path / "out", settings())
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stopped_by_a_signal_can_be_resumed_and_logs_so(source, tmp_path, number):
    text = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Slow(FakeScorer):
    def score_requests(self, requests, **options):
        if len(self.calls) == 3:
            print("waiting", flush=True)
            time.sleep(60)
        return super().score_requests(requests, **options)
score_files(Slow(), sys.argv[1], sys.argv[2], settings())
"""
    command = [sys.executable, str(program(tmp_path, text)), str(source), str(tmp_path / "o.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert "Stopped. 3 of 8 shards are finished and kept" in output
    assert "resume=True" in output
    left = content_of(tmp_path / "o.jsonl.parts")
    assert not [name for name in left if name.endswith((".tmp", ".lock"))]
    report = score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(resume=True))
    assert (report.finished_before, report.counts.rows_out) == (3, 30)


def test_the_sigterm_handler_is_restored(source, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    assert signal.getsignal(signal.SIGTERM) is before


# --- standard input --------------------------------------------------------------------------------------------------


def test_standard_input_is_scored_like_a_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source.open("rb")))
    assert score_files(FakeScorer(), "-", tmp_path / "o.jsonl", settings()).counts.rows_out == 30
    assert [row["id"] for row in read_jsonl(tmp_path / "o.jsonl")] == [f"stdin.jsonl:{n}" for n in range(30)]


@pytest.mark.parametrize("options", [{"resume": True}, {"part": (0, 2)}])
def test_standard_input_cannot_be_resumed_or_shared(tmp_path, options):
    with pytest.raises(ValueError, match="can be read only once"):
        score_files(FakeScorer(), "-", tmp_path / "out", settings(**options))


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_counts_rows_and_starts_at_the_finished_ones(source, tmp_path, capsys):
    score_files(FakeScorer(), source, tmp_path / "out", settings(part=(0, 2)))
    assert capsys.readouterr().err == ""
    score_files(FakeScorer(), source, tmp_path / "out", settings(resume=True, show_progress=True))
    output = capsys.readouterr().err
    assert "31/31" in output
    assert "16/31" in output
