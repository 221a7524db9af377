"""Trivial baselines: exact arithmetic, and detection of a planted signal."""

import math
import random

import pytest

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_text import response_text
from hf_reward.evaluation.baselines import Baseline, cross_validated_tfidf, length_rule, tfidf_bradley_terry

FILLER = ["river", "stone", "cloud", "paper", "green", "window", "early", "seven", "garden", "music"]


def row(chosen: str, rejected: str, prompt: str = "p") -> PreferenceRow:
    return to_preference_row({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def planted(count: int, seed: int, *, signal: bool) -> list[PreferenceRow]:
    """Pairs of random words; with a signal, the preferred side has the word `please` at a random position."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        chosen, rejected = ([rng.choice(FILLER) for _ in range(6)] for _ in range(2))
        chosen[rng.randrange(6)] = "please" if signal else rng.choice(FILLER)
        rows.append(row(" ".join(chosen), " ".join(rejected), f"{seed} {number}"))
    return rows


def test_the_length_rule_counts_characters_with_half_credit_for_ties():
    """Longer, shorter, equal, longer: (1 + 0 + 0.5 + 1) / 4 = 0.625."""
    rows = [row("aaaa", "b", "1"), row("a", "bb", "2"), row("ab", "cd", "3"), row("a b", "c", "4")]
    rule = length_rule(rows)
    assert (rule.accuracy, rule.num_pairs, rule.interval.num_clusters) == (0.625, 4, 4)
    assert rule.interval.method == "clustered-wilson"


def test_the_length_rule_uses_all_strict_pairs_of_a_list():
    """Ranks 1, 0, 1 over lengths 3, 2, 1: the second against the first is wrong, against the third right."""
    ranked = to_preference_row({"prompt": "p", "responses": ["aaa", "bb", "c"], "ranks": [1, 0, 1]})
    rule = length_rule([ranked])
    assert (rule.accuracy, rule.num_pairs) == (0.5, 2)
    assert math.isnan(rule.interval.low)


def test_the_length_rule_uses_the_contents_of_messages():
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


def test_tfidf_finds_a_planted_word_on_held_out_prompts():
    found = tfidf_bradley_terry(planted(80, 0, signal=True), planted(60, 1, signal=True))
    assert found.accuracy > 0.95
    assert (found.num_pairs, found.interval.num_clusters) == (60, 60)


def test_tfidf_finds_nothing_in_random_words():
    nothing = tfidf_bradley_terry(planted(80, 0, signal=False), planted(300, 1, signal=False))
    assert 0.4 < nothing.accuracy < 0.6
    assert nothing.interval.low < 0.5 < nothing.interval.high


def test_tfidf_does_not_depend_on_the_order_of_responses():
    train, held = planted(80, 0, signal=True), planted(60, 1, signal=True)
    for pair in held:
        pair.ranks = [1, 0]
    assert tfidf_bradley_terry(train, held).accuracy < 0.05


def test_texts_without_a_known_word_are_ties():
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
    assert str(rule) == "length rule (characters): 100.0% (66.1% to 100.0%, 10 pairs)"
    assert isinstance(rule, Baseline)


def test_a_baseline_of_one_prompt_prints_that_it_has_no_interval():
    assert (
        str(length_rule([row("aa", "b")])) == "length rule (characters): 100.0% (no interval from one prompt, 1 pair)"
    )


def test_cross_validation_scores_every_pair_once_by_a_model_of_other_prompts():
    found = cross_validated_tfidf(planted(80, 0, signal=True))
    assert found.accuracy > 0.95
    assert (found.num_pairs, found.interval.num_clusters) == (80, 80)
    assert found.name == "TF-IDF Bradley-Terry, cross-validated by prompt group"


def test_a_split_by_row_overstates_accuracy_if_prompts_repeat_their_responses():
    """Each prompt has one good text in six rows, so another row of the prompt reveals it."""
    rows = []
    for prompt in range(30):
        good, *bad = (" ".join(random.Random(f"{prompt} {i}").choices(FILLER, k=8)) for i in range(7))
        rows += [row(f"{good} mark{prompt}", text, str(prompt)) for text in bad]
    by_row, by_prompt = (cross_validated_tfidf(rows, by_row=by_row) for by_row in (True, False))
    assert by_row.accuracy > by_prompt.accuracy + 0.05
    assert by_row.interval.num_clusters == 30
    assert by_row.name.endswith("by row")


def test_only_the_baseline_that_sees_length_learns_that_longer_is_better():
    rng = random.Random(0)
    rows = []
    for number in range(200):
        short, long = (" ".join(rng.choices(FILLER, k=size)) for size in (5, 15))
        rows.append(row(long, short, str(number)))
    blind, seeing = (cross_validated_tfidf(rows, sees_length=sees).accuracy for sees in (False, True))
    assert seeing == 1.0
    assert blind < 1.0


def test_cross_validation_is_deterministic_and_works_with_fewer_prompts_than_folds():
    rows = planted(30, 0, signal=True)
    assert cross_validated_tfidf(rows) == cross_validated_tfidf(rows)
    few = [row("please sit", "sit down", prompt) for prompt in ("a", "b", "c")]
    assert cross_validated_tfidf(few).num_pairs == 3


def test_texts_without_words_are_distinguished_by_their_characters():
    rows = [row("!", "?", str(number)) for number in range(6)]
    assert cross_validated_tfidf(rows).accuracy == 1.0


def test_one_prompt_cannot_be_cross_validated():
    with pytest.raises(ValueError, match="two prompts, but the data has 1"):
        cross_validated_tfidf([row("aa", "bb"), row("aa", "cc")])
