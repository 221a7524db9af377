"""Shares, intervals and agreements of a data check, against numbers computed by hand."""

import math

import numpy as np
import pytest

from hf_reward.evaluation.data_check.imbalance import corrected, imbalance
from hf_reward.evaluation.data_check.style_features import FEATURES, WHAT_COUNTS, count_features
from hf_reward.evaluation.data_check.token_sharing import TokenSharing, token_sharing
from hf_reward.evaluation.data_check.votes import read_votes, vote_agreement

# --- length and format -----------------------------------------------------------------------------------------------


def test_a_share_leaves_ties_out_and_its_interval_is_clustered():
    """Credits 1, 1, 0 | 1, 0 in two prompts: mean 0.6, without the first 0.5, without the second 2 / 3.

    Squared error 1 / 2 * (0.1^2 + 0.0667^2) = 0.00722; rows 0.24 / 0.00722 * 5 / 4 = 41.5 with t(0.975, 1) = 12.706.
    """
    found = imbalance("words", np.array([3, 1, -2, 5, -1, 0, 0]), np.array([1, 1, 1, 2, 2, 2, 3]))
    assert (found.share, found.pairs, found.ties) == (0.6, 5, 2)
    assert found.share_ties_half == pytest.approx((3 + 2 * 0.5) / 7)
    assert found.interval is not None
    size, score = 0.24 / (0.5 * (0.1**2 + 1 / 15**2)) * 5 / 4, 12.7062047
    middle, reach = 0.6 + score**2 / 2 / size, score * math.sqrt(0.24 / size + score**2 / 4 / size**2)
    bounds = [(middle + side * reach) / (1 + score**2 / size) for side in (-1, 1)]
    assert [found.interval.low, found.interval.high] == pytest.approx(bounds)
    assert found.verdict == "inconclusive"


def test_a_chance_deviation_among_many_features_is_not_imbalanced():
    """60 of 100 alone has p = 0.048 (z = 2, t of 99 degrees of freedom); of three features Holm makes it 0.14."""
    gaps, groups = np.array([1] * 60 + [-1] * 40), np.arange(100)
    even = np.array([1, -1] * 50)
    alone = imbalance("bold", gaps, groups)
    assert alone.p_value == pytest.approx(0.048, abs=0.002)
    assert alone.verdict == "imbalanced"
    found = corrected([alone, imbalance("links", even, groups), imbalance("emoji", even, groups)])
    assert found[0].adjusted_p_value == pytest.approx(3 * (alone.p_value or 0))
    assert [each.verdict for each in found] == ["inconclusive"] * 3
    sure = corrected([imbalance("bold", np.array([1] * 80 + [-1] * 20), groups), *found[1:]])
    assert sure[0].verdict == "imbalanced"


def test_an_interval_of_many_prompts():
    """One pair per prompt, 60 of 100 right: Wilson's interval with t(0.975, 99) = 1.98422 in place of 1.96."""
    found = imbalance("words", np.array([1] * 60 + [-1] * 40), np.arange(100))
    assert found.interval is not None
    reach = 1.98422 * math.sqrt(0.24 / 100 + 1.98422**2 / 4 / 100**2)
    assert found.interval.low == pytest.approx((0.6 + 1.98422**2 / 200 - reach) / (1 + 1.98422**2 / 100), abs=1e-6)
    assert found.verdict == "imbalanced"


@pytest.mark.parametrize(
    ("longer", "shorter", "verdict"),
    [
        (52, 48, "inconclusive"),  # 0.42 to 0.62
        (5200, 4800, "balanced"),  # 0.510 to 0.530: not one half, but within the tolerance
        (5450, 4550, "inconclusive"),  # 0.535 to 0.555
        (5800, 4200, "imbalanced"),
        (300, 700, "imbalanced"),
    ],
)
def test_verdicts_have_three_values(longer: int, shorter: int, verdict: str):
    found = imbalance("words", np.array([1] * longer + [-1] * shorter), np.arange(longer + shorter))
    assert found.verdict == verdict


def test_nothing_to_compare_is_no_verdict_and_one_prompt_no_interval():
    nothing = imbalance("bold", np.array([0, 0]), np.array([1, 2]))
    assert (nothing.share, nothing.interval, nothing.verdict, nothing.ties) == (None, None, "none", 2)
    one = imbalance("bold", np.array([1, 1]), np.array([1, 1]))
    assert (one.share, one.verdict) == (1.0, "inconclusive")


TEXT = """Sure! Here is **one** and **two**:
- first
2) second
# Title
```python
x = 1
```
| a | b |
I'm sorry, see https://example.com \U0001f600?"""


