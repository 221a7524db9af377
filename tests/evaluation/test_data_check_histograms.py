"""Bins, captions and figures of a data check's lengths and gaps, against counts by hand."""

import re

import numpy as np
import pytest

from hf_reward.evaluation.data_check import DataReport, check_data, page, render_page
from hf_reward.evaluation.data_check.distribution_figures import captions
from hf_reward.evaluation.data_check.histograms import Histogram, gap_edges, histogram, length_edges, round_width


def by_name(report: DataReport) -> dict[str, Histogram]:
    return {each.name: each for each in report.histograms}


def rows_of_lengths(lengths: list[tuple[int, int, int]], **columns: list) -> list[dict]:
    """Pairs with a prompt, a chosen and a rejected response of these many characters."""
    rows: list[dict] = [
        {"prompt": "p" * prompt, "chosen": "c" * chosen, "rejected": "r" * rejected}
        for prompt, chosen, rejected in lengths
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def test_values_are_counted_in_bins_by_hand():
    """Edges 0, 10, 20, 30: 0 and 9 | 10 and 19 | 20 are inside; 30 and 99 are above."""
    found = histogram("prompt", "characters", np.array([0, 9, 10, 19, 20, 30, 99]), np.array([0, 10, 20, 30]))
    assert (found.counts, found.below, found.above) == ([2, 2, 1], 0, 2)
    assert (found.median, found.zero, found.positive, found.values) == (19, 1, 6, 7)


def test_gaps_of_both_signs_are_counted_the_same():
    """Edges -15, -5, 5, 15: -5 and 5 are on an edge and go away from zero, as -15 and 15 do, which leave the bins."""
    gaps = np.array([-15, -14, -5, -4, 0, 4, 5, 14, 15])
    found = histogram("length gap", "characters", gaps, np.array([-15, -5, 5, 15]))
    assert (found.counts, found.below, found.above) == ([2, 3, 2], 1, 1)
    assert (found.negative, found.zero, found.positive, found.median) == (4, 1, 4, 0)


@pytest.mark.parametrize(
    ("width", "rounded"), [(0, 0), (0.03, 0.05), (1, 1), (1.2, 2), (4.9, 5), (5.1, 10), (20, 20), (201, 500)]
)
def test_widths_are_round(width: float, rounded: float):
    assert round_width(width) == pytest.approx(rounded)


def test_length_bins_start_at_zero_and_cover_the_values():
    """0 to 99, of which 99% are at most 98.01: width 98.01 / 24 = 4.08, rounded to 5, and 20 bins up to 100."""
    assert length_edges(np.arange(100)).tolist() == [5 * number for number in range(21)]
    assert length_edges(np.array([3, 3])).tolist() == [0, 1, 2, 3, 4]
    assert length_edges(np.array([0])).tolist() == [0, 1]


def test_gap_bins_are_symmetric_with_one_around_zero():
    edges = gap_edges(np.array([-120.0, 120.0]), smallest=1)  # width 240 / 24 = 10
    assert edges.tolist() == [10 * number - 125 for number in range(26)]
    assert gap_edges(np.zeros(3), smallest=1).tolist() == [-0.5, 0.5]
    assert gap_edges(np.array([0.5, -0.3])).tolist() == pytest.approx(-gap_edges(np.array([0.3, -0.5]))[::-1])


def test_lengths_and_gaps_of_a_data_set_by_hand():
    report = check_data(rows_of_lengths([(1, 4, 2), (2, 4, 4), (3, 1, 2), (3, 3, 1)]))
    found = by_name(report)
    assert list(found) == ["prompt", "chosen", "rejected", "length gap"]
    assert (found["prompt"].edges, found["prompt"].counts) == ([0, 1, 2, 3, 4], [0, 1, 1, 2])
    assert found["chosen"].edges == found["rejected"].edges == [0, 1, 2, 3, 4, 5]
    assert (found["chosen"].counts, found["chosen"].above) == ([0, 1, 0, 1, 2], 0)
    assert (found["rejected"].counts, found["rejected"].above) == ([0, 1, 2, 0, 1], 0)
    gap = found["length gap"]  # 2, 0, -1, 2
    assert (gap.edges, gap.counts) == ([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], [0, 1, 1, 0, 2])
    assert {each.unit for each in found.values()} == {"characters"}
    assert report.to_dict()["histograms"][0]["counts"] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "columns",
    [
        {"margin": [1.5, 0.5, 0.5]},
        {"score_chosen": [3, 2, 2.5], "score_rejected": [1.5, 1.5, 2]},
        {"chosen_score": [3, 2, 2.5], "rejected_score": [1.5, 1.5, 2]},
    ],
)
def test_score_gaps_come_from_the_columns_that_hold_scores(columns):
    gap = by_name(check_data(rows_of_lengths([(3, 5, 4)] * 3, **columns)))["score gap"]
    assert (gap.values, gap.positive, gap.median, gap.unit) == (3, 3, 0.5, "score")


