"""Training and audit share no wording: otherwise an audit after a mitigation would measure memory."""

import ast
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import hf_reward.evaluation.audit as audit
from hf_reward.evaluation.audit.edits.format_edits import FORMAT_EDITS as AUDIT_EDITS
from hf_reward.evaluation.mitigation import edits, wordings

AUDIT = Path(audit.__file__).parent
ANSWERS = [
    "Paris is the capital of France. It lies on the Seine. Many people live there.",
    "Cats sleep for most of the day. They hunt at night.",
    "Water boils at one hundred degrees at sea level.",
]


def words_of(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def four_grams(texts):
    lists = [words_of(text) for text in texts]
    return {tuple(words[place : place + 4]) for words in lists for place in range(len(words) - 3)}


def sentences(texts):
    parts = [part for text in texts for part in re.split(r"(?<=[.!?:])\s+|\n", text)]
    return {" ".join(words_of(part)) for part in parts if len(words_of(part)) > 1}  # one word is no wording


def strings(path):
    """All text constants of a module but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in constants if id(node) not in docs]


def audit_texts():
    modules = [*(AUDIT / "families").glob("*.py"), *(AUDIT / "edits").glob("*.py")]
    items = files("hf_reward.evaluation.audit.inputs") / "items"
    rows = [json.loads(line) for file in items.iterdir() for line in file.read_text("utf-8").splitlines() if line]
    return [text for path in modules for text in strings(path)] + [str(value) for row in rows for value in row.values()]


def training_texts():
    return strings(Path(wordings.__file__)) + strings(Path(edits.__file__))


def test_no_four_words_in_a_row_are_shared():
    ours, theirs = four_grams(training_texts()), four_grams(audit_texts())
    assert len(ours) > 300
    assert len(theirs) > 5000
    assert ours & theirs == set()


def test_no_sentence_of_a_training_text_is_in_the_audit():
    ours = sentences(strings(Path(wordings.__file__)))
    assert "hopefully these lines were of some use" in ours
    theirs = sentences(audit_texts())
    assert "i hope this is useful" in theirs
    assert ours & theirs == set()


@pytest.mark.parametrize("name", list(edits.FORMAT_EDITS))
def test_no_format_edit_gives_a_text_of_the_audit(name):
    theirs = {edited for each in AUDIT_EDITS for answer in ANSWERS if (edited := each(answer)) is not None}
    found = {edits.FORMAT_EDITS[name](answer, np.random.default_rng(seed)) for answer in ANSWERS for seed in range(40)}
    assert len(found - {None}) > 2
    assert not found & theirs


def test_every_format_edit_of_the_audit_has_one_in_training():
    assert list(edits.FORMAT_EDITS) == [each.name for each in AUDIT_EDITS]
