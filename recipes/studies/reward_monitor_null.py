"""False alarms of the reward monitor on streams of a policy that does not change.

    python recipes/studies/reward_monitor_null.py --out runs/monitor/null.jsonl --only independent epochs texts
    python recipes/studies/reward_monitor_null.py --out runs/monitor/null.jsonl --streams 200   # the other kinds

Each stream has 200 steps of 4 prompts with 4 responses, of which the reward prefers long ones. Kinds:

- `independent`: features from skewed and rare distributions, with a new prompt each time;
- `epochs`: the same with 32 prompts, which come in a new random order in each epoch;
- `texts`: random texts, whose features are measured;
- `changing batch`: as `independent`, with 1 to 8 prompts in a step;
- `dependent`: as `independent`, but lengths and rewards have a common effect in each step with autocorrelation 0.5;
- `sorted`: as `independent`, with the prompts sorted by the length of their responses.

The last two break the assumption that prompts are independent.

A run has a false alarm if any of the seven series drifts at any step. Kinds in `--out` are not simulated again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study_runs import stored

from hf_reward import RewardMonitor
from hf_reward.evaluation.monitoring.monitor import measured
from hf_reward.evaluation.monitoring.steps import MeasuredResponse

PROMPTS, RESPONSES, STEPS = 4, 4, 200
KINDS = ("independent", "epochs", "texts", "changing batch", "dependent", "sorted")
WORDS = ("the", "road", "is", "clear", "and", "useful", "we", "go", "there", "now", "a", "house", "day", "of", "rain")
PHRASES = ("I hope this helps.", "\n- item", "I'm sorry.", "**bold**")

Step = list[MeasuredResponse]


def prompt_effects(kind: str, random: np.random.Generator) -> Iterator[tuple[list[int], np.ndarray]]:
    """Return the prompts of each step and the logarithms of their typical lengths."""
    effects = random.normal(0, 0.5, size=32)
    queue: list[int] = []
    for step in range(STEPS):
        if kind == "epochs":
            queue = queue or random.permutation(32).tolist()
            chosen, queue = queue[:PROMPTS], queue[PROMPTS:]
            yield chosen, effects[chosen]
        else:
            count = int(random.integers(1, 9)) if kind == "changing batch" else PROMPTS
            base = 0.01 * step if kind == "sorted" else 0.0
            yield list(range(PROMPTS * step, PROMPTS * step + count)), base + random.normal(0, 0.5, size=count)


def feature_steps(kind: str, random: np.random.Generator) -> Iterator[Step]:
    """Return steps with simulated features."""
    common = 0.0
    for prompts, effects in prompt_effects(kind, random):
        common = 0.5 * common + random.normal(0, 0.5 * np.sqrt(0.75)) if kind == "dependent" else 0.0
        size = (len(prompts), RESPONSES)
        lengths = np.exp(4 + effects[:, None] + common + random.normal(0, 0.4, size))
        marks, phrases = random.poisson(0.5, size), random.poisson(0.1, size)
        refusals, repeated = random.random(size) < 0.02, random.beta(1, 20, size)
        rewards = 0.01 * lengths + 0.2 * marks + effects[:, None] + common + random.normal(size=size)
        columns = (lengths, marks, repeated, phrases, refusals)
        features = np.stack(columns, axis=-1).reshape(-1, len(columns)).astype(float).tolist()
        places = np.repeat(prompts, RESPONSES).tolist()
        yield [MeasuredResponse(*each) for each in zip(places, map(tuple, features), rewards.ravel(), strict=True)]


def text_steps(random: np.random.Generator) -> Iterator[Step]:
    """Return steps with random texts."""
    for prompts, effects in prompt_effects("texts", random):
        texts = []
        for effect in np.repeat(effects, RESPONSES):
            words = random.choice(WORDS, size=1 + random.poisson(12 * np.exp(effect))).tolist()
            texts.append(" ".join([*words, *(each for each in PHRASES if random.random() < 0.1)]))
        rewards = [0.02 * len(text) + random.normal() for text in texts]
        yield measured([str(each) for each in np.repeat(prompts, RESPONSES)], texts, rewards)


def simulate(kind: str, streams: int) -> dict[str, Any]:
    """Monitor streams of one kind.

    Args:
        kind: One of `KINDS`.
        streams: Number of streams.

    Returns:
        Numbers of streams with a drift of any series and with a warning, the steps of the first drifts, CPU seconds.
    """
    start, firsts, warned = time.process_time(), [], 0
    for seed in range(streams):
        random = np.random.default_rng([KINDS.index(kind), seed])
        monitor = RewardMonitor(seed=seed)
        for step, responses in enumerate(text_steps(random) if kind == "texts" else feature_steps(kind, random)):
            monitor.add(responses, step)
        firsts += [min(each.step for each in monitor.drifts.values())] if monitor.drifts else []
        warned += bool(monitor.warnings)
    spent = round(time.process_time() - start)
    return {"kind": kind, "streams": streams, "drifts": len(firsts), "warned": warned, "steps": firsts, "cpu_s": spent}


def share(count: int, total: int) -> str:
    """Return a share with its exact 95% interval (Clopper and Pearson), in percent."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"{100 * count / total:.1f}% ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def main(words: Sequence[str] | None = None) -> None:
    """Simulate the kinds of streams that the file lacks, and print the table."""
    parser = argparse.ArgumentParser(description="False alarms of the reward monitor.")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, help="JSONL file")
    options = parser.parse_args(sys.argv[1:] if words is None else words)
    known = {} if options.out is None else {(each["kind"], each["streams"]): each for each in stored(options.out)}
    print("| streams | number | any drift | any warning |", "|---|---|---|---|", sep="\n")
    for kind in options.only:
        found = known.get((kind, options.streams))
        if found is None:
            found = simulate(kind, options.streams)
            if options.out is not None:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
        cells = (share(found[name], found["streams"]) for name in ("drifts", "warned"))
        print(f"| {kind} | {found['streams']} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
