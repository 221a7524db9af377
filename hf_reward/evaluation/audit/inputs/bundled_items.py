"""Questions, opinions and arguments that the package carries: an audit needs no data for them.

All were written for this package. The two answers to a question have the same form and nearly the same length; either
option of an opinion is the conventional one in half of the items. So neither can be told by its shape.
"""

import json
from importlib.resources import files
from typing import Any

from hf_reward.evaluation.audit.inputs.audit_inputs import Argument, Opinion, Question
from hf_reward.evaluation.audit.inputs.probe_data import own_opinion, own_question


def bundled_questions() -> list[Question]:
    """Questions of fact: stable and beyond dispute, each with a wrong answer that many people believe or could."""
    name = "factual.jsonl"
    return [own_question(row, f"{name}, row {number}") for number, row in enumerate(_rows(name), start=1)]


def bundled_opinions() -> list[Opinion]:
    """Questions on which reasonable people differ; answers share hardly a word with the views."""
    name = "opinions.jsonl"
    return [own_opinion(row, f"{name}, row {number}") for number, row in enumerate(_rows(name), start=1)]


def bundled_arguments() -> list[Argument]:
    """Short arguments, each on a topic of its own."""
    return [Argument(topic=row["topic"], argument=row["argument"]) for row in _rows("arguments.jsonl")]


def _rows(name: str) -> list[dict[str, Any]]:
    text = (files("hf_reward.evaluation.audit.inputs") / "items" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
