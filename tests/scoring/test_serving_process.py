"""The server as a process: shutdown, limits on a real socket, and many clients."""

import asyncio
import importlib.util
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from running_servers import PROGRAM, process

import hf_reward
from hf_reward.scoring.server_token import read_token
from hf_reward.scoring.serving.server import Server, bound_socket, configure, url_of
from hf_reward.scoring.serving.settings import ServerSettings


async def _queued(client: httpx2.AsyncClient, rows: int) -> None:
    for _ in range(2000):
        if (await client.get("/health")).json()["queued_rows"] >= rows:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the queue never filled")


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_accepted_requests_and_exits_with_zero(scorer, end):
    responses = [f"Answer {number} of a rather long list of answers to one question." for number in range(120)]
    expected = scorer.score(["Which?"] * 120, responses)

    async def load(server: subprocess.Popen[str], url: str) -> None:
        limits = httpx2.Limits(max_connections=70)
        async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            bodies = [{"items": [{"prompt": "Which?", "response": text} for text in responses]}] * 64
            asks = [asyncio.create_task(client.post("/score", json=body)) for body in bodies]
            await _queued(client, 50 * 120)
            server.send_signal(end)
            answers = await asyncio.gather(*asks, return_exceptions=True)
        # At least 50 were accepted before the signal. Requests that arrived later are rejected.
        rejected = [answer for answer in answers if isinstance(answer, httpx2.TransportError)]
        replies = [answer for answer in answers if isinstance(answer, httpx2.Response)]
        assert len(rejected) + len(replies) == len(answers)
        finished = [reply for reply in replies if reply.status_code == 200]
        assert len(finished) >= 50
        assert {reply.status_code for reply in replies} <= {200, 503}
        for reply in finished:
            np.testing.assert_allclose(np.concatenate(reply.json()["rewards"]), expected, atol=1e-4)
        async with httpx2.AsyncClient(base_url=url) as late:
            with pytest.raises(httpx2.ConnectError):
                await late.get("/health")

    with process(scorer) as (server, url):
        asyncio.run(load(server, url))
        assert server.wait(30) == 0


@pytest.mark.slow
@pytest.mark.faults
def test_many_clients_get_their_own_rewards_and_nothing_is_lost(scorer):
    texts = [f"The answer is {number}, I think." for number in range(640)]
    expected = scorer.score(["Which?"] * len(texts), texts)

    async def load(url: str) -> None:
        end = time.monotonic() + 5
        answers = 0
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:

            async def one(number: int) -> None:
                nonlocal answers
                place = number
                while time.monotonic() < end:
                    body = {"prompt": "Which?", "response": texts[place % len(texts)]}
                    answer = await client.post("/score", json=body)
                    assert answer.status_code == 200
                    assert abs(answer.json()["rewards"][0] - expected[place % len(texts)]) < 1e-4
                    place, answers = place + 64, answers + 1

            await asyncio.gather(*(one(number) for number in range(64)))
            text = (await client.get("/metrics")).text
        assert answers > 64
        assert f'hf_reward_requests_total{{endpoint="/score",status="200"}} {answers}.0' in text
        assert f'hf_reward_rows_scored_total{{model="saved"}} {answers}.0' in text
        batches = next(line for line in text.splitlines() if line.startswith("hf_reward_batch_rows_count"))
        assert float(batches.split()[1]) < answers  # some were batched

    with process(scorer) as (_, url):
        asyncio.run(load(url))


@pytest.mark.slow
@pytest.mark.faults
def test_an_overloaded_server_returns_429_and_recovers(scorer):
    async def load(url: str) -> None:
        body = {"prompt": "Which?", "responses": ["An answer."] * 4}
        limits = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(client.post("/score", json=body) for _ in range(100)))
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 429}
            assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 429)
            for _ in range(10):
                assert (await client.post("/score", json=body)).status_code == 200

    with process(scorer, max_queue_rows=8) as (_, url):
        asyncio.run(load(url))


@pytest.mark.slow
@pytest.mark.faults
def test_a_disconnected_client_frees_its_place_in_the_queue(scorer):
    async def leave(url: str) -> None:
        limits = httpx2.Limits(max_connections=10)
        async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            body = {
                "items": [{"prompt": f"Question {number}?", "response": "An answer. " * 20} for number in range(900)]
            }
            stays = asyncio.create_task(client.post("/score", json=body))
            await _queued(client, 100)
            body = {"prompt": "Which?", "responses": ["An answer."] * 2000}
            gone = asyncio.create_task(client.post("/score", json=body))
            await _queued(client, 2000)
            gone.cancel()
            for _ in range(1000):
                if (await client.get("/health")).json()["queued_rows"] < 900:
                    break
                await asyncio.sleep(0.005)
            else:
                raise AssertionError("the rows stayed in the queue")
            assert not stays.done()
            assert len((await stays).json()["rewards"]) == 900

    with process(scorer) as (_, url):
        asyncio.run(leave(url))


