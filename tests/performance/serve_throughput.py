"""Throughput of the server for best-of-n requests, next to one call of `RewardScorer` and to `vllm serve`.

    python tests/performance/serve_throughput.py --model outputs/quickstart
    python tests/performance/serve_throughput.py --model outputs/quickstart --vllm http://127.0.0.1:8001
    python tests/performance/serve_throughput.py --prompts 8 --rounds 1      # a random model, for a short check

All sides score the same rows: 16 responses to each prompt, with the lengths of `serve_load.py`. 64 clients send one
prompt with its responses per request (`/rank`, and texts of the chat template to vLLM's `/classify`). The server, the
clients and the scorer run in three processes, one after the other, with the same number of threads for the model. In
each round every side runs once, and the ratios are those of one round, because the speed of a machine drifts. Start
vLLM yourself, pinned to as many cores: `vllm serve MODEL --runner pooling --dtype float32`.

Rewards of the server must equal those of the scorer (1e-4 of max(1, |reward|)). `--json` writes all rounds.
"""

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import core_count
from serve_load import TOLERANCE, Text, machine, make_model, server

_SPAWN = multiprocessing.get_context("spawn")
_scorer: Any = None
"""The scorer of the scoring process."""


@dataclass
class Side:
    """One side in one round."""

    name: str
    rows_per_second: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    wrong: int = 0
    """Rewards that differ from those of the scorer; not counted for vLLM in half precision."""


