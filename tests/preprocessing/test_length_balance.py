"""Length does not predict the preference in balanced rows: hand-computed, random and real rows."""

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import make_trainer

from hf_reward import PreparationRule, Source, prepare_preferences
from hf_reward.preprocessing.length_balance import (
    SURPLUS,
    balanced_rows,
    length_difference,
    length_differences,
    mark_surplus,
)

BALANCED = PreparationRule(balance_lengths=True)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def pair(number: int, longer_by: int) -> dict[str, Any]:
    """A pair whose preferred response is longer by a number of words."""
    sides = ["a" + " no" * (5 + max(longer_by, 0)), "b" + " no" * (5 + max(-longer_by, 0))]
    return {"prompt": f"{number}: ", "chosen": sides[0], "rejected": sides[1]}


def pairs(*differences: int) -> list[dict[str, Any]]:
    return [pair(number, difference) for number, difference in enumerate(differences)]


# --- choice of rows ---


def test_the_choice_by_hand():
    """Bins: {1, -1, 1}, {5, -4, 5}, {9}, {-300, 310}; ties are kept; one row of bins 1 and 2 and all of 3 drop."""
    differences = np.array([1, 5, 0, -1, 9, -300, 1, -4, 310, 5, 0])
    found = balanced_rows(differences)
    assert {2, 10, 3, 7, 5, 8} < set(found.tolist())
    assert 4 not in found
    assert len({0, 6} & set(found.tolist())) == len({1, 9} & set(found.tolist())) == 1
    assert found.tolist() == sorted(found.tolist())
    assert len(found) == 8


def test_bins_are_half_octaves():
    for members in ([1], [2], [3], [4, 5], [6, 7], [8, 11], [12, 15], [16, 22], [23, 31], [32, 45]):
        first, last = members[0], members[-1]
        assert len(balanced_rows(np.array([first, -last]))) == 2
        assert len(balanced_rows(np.array([last, -(last + 1)]))) == 0


def directions(values: np.ndarray) -> Counter[tuple[int, int]]:
    """Number of rows per bin and sign."""
    apart = values[values != 0]
    return Counter((math.floor(2 * math.log2(abs(value))), int(np.sign(value))) for value in apart)


