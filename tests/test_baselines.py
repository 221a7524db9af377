"""Rules without reading: exact where they are arithmetic, and able to find a signal that was planted."""

import math
import random

import pytest

from hf_reward.baselines import Baseline, length_rule, response_text, tfidf_bradley_terry
from hf_reward.preference_row import PreferenceRow
from hf_reward.preferences import to_preference_row

FILLER = ["river", "stone", "cloud", "paper", "green", "window", "early", "seven", "garden", "music"]


def row(chosen: str, rejected: str, prompt: str = "p") -> PreferenceRow:
    return to_preference_row({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def planted(count: int, seed: int, *, signal: bool) -> list[PreferenceRow]:
    """Pairs of random words; with a signal the preferred side says `please` at a random place."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        chosen, rejected = ([rng.choice(FILLER) for _ in range(6)] for _ in range(2))
        chosen[rng.randrange(6)] = "please" if signal else rng.choice(FILLER)
        rows.append(row(" ".join(chosen), " ".join(rejected), f"{seed} {number}"))
    return rows


def test_the_length_rule_counts_characters_with_ties_half():
    """Longer, shorter, equal, longer: (1 + 0 + 0.5 + 1) / 4 = 0.625."""
    rows = [row("aaaa", "b", "1"), row("a", "bb", "2"), row("ab", "cd", "3"), row("a b", "c", "4")]
    rule = length_rule(rows)
    assert (rule.accuracy, rule.num_pairs, rule.interval.num_clusters) == (0.625, 4, 4)
    assert rule.interval.method == "clustered-t"


def test_the_length_rule_takes_all_strict_pairs_of_a_list():
    """Ranks 1, 0, 1 over lengths 3, 2, 1: the second against the first is wrong, against the third right."""
    ranked = to_preference_row({"prompt": "p", "responses": ["aaa", "bb", "c"], "ranks": [1, 0, 1]})
    rule = length_rule([ranked])
    assert (rule.accuracy, rule.num_pairs) == (0.5, 2)
    assert math.isnan(rule.interval.low)


def test_the_length_rule_reads_the_contents_of_messages():
    turns = [{"role": "assistant", "content": "aa"}, {"role": "user", "content": None}]
    chat = PreferenceRow(
        prompt=[], responses=[turns, [{"role": "assistant", "content": "bbb"}]], ranks=[0, 1], group="g"
    )
    assert response_text(chat, 0) == "aa\n"
    assert response_text(chat, 1) == "bbb"
    assert length_rule([chat]).accuracy == 0.5  # a tie of three characters


def test_pairs_of_one_prompt_are_one_cluster():
    rows = [row("aa", "b", "same"), row("a", "bb", "same"), row("aa", "b", "other")]
    assert length_rule(rows).interval.num_clusters == 2


def test_tfidf_finds_a_planted_word_on_prompts_that_it_has_not_seen():
    found = tfidf_bradley_terry(planted(80, 0, signal=True), planted(60, 1, signal=True))
    assert found.accuracy > 0.95
    assert (found.num_pairs, found.interval.num_clusters) == (60, 60)


def test_tfidf_finds_nothing_where_nothing_is():
    nothing = tfidf_bradley_terry(planted(80, 0, signal=False), planted(300, 1, signal=False))
    assert 0.4 < nothing.accuracy < 0.6
    assert nothing.interval.low < 0.5 < nothing.interval.high


def test_tfidf_learns_the_direction_and_not_the_place_of_the_preferred():
    train, held = planted(80, 0, signal=True), planted(60, 1, signal=True)
    for pair in held:
        pair.ranks = [1, 0]
    assert tfidf_bradley_terry(train, held).accuracy < 0.05


def test_tfidf_calls_texts_without_a_known_word_ties():
    assert tfidf_bradley_terry(planted(20, 0, signal=True), [row("unheard", "unseen")]).accuracy == 0.5


def test_rows_without_a_strict_preference_are_refused():
    tied = PreferenceRow(prompt="p", responses=["a", "b"], ranks=[0, 0], group="g")
    good = planted(4, 0, signal=True)
    for refused in (lambda: length_rule([tied]), lambda: tfidf_bradley_terry([tied], good), lambda: length_rule([])):
        with pytest.raises(ValueError, match="No row holds a strict preference"):
            refused()
    with pytest.raises(ValueError, match="No row holds a strict preference"):
        tfidf_bradley_terry(good, [tied])


def test_a_baseline_prints_its_interval_and_count():
    rule = length_rule([row("aa", "b", str(i)) for i in range(10)])
    assert str(rule) == "length rule (characters): 100.0% (72.2% to 100.0%, 10 pairs)"
    assert isinstance(rule, Baseline)


def test_a_baseline_of_one_prompt_prints_that_it_has_no_interval():
    assert (
        str(length_rule([row("aa", "b")])) == "length rule (characters): 100.0% (no interval from one prompt, 1 pairs)"
    )
