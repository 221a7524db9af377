"""Near-duplicates, and only they, are found without comparing all pairs."""

import random
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reward.data.near_duplicates import SIMILARITY, TextPart, TextPool, joined, text_hash
from hf_reward.data.row_text import words_of


def clusters(texts: list[str]) -> tuple[list[int], list[int]]:
    """Exact and near cluster of each text, numbered by first appearance."""
    pool = TextPool(lambda row, place: texts[row])
    for start in range(0, len(texts), 7):  # several batches
        part = range(start, min(start + 7, len(texts)))
        pool.add([TextPart(texts[number], number, 0) for number in part])
    found = pool.clusters()
    assert found.rows.tolist() == list(range(len(texts)))
    return canonical(found.exact), canonical(found.near)


def canonical(labels) -> list[int]:
    first: dict[int, int] = {}
    return [first.setdefault(int(label), len(first)) for label in labels]


def jaccard(first: str, second: str) -> float:
    """Jaccard similarity of the sets of word 5-grams; a text of fewer words is one gram."""
    one, other = (
        {tuple(words[n : n + 5]) for n in range(max(len(words) - 4, 1))} for words in map(words_of, (first, second))
    )
    return len(one & other) / len(one | other)


def brute_force(texts: list[str]) -> list[int]:
    """Connected components of all similar pairs."""
    labels = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) >= SIMILARITY:
            labels = [labels[i] if label == labels[j] else label for label in labels]
    return canonical(labels)


def sentence(rng: random.Random, words: int) -> list[str]:
    return ["".join(rng.choices("abcdefgh", k=5)) for _ in range(words)]


# --- similarity ------------------------------------------------------------------------------------------------------


def test_words_are_small_and_bare_and_characters_where_no_space_parts_them():
    assert words_of("Don't STOP, café_1!") == ["don", "t", "stop", "café_1"]
    assert words_of("今日は good") == ["今", "日", "は", "good"]
    assert words_of(" ?! ") == ["?!"]


def test_a_hash_overlooks_white_space_alone():
    assert text_hash("a  b\n") == text_hash("a b")
    assert text_hash("a b") != text_hash("A b")
    assert isinstance(text_hash("half a pair \ud800"), int)


# --- clusters --------------------------------------------------------------------------------------------------------


def test_planted_near_duplicates_are_found_and_different_texts_are_not():
    rng = random.Random(0)
    texts = []
    for _ in range(40):
        words = sentence(rng, 80)
        texts += [" ".join(words), " ".join([*words[:-1], "changed"]), "  ".join(words).upper()]
    exact, near = clusters(texts)
    assert near == [number // 3 for number in range(120)]
    assert len(set(exact)) == 120  # capitals differ


def test_texts_below_the_similarity_are_apart():
    rng = random.Random(1)
    words = sentence(rng, 40)
    half = " ".join([*words[:20], *sentence(rng, 20)])
    assert clusters([" ".join(words), half])[1] == [0, 1]


def test_a_chain_of_near_duplicates_is_one_cluster():
    rng = random.Random(2)
    words = sentence(rng, 200)
    chain = []
    for step in range(12):
        words = [*words[:step], "new" + str(step), *words[step + 1 :]]
        chain.append(" ".join(words))
    far = jaccard(chain[0], chain[-1])
    assert far < 1
    assert set(clusters(chain)[1]) == {0}


def test_a_text_that_comes_a_thousand_times_is_one_text():
    texts = ["the same words again and again in this text"] * 1000 + ["quite another text with words of its own here"]
    exact, near = clusters(texts)
    assert near == exact == [0] * 1000 + [1]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_clusters_of_small_texts_equal_those_of_comparing_all(texts: list[str]):
    """For small sets, signatures are accurate enough that every pair of at least 0.8 is a candidate."""
    assert clusters(texts)[1] == brute_force(texts)


def test_an_empty_pool_has_no_clusters():
    assert clusters([]) == ([], [])


# --- union -----------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 12).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(st.lists(st.integers(0, 4), min_size=size, max_size=size), min_size=1, max_size=3),
        )
    )
)
@settings(max_examples=80, deadline=None)
def test_joined_partitions_are_the_finest_that_keep_every_label_together(drawn):
    size, labels = drawn
    things = np.arange(size)
    found = joined(size, *((things, np.array(partition)) for partition in labels))
    expected = list(range(size))
    for partition in labels:
        for i, j in combinations(range(size), 2):
            if partition[i] == partition[j]:
                expected = [expected[i] if label == expected[j] else label for label in expected]
    assert canonical(found) == canonical(expected)


def test_an_item_may_have_several_labels_or_none():
    """Texts of rows: 0 and 2 share label 7, 2 and 3 share label 9, and 1 has no text."""
    found = joined(4, (np.array([0, 2, 2, 3]), np.array([7, 7, 9, 9])))
    assert canonical(found) == [0, 1, 0, 0]
    assert canonical(joined(2, (np.zeros(0, int), np.zeros(0, int)))) == [0, 1]