@given(st.lists(st.integers(-60, 60), max_size=80), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_in_every_bin_both_directions_are_equally_frequent(differences, seed):
    values = np.array(differences, dtype=float)
    kept = balanced_rows(values, seed=seed)
    stays = values[kept]
    assert (stays == 0).sum() == (values == 0).sum()
    before, after = directions(values), directions(stays)
    for number in range(14):
        longer, shorter = after[number, 1], after[number, -1]
        assert longer == shorter == min(before[number, 1], before[number, -1])  # no row is dropped unnecessarily
    assert kept.tolist() == balanced_rows(values, seed=seed).tolist()
    assert len(balanced_rows(-values, seed=seed)) == len(kept)


def test_the_seed_draws_which_rows_go():
    differences = np.array([3] * 20 + [-3] * 5)
    found = {tuple(balanced_rows(differences, seed=seed).tolist()) for seed in range(5)}
    assert len(found) == 5
    assert all(len(kept) == 10 for kept in found)


def test_differences_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite, but 1 are NaN"):
        balanced_rows(np.array([1.0, np.nan]))


@pytest.mark.parametrize(
    ("lengths", "ranks", "expected"),
    [
        ([9, 4], [0, 1], 5),
        ([9, 4], [1, 0], -5),
        ([9, 4], [0, 0], 0),
        ([9, 4, 1], [0, 1, 2], (5 + 8 + 3) / 3),
        ([9, 4, 1], [1, 0, 1], (-5 + 3) / 2),
    ],
)
def test_the_difference_of_a_row_is_the_mean_over_its_strict_pairs(lengths, ranks, expected):
    assert length_difference(lengths, ranks) == pytest.approx(expected)


# --- prepared rows ---


def test_differences_of_prepared_rows_are_in_tokens(chat_tokenizer):
    rows: list[dict[str, Any]] = [
        *pairs(3, -2, 0),
        {"prompt": "list: ", "responses": ["a a a a a", "b", "c c c"], "ranks": [2, 0, 1]},
        {"prompt": "soft: ", "response_a": "a a a a a", "response_b": "b", "probability": 0.2},
    ]
    data, _ = prepare_preferences([Source(data=Dataset.from_list(rows[:3])), Source(data=rows[3:4]),
                                   Source(data=rows[4:])], chat_tokenizer)  # fmt: skip
    expected = [
        length_difference([len(ids) for ids in row["input_ids"]], row["ranks"])
        for row in data  # type: ignore[call-overload]
    ]
    assert isinstance(data, Dataset)
    assert length_differences(data).tolist() == expected
    assert expected[2] == 0
    assert [np.sign(value) for value in expected] == [1, -1, 0, -1, -1]


def test_dropped_rows_are_counted_and_reported(chat_tokenizer, caplog):
    rows = pairs(*[4] * 6, -4, -4, 0)
    with caplog.at_level(logging.INFO, logger="hf_reward.preprocessing.preparation"):
        data, summary = prepare_preferences(rows, chat_tokenizer, BALANCED, name="train")
    assert summary.dropped == {SURPLUS: 4}
    assert (summary.rows, summary.kept, len(data)) == (9, 5, 5)
    assert summary.longer_preferred == 0.5
    assert len(caplog.records) == 1
    assert f"dropped: 4 {SURPLUS}" in caplog.text
    assert {6, 7, 8} < set(data["row"])
    plain, _ = prepare_preferences(rows, chat_tokenizer, name="train")
    assert set(data.features) == set(plain.features)


def test_rows_with_a_problem_are_not_counted_for_balance(chat_tokenizer):
    rows = [*pairs(4, -4), {"prompt": "x", "chosen": "", "rejected": "no no no"}]
    rule = PreparationRule(balance_lengths=True, skip_bad_rows=True)
    _, summary = prepare_preferences(rows, chat_tokenizer, rule)
    assert summary.dropped == {"unreadable (chosen)": 1}


def test_each_source_is_balanced_separately_so_that_its_copies_are_balanced(chat_tokenizer):
    sources = [Source(data=pairs(4, 4, -4), name="a", weight=2), Source(data=pairs(-4, -4, 4), name="b")]
    data, summary = prepare_preferences(sources, chat_tokenizer, BALANCED)
    assert isinstance(data, Dataset)
    for name, rows in (("a", 4), ("b", 2)):
        found = length_differences(data.filter(lambda source, name=name: source == name, input_columns=["source"]))
        assert len(found) == rows
        assert found.sum() == 0
    assert summary.dropped == {SURPLUS: 2}


def test_rows_that_were_prepared_before_are_balanced_too(chat_tokenizer):
    prepared, _ = prepare_preferences(pairs(4, 4, 4, -4), chat_tokenizer)
    data, summary = prepare_preferences(prepared, chat_tokenizer, BALANCED)
    assert (len(data), summary.dropped) == (2, {SURPLUS: 2})
    assert len(prepared) == 4
    assert prepared["problem"] == [""] * 4


def test_no_remaining_rows_and_streams_are_errors(chat_tokenizer):
    with pytest.raises(ValueError, match=r"none of 2 rows can be used.*both directions.*[Ww]ithout `balance_lengths`"):
        prepare_preferences(pairs(4, 9), chat_tokenizer, BALANCED)
    stream = Dataset.from_list(pairs(4, -4)).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"`balance_lengths=True` requires all rows.*stream.*without streaming"):
        prepare_preferences(stream, chat_tokenizer, BALANCED)
    with pytest.raises(ValueError, match="'mine' is a stream"):
        mark_surplus(stream, seed=0, name="mine")


# --- in runs ---


def test_only_training_rows_are_balanced_and_the_record_counts_them(make_model_folder, tmp_path):
    folder, rows = make_model_folder("llama"), pairs(*[4] * 10, *[-4] * 4)
    seen = []
    for seed in (1, 1, 2):
        trainer = make_trainer(
            folder, rows, tmp_path / "run", evaluation=rows, balance_lengths=True, data_seed=seed, max_steps=1
        )
        assert len(trainer.train_dataset) == 8
        assert len(trainer.eval_dataset) == 14
        seen.append(list(trainer.train_dataset["row"]))
    assert seen[0] == seen[1] != seen[2]
    trainer.train()
    data = trainer.record().training["data"]
    assert data["train"]["dropped"] == {SURPLUS: 6}
    assert data["eval"]["dropped"] == {}


def test_the_default_keeps_every_row(make_model_folder, tmp_path):
    trainer = make_trainer(make_model_folder("llama"), pairs(4, 4, 4), tmp_path / "run", max_steps=1)
    assert len(trainer.train_dataset) == 3
