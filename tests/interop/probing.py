"""Run one program on one model in its environment, and compare its rewards with the recorded ones."""

import inspect
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environments import PLACE, ROOT
from transformers import AutoTokenizer

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.preprocessing.tokenizer import render_chat
from hf_reward.publishing.stock_scoring import load_adapter

PROGRAMS = Path(__file__).parent / "programs"
STUBS = Path(__file__).parent / "stubs"
SECONDS = 3600


def run_program(
    python: Path, script: str, folder: Path, *, dtype: str, reuse: bool = False, **request: Any
) -> dict[str, Any]:
    """Run a file of `programs/` on a saved model.

    Args:
        python: Python of the environment.
        script: Name of the file.
        folder: The saved model.
        dtype: Precision of the program.
        reuse: Return the answer of an earlier run, if there is one for the same request.
        request: `ways` and `policy`.

    Returns:
        The answer: `version`, `rewards` and `errors`.
    """
    place = PLACE / "answers" / f"{script}-{dtype}-{folder.name}"
    place.mkdir(parents=True, exist_ok=True)
    asked, answered = place / "request.json", place / "answer.json"
    code = inspect.getsource(load_adapter)
    text = json.dumps(
        {"folder": str(folder), "dtype": dtype, "probes": probes_of(folder), "adapter_code": code, **request}
    )
    if not (reuse and answered.is_file() and asked.read_text(encoding="utf-8") == text):
        answered.unlink(missing_ok=True)
        asked.write_text(text, encoding="utf-8")
        command = [str(python), str(PROGRAMS / f"{script}.py"), str(asked), str(answered)]
        with (place / "output.txt").open("w") as output:
            done = subprocess.run(
                command, cwd=ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT, timeout=SECONDS
            )
        if not answered.is_file():
            raise RuntimeError(f"{script} ended with exit code {done.returncode}: see {place / 'output.txt'}")
    return json.loads(answered.read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **fixed, "PYTHONPATH": str(STUBS)}  # also for processes that a program starts


def probes_of(folder: Path) -> list[dict[str, Any]]:
    """Return the conversations of a record as messages, as formatted text, and as a pair; or those about pictures."""
    record, tokenizer = _record(folder), AutoTokenizer.from_pretrained(folder)
    if "images" in record.probes:
        return [_image_probe(probe["messages"], tokenizer) for probe in record.probes["images"]["conversations"]]
    found = []
    for probe in record.probes["conversations"]:
        if probe["name"] in PROBES:
            messages = probe["messages"]
            found.append(
                {
                    "messages": messages,
                    "text": render_chat(tokenizer, messages),
                    "prompt": "\n\n".join(turn["content"] for turn in messages[:-1]),
                    "response": messages[-1]["content"],
                }
            )
    return found


def _image_probe(messages: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Return messages with images as OpenAI's API takes them, as formatted text, and the data URLs of the images."""

    def of_openai(part: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": part["image"]}} if part["type"] == "image" else part

    parts = [(turn, turn["content"] if isinstance(turn["content"], list) else []) for turn in messages]
    return {
        "messages": [{**turn, "content": [*map(of_openai, own)] or turn["content"]} for turn, own in parts],
        "text": render_chat(tokenizer, messages),
        "images": [part["image"] for _, own in parts for part in own if part["type"] == "image"],
    }


def recorded_rewards(folder: Path) -> list[float]:
    """Return the recorded float32 rewards of the conversations of `probes_of`."""
    record = _record(folder)
    if "images" in record.probes:
        return record.probes["images"]["rewards"]["float32"]
    named = zip(record.probes["conversations"], record.probes["rewards"]["float32"], strict=True)
    return [reward for probe, reward in named if probe["name"] in PROBES]


def largest_difference(expected: Sequence[float], found: Sequence[float | None]) -> float:
    """Return the largest absolute difference, infinite if a reward is not finite; without those that are None."""
    scored = [(one, other) for one, other in zip(expected, found, strict=True) if other is not None]
    differences = [abs(one - other) for one, other in scored]
    return max(value if math.isfinite(value) else math.inf for value in differences)


def _record(folder: Path) -> CheckpointRecord:
    record = CheckpointRecord.load(folder)
    assert record is not None
    return record
