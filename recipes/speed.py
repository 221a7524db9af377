"""How fast is it? Each row of the table runs a peer and hf_reward on the same rows, in the same process, taking turns.

    python recipes/speed.py prepare                                     # made-up rows as long as those of HH
    python recipes/speed.py prepare --data harmless_test.jsonl --tokenizer models/SmolLM2-135M-Instruct [--layout hh]

`prepare` turns raw preferences into token ids: TRL adds EOS, tokenises and filters; we also measure and summarise.
Both get max_length 1024 and drop what is longer, and their ids are compared before any time is believed.
"""

import json
import os
import random
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import datasets
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_reward.preference_row import PreferenceFormatError
from hf_reward.preferences import to_preference_row
from hf_reward.preparation import PreparationRule, prepare_preferences
from hf_reward.tokenization import FormatRule

MAX_LENGTH = 1024
MEAN_WORDS = {"prompt": 95, "chosen": 30, "rejected": 38}
"""Mean lengths of made-up rows in words, about 125, 40 and 50 tokens: those of Anthropic's HH harmless-base."""

Row = dict[str, Any]
Ids = list[list[int]]


def main() -> None:
    """Read the command line and run one benchmark."""
    parser = ArgumentParser(description="Benchmarks beside peer libraries.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="raw rows to token ids, beside TRL's RewardTrainer")
    prepare.add_argument("--data", type=Path, help="JSONL of `chosen` and `rejected`, with or without `prompt`")
    prepare.add_argument("--layout", choices=["text", "hh"], default="text", help="hh: HH transcripts as conversations")
    prepare.add_argument("--tokenizer", help="folder or Hub id; by default a small BPE is trained here")
    prepare.add_argument("--rows", type=int, default=2000, help="at most so many")
    prepare.add_argument("--rounds", type=int, default=3)
    benchmark_preparation(parser.parse_args())


# --- preparation -----------------------------------------------------------------------------------------------------


def benchmark_preparation(options: Namespace) -> None:
    """Time TRL's `RewardTrainer._prepare_dataset` and our `prepare_preferences`."""
    rows = read_rows(options.data, options.rows) if options.data else made_up_rows(options.rows)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else small_tokenizer(rows)
    if options.layout == "hh":
        rows = as_conversations(rows)
    sides: dict[str, Callable[[Dataset, PreTrainedTokenizerBase], Callable[[], Ids]]]
    sides = {"TRL": prepare_as_trl, "hf_reward": prepare_as_ours}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first round warms imports and disk, and is not counted
        ids = {}
        for name in sorted(sides, reverse=bool(turn % 2)):
            with fresh_dataset(rows) as data:
                wall, cpu = time.perf_counter(), time.process_time()
                read_ids = sides[name](data, tokenizer)
                elapsed = time.perf_counter() - wall, time.process_time() - cpu
                ids[name] = read_ids()
            seconds[name] += [elapsed] if turn else []
        if ids["TRL"] != ids["hf_reward"]:
            raise SystemExit("The token ids differ, so the times cannot be compared.")
    report(f"raw rows to token ids, {options.layout}", len(rows), seconds)


def prepare_as_trl(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Ids]:
    """What TRL's `RewardTrainer.__init__` does with its dataset; returns how to read the ids."""
    from trl.trainer.reward_trainer import RewardTrainer

    limits = Namespace(dataset_num_proc=None, max_length=MAX_LENGTH)
    # The method reads nothing of the trainer, so no model has to be built for it.
    nobody: Any = None
    prepared: Any = RewardTrainer._prepare_dataset(nobody, data, tokenizer, limits, "train")  # type: ignore[arg-type]
    return lambda: [ids for pair in zip(prepared["chosen_ids"], prepared["rejected_ids"], strict=True) for ids in pair]


def prepare_as_ours(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Ids]:
    """Our preparation with TRL's policy for long rows, summary included; returns how to read the ids."""
    rule = PreparationRule(format=FormatRule(max_length=MAX_LENGTH, over_length="drop"))
    prepared: Any = prepare_preferences(data, tokenizer, rule)[0]
    return lambda: [ids for row in prepared for ids in row["input_ids"]]


@contextmanager
def fresh_dataset(rows: list[Row]) -> Iterator[Dataset]:
    """The rows as a dataset on disk in a folder of its own, so that no cache can serve either side."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        yield Dataset.from_json(str(path), cache_dir=folder)  # type: ignore[misc]


# --- rows and tokenizer ----------------------------------------------------------------------------------------------


def read_rows(path: Path, limit: int) -> list[Row]:
    """The first rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


def made_up_rows(count: int, seed: int = 0) -> list[Row]:
    """Text rows with an implicit prompt; lengths are geometric about `MEAN_WORDS`, words Zipf-like."""
    pick = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "is", "or")]
    words = ["".join(pick.choices(syllables, k=1 + place % 4)) for place in range(8000)]
    weights = [1 / (place + 10) for place in range(len(words))]

    def text(mean: int) -> str:
        return " ".join(pick.choices(words, weights, k=1 + int(pick.expovariate(1 / mean)))) + "."

    rows = []
    for _ in range(count):
        prompt = f"\n\nHuman: {text(MEAN_WORDS['prompt'])}\n\nAssistant: "
        rows.append({side: prompt + text(MEAN_WORDS[side]) for side in ("chosen", "rejected")})
    return rows


def as_conversations(rows: list[Row]) -> list[Row]:
    """HH transcripts as prompt, chosen and rejected message lists; the few that are none are left out."""
    conversations = []
    for row in rows:
        try:
            parsed = to_preference_row(row, layout="hh")
        except PreferenceFormatError:
            continue
        chosen, rejected = parsed.responses
        conversations.append({"prompt": parsed.prompt, "chosen": chosen, "rejected": rejected})
    return conversations


def small_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4,000 tokens with a ChatML template, trained on the rows."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[misc]
    backend.decoder = decoders.ByteLevel()  # type: ignore[misc]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((row["chosen"] for row in rows[:1000]), trainer)
    message = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    template = "{% for message in messages %}" + message + "{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=template)


# --- report ----------------------------------------------------------------------------------------------------------


def report(title: str, rows: int, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Print rows per second of each side and the ratio of the medians; the first side is the peer.

    CPU seconds of all threads stand beside, since they vary less than wall time on a machine that others use too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table = Table(title=title, caption=f"{rows} rows, {cores} CPU cores (load {os.getloadavg()[0]:.1f}), same ids")
    for heading in ("", "rows/s (median)", "min", "max", "ratio", "CPU s (median)", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    peer_wall, peer_cpu = (median(times) for times in zip(*next(iter(seconds.values())), strict=True))
    for name, times in seconds.items():
        walls, cpus = zip(*times, strict=True)
        rates = [f"{rows / value:,.0f}" for value in (median(walls), max(walls), min(walls))]
        cpu = median(cpus)
        table.add_row(name, *rates, f"{peer_wall / median(walls):.2f}", f"{cpu:.2f}", f"{peer_cpu / cpu:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
