"""Endless, slow and large requests get errors and do not affect other clients."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import httpx2
import pytest
from running_servers import running
from serving_scorers import run
from uvicorn.server import ServerState

from hf_reward.scoring.serving import connections
from hf_reward.scoring.serving.server import configure
from hf_reward.scoring.serving.settings import ServerSettings

BODY = json.dumps({"prompt": "Which?", "response": "This."}).encode()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A bare connection to a server."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        yield client


def head(length: int, **headers: str) -> bytes:
    """The headers of a request that announces a body."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


def until_closed(client: socket.socket) -> bytes:
    """Return everything that the server sends before it closes the connection."""
    found = b""
    try:
        while part := client.recv(65536):
            found += part
    except ConnectionResetError:  # it closed while we were sending
        pass
    return found


def rejects_body(url: str, length: int) -> bool:
    """Whether the server rejects a body at its headers. No body is sent, because its bytes would take up room."""
    with connected(url) as client:
        client.settimeout(0.2)
        client.sendall(head(length))
        try:
            return client.recv(65536).startswith(b"HTTP/1.1 429")
        except TimeoutError:
            return False


def error_in(answer: bytes) -> dict[str, Any]:
    """Return the error of the only response."""
    headers, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert headers.startswith(f"HTTP/1.1 {error['code']} ".encode())
    return error


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["one value", "many headers", "the path", "trailers"])
def test_endless_headers_are_rejected_at_64_kib(scorer, where):
    start = {
        "one value": b"GET /health HTTP/1.1\r\nHost: a\r\nX: ",
        "many headers": b"GET /health HTTP/1.1\r\nHost: a\r\n",
        "the path": b"GET /",
        "trailers": head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\nX: ",
    }[where]
    line = b"X: a\r\n" if where == "many headers" else b"a" * 1024
    with running(scorer) as url, connected(url) as client:
        sent = 0
        client.sendall(start)
        try:
            while sent < 2**26:
                sent += client.send(line * 16)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 2**26  # the connection was closed long before; the rest may be in buffers
        answer = until_closed(client)
        if answer:  # a reset can overtake it
            assert error_in(answer)["type"] == "headers_too_large"
        text = httpx2.get(f"{url}/metrics").text
        assert 'hf_reward_rejected_total{reason="headers_too_large"} 1.0' in text


