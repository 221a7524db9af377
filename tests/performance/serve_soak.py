"""Soak test of the server: 64 normal clients and one kind of attacker after the other, for half an hour.

    python tests/performance/serve_soak.py                                 # 30 minutes
    python tests/performance/serve_soak.py --minutes 2 --attacks half_bodies large_prompts --json soak.json
    python tests/performance/serve_soak.py --one-by-one      # a new server for each attack, no other clients

The server (with a random model, see `serve_load.py`), the normal clients and the attacker are separate processes, and
all connections are to 127.0.0.1. Every answer to a normal client is compared with the expected reward. The time is
divided among a phase without an attacker, a phase for each attack, and a last phase without an attacker. A phase
reports the results of the normal clients, the answers to the attacker and the peak memory of the server.

`--one-by-one` requests `/health` during a single round of each attack instead, and reports its longest duration, the
server's memory before and at the peak, and the answers to the attacker.

`--json` writes `machine`, `settings` and the phases.
"""

import asyncio
import json
import multiprocessing
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from machine import core_count
from serve_load import Phase, machine, make_model, run_clients, server

_SPAWN = multiprocessing.get_context("spawn")
_WORDS = "water boils when the sun shines and ice melts "


@dataclass(kw_only=True)
class Seen:
    """Results of one phase."""

    attack: str
    answers: int = 0
    wrong: int = 0
    refused: int = 0
    """Answers 429 to normal clients."""
    lost: int = 0
    """Requests of normal clients with an error or no answer."""
    errors: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    health_ms: float = 0.0
    """Longest duration of `/health`, if it was requested."""
    memory_mib: int = 0
    """Peak memory of the server."""
    memory_before_mib: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Answers to the attacker: statuses, "closed" for closed connections, "open" for open ones."""


# --- the attacks -----------------------------------------------------------------------------------------------------

Attack = Callable[[str, int, float], Awaitable[Counter[str]]]


async def endless_headers(host: str, port: int, until: float) -> Counter[str]:
    """Open three connections that send up to 100 MiB of one header."""
    start = b"GET /health HTTP/1.1\r\nHost: a\r\nX: "
    return await _together([_stream(host, port, start, 100 * 2**20, until) for _ in range(3)])


async def half_headers(host: str, port: int, until: float) -> Counter[str]:
    """Open 300 connections that send incomplete headers and stop."""
    return await _together([_half(host, port, b"POST /score HTTP/1.1\r\nHost: a\r\n", until) for _ in range(300)])


async def half_bodies(host: str, port: int, until: float) -> Counter[str]:
    """Open 300 connections that send the first bytes of a body and stop."""
    start = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    return await _together([_half(host, port, start, until) for _ in range(300)])


async def large_responses(host: str, port: int, until: float) -> Counter[str]:
    """Send six valid requests at once, each with a response of 15 MB."""
    body = json.dumps({"prompt": "a", "response": _WORDS * (15_000_000 // len(_WORDS))}).encode()
    return await _together([_post(host, port, "/score", body, until) for _ in range(6)])


async def large_prompts(host: str, port: int, until: float) -> Counter[str]:
    """Send six valid requests at once, each with a prompt of 15 MB, which is truncated."""
    body = json.dumps({"prompt": _WORDS * (15_000_000 // len(_WORDS)), "response": "a"}).encode()
    return await _together([_post(host, port, "/score", body, until) for _ in range(6)])


async def many_rows(host: str, port: int, until: float) -> Counter[str]:
    """Send a prompt of 20 kB with 2,000 responses: 40 MB of text to tokenise in a body of 60 kB."""
    prompt = _WORDS * (20_000 // len(_WORDS))
    body = json.dumps({"prompt": prompt, "responses": [f"Answer {place}" for place in range(2000)]}).encode()
    return await _together([_post(host, port, "/score", body, until)])


async def wrong_items(host: str, port: int, until: float) -> Counter[str]:
    """Send two million booleans instead of token ids."""
    body = b'{"input": [' + b"true," * 2_000_000 + b"true]}"
    return await _together([_post(host, port, "/classify", body, until) for _ in range(2)])


ATTACKS: dict[str, Attack] = {
    each.__name__: each
    for each in (
        endless_headers,
        half_headers,
        half_bodies,
        large_responses,
        large_prompts,
        many_rows,
        wrong_items,
    )
}  # fmt: skip


async def _together(work: list[Awaitable[str]]) -> Counter[str]:
    return Counter(await asyncio.gather(*work))


async def _stream(host: str, port: int, start: bytes, size: int, until: float) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    answer = asyncio.ensure_future(reader.read(12))
    try:
        writer.write(start)
        sent = 0
        while sent < size and time.time() < until and not answer.done():
            writer.write(b"a" * 65536)
            await writer.drain()
            sent += 65536
        return await _status(answer, 5)
    except ConnectionError:
        return "closed"
    finally:
        answer.cancel()
        writer.close()


async def _half(host: str, port: int, start: bytes, until: float) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(start)
        await writer.drain()
        return await _status(asyncio.ensure_future(reader.read(12)), until - time.time())
    except ConnectionError:
        return "closed"
    finally:
        writer.close()


async def _post(host: str, port: int, path: str, body: bytes, until: float) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    answer = asyncio.ensure_future(reader.read(12))
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode())
        for place in range(0, len(body), 2**18):
            if answer.done():
                break
            writer.write(body[place : place + 2**18])
            await writer.drain()
        return await _status(answer, until - time.time())
    except ConnectionError:
        return "closed"
    finally:
        answer.cancel()
        writer.close()


async def _status(answer: "asyncio.Future[bytes]", seconds: float) -> str:
    try:
        found = await asyncio.wait_for(answer, max(0.1, seconds))
    except TimeoutError:
        return "open"
    return found[9:12].decode() if found.startswith(b"HTTP/1.1 ") else "closed"


def run_attack(name: str, host: str, port: int, seconds: float, rounds: int) -> dict[str, int]:
    """Run rounds of an attack, one second apart."""

    async def rounds_of() -> Counter[str]:
        found: Counter[str] = Counter()
        end = time.time() + seconds
        for _ in range(rounds):
            if time.time() >= end:
                break
            try:
                found += await ATTACKS[name](host, port, end)
            except OSError as error:
                found[type(error).__name__] += 1
            await asyncio.sleep(1)
        return found

    return dict(asyncio.run(rounds_of()))


# --- measurements ----------------------------------------------------------------------------------------------------


@contextmanager
def watched(pid: int) -> Iterator[dict[str, int]]:
    """Measure the memory of a process in MiB while the block runs: `before` and the peak, `most`."""
    seen = {"before": _resident(pid), "most": _resident(pid)}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen["most"] = max(seen["most"], _resident(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _resident(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss // 2**20


def longest_health(url: str, ended: threading.Event) -> float:
    """Request `/health` until `ended` is set, and return the longest duration in milliseconds."""
    import httpx2

    longest = 0.0
    with httpx2.Client(base_url=url, timeout=600, trust_env=False) as client:
        while not ended.is_set():
            begin = time.perf_counter()
            client.get("/health")
            longest = max(longest, 1000 * (time.perf_counter() - begin))
            ended.wait(0.02)
    return longest


@contextmanager
def watched_server(folder: Path, threads: int) -> Iterator[tuple[str, int, int]]:
    """Run a server and yield its URL, port and process id."""
    before = {child.pid for child in multiprocessing.active_children()}
    with server(folder, threads, {}) as url:
        (process,) = [child for child in multiprocessing.active_children() if child.pid not in before]
        yield url, int(url.rsplit(":", 1)[1]), process.pid or 0


def soak(folder: Path, texts: list[Any], options: Namespace) -> list[Seen]:
    """Run all phases against one server."""
    names = ["none, before", *options.attacks, "none, after"]
    seconds = 60 * options.minutes / len(names)
    with (
        watched_server(folder, options.threads) as (url, port, pid),
        ProcessPoolExecutor(1, _SPAWN) as clients,
        ProcessPoolExecutor(1, _SPAWN) as attackers,
    ):
        clients.submit(run_clients, "warm-up", url, texts, options.clients, 3.0).result()
        phases = []
        for name in names:
            with watched(pid) as memory:
                attack = None
                if name in ATTACKS:
                    attack = attackers.submit(run_attack, name, "127.0.0.1", port, seconds, 10_000)
                found: Phase = clients.submit(run_clients, name, url, texts, options.clients, seconds).result()
                statuses = {} if attack is None else attack.result()
            seen = Seen(attack=name, answers=found.answers, wrong=found.wrong, refused=found.refused)
            seen.lost, seen.errors = sum(found.errors.values()), found.errors
            seen.p50_ms, seen.p99_ms, seen.statuses = found.p50_ms, found.p99_ms, statuses
            seen.memory_before_mib, seen.memory_mib = memory["before"], memory["most"]
            phases.append(seen)
            print(seen, flush=True)
    return phases


def one_by_one(folder: Path, options: Namespace) -> list[Seen]:
    """Run a round of each attack, each against a new server."""
    phases = []
    for name in options.attacks:
        ended = threading.Event()
        with (
            watched_server(folder, options.threads) as (url, port, pid),
            ProcessPoolExecutor(1, _SPAWN) as attackers,
            watched(pid) as memory,
        ):
            longest: list[float] = []
            asks = threading.Thread(target=lambda: longest.append(longest_health(url, ended)))  # noqa: B023 (joined)
            asks.start()
            begin = time.perf_counter()
            statuses = attackers.submit(run_attack, name, "127.0.0.1", port, 60 * options.minutes, 1).result()
            took = time.perf_counter() - begin
            ended.set()
            asks.join()
        seen = Seen(attack=name, statuses=statuses, health_ms=longest[0])
        seen.memory_before_mib, seen.memory_mib = memory["before"], memory["most"]
        phases.append(seen)
        print(f"{seen} ({took:.1f} s)", flush=True)
    return phases


def main() -> None:
    """Run the soak test or the attacks one by one, and print a table."""
    parser = ArgumentParser(description="Soak test of `hf-reward serve` with attackers.")
    parser.add_argument(
        "--minutes", type=float, default=30, help="duration of all phases; with --one-by-one the maximum of each"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--one-by-one", action="store_true", help="a new server for each attack, no normal clients")
    parser.add_argument("--threads", type=int, default=max(1, core_count() - 1), help="threads of the model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = 16 if options.one_by_one else 256
    model = Namespace(texts=count, prompt_words=95, response_words=34, responses_per_prompt=16)
    with tempfile.TemporaryDirectory() as folder:
        texts, _ = make_model(Path(folder), model)
        phases = one_by_one(Path(folder), options) if options.one_by_one else soak(Path(folder), texts, options)
    report(phases)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        result = {"machine": machine(), "settings": settings, "phases": [asdict(each) for each in phases]}
        options.json.write_text(json.dumps(result, indent=2))
    raise SystemExit(1 if any(each.wrong or each.lost for each in phases) else 0)


def report(phases: list[Seen]) -> None:
    """Print a table of the phases."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=machine(), title_justify="left")
    headings = ("attack", "answers", "p50, ms", "p99, ms", "429", "lost", "wrong", "/health, ms", "MiB", "attacker got")
    for heading in headings:
        table.add_column(heading, justify="left" if heading.startswith("attack") else "right")
    for each in phases:
        got = ", ".join(f"{count} x {status}" for status, count in sorted(each.statuses.items()))
        numbers = (each.answers, f"{each.p50_ms:.0f}", f"{each.p99_ms:.0f}", each.refused, each.lost, each.wrong)
        memory = f"{each.memory_before_mib} to {each.memory_mib}"
        table.add_row(each.attack, *map(str, numbers), f"{each.health_ms:.0f}", memory, got)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
