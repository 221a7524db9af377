"""Request and answer of a program that scores the probes in its own environment, without hf_reward.

The driver runs `python PROGRAM.py request.json answer.json`. The request has the `folder` of the model, the `dtype`,
the `ways` of scoring and the `probes`: `messages`, the same as `text` with the chat template applied, and as a pair
`prompt` and `response`, or `images` as data URLs. The answer has the `version` of the program, and for each way its
`rewards` (None for a probe that is not one of this way) or its error.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def run(distribution: str, load: Callable[[dict[str, Any]], Any], ways: dict[str, Callable[[Any, Any], Any]]) -> None:
    """Load the model of the request, score the probes in each of its ways, and write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rewards: dict[str, list[float | None]] = {}
    errors: dict[str, str] = {}
    try:
        loaded = load(request)
    except Exception as error:  # whatever a program raises is its answer
        errors = dict.fromkeys(request["ways"], _described(error))
    else:
        for way in request["ways"]:
            try:
                found = ways[way](loaded, request["probes"])
                rewards[way] = [None if reward is None else float(reward) for reward in found]
            except Exception as error:
                errors[way] = _described(error)
    answer = {"version": version(distribution), "rewards": rewards, "errors": errors}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def column(probes: list[dict[str, Any]], name: str) -> list[Any]:
    """Return one field of all probes."""
    return [probe[name] for probe in probes]


def _described(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
