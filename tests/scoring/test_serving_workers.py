"""Several workers behind one port: rewards, metrics, replaced workers and errors at start-up."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from running_servers import PROGRAM, process

from hf_reward.scoring.serving.server import serve
from hf_reward.scoring.serving.settings import ServerSettings
from hf_reward.scoring.serving.workers import take_number, with_device

BODY = {"prompt": "Which?", "responses": ["This.", "Or that one."]}


def children(parent: int) -> set[int]:
    """The server processes of a manager, without the resource tracker of multiprocessing."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)]  # -ww: do not cut the arguments
    found = subprocess.run(command, capture_output=True, text=True).stdout
    return {int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line}


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def scored_rows(url: str) -> float:
    """The number of scored rows in the metrics of all workers."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("hf_reward_rows_scored_total"))


@pytest.mark.slow  # 60 seconds alone
@pytest.mark.faults
def test_workers_answer_are_replaced_and_stop(scorer):
    expected = scorer.score(["Which?"] * 2, BODY["responses"]).tolist()
    statuses: list[int] = []
    done = threading.Event()

    failures: list[Exception] = []

    def ask(url: str) -> None:
        while not done.is_set():
            try:
                answer = httpx2.post(f"{url}/score", json=BODY, timeout=60)  # a new connection each time
                statuses.append(answer.status_code)
                assert answer.json()["rewards"] == pytest.approx(expected, abs=1e-5)
            except Exception as error:  # an exception in a thread would not fail the test
                failures.append(error)

    with process(scorer, workers=2) as (server, url):
        wait_for(lambda: len(children(server.pid)) == 2)
        first = children(server.pid)
        assert httpx2.post(f"{url}/score", json=BODY).json()["rewards"] == pytest.approx(expected, abs=1e-5)
        assert {scored_rows(url) for _ in range(20)} == {2}  # whichever worker answers
        run = httpx2.post(f"{url}/score?run=a", json=BODY)
        assert (run.status_code, run.json()["error"]["type"]) == (400, "invalid_run")

        thread = threading.Thread(target=ask, args=(url,))
        thread.start()
        try:
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: len(children(server.pid)) == 2 and not children(server.pid) & first)
            replaced = children(server.pid)
        finally:
            done.set()
            thread.join()
        assert not failures
        assert len(statuses) > 5
        assert set(statuses) == {200}
        assert scored_rows(url) == 2 + 2 * len(statuses)  # counters outlive their process

        os.kill(min(replaced), signal.SIGKILL)
        wait_for(lambda: len(children(server.pid)) == 2 and min(replaced) not in children(server.pid))
        assert httpx2.post(f"{url}/score", json=BODY).status_code == 200
        last = children(server.pid)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert not [pid for pid in last if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow  # 25 seconds
def test_workers_end_with_their_manager(scorer):
    with process(scorer, workers=2) as (server, _):
        wait_for(lambda: len(children(server.pid)) == 2)
        workers = children(server.pid)
        server.kill()
        server.wait()
        wait_for(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])


@pytest.mark.slow  # 20 seconds
def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    command = [sys.executable, "-c", PROGRAM, repr(str(tmp_path / "missing")), repr({"workers": 2, "port": 0})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "A worker could not start" in done.stderr.splitlines()[-1]
    assert f"{tmp_path / 'missing'}" in done.stderr  # the reason


def test_a_loaded_scorer_cannot_be_given_to_workers(scorer):
    with pytest.raises(ValueError, match=r"`workers=2` needs folders or Hub ids"):
        serve(scorer, ServerSettings(port=0, workers=2))
    with pytest.raises(ValueError, match="`workers` must be 1 or more"):
        ServerSettings(workers=0)


def test_workers_of_a_generation_have_different_numbers_and_a_free_number_is_used_again(tmp_path):
    taken = [take_number(tmp_path, 0) for _ in range(3)]
    assert [number for number, _ in taken] == [0, 1, 2]
    assert take_number(tmp_path, 1)[0] == 0  # a reload starts again
    taken[1][1].release()
    assert take_number(tmp_path, 0)[0] == 1


def test_gpus_are_used_in_turn():
    settings = ServerSettings(workers=4)
    assert [with_device(settings, number, 2).device for number in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert with_device(settings, 3, 2) == replace(settings, device="cuda:1")
