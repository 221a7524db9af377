"""Text and names are safe for publication."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_reward.publishing.card.text import escaped, hub_id, without_paths


@pytest.mark.parametrize(
    ("name", "found"),
    [("gpt2", True), ("org/name", True), ("a/b/c", False), ("~/x", False), ("C:\\x", False), ("outputs/run", False),
     ("x.jsonl", False), ("", False), (None, False), (3, False), ("a b", False), ("a\n---", False)],
)  # fmt: skip
def test_what_is_a_hub_id(name, found):
    assert (hub_id(name) is not None) == found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train --data /home/me/x.jsonl --out=~/runs/a", "train --data LOCAL/x.jsonl --out=LOCAL/a"),
        ("train '--data=/home/John Smith/x.jsonl' end", "train '--data=LOCAL/x.jsonl' end"),
        (r'"C:\\Users\\me\\x.json" and C:\me\x', '"LOCAL/x.json" and LOCAL/x'),
        ("file:///home/me/x ../../y/z", "LOCAL/x LOCAL/z"),
        ("https://huggingface.co/org/name and/or org/name recipes/a.yaml", None),
        ("token hf_abcdefghijklmnopqrstuv", "token HF_TOKEN"),
    ],
)
def test_paths_and_tokens_are_shortened(text, shown):
    assert without_paths(text) == (shown or text)


@given(st.text())
def test_escaped_text_is_one_line_without_open_pipes(text):
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*\|", shown)
