"""`speed.py score`: best-of-N scoring with TRL's loop, transformers' pipeline and hf_reward on the same texts.

Each prompt has N answers, with the lengths of HH (`speed_rows.HH_LIKE`: prompts of 125 tokens, answers of 45). Three
sides load the same folder and score the same conversations in turn:

    TRL          as in its GRPO and RLOO trainers: the stock classifier, the chat template applied to every prompt with
                 its answer, batches of 16, padded to the longest
    pipeline     pipeline("text-classification") with default settings, one text at a time, raw logits
    hf_reward    RewardScorer.best_of_n

The sides run in float32 on a CPU and in bfloat16 on CUDA. The benchmark fails if the rewards differ. Without TRL, the
pipeline is the reference.
"""

import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from geometries import GEOMETRIES
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from speed_measure import build_model
from speed_rows import HH_LIKE, Lengths
from speed_training import machine
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from hf_reward import RewardScorer

TRL_BATCH = 16
_ANSWERS = Lengths(45, 0.9)
_LONGEST = 512
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of rewards, whose standard deviation is about 1."""

Conversation = list[dict[str, str]]
Side = Callable[[list[str], list[list[str]]], np.ndarray]


def benchmark_scoring(options: Namespace) -> None:
    """Measure the three sides and print a table."""
    geometry = (options.geometry or ["smollm2-135m"])[0]
    with tempfile.TemporaryDirectory() as folder:
        build_model(geometry, folder)
        _randomize_head(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompts, answers, lengths = best_of_n_texts(tokenizer, options.prompts, options.answers)
        sides = {"TRL": _trl(folder)} if find_spec("trl") else {}
        sides |= {"pipeline": _pipeline(folder), "hf_reward": _ours(folder)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        rewards: dict[str, np.ndarray] = {}
        for turn in range(options.rounds + 1):  # the first round, of one prompt, is a warm-up
            count = len(prompts) if turn else 1
            for name in sorted(sides, reverse=bool(turn % 2)):
                start = time.perf_counter()
                rewards[name] = sides[name](prompts[:count], answers[:count])
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    reference = rewards[next(iter(sides))]
    differences = {name: float(np.abs(found - reference).max()) for name, found in rewards.items()}
    if not all(each <= _TOLERANCE[_dtype()] for each in differences.values()) or not reference.std() > 0.01:
        raise SystemExit(f"The rewards differ, so the times cannot be compared: {differences}")
    report = {
        "machine": machine(),
        "geometry": geometry,
        "parameters": GEOMETRIES[geometry],
        "dtype": _dtype(),
        "rows": reference.size,
        "answers": options.answers,
        "lengths": lengths,
        "seconds": seconds,
        "largest_difference": differences,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print(report)


def best_of_n_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: int, answers: int
) -> tuple[list[str], list[list[str]], dict[str, float]]:
    """Make prompts and answers with token counts from the given distributions.

    Args:
        tokenizer: A byte-level tokenizer.
        prompts: Number of prompts.
        answers: Number of answers per prompt.

    Returns:
        The prompts, their answers, and the mean tokens of both.
    """
    chance = np.random.default_rng(0)
    # Words that are one token with a leading space, so that a text has as many tokens as words.
    words = np.array([word[1:] for word in sorted(tokenizer.get_vocab()) if word[0] == "Ġ" and word[1:].isalpha()])

    def text(length: int) -> str:
        return " ".join(chance.choice(words, length))

    sizes = np.minimum(HH_LIKE.prefix.draw(prompts, chance), _LONGEST)
    counts = np.minimum(_ANSWERS.draw(prompts * answers, chance), _LONGEST).reshape(prompts, answers)
    drawn = [text(size) for size in sizes], [[text(size) for size in row] for row in counts]
    return *drawn, {"prompt": float(sizes.mean()), "answer": float(counts.mean())}


def _conversations(prompts: list[str], answers: list[list[str]]) -> list[Conversation]:
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, row in zip(prompts, answers, strict=True)
        for answer in row
    ]


def _dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _trl(folder: str) -> Side:
    from trl.data_utils import apply_chat_template

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=_dtype()).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(prompts: list[str], answers: list[list[str]]) -> np.ndarray:
        conversations, rewards = _conversations(prompts, answers), []
        for start in range(0, len(conversations), TRL_BATCH):
            batch = conversations[start : start + TRL_BATCH]
            texts = [apply_chat_template({"messages": messages}, tokenizer)["text"] for messages in batch]
            inputs = tokenizer(
                text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            with torch.inference_mode():
                rewards.append(model(**inputs.to(model.device)).logits[:, 0])
        return torch.cat(rewards).float().cpu().numpy()

    return score


def _pipeline(folder: str) -> Side:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify: Any = pipeline("text-classification", model=folder, tokenizer=tokenizer, dtype=_dtype())

    def score(prompts: list[str], answers: list[list[str]]) -> np.ndarray:
        conversations = _conversations(prompts, answers)
        texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in conversations]
        return np.array([each["score"] for each in classify(texts, function_to_apply="none")], dtype=np.float32)

    return score


def _ours(folder: str) -> Side:
    scorer = RewardScorer.from_pretrained(folder, dtype=_dtype())
    return lambda prompts, answers: np.concatenate([each.rewards for each in scorer.best_of_n(prompts, answers)])


def _randomize_head(folder: Path) -> None:
    """Give the head weights of realistic size, so that the rewards of texts differ."""
    weights = load_file(folder / "model.safetensors")
    head = weights["score.weight"]
    weights["score.weight"] = torch.randn(head.shape, generator=torch.Generator().manual_seed(1)) / head.numel() ** 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _print(report: dict[str, Any]) -> None:
    seconds, rows, lengths = report["seconds"], report["rows"], report["lengths"]
    table = Table(
        title=f"best of {report['answers']}, {report['geometry']}, {report['dtype']}",
        caption=f"{rows} rows; prompts of {lengths['prompt']:.0f} tokens, answers of {lengths['answer']:.0f} (means); "
        f"largest difference of rewards {max(report['largest_difference'].values()):.0e}; {report['machine']}",
    )
    for heading in ("", "rows/s (median)", "min", "max", "speed-up of hf_reward"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = median(seconds["hf_reward"])
    for name, times in seconds.items():
        rates = [f"{rows / value:.1f}" for value in (median(times), max(times), min(times))]
        table.add_row(name, *rates, f"{median(times) / ours:.2f}" if name != "hf_reward" else "")
    Console(width=110).print(table)