def main() -> None:
    """Run all rounds and print a table."""
    parser = ArgumentParser(description="Throughput of `hf-reward serve`.")
    parser.add_argument("--model", type=Path, help="folder of a reward model; by default a small random one")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--responses-per-prompt", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=95)
    parser.add_argument("--response-words", type=int, default=34)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=max(1, core_count() - 1), help="threads of the model")
    parser.add_argument("--vllm", help="address of a running `vllm serve` for the same model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.texts = options.prompts * options.responses_per_prompt
    with tempfile.TemporaryDirectory() as folder:
        texts, _ = make_model(Path(folder), options)
        model = options.model or Path(folder)
        rounds = measure(model, texts, options)
    report(rounds, options)
    if options.json:
        content = {"machine": machine(), "settings": {name: str(value) for name, value in vars(options).items()}}
        rows = [[asdict(side) for side in sides] for sides in rounds]
        options.json.write_text(json.dumps({**content, "rounds": rows}, indent=2))
    raise SystemExit(1 if any(side.wrong for sides in rounds for side in sides) else 0)


def measure(model: Path, texts: Sequence[Text], options: Namespace) -> list[list[Side]]:
    """Run all sides in each round, in alternating order."""
    groups = [texts[start : start + options.responses_per_prompt] for start in _starts(texts, options)]
    with (
        ProcessPoolExecutor(1, _SPAWN, initializer=open_scorer, initargs=(str(model), options.threads)) as pool,
        server(model, options.threads, {"served_model_name": "m"}) as url,
    ):
        expected, formatted = pool.submit(score, texts).result()[1:]
        sides: dict[str, Any] = {
            "scorer": lambda: Side("scorer", len(texts) / pool.submit(score, texts).result()[0]),
            "server": lambda: asyncio.run(ask_all("server", rank_bodies(groups), f"{url}/rank", expected, options)),
        }
        if options.vllm:
            bodies = classify_bodies(formatted, options)
            address = f"{options.vllm}/classify"
            sides["vllm"] = lambda: asyncio.run(ask_all("vllm", bodies, address, None, options))
        for run in sides.values():  # warm-up
            run()
        rounds = []
        for number in range(options.rounds):
            names = list(sides) if number % 2 == 0 else list(sides)[::-1]
            found = {name: sides[name]() for name in names}
            rounds.append([found[name] for name in sides])
            print(f"round {number + 1} of {options.rounds}", flush=True)
        return rounds


def _starts(texts: Sequence[Text], options: Namespace) -> range:
    return range(0, len(texts), options.responses_per_prompt)


def report(rounds: Sequence[Sequence[Side]], options: Namespace) -> None:
    """Print a table with medians over the rounds."""
    print(f"{machine()}, {options.threads} for the model; {options.texts} rows, {options.clients} clients")
    print("| side | rows/s | ratio to the scorer, by round | p50, ms | p99, ms | wrong |\n|---|---|---|---|---|---|")
    for place, side in enumerate(rounds[0]):
        column = [sides[place] for sides in rounds]
        ratios = [each.rows_per_second / sides[0].rows_per_second for each, sides in zip(column, rounds, strict=True)]
        shown = " ".join(f"{each:.2f}" for each in ratios)
        middle = {name: statistics.median(getattr(each, name) for each in column) for name in _SHOWN}
        print(
            f"| {side.name} | {middle['rows_per_second']:.1f} | {statistics.median(ratios):.2f} ({shown}) "
            f"| {middle['p50_ms']:.0f} | {middle['p99_ms']:.0f} | {sum(each.wrong for each in column)} |"
        )


_SHOWN = ("rows_per_second", "p50_ms", "p99_ms")

# --- the scorer's process --------------------------------------------------------------------------------------------


def open_scorer(model: str, threads: int) -> None:
    """Load the model in this process."""
    global _scorer
    import torch

    from hf_reward.scoring.reward_scorer import RewardScorer

    torch.set_num_threads(threads)
    _scorer = RewardScorer.from_pretrained(model, device="cpu")


def score(texts: Sequence[Text]) -> tuple[float, list[float], list[str]]:
    """Score all texts with one call; return its seconds, the rewards, and the formatted texts."""
    from hf_reward.data.score_request import ScoreRequest

    requests = [ScoreRequest(prompt=each.prompt, response=each.response) for each in texts]
    begin = time.perf_counter()
    rewards = _scorer.score_requests(requests, show_progress=False).rewards.tolist()
    seconds = time.perf_counter() - begin
    decode = _scorer.tokenizer.decode
    return seconds, rewards, [decode(each.input_ids) for each in _scorer.encode(requests)]


# --- the clients -----------------------------------------------------------------------------------------------------


def rank_bodies(groups: Sequence[Sequence[Text]]) -> list[dict[str, Any]]:
    """Return a body of `/rank` for each prompt."""
    return [{"prompt": group[0].prompt, "responses": [each.response for each in group]} for group in groups]


def classify_bodies(formatted: Sequence[str], options: Namespace) -> list[dict[str, Any]]:
    """Return a body of vLLM's `/classify` for each prompt."""
    starts = _starts(formatted, options)  # type: ignore[arg-type]
    size = options.responses_per_prompt
    return [{"input": list(formatted[start : start + size]), "add_special_tokens": False} for start in starts]


async def ask_all(
    name: str, bodies: Sequence[dict[str, Any]], url: str, expected: Sequence[float] | None, options: Namespace
) -> Side:
    """Send all bodies from several clients.

    Args:
        name: Name of the side.
        bodies: The bodies, in the order of the rows.
        url: Address of the endpoint.
        expected: Rewards of the rows, or None.
        options: Number of clients and of rows in a body.

    Returns:
        The result.
    """
    import httpx2

    waiting = list(enumerate(bodies))[::-1]
    times: list[float] = []
    rewards: dict[int, list[float]] = {}
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=options.clients)) as client:

        async def work() -> None:
            while waiting:
                place, body = waiting.pop()
                begin = time.perf_counter()
                answer = await client.post(url, json=body)
                answer.raise_for_status()
                times.append(time.perf_counter() - begin)
                found = answer.json()
                rewards[place] = (
                    found["rewards"] if "rewards" in found else [each["probs"][0] for each in found["data"]]
                )

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(options.clients)))
        seconds = time.perf_counter() - start
    flat = [reward for place in range(len(bodies)) for reward in rewards[place]]
    near = [
        abs(one - other) <= TOLERANCE * max(1, abs(other)) for one, other in zip(flat, expected or flat, strict=True)
    ]
    times.sort()
    p50, p99 = (1000 * times[int(part * (len(times) - 1))] for part in (0.5, 0.99))
    return Side(name, len(flat) / seconds, p50, p99, near.count(False))


if __name__ == "__main__":
    main()
