"""Load test of the server: correctness of all answers under load, and the gain of batching.

    python tests/performance/serve_load.py      # 64 clients for a minute, one client before and after
    python tests/performance/serve_load.py --seconds 10 --clients 16 --json load.json

The server, the clients and this program are three processes. The model has random weights: 4 layers of width 256, 3.4
million parameters without embeddings, float32. It uses all cores but one, which the clients use. All texts differ and
their rewards are computed beforehand, so that swapped answers are detected: an answer is wrong if it differs by more
than 1e-4. A single client is measured on the same server before and after the load. Then the same clients load a server
with a queue of 8 rows: it must reject some requests with 429, answer all accepted ones, and answer everything again
after the load.

Prompts have 95 words and responses 34, the means of Anthropic's HH harmless-base. The 16 responses to a prompt are sent
at about the same time, one per request, as policies do; `--responses-per-prompt 1` makes all prompts different. On a
CPU the gain of batching comes from shared prompts and from fewer model calls.

`--json` writes `machine`, `settings`, and the fields of `Phase` for each phase.
"""

import asyncio
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import core_count, cpu_name

TOLERANCE = 1e-4
_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Phase:
    """Results of the clients in one phase."""

    name: str
    clients: int
    seconds: float
    answers: int = 0
    wrong: int = 0
    """Answers that differ from the reward of the text."""
    refused: int = 0
    """Answers 429: the queue was full."""
    errors: dict[str, int] = field(default_factory=dict)
    """All other errors and their counts."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


@dataclass(frozen=True)
class Text:
    """A text and its expected reward."""

    prompt: str
    response: str
    reward: float


def main() -> None:
    """Run all phases and print a table."""
    parser = ArgumentParser(description="Load test of `hf-reward serve`.")
    parser.add_argument(
        "--seconds", type=float, default=60, help="duration of the load; the other phases take up to a sixth of it"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1024, help="distinct texts")
    parser.add_argument("--prompt-words", type=int, default=95)
    parser.add_argument("--response-words", type=int, default=34)
    parser.add_argument("--responses-per-prompt", type=int, default=16)
    parser.add_argument("--threads", type=int, default=max(1, core_count() - 1), help="threads of the model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, _SPAWN) as clients:
        texts, tokens = make_model(Path(folder), options)
        phases = measure(Path(folder), texts, clients, options)
    gain = phases[1].rate / statistics.mean([phases[0].rate, phases[2].rate])
    report(phases, gain, f"{machine()}, {options.threads} for the model; {tokens:.0f} tokens per text")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        result = {"machine": machine(), "settings": {**settings, "tokens_per_text": tokens}, "gain": gain}
        options.json.write_text(json.dumps({**result, "phases": [asdict(phase) for phase in phases]}, indent=2))
    faults = sum(phase.wrong + sum(phase.errors.values()) for phase in phases)
    raise SystemExit(1 if faults or not phases[3].refused or phases[4].refused else 0)


def measure(folder: Path, texts: list[Text], clients: ProcessPoolExecutor, options: Namespace) -> list[Phase]:
    """Start both servers and run the phases."""
    short = options.seconds / 6

    def run(name: str, url: str, count: int, seconds: float) -> Phase:
        print(f"{name} ...", flush=True)
        return clients.submit(run_clients, name, url, texts, count, seconds).result()

    with server(folder, options.threads, {}) as url:
        run("warm-up", url, options.clients, min(3.0, short))
        phases = [
            run("one client, before", url, 1, short),
            run("load", url, options.clients, options.seconds),
            run("one client, after", url, 1, short),
        ]
    with server(folder, options.threads, {"max_queue_rows": 8}) as url:
        phases += [run("overload, a queue of 8", url, options.clients, short), run("after it", url, 4, short / 2)]
    return phases


# --- the model -------------------------------------------------------------------------------------------------------


def make_model(folder: Path, options: Namespace) -> tuple[list[Text], float]:
    """Save a random reward model and score the texts without a server.

    Args:
        folder: Folder for the model.
        options: Number and length of the texts.

    Returns:
        The texts with their rewards, and their mean length in tokens.
    """
    import torch
    from speed_rows import small_tokenizer, synthetic_rows
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from hf_reward.data.score_request import ScoreRequest
    from hf_reward.scoring.reward_scorer import RewardScorer

    rows = synthetic_rows(200)
    tokenizer = small_tokenizer(rows)
    tokenizer.pad_token = "<|endoftext|>"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **_SHAPE, num_labels=1, pad_token_id=tokenizer.pad_token_id, problem_type="regression", tie_word_embeddings=True
    )
    model: Any = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=0.2)  # large enough to distinguish the rewards of texts
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pick = random.Random(0)
    words = sorted({word for row in rows for word in row["chosen"].split() if word.isalpha()})
    prompts, responses = (
        [" ".join(pick.choices(words, k=count)) for _ in range(options.texts)]
        for count in (options.prompt_words, options.response_words)
    )
    prompts = [prompts[place // options.responses_per_prompt] for place in range(options.texts)]
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    requests = [ScoreRequest(prompt=prompt, response=text) for prompt, text in zip(prompts, responses, strict=True)]
    result = scorer.score_requests(requests, show_progress=False)
    texts = [Text(*each) for each in zip(prompts, responses, result.rewards.tolist(), strict=True)]
    return texts, result.tokens / len(texts)


# --- the server ------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, threads: int, settings: dict[str, Any]) -> Iterator[str]:
    """Run a server in a separate process and stop it with SIGTERM.

    Args:
        folder: Folder of the model.
        threads: Threads of the model.
        settings: Fields of `ServerSettings`.

    Yields:
        str: Its address.

    Raises:
        RuntimeError: If it exits early, or with a status other than 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (str(folder), threads, {"port": port, "device": "cpu", **settings})
    process = _SPAWN.Process(target=run_server, args=arguments)
    process.start()
    try:
        while not _answers(port):
            if not process.is_alive():
                raise RuntimeError(f"The server exited with {process.exitcode} before it answered.")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # SIGTERM
        process.join(60)
    if process.exitcode != 0:
        raise RuntimeError(f"The server exited with {process.exitcode} instead of 0.")