def test_score_gaps_of_ranked_and_voted_rows():
    ranked = [{"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 5, 2]}]
    gap = by_name(check_data(ranked))["score gap"]  # b - a, b - c, c - a
    assert (gap.values, gap.median, gap.positive) == (3, 3, 3)
    voted = [{"prompt": "p", "response_a": "x", "response_b": "yy", "score": -2}]
    assert by_name(check_data(voted))["score gap"].median == 2


def test_score_gaps_have_the_sign_of_the_preference():
    votes = {"prompt": "p", "response_a": "x", "response_b": "yy", "winner": "b"}
    rated = [{**votes, "score_chosen": 5, "score_rejected": 1}]
    assert by_name(check_data(rated))["score gap"].median == 4
    assert "score gap" not in by_name(check_data([{**votes, "score": 0.9}]))  # the winner decides, not the score


def test_scores_of_two_responses_do_not_fit_a_list_of_three():
    ranked = {"prompt": "p", "responses": ["a", "b c", "d e f"], "ranks": [0, 1, 2]}
    assert "score gap" not in by_name(check_data([{**ranked, "score_chosen": 1, "score_rejected": 0}]))


def test_rows_without_scores_have_no_score_gap():
    rows = rows_of_lengths([(3, 5, 4)] * 3, score_chosen=["good", None, 1], score_rejected=["bad", 2, None])
    assert "score gap" not in by_name(check_data(rows))


def test_a_tokenizer_makes_the_unit_tokens(text_tokenizer):
    report = check_data([{"prompt": "a ", "chosen": "yes it is", "rejected": "no"}], tokenizer=text_tokenizer)
    found = by_name(report)
    assert {each.unit for each in found.values()} == {"tokens"}
    assert report.tokens is not None
    assert found["prompt"].median + found["chosen"].median == report.tokens.quantiles["max"]


def test_captions_have_the_numbers_of_the_figures():
    report = check_data(rows_of_lengths([(1, 4, 2), (2, 4, 4), (3, 1, 2), (3, 3, 1)], margin=[1, 1, -1, 2]))
    assert captions(report.histograms) == [
        "Prompt length in characters. Median: 2.",
        "Response length in characters. Median: chosen 4, rejected 2.",
        "Length gap (chosen minus rejected) in characters of 4 pairs: chosen longer 50.0%, rejected longer 25.0%, "
        "equal 25.0%. Median: +1. Grey bar: gaps of less than 0.5.",
        "Score gap (chosen minus rejected) of 4 pairs: chosen higher 75.0%, rejected higher 25.0%, equal 0.0%. "
        "Median: +1. Grey bar: gaps of less than 0.1.",
    ]


def test_the_page_draws_each_quantity_as_svg():
    html = render_page(check_data(rows_of_lengths([(1, 4, 2), (2, 4, 4)], margin=[1, 2])))
    assert len(re.findall("<svg ", html)) == 4
    for part in ("Prompts by length", "Responses of pairs by length", "Pairs by length gap", "Pairs by score gap"):
        assert part in html
    assert html == render_page(check_data(rows_of_lengths([(1, 4, 2), (2, 4, 4)], margin=[1, 2])))


def test_without_matplotlib_the_page_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(page, "can_draw", lambda: False)
    html = render_page(check_data(rows_of_lengths([(1, 4, 2), (2, 4, 4)])))
    assert "<svg" not in html
    assert "The histograms need matplotlib, which is not installed." in html
    assert "hf_reward[audit]" in html
    assert "Prompt length in characters. Median: 2." in html


def test_nothing_usable_has_no_histograms():
    report = check_data([{"prompt": "p", "chosen": "", "rejected": "x"}])
    assert report.histograms == []
    assert "Lengths and gaps" not in render_page(report)
