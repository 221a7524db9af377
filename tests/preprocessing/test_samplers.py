"""Length buckets have every row once and little padding; token budgets split batches without losing a row."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_reward import DataCollatorForPreference
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.samplers import (
    FixedOrderSampler,
    LengthBucketSampler,
    PromptSampler,
    longest_first,
    longest_sequences,
    response_numbers,
)
from hf_reward.preprocessing.token_budget import DataCollatorWithTokenBudget, consecutive_batches

COLLATORS: dict[str, Any] = {
    "padded": DataCollatorForPreference(0),
    "padded to multiples of 8": DataCollatorForPreference(0, 8),
    "packed": DataCollatorForPackedPreference(),
}
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=120)
GROUPS = st.lists(  # (prefix, own tokens of each response) of each group
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 12), min_size=2, max_size=4)), min_size=1, max_size=12
)


def group(place: int, prefix: int, own: Sequence[int]) -> dict[str, Any]:
    """A prepared row whose tokens identify their origin."""
    shared = [1 + place] * prefix
    return {
        "input_ids": [shared + [100 * (1 + place) + response] * size for response, size in enumerate(own)],
        "prefix_length": prefix,
        "ranks": list(range(len(own))),
        "group": place,
        "row": 1000 + place,
        "source": "",
        "weight": 1.0,
        "margin": None,
        "probability": None,
    }


def rows_of(groups: Sequence[tuple[int, Sequence[int]]]) -> list[dict[str, Any]]:
    return [group(place, *description) for place, description in enumerate(groups)]


def ragged(count: int, seed: int = 0) -> Dataset:
    """Token columns of lists of one to five responses."""
    generator = np.random.default_rng(seed)
    return Dataset.from_dict(
        {
            "place": list(range(count)),
            "input_ids": [
                [[0] * int(generator.integers(1, 40)) for _ in range(generator.integers(1, 6))] for _ in range(count)
            ],
        }
    )


# --- lengths of rows ---

VIEWS: dict[str, Callable[[Dataset], Dataset]] = {
    "as made": lambda data: data,
    "a slice": lambda data: data.select(range(7, 40)),
    "picked": lambda data: data.select([5, 3, 3, 60, 0]),
    "shuffled": lambda data: data.shuffle(seed=1),
    "filtered": lambda data: data.filter(lambda place: place % 3 == 1, input_columns="place"),
    "shuffled, then sliced": lambda data: data.shuffle(seed=1).select(range(20, 50)),
    "several chunks": lambda data: concatenate_datasets([data.select(range(10)), ragged(30, 1), ragged(1, 2), data]),
    "several chunks, shuffled": lambda data: concatenate_datasets([data, ragged(30, 1)]).shuffle(seed=3),
    "several chunks, sliced": lambda data: concatenate_datasets([data, ragged(30, 1)]).select(range(50, 85)),
    "a format for torch": lambda data: data.with_format("torch"),
    "columns that are hidden": lambda data: data.with_format("numpy", columns=["place"]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_longest_sequence_of_each_row_is_what_counting_in_python_gives(view):
    data = VIEWS[view](ragged(70))
    found = longest_sequences(data)
    assert found.dtype == np.int64
    assert found.tolist() == [max(map(len, sequences)) for sequences in data.with_format(None)["input_ids"]]
    assert len(set(found.tolist())) > 3


def test_the_longest_sequence_is_correct_for_more_rows_than_a_block():
    expected = [1 + (place * 7) % 23 for place in range(20_050)]
    data = Dataset.from_dict({"input_ids": [[[0], [0] * length] for length in expected]})
    assert longest_sequences(data).tolist() == expected


# --- length buckets ---


@settings(deadline=None, max_examples=80)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_each_epoch_has_every_row_once_and_is_reproducible(lengths, batch_size, seed, epoch):
    sampler, same = (LengthBucketSampler(lengths, batch_size, seed=seed) for _ in range(2))
    sampler.set_epoch(epoch)
    same.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    assert order == list(same) == list(sampler)
    assert all(type(place) is int for place in order)


@settings(deadline=None, max_examples=80)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
def test_within_a_window_batches_are_slices_of_the_rows_in_order_of_length_and_the_short_one_is_last(
    lengths, batch_size
):
    lengths = lengths[: 32 * batch_size]  # one window
    order = list(LengthBucketSampler(lengths, batch_size))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ranges = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in batches)
    assert all(one[1] <= other[0] for one, other in pairwise(ranges))
    assert len(batches[-1]) == (len(lengths) % batch_size or batch_size)
    if len(lengths) % batch_size:
        assert sorted(lengths[i] for i in batches[-1]) == sorted(lengths)[-len(batches[-1]) :]


def orders(*, seed: int = 0, epochs: range = range(3), count: int = 300) -> list[list[int]]:
    lengths = np.random.default_rng(9).integers(1, 50, count)
    sampler, found = LengthBucketSampler(lengths, 4, seed=seed), []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_epochs_and_seeds_differ_also_in_who_shares_a_batch():
    drawn = [*orders(), *orders(seed=1, epochs=range(1))]
    together = [{frozenset(order[start : start + 4]) for start in range(0, 300, 4)} for order in drawn]
    for place, one in enumerate(together):
        for other in together[:place]:
            assert len(one & other) < 0.2 * len(one)


def padding_share(order: Sequence[int], lengths: np.ndarray, size: int) -> float:
    batches = [lengths[list(order[start : start + size])] for start in range(0, len(order), size)]
    computed = sum(len(batch) * int(batch.max()) for batch in batches)
    return 1 - int(lengths.sum()) / computed


@pytest.mark.parametrize("size", [4, 16])
def test_batches_of_similar_length_have_far_less_padding_than_random_batches(size):
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(5, 0.8, 3000)).astype(np.int64) + 1
    shuffled = padding_share(generator.permutation(3000).tolist(), lengths, size)
    bucketed = padding_share(list(LengthBucketSampler(lengths, size)), lengths, size)
    assert shuffled > 0.4
    assert bucketed < 0.35 * shuffled


def test_batches_come_in_random_order_of_length():
    lengths = np.random.default_rng(1).integers(1, 500, 800)
    longest = [int(lengths[batch].max()) for batch in np.reshape(list(LengthBucketSampler(lengths, 8)), (-1, 8))]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.4
    rising = np.mean(np.diff(longest) > 0)
    assert 0.3 < rising < 0.7


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_prepared_by_accelerate_hands_the_epoch_on_and_shares_each_bucket_out(processes):
    lengths = np.random.default_rng(2).integers(1, 400, 96)
    loaders = [
        prepare_data_loader(
            DataLoader(range(96), batch_size=4, sampler=LengthBucketSampler(lengths, 4 * processes, seed=7)),
            device=torch.device("cpu"), num_processes=processes, process_index=rank,
        )
        for rank in range(processes)
    ]  # fmt: skip
    seen = []
    for epoch in range(3):
        for loader in loaders:
            loader.set_epoch(epoch)
        steps = [torch.cat(batches).tolist() for batches in zip(*loaders, strict=True)]
        expected = LengthBucketSampler(lengths, 4 * processes, seed=7)
        expected.set_epoch(epoch)
        assert list(chain(*steps)) == list(expected)
        seen.append(steps)
        ranges = sorted((min(lengths[step]), max(lengths[step])) for step in steps)
        assert all(one[1] <= other[0] for one, other in pairwise(ranges))
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_evaluation_goes_from_the_longest_row_to_the_shortest():
    lengths = np.array([3, 9, 3, 1, 9, 4])
    assert longest_first(lengths).tolist() == [1, 4, 5, 0, 2, 3]
    sampler = FixedOrderSampler(longest_first(lengths))
    assert list(sampler) == list(sampler) == [1, 4, 5, 0, 2, 3]
    assert len(sampler) == 6


# --- consecutive batches ---


@settings(deadline=None, max_examples=60)
@given(
    groups=GROUPS,
    name=st.sampled_from(sorted(COLLATORS)),
    batch_size=st.integers(1, 5),
    budget=st.one_of(st.none(), st.integers(1, 150)),
    data=st.data(),
)
def test_consecutive_batches_keep_the_order_and_both_limits_and_are_not_needlessly_small(
    groups, name, batch_size, budget, data
):
    rows, tokens = rows_of(groups), COLLATORS[name].tokens
    start = data.draw(st.integers(0, len(rows)))
    share = range(start, data.draw(st.integers(start, len(rows))))
    batches = list(consecutive_batches(rows, share, tokens, batch_size, budget))  # type: ignore[arg-type]
    assert [row["row"] for batch in batches for row in batch] == [1000 + place for place in share]
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert budget is None or len(batch) == 1 or tokens(batch) <= budget
    for batch, following in pairwise(batches):
        assert len(batch) == batch_size or (budget is not None and tokens([*batch, following[0]]) > budget)


# --- token budgets ---


@settings(deadline=None, max_examples=60)
@given(groups=GROUPS, name=st.sampled_from(sorted(COLLATORS)))
def test_a_collator_counts_the_tokens_of_the_batches_that_it_makes(groups, name):
    rows, collator = rows_of(groups), COLLATORS[name]
    assert collator.tokens(rows) == collator(rows)["input_ids"].numel()
    assert collator.tokens(rows[:1]) == collator(rows[:1])["input_ids"].numel()


@settings(deadline=None, max_examples=100)
@given(groups=GROUPS, name=st.sampled_from(sorted(COLLATORS)), budget=st.integers(1, 400))
def test_micro_batches_have_every_row_once_within_the_budget_unless_one_group_exceeds_it(groups, name, budget):
    rows, collator = rows_of(groups), COLLATORS[name]
    batch = DataCollatorWithTokenBudget(collator, budget)(rows)
    parts, places = batch["micro_batches"], batch["micro_rows"]
    assert len(parts) == len(places)
    assert sorted(torch.cat(places).tolist()) == list(range(len(rows)))
    assert all(part.dtype == torch.int64 for part in places)
    assert batch["row"].tolist() == [row["row"] for row in rows]
    for part, place in zip(parts, places, strict=True):
        assert part["input_ids"].numel() <= budget or len(place) == 1
        # The group tensors of a micro-batch equal those rows of the batch.
        width = part["ranks"].shape[1]
        for name_of in ("row", "groups", "weights", "sources"):
            assert torch.equal(batch[name_of][place], part[name_of])
        for name_of in ("ranks", "lengths"):
            assert torch.equal(batch[name_of][place, :width], part[name_of])
            assert (batch[name_of][place, width:] == -100).all()
        alone = collator([rows[i] for i in place.tolist()])
        assert torch.equal(part["input_ids"], alone["input_ids"])
    if budget >= collator.tokens(rows):
        assert len(parts) == 1


@pytest.mark.parametrize("name", COLLATORS)
def test_no_two_micro_batches_fit_into_one(name):
    generator = np.random.default_rng(4)
    rows = rows_of([(int(generator.integers(0, 30)), generator.integers(1, 40, 2).tolist()) for _ in range(40)])
    collator = COLLATORS[name]
    places = [part.tolist() for part in DataCollatorWithTokenBudget(collator, 300)(rows)["micro_rows"]]
    assert 2 < len(places) < 40
    for number, part in enumerate(places):
        for other in places[:number]:
            assert collator.tokens([rows[i] for i in (*part, *other)]) > 300


def test_margins_and_probabilities_reach_the_micro_batches_whose_rows_state_them():
    rows = rows_of([(2, (3, 4)), (2, (5, 6)), (2, (7, 8))])
    rows[1]["margin"], rows[2]["probability"] = 0.5, 0.75
    batch = DataCollatorWithTokenBudget(DataCollatorForPackedPreference(), 1)(rows)
    found = {int(places[0]): part for part, places in zip(batch["micro_batches"], batch["micro_rows"], strict=True)}
    assert batch["margins"].tolist() == [0.0, 0.5, 0.0]
    assert found[1]["margins"].tolist() == [0.5]
    assert found[2]["probabilities"].tolist() == [0.75]
    assert "margins" not in found[0]
    assert "probabilities" not in found[1]


# --- prompts ---


def grouped(rows: int, prompts: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, prompts, rows)


def alone(rows: Sequence[Any] | np.ndarray) -> list[list[int]]:
    """Responses that no two rows share."""
    return [[2 * place, 2 * place + 1] for place in range(len(rows))]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=150),
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
)
def test_grouping_by_prompt_keeps_every_row_once(prompts, batch_size, processes, sorts):
    lengths = np.arange(len(prompts)) % 17 if sorts else None
    order = list(PromptSampler(prompts, alone(prompts), batch_size, processes=processes, lengths=lengths))
    assert sorted(order) == list(range(len(prompts)))


def batches_of(sampler: PromptSampler, size: int) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_a_batch_has_up_to_half_its_rows_of_each_prompt():
    prompts = grouped(800, 40)  # about 20 rows of each prompt
    batches = batches_of(PromptSampler(prompts, alone(prompts), 8), 8)
    counts = [np.unique(prompts[batch], return_counts=True)[1] for batch in batches]
    assert max(count.max() for count in counts) == 4
    assert np.mean([len(count) for count in counts]) < 3  # of 8 in a random order, where 7.4 prompts are expected


def test_a_block_has_rows_that_share_responses():
    """All 28 pairs of 8 responses, in blocks of 4 pairs; 4 random pairs have 5.6 responses on average."""
    pairs = list(combinations(range(8), 2))
    order = list(PromptSampler([0] * 28, pairs, 8))
    blocks = [[pairs[place] for place in order[start : start + 4]] for start in range(0, 28, 4)]
    assert sorted(len(set(chain(*block))) for block in blocks)[:4] == [4, 4, 4, 4]


def test_equal_sequences_have_equal_numbers():
    (one, two), (three,) = response_numbers([[[1, 2], [1]], [[1, 2]]])
    assert one == three != two


def test_rows_of_distinct_prompts_are_in_random_order():
    order = list(PromptSampler(np.arange(1000), alone(range(1000)), 8))
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_the_order_changes_with_the_epoch_and_the_seed_only():
    prompts = grouped(100, 10)

    def order(epoch: int, seed: int = 3) -> list[int]:
        sampler = PromptSampler(prompts, alone(prompts), 8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0) == order(0)
    assert order(0) != order(1) != order(1, seed=4)


def test_each_process_gets_batches_of_few_prompts_and_similar_length():
    generator = np.random.default_rng(1)
    prompts = grouped(1600, 400)
    lengths = generator.integers(1, 400, 400)[prompts] + generator.integers(0, 40, 1600)  # most are of the prompt
    sampler = PromptSampler(prompts, alone(prompts), 8, processes=2, lengths=lengths)
    loader: Any = prepare_data_loader(
        DataLoader(range(1600), batch_size=8, sampler=sampler),  # pyright: ignore[reportArgumentType]
        num_processes=2, process_index=1, put_on_device=False,
    )  # fmt: skip
    batches = [batch.tolist() for batch in loader]
    assert len(batches) == 100
    assert np.mean([len(set(prompts[batch])) for batch in batches]) < 4

    def spread(order: list[int]) -> float:
        rounds = np.asarray(order).reshape(-1, 16)
        return float(np.mean(np.ptp(lengths[rounds], axis=1)))

    assert spread(list(sampler)) < 0.5 * spread(list(PromptSampler(prompts, alone(prompts), 8, processes=2)))


def test_grouped_rows_need_fewer_tokens_in_packed_batches():
    """24 rows of 4 prompts with 3 responses each, of which a row compares two."""
    shared = [[1 + prompt] * 30 for prompt in range(4)]
    rows = []
    for number in range(24):
        prompt, left = number % 4, number // 4 % 3
        responses = [shared[prompt] + [200 + (left + side) % 3, 100 + prompt] * 5 for side in (0, 1)]
        rows.append({"input_ids": responses})
    collator = DataCollatorForPackedPreference()

    def computed(order: list[int]) -> int:
        return sum(collator.tokens([rows[place] for place in order[start : start + 8]]) for start in (0, 8, 16))

    assert computed(list(range(24))) == 3 * 4 * (30 + 3 * 10)  # each batch has all prompts with all their responses
    responses = response_numbers(row["input_ids"] for row in rows)
    assert computed(list(PromptSampler([number % 4 for number in range(24)], responses, 8))) < 0.8 * 720
