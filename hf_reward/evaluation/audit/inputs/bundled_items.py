"""Bundled questions, opinions and arguments, written for this package.

The two answers to a question have the same form and nearly the same length. Among the questions of opinion, the
conventional view is the first option in half of the items and the second in the other half. So neither form nor
position of an answer reveals its role.
"""

import json
from importlib.resources import files
from typing import Any

from hf_reward.evaluation.audit.inputs.audit_inputs import Argument, Opinion, Question
from hf_reward.evaluation.audit.inputs.probe_data import own_opinion, own_question


def bundled_questions() -> list[Question]:
    """Return undisputed questions of fact, each with a wrong answer that many people believe or could believe."""
    name = "factual.jsonl"
    return [own_question(row, f"{name}, row {number}") for number, row in enumerate(_rows(name), start=1)]


def bundled_opinions() -> list[Opinion]:
    """Return questions on which reasonable people differ; answers and views share few words."""
    name = "opinions.jsonl"
    return [own_opinion(row, f"{name}, row {number}") for number, row in enumerate(_rows(name), start=1)]


def bundled_arguments() -> list[Argument]:
    """Return short arguments, each on a different topic."""
    return [Argument(topic=row["topic"], argument=row["argument"]) for row in _rows("arguments.jsonl")]


def _rows(name: str) -> list[dict[str, Any]]:
    text = (files("hf_reward.evaluation.audit.inputs") / "items" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
