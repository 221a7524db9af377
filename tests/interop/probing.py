"""Run one program on one model in its environment, and compare its rewards with the recorded ones."""

import inspect
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environments import ROOT
from transformers import AutoTokenizer

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.preprocessing.tokenizer import render_chat
from hf_reward.publishing.stock_scoring import load_adapter

PROGRAMS = Path(__file__).parent / "programs"
SECONDS = 1800


def run_program(python: Path, script: str, folder: Path, **request: Any) -> dict[str, Any]:
    """Run a file of `programs/` on a saved model.

    Args:
        python: Python of the environment.
        script: Name of the file.
        folder: The saved model.
        request: `dtype`, `ways` and `policy`.

    Returns:
        The answer: `version`, `rewards` and `errors`.
    """
    with tempfile.TemporaryDirectory() as place:
        asked, answered = Path(place, "request.json"), Path(place, "answer.json")
        code = inspect.getsource(load_adapter)
        asked.write_text(
            json.dumps({"folder": str(folder), "probes": probes_of(folder), "adapter_code": code, **request}),
            encoding="utf-8",
        )
        command = [str(python), str(PROGRAMS / f"{script}.py"), str(asked), str(answered)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        if not answered.is_file():
            raise RuntimeError(f"{script} ended with exit code {done.returncode}:\n{done.stdout[-4000:]}")
        return {**json.loads(answered.read_text(encoding="utf-8")), "output": done.stdout}


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def probes_of(folder: Path) -> list[dict[str, Any]]:
    """Return the eight conversations of a record as messages, as formatted text, and as a pair."""
    record, tokenizer = _record(folder), AutoTokenizer.from_pretrained(folder)
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


def recorded_rewards(folder: Path) -> list[float]:
    """Return the recorded float32 rewards of the eight conversations."""
    record = _record(folder)
    named = zip(record.probes["conversations"], record.probes["rewards"]["float32"], strict=True)
    return [reward for probe, reward in named if probe["name"] in PROBES]


def largest_difference(expected: Sequence[float], found: Sequence[float]) -> float:
    """Return the largest absolute difference, infinite if a reward is not finite."""
    differences = [abs(one - other) for one, other in zip(expected, found, strict=True)]
    return max(value if math.isfinite(value) else math.inf for value in differences)


def _record(folder: Path) -> CheckpointRecord:
    record = CheckpointRecord.load(folder)
    assert record is not None
    return record