@pytest.mark.slow
@pytest.mark.faults
def test_large_bodies_and_wrong_tokens_are_rejected_over_a_socket(scorer):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    async def ask(url: str) -> None:
        right = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.post("/score", content=chunks(), headers=right)).status_code == 413
            assert (await client.post("/score", content=b" " * 200_000, headers=right)).status_code == 413
            assert (await client.post("/score", content=b"{}")).status_code == 401
            body = {"prompt": "a", "response": "b"}
            assert (await client.post("/score", json=body, headers=right)).status_code == 200

    with process(scorer, max_body_bytes=100_000, token="secret") as (server, url):
        asyncio.run(ask(url))
        server.terminate()
        assert server.wait(30) == 0
        assert server.stderr is not None
        assert "secret" not in server.stderr.read()


@pytest.mark.slow
@pytest.mark.faults
def test_a_port_in_use_is_a_one_line_error(scorer):
    with process(scorer) as (_, url):
        settings = {"port": int(url.rsplit(":", 1)[1])}
        command = [sys.executable, "-c", PROGRAM, repr(scorer.name), repr(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "The server cannot listen on 127.0.0.1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("quiet", "host"), [(False, "127.0.0.1"), (True, "127.0.0.1"), (False, "0.0.0.0")])
def test_the_address_is_logged_for_a_free_port(scorer, capsys, quiet, host):
    urls: list[str] = []
    with bound_socket(host, 0) as listener:
        port = listener.getsockname()[1]
        settings = ServerSettings(port=0, served_model_name="tiny")
        server = Server(configure(scorer, settings, quiet=quiet), urls.append)

        async def test() -> None:
            running = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            server.should_exit = True
            await running

        asyncio.run(asyncio.wait_for(test(), 30))
    err = capsys.readouterr().err
    assert f"Serving tiny on http://{host}:{port} (Ctrl+C to stop)" in err
    assert urls == [f"http://127.0.0.1:{port}"]  # for clients on this machine
    assert ("Started server process" in err) is not quiet


def test_an_ipv6_address_has_brackets_in_its_url():
    assert (url_of("::1", 80), url_of("localhost", 80)) == ("http://[::1]:80", "http://localhost:80")


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_REWARD_SERVER_TOKEN", raising=False)
    file = tmp_path / "token"
    assert read_token() is None
    file.write_text("from-file\n")
    assert read_token(file) == "from-file"
    monkeypatch.setenv("HF_REWARD_SERVER_TOKEN", "from-environment")
    assert read_token() == "from-environment"
    with pytest.raises(ValueError, match="two tokens"):
        read_token(file)
    monkeypatch.setenv("HF_REWARD_SERVER_TOKEN", "")
    with pytest.raises(ValueError, match="not empty"):
        read_token()
    monkeypatch.delenv("HF_REWARD_SERVER_TOKEN")
    file.write_text("two words")
    with pytest.raises(ValueError, match="without spaces"):
        read_token(file)


def test_settings_are_checked_and_never_show_the_token():
    settings = ServerSettings(token="secret", host="0.0.0.0")
    assert "secret" not in repr(settings)
    assert not settings.is_open_to_others
    assert ServerSettings(host="0.0.0.0").is_open_to_others
    assert not ServerSettings().is_open_to_others
    limits = ("batch_tokens", "max_queue_tokens", "max_queue_rows", "max_body_bytes")
    for name in (*limits, "read_timeout_seconds", "shutdown_seconds"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or more"):
            ServerSettings(**{name: 0})
    with pytest.raises(ValueError, match="`port`"):
        ServerSettings(port=70_000)
    with pytest.raises(ValueError, match="printable ASCII"):
        ServerSettings(token="zwölf")


def test_loading_options_for_a_loaded_scorer_are_an_error(scorer):
    from hf_reward.scoring.serving.server import serve

    with pytest.raises(ValueError, match="loaded already"):
        serve(scorer, ServerSettings(dtype="bfloat16"))


def test_missing_packages_are_named_with_the_extra_to_install(monkeypatch):
    from hf_reward.scoring import serving

    real = importlib.util.find_spec
    missing = ("fastapi", "uvicorn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else real(name, *rest))
    with pytest.raises(ImportError, match=r"not installed: fastapi, uvicorn\. Run pip install 'hf_reward\[serve\]'"):
        runpy.run_path(str(serving.__file__))


def test_only_the_server_imports_its_packages():
    package = Path(hf_reward.__file__).parent
    others = [path for path in package.rglob("*.py") if "serving" not in path.relative_to(package).parts]
    assert others
    for path in others:
        assert not re.search(r"^\s*(from|import) (fastapi|starlette|uvicorn|prometheus)", path.read_text(), re.M), path
