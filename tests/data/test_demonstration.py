"""Properties of the bundled preference dataset."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from hf_reward import length_rule, tfidf_bradley_terry
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_text import response_text
from hf_reward.data.sources import as_sources, load_source

CATEGORIES = {"factual", "instruction_following", "coding", "safety", "honesty"}


def rows(split: str) -> list[PreferenceRow]:
    source = as_sources("demonstration", split=split)[0]
    return [to_preference_row(row, row_index=index) for index, row in enumerate(load_source(source))]


@pytest.fixture(scope="module")
def train() -> list[PreferenceRow]:
    return rows("train")


@pytest.fixture(scope="module")
def held_out() -> list[PreferenceRow]:
    return rows("test")


def test_it_is_large_enough_and_covers_five_categories(train: list, held_out: list) -> None:
    assert len(train) >= 400
    assert len(held_out) >= 120
    for part in (train, held_out):
        counts = Counter(row.meta["category"] for row in part)
        assert set(counts) == CATEGORIES
        assert min(counts.values()) > 0.15 * len(part)


def test_prompts_of_the_two_files_are_disjoint(train: list, held_out: list) -> None:
    assert not {row.group for row in train} & {row.group for row in held_out}
    assert len({row.group for row in [*train, *held_out]}) == len(train) + len(held_out)


def test_no_sentence_is_used_twice(train: list, held_out: list) -> None:
    sentences = Counter(
        sentence
        for row in [*train, *held_out]
        for place in range(2)
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", response_text(row, place).strip().lower())
        if len(sentence.split()) >= 3
    )
    assert [sentence for sentence, count in sentences.items() if count > 1] == []


def test_the_longer_response_is_preferred_about_half_the_time(train: list, held_out: list) -> None:
    for part in (train, held_out):
        assert 0.45 <= length_rule(part).accuracy <= 0.55


def test_a_bag_of_words_cannot_distinguish_the_sides(train: list, held_out: list) -> None:
    assert tfidf_bradley_terry(train, held_out).accuracy <= 0.65


def test_every_line_has_the_documented_fields() -> None:
    for split in ("train", "test"):
        text = (files("hf_reward.data") / "demonstration" / f"{split}.jsonl").read_text(encoding="utf-8")
        for line in text.splitlines():
            assert json.loads(line).keys() == {"id", "category", "kind", "prompt", "chosen", "rejected"}