def test_features_are_counted():
    counts = dict(zip(FEATURES, count_features(TEXT), strict=True))
    assert counts == {
        "words": len(TEXT.split()),
        "characters": len(TEXT),
        "format marks": 2 + 2 + 1 + 2 + 1,
        "list items": 2,
        "bold": 2,
        "headers": 1,
        "code fences": 2,
        "table rows": 1,
        "line breaks": 8,
        "links": 1,
        "emoji": 1,
        "exclamation marks": 1,
        "question marks": 1,
        "agreeing opening": 1,
        "apology or refusal": 1,
    }
    assert set(WHAT_COUNTS) == set(FEATURES)


@pytest.mark.parametrize(
    "text", ["", "a plain sentence.", "surely 3.5 - 2", "a * b * c", "2024. was a year", "#hashtag"]
)
def test_plain_text_has_no_format(text: str):
    counts = dict(zip(FEATURES, count_features(text), strict=True))
    assert counts["format marks"] == counts["agreeing opening"] == counts["apology or refusal"] == 0


# --- votes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "votes"),
    [
        ({"votes_chosen": 4, "votes_rejected": 1, "votes_equal": 2}, (4, 1, 2)),
        ({"votes_chosen": 3.0, "votes_rejected": 0}, (3, 0, 0)),
        ({"votes_a": 1, "votes_b": 2, "votes_tie": 3}, (1, 2, 3)),
        ({"votes": [3, 0, 1]}, (3, 0, 1)),
        ({"votes": [3, 2]}, (3, 2, 0)),
        ({"annotators": [1, 2, 0, "a", "tie"]}, (2, 1, 2)),
        ({"annotator1": 1, "annotator2": 1, "annotator_3": 2}, (2, 1, 0)),
        ({"votes": "many"}, None),
        ({"votes": ["x", "y"]}, None),
        ({"votes_chosen": -1, "votes_rejected": 2}, None),
        ({"votes_chosen": None, "votes_rejected": None}, None),
        ({"annotators": []}, None),
        ({}, None),
    ],
)
def test_votes_are_found_under_their_names(row, votes):
    assert read_votes(row) == votes


def test_agreement_by_hand():
    """Rows (3, 0, 0), (2, 1, 0) and (1, 1, 1), all preferring the first.

    Rest of row 1: each of 3 votes equals the other two: 3 of 3. Row 2: a vote of the two leaves (1, 1), which is no
    majority; the other leaves (2, 0): 0 of 1. Row 3: each leaves a tie. Together 3 of 4. With the label: 6 of 9 votes.
    Unanimous: 1 of 3. Ceiling: mean of 1, 2/3 and 1/2.
    """
    votes = np.array([[3, 0, 0], [2, 1, 0], [1, 1, 1], [1, 0, 0]])  # the last row has one vote and is left out
    found = vote_agreement(votes, np.zeros(4, int), np.arange(4))
    assert found is not None
    assert (found.rows, found.votes, found.num_rater_vs_rest) == (3, 9, 4)
    assert found.rater_vs_rest == 0.75
    assert found.rater_vs_label == pytest.approx(6 / 9)
    assert found.unanimous == pytest.approx(1 / 3)
    assert found.ceiling == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_rows_that_prefer_the_second_count_votes_for_it_and_ties_are_no_label():
    votes = np.array([[1, 4, 0], [2, 2, 0]])
    found = vote_agreement(votes, np.array([1, -1]), np.arange(2))
    assert found is not None
    assert found.rater_vs_label == 0.8


def test_no_rows_with_two_votes_give_no_agreement():
    assert vote_agreement(np.array([[1, 0, 0], [0, 0, 0]]), np.zeros(2, int), np.arange(2)) is None
    assert vote_agreement(np.zeros((0, 3), int), np.zeros(0, int), np.zeros(0, int)) is None


def test_votes_for_neither_alone_have_no_ceiling():
    found = vote_agreement(np.array([[0, 0, 3]]), np.array([-1]), np.array([0]))
    assert found is not None
    assert (found.ceiling, found.rater_vs_label, found.rater_vs_rest) == (None, None, 1.0)


# --- shared tokens ---------------------------------------------------------------------------------------------------


def test_tokens_given_and_computed_by_hand():
    """A prompt of 20 tokens with responses of 3, 3 and 4 in two rows, and one of 5 tokens, too short to be shared."""
    prompt, short = list(range(20)), list(range(100, 105))
    first, second, third = ([*prompt, *range(start, end)] for start, end in ((200, 203), (210, 213), (220, 224)))
    rows = [[first, second], [[*short, 230, 231], [*short, 240, 241]], [third, first]]
    assert token_sharing(rows, [0, 1, 0]) == TokenSharing(
        rows=3,
        given=23 + 23 + 7 + 7 + 24 + 23,
        by_row=(20 + 3 + 3) + (7 + 7) + (20 + 4 + 3),
        by_prompt=20 + 3 + 3 + 4 + 7 + 7,
    )
    assert token_sharing([], []) == TokenSharing(rows=0, given=0, by_row=0, by_prompt=0)