def run_server(folder: str, threads: int, settings: dict[str, Any]) -> None:
    """Run the server in the current process."""
    import torch

    from hf_reward.scoring.serving.server import serve
    from hf_reward.scoring.serving.settings import ServerSettings

    torch.set_num_threads(threads)
    serve(folder, ServerSettings(**settings))


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


# --- the clients -----------------------------------------------------------------------------------------------------


def run_clients(name: str, url: str, texts: Sequence[Text], clients: int, seconds: float) -> Phase:
    """Run the clients in the current process; each sends its own texts one after the other.

    Args:
        name: Name of the phase.
        url: URL of the server.
        texts: Texts and their rewards.
        clients: Number of concurrent clients.
        seconds: Duration.

    Returns:
        The results.
    """
    return asyncio.run(_all_clients(Phase(name, clients, seconds), url, texts))


async def _all_clients(phase: Phase, url: str, texts: Sequence[Text]) -> Phase:
    begin = time.perf_counter()
    times: list[float] = []
    await asyncio.gather(*(_one_client(number, begin, times, phase, url, texts) for number in range(phase.clients)))
    phase.seconds = time.perf_counter() - begin
    times.sort()
    if times:
        phase.p50_ms, phase.p99_ms = (1000 * times[int(part * (len(times) - 1))] for part in (0.5, 0.99))
    return phase


async def _one_client(
    number: int, begin: float, times: list[float], phase: Phase, url: str, texts: Sequence[Text]
) -> None:
    """Run one client with one connection: a shared pool would slow down the clients more than the server."""
    import httpx2

    place = number
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=False) as client:
        while time.perf_counter() - begin < phase.seconds:
            text = texts[place % len(texts)]
            place += phase.clients
            start = time.perf_counter()
            try:
                answer = await client.post("/score", json={"prompt": text.prompt, "response": text.response})
            except httpx2.HTTPError as error:
                _count(phase.errors, type(error).__name__)
                continue
            if answer.status_code == 429:
                phase.refused += 1
                await asyncio.sleep(0.05)  # earlier than `Retry-After`, to keep the queue full
            elif answer.status_code != 200:
                _count(phase.errors, str(answer.status_code))
            else:
                times.append(time.perf_counter() - start)
                phase.answers += 1
                phase.wrong += not abs(answer.json()["rewards"][0] - text.reward) <= TOLERANCE  # also true for NaN


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


# --- the report ------------------------------------------------------------------------------------------------------


def report(phases: Sequence[Phase], gain: float, title: str) -> None:
    """Print a table of the phases."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "clients", "answers", "answers/s", "p50, ms", "p99, ms", "429", "errors", "wrong"):
        table.add_column(heading, justify="right" if heading else "left")
    for phase in phases:
        errors = ", ".join(f"{name}: {count}" for name, count in phase.errors.items()) or "0"
        numbers = (f"{phase.rate:.1f}", f"{phase.p50_ms:.0f}", f"{phase.p99_ms:.0f}")
        table.add_row(
            phase.name, str(phase.clients), str(phase.answers), *numbers, str(phase.refused), errors, str(phase.wrong)
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"{phases[1].clients} clients get {gain:.1f} times the answers per second of one client.")


def machine() -> str:
    """Return the processor and its number of cores."""
    return f"{core_count()} cores of {cpu_name()}"


if __name__ == "__main__":
    main()
