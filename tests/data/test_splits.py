"""A split never has a prompt on both sides, has the requested size, and is reproducible."""

from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.splits import split_by_prompt


def rows(prompts: list[Any], **extra: list[Any]) -> Dataset:
    """One pair per prompt, with its index as `number`."""
    size = len(prompts)
    responses = {"chosen": [f"good {i}" for i in range(size)], "rejected": [f"bad {i}" for i in range(size)]}
    return Dataset.from_dict({"prompt": prompts, **responses, "number": list(range(size)), **extra})


@given(
    prompts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=25).filter(lambda names: len(set(names)) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_no_prompt_falls_on_both_sides_and_no_row_is_lost(prompts: list[str], share: float, seed: int):
    train, held = split_by_prompt(rows(prompts), test_size=share, seed=seed)
    assert train
    assert held
    assert not set(train["prompt"]) & set(held["prompt"])
    assert sorted([*train["number"], *held["number"]]) == list(range(len(prompts)))
    assert list(train["number"]) == sorted(train["number"])
    assert list(held["number"]) == sorted(held["number"])


@pytest.mark.parametrize(
    ("test_size", "expected"), [(0.1, 10), (0.07, 7), (0.5, 50), (0.001, 1), (1, 1), (30, 30), (99, 99), (0.999, 99)]
)
def test_prompts_of_one_row_are_held_out_to_the_row(test_size: float, expected: int):
    train, held = split_by_prompt(rows([f"prompt {i}" for i in range(100)]), test_size=test_size)
    assert (len(train), len(held)) == (100 - expected, expected)


def test_complete_groups_are_held_out_until_the_size_is_reached():
    """Ten groups of 3 rows: 7 rows need three groups, 6 need two."""
    data = rows([f"prompt {i % 10}" for i in range(30)])
    assert len(split_by_prompt(data, test_size=7)[1]) == 9
    assert len(split_by_prompt(data, test_size=6)[1]) == 6
    assert len(split_by_prompt(data, test_size=0.2)[1]) == 6


@pytest.mark.parametrize("seed", range(6))
def test_one_huge_group_still_leaves_a_group_for_training(seed: int):
    train, held = split_by_prompt(rows(["huge"] * 50 + ["small"]), test_size=20, seed=seed)
    assert {len(train), len(held)} == {1, 50}


def test_equal_seeds_give_equal_splits_and_different_seeds_do_not():
    data = rows([f"prompt {i}" for i in range(60)])
    held = [list(split_by_prompt(data, test_size=0.3, seed=seed)[1]["number"]) for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


def test_the_order_of_the_rows_does_not_decide_which_prompts_are_held_out():
    prompts = [f"prompt {i}" for i in range(20)]
    forward, backward = (split_by_prompt(rows(order))[1]["prompt"] for order in (prompts, prompts[::-1]))
    assert set(forward) == set(backward)


def test_a_group_column_decides_over_the_prompts():
    data = rows([f"prompt {i}" for i in range(12)], group=["x", "y", "z"] * 4)
    train, held = split_by_prompt(data, test_size=1)
    assert len(held) == 4
    assert not set(train["group"]) & set(held["group"])


def test_rows_that_leave_their_group_empty_are_grouped_by_prompt():
    data = rows(["a", "a", "b", "c", "d", "d"], group=[None, None, "x", "x", None, None])
    for seed in range(4):
        train, held = split_by_prompt(data, test_size=2, seed=seed)
        assert not set(train["prompt"]) & set(held["prompt"])
        assert len(held) == 2
        assert len({"b", "c"} & set(held["prompt"])) in (0, 2)


def test_a_mapped_group_column_decides_over_one_of_our_name():
    data = rows([f"prompt {i}" for i in range(8)], group=[str(i) for i in range(8)], topic=["x", "y"] * 4)
    held = split_by_prompt(data, test_size=1, columns={"group": "topic"})[1]
    assert len(held) == 4
    assert len(set(held["topic"])) == 1


def test_other_column_names_and_layouts_are_read():
    data = rows(["a", "a", "b", "b"]).rename_columns({"prompt": "q", "chosen": "yes", "rejected": "no"})
    train, held = split_by_prompt(data, test_size=2, columns={"prompt": "q", "chosen": "yes", "rejected": "no"})
    assert set(train["q"]) | set(held["q"]) == {"a", "b"}
    assert len(held) == 2
    text = "\n\nHuman: {}\n\nAssistant: {}"
    hh = [{"chosen": text.format(q, "yes"), "rejected": text.format(q, n)} for q in "ab" for n in ("no", "never")]
    train, held = split_by_prompt(Dataset.from_list(hh), test_size=0.5, layout="hh")
    groups = [{to_preference_row(row, layout="hh").group for row in side} for side in (train, held)]
    assert [len(group) for group in groups] == [1, 1]
    assert groups[0] != groups[1]


@pytest.mark.parametrize("test_size", [0, 0.0, 1.0, 1.5, -0.1, -1, 4, 5, float("nan")])
def test_a_size_that_leaves_one_side_empty_is_refused(test_size: float):
    with pytest.raises(ValueError, match=rf"test_size={test_size}` of 4 rows with 4 prompts .*Change `test_size`"):
        split_by_prompt(rows(list("abcd")), test_size=test_size)


def test_one_prompt_cannot_be_split():
    with pytest.raises(ValueError, match=r"at least one prompt each, but .* of 4 rows with 1 prompt"):
        split_by_prompt(rows(["same"] * 4), test_size=0.5)


def test_a_bad_row_is_named():
    data = Dataset.from_list(
        [{"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "b", "chosen": "", "rejected": "y"}]
    )
    with pytest.raises(PreferenceFormatError, match="Row 1: `chosen` is empty"):
        split_by_prompt(data, test_size=1)


# --- near duplicates -------------------------------------------------------------------------------------------------

LONG = "please explain in a few clear words how the water of the river comes to the mill and why it never stops there"


def varied(number: int) -> str:
    """A prompt that differs for each number."""
    return " ".join(f"w{(number * 31 + place * 7) % 997}x{number}" for place in range(30))


def test_near_duplicate_prompts_stay_together_only_on_request():
    prompts = [varied(number) for number in range(20)]
    twins = [*prompts, *(f"{prompt} indeed" for prompt in prompts)]
    data = rows(twins)
    number = {prompt: place % 20 for place, prompt in enumerate(twins)}
    for seed in range(3):
        train, held = split_by_prompt(data, test_size=0.3, seed=seed, near_duplicates=True)
        assert not {number[prompt] for prompt in train["prompt"]} & {number[prompt] for prompt in held["prompt"]}
        assert len(train) + len(held) == 40
        train, held = split_by_prompt(data, test_size=0.3, seed=seed)
        assert {number[prompt] for prompt in train["prompt"]} & {number[prompt] for prompt in held["prompt"]}


def test_long_responses_link_rows_and_stock_phrases_do_not():
    prompts = [varied(number) for number in range(12)]
    data = Dataset.from_dict(
        {
            "prompt": prompts,
            "chosen": [
                f"{LONG} {'again' if number % 2 else ''}" if number < 4 else varied(number + 50) for number in range(12)
            ],
            "rejected": ["I'm sorry, but I can't help with that."] * 12,
        }
    )
    for seed in range(5):
        sides = split_by_prompt(data, test_size=0.4, seed=seed, near_duplicates=True)
        held = [sum(prompt in prompts[:4] for prompt in side["prompt"]) for side in sides]
        assert sorted(held) == [0, 4]
        assert all(len(side) > 0 for side in sides)


def test_groups_of_the_user_are_joined_too():
    data = rows([f"{LONG} {word}" for word in ("now", "then", "here")] + [varied(1)], group=["a", "b", "c", "d"])
    train, held = split_by_prompt(data, test_size=1, near_duplicates=True)
    assert {len(train), len(held)} == {1, 3}


def test_token_ids_have_no_near_duplicates():
    data = Dataset.from_dict({"input_ids": [[[1], [2]], [[1], [3]]], "group": [1, 2]})
    with pytest.raises(ValueError, match=r"the rows are tokenised\. Split the raw rows"):
        split_by_prompt(data, test_size=1, near_duplicates=True)