def test_the_header_limit_is_64_kib_for_any_split(scorer):
    frame = len(head(len(BODY), X="")) - len(b"\r\n")
    with running(scorer) as url:
        for excess, status in ((0, b"200"), (600, b"431")):
            request = head(len(BODY), X="a" * (connections.MAX_HEADER_BYTES - frame - 100 + excess)) + BODY
            for pieces in (1, 7):
                step = -(-len(request) // pieces)
                with connected(url) as client:
                    for place in range(0, len(request), step):
                        client.sendall(request[place : place + step])
                        time.sleep(0.01)
                    assert client.recv(65536).split(b" ")[1] == status


def test_invalid_http_gets_an_error_in_our_format(scorer):
    with running(scorer) as url, connected(url) as client:
        client.sendall(b"nonsense\r\n\r\n")
        error = error_in(until_closed(client))
        assert (error["code"], error["type"]) == (400, "invalid_http")
        assert "nonsense" not in error["message"]


# --- time ------------------------------------------------------------------------------------------------------------


def test_incomplete_requests_time_out_and_others_do_not(scorer):
    with running(scorer, read_timeout_seconds=1) as url, httpx2.Client(base_url=url) as idle:
        assert idle.get("/health").status_code == 200
        with (
            connected(url) as silent,
            connected(url) as half_headers,
            connected(url) as half_body,
            connected(url) as drips,
        ):
            begin = time.monotonic()
            half_headers.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\n")
            half_body.sendall(head(len(BODY)) + BODY[:5])
            drips.sendall(head(10_000))
            answers = {}
            while time.monotonic() - begin < 1.5:  # single bytes do not extend the timeout
                try:
                    drips.sendall(b" ")
                except OSError:
                    break
                time.sleep(0.1)
            for name, client in (("headers", half_headers), ("body", half_body), ("drips", drips)):
                answers[name] = error_in(until_closed(client))
            assert until_closed(silent) == b""
            assert 0.9 < time.monotonic() - begin < 5
        assert {error["type"] for error in answers.values()} == {"request_timeout"}
        assert {error["code"] for error in answers.values()} == {408}
        assert idle.get("/health").status_code == 200  # on the connection that was idle for longer
        assert 'reason="request_timeout"} 3.0' in idle.get("/metrics").text


def test_a_body_sent_after_its_error_response_times_out(scorer):
    with running(scorer, read_timeout_seconds=1, token="secret") as url, connected(url) as client:
        client.sendall(head(10_000) + b" ")
        begin = time.monotonic()
        assert error_in(until_closed(client))["code"] == 401  # and no second response
        assert time.monotonic() - begin < 5


def test_a_client_that_does_not_read_its_answer_is_disconnected(scorer):
    async def test() -> None:
        config = configure(scorer, ServerSettings())
        config.load()
        for reads_again in (False, True):
            limits = connections.ConnectionLimits(read_timeout=0.05)
            connection = connections.GuardedConnection(config, ServerState(), {}, limits=limits)
            transport = MagicMock(**{"is_closing.return_value": False, "get_extra_info.return_value": None})
            connection.connection_made(transport)
            connection.pause_writing()
            if reads_again:
                connection.resume_writing()
            await asyncio.sleep(0.15)
            assert transport.abort.called != reads_again
            connection.connection_lost(None)

    run(test)


def test_sequential_and_pipelined_requests_are_answered(scorer):
    with running(scorer, read_timeout_seconds=1) as url, connected(url) as client:
        client.sendall((head(len(BODY)) + BODY) * 5)
        found = b""
        while found.count(b'"rewards"') < 5:
            found += client.recv(65536)
        time.sleep(1.3)  # idle for longer than the timeout of a request
        client.sendall(head(len(BODY)) + BODY)
        assert b"200 OK" in client.recv(65536)


def test_the_oldest_incomplete_connection_is_closed_first(scorer, monkeypatch):
    monkeypatch.setattr(connections, "MAX_INCOMPLETE", 3)
    monkeypatch.setattr(connections, "_GRACE", 0.1)
    with running(scorer) as url:
        held = []
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)
            client.sendall(b"GET /health HTTP/1.1\r\n")
            held.append(client)
        time.sleep(0.3)
        assert httpx2.get(f"{url}/health").status_code == 200
        assert error_in(until_closed(held[0]))["type"] == "request_timeout"
        for client in held[1:]:
            client.sendall(b"Host: a\r\n\r\n")
            assert b"200 OK" in client.recv(65536)
        for client in held:
            client.close()


def test_shutdown_does_not_wait_for_incomplete_requests(scorer):
    with running(scorer) as url:
        clients = []
        for start in (b"", b"GET /health HTTP/1.1\r\n", head(len(BODY)), head(len(BODY)) + BODY[:5]):
            client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)
            client.sendall(start)
            clients.append(client)
        time.sleep(0.2)
        begin = time.monotonic()
    assert time.monotonic() - begin < 4
    assert error_in(until_closed(clients[-1]))["type"] == "shutting_down"
    for client in clients:
        client.close()


# --- memory for bodies -----------------------------------------------------------------------------------------------


def test_large_bodies_are_rejected_without_room_and_small_ones_are_accepted(scorer):
    large = 2**20
    with running(scorer, max_body_bytes=large) as url, connected(url) as one, connected(url) as two:
        for client in (one, two):
            client.sendall(head(large) + b" " * (large - 10))
        deadline = time.monotonic() + 60
        while not rejects_body(url, large):  # until the server has received both
            assert time.monotonic() < deadline
        padded = BODY + b" " * (large - len(BODY))
        answer = httpx2.post(f"{url}/score", content=padded, headers={"Content-Type": "application/json"})
        assert answer.status_code == 429
        assert answer.json()["error"]["type"] == "queue_full"
        assert answer.headers["Retry-After"] == "1"
        chunks = (part for part in (BODY, b" " * (large - len(BODY))))
        answer = httpx2.post(f"{url}/score", content=chunks, headers={"Content-Type": "application/json"})
        assert answer.status_code == 429
        small = {"prompt": "Which?", "response": "This."}
        assert httpx2.post(f"{url}/score", json=small).status_code == 200
        for client in (one, two):  # complete, although not JSON, so their memory is free again
            client.sendall(b" " * 10)
            assert b"400" in client.recv(65536)
        answer = httpx2.post(f"{url}/score", content=padded, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200
