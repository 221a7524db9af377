"""Measure the time and memory of `check-data` on data of the size of HH-RLHF.

    python tests/performance/data_check_scale.py [--rows 170000] [--eval-rows 8500] [--seed 0] \
        [--tokenizer FOLDER_OR_ID]

Generates transcripts with the lengths of HH-RLHF (one to four earlier exchanges, a skewed vocabulary of 30,000 words)
with a known number of planted faults, runs the check in a separate process, prints its time and peak memory, and
compares the faults that it found with the planted ones.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, EVAL_ROWS = 170_000, 8_500
SHARE = 0.002
"""Share of rows with each planted fault."""
Words = Callable[[int], str]


def main() -> None:
    """Generate data, check it and compare the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--eval-rows", type=int, default=EVAL_ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", help="folder or Hub id: count tokens too")
    parser.add_argument("--check", nargs=3, metavar=("DATA", "EVAL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        data, held_out, out = options.check
        check(data, held_out, out, options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        train, held = Path(folder) / "rows.jsonl", Path(folder) / "held.jsonl"
        planted = generate(train, held, options.rows, options.eval_rows, options.seed)
        print(f"{options.rows:,} + {options.eval_rows:,} rows, {train.stat().st_size / 1e6:.0f} MB of training rows")
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path(folder) / "cache")}
        command = [sys.executable, __file__, "--check", str(train), str(held), folder]
        command += ["--tokenizer", options.tokenizer] if options.tokenizer else []
        subprocess.run(command, check=True, env=environment)
        found = json.loads((Path(folder) / "data_report.json").read_text(encoding="utf-8"))
        compare(found, planted)


def check(data: str, held: str, out: str, tokenizer: str | None) -> None:
    """Run the check in this process and print its time and memory."""
    from hf_reward.evaluation.data_check import check_data, write_report

    start, used = time.perf_counter(), time.process_time()
    write_report(check_data(data, eval_data=held, layout="hh", tokenizer=tokenizer), out)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"check-data: {seconds:.0f} s ({used:.0f} s of CPU time), peak memory {peak:.2f} GiB")


def generate(train: Path, held: Path, count: int, eval_count: int, seed: int) -> dict[str, int]:
    """Write two files of transcripts with planted faults.

    Args:
        train: File for the training rows.
        held: File for the evaluation rows.
        count: Number of training rows.
        eval_count: Number of evaluation rows.
        seed: Random seed.

    Returns:
        Fault -> number of planted cases.
    """
    words, rng = word_sampler(seed), np.random.default_rng(seed + 1)
    many, leaks = int(count * SHARE), int(eval_count * SHARE)
    clean = count - 4 * many
    unusable = 2 * many - many // 2 * 2
    keep = [plain_row(words, rng) for _ in range(max(many, leaks))]
    with train.open("w", encoding="utf-8") as file:
        for row in keep:
            file.write(line(*row))
        for _ in range(clean - len(keep)):
            file.write(line(*plain_row(words, rng)))
        for prompt, chosen, rejected in keep[:many]:
            file.write(line(prompt, chosen, rejected))  # a duplicate row
        for _ in range(many):
            prompt, chosen, _ = plain_row(words, rng)
            file.write(line(prompt, chosen, chosen))  # an identical pair
        for _ in range(many // 2):
            prompt, chosen, rejected = plain_row(words, rng)
            file.write(line(prompt, chosen, rejected) + line(prompt, rejected, chosen))  # a contradictory pair
        for _ in range(unusable):
            prompt, _, rejected = plain_row(words, rng)
            file.write(line(prompt, " ", rejected))  # an empty side
    with held.open("w", encoding="utf-8") as file:
        for prompt, chosen, rejected in keep[:leaks]:
            file.write(line(prompt, rejected, chosen))
        for _ in range(eval_count - leaks):
            file.write(line(*plain_row(words, rng)))
    faults = {"duplicate rows": many, "identical pairs": many, "contradictory pairs": many // 2}
    return {**faults, "unusable": unusable, "leaked": leaks}


def word_sampler(seed: int) -> Words:
    """Return a function that samples a number of words from a skewed distribution."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("aaeeiioubcdfghklmnprstvw"))
    vocabulary = np.array(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(30_000)])
    weights = 1 / np.arange(3, len(vocabulary) + 3)
    limits = np.cumsum(weights / weights.sum())

    def sample(count: int) -> str:
        return " ".join(vocabulary[np.minimum(np.searchsorted(limits, rng.random(count)), len(vocabulary) - 1)])

    return sample


def plain_row(words: Words, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return a prompt of one to four user turns and two answers; the longer one is preferred slightly more often."""
    turns = []
    for place in range(int(rng.integers(1, 5)) * 2 - 1):
        turns.append(f"\n\n{'Assistant' if place % 2 else 'Human'}: {words(int(rng.gamma(2, 12)) + 4)}")
    answers = sorted((words(int(rng.gamma(2, 22)) + 5) for _ in range(2)), key=len, reverse=bool(rng.random() < 0.55))
    return "".join(turns), answers[0], answers[1]


def line(prompt: str, chosen: str, rejected: str) -> str:
    """Return one row of HH-RLHF as JSON."""
    sides = {"chosen": chosen, "rejected": rejected}
    return json.dumps({name: f"{prompt}\n\nAssistant: {text}" for name, text in sides.items()}) + "\n"


def compare(report: dict[str, Any], planted: dict[str, int]) -> None:
    """Print the planted and the found faults.

    Args:
        report: `data_report.json`.
        planted: Fault -> number of planted cases.
    """
    found = {
        "duplicate rows": report["duplicates"]["duplicate_rows"],
        "identical pairs": report["duplicates"]["identical_pairs"],
        "contradictory pairs": report["contradictions"]["contradictory_pairs"],
        "unusable": sum(report["data"]["unusable"].values()),
        "leaked": report["leakage"]["leaked_rows"],
    }
    for name, count in planted.items():
        print(f"{name:20} planted {count:6,}  found {found[name]:6,}  {'ok' if count == found[name] else 'DIFFERS'}")


if __name__ == "__main__":
    main()
