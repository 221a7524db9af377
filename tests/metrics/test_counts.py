"""Counts with the right form of their noun."""

import pytest

from hf_reward.metrics.counts import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1.0, "1 row"), (12_345, "12,345 rows")]
)
def test_a_count_has_the_right_form_of_its_noun(number: float, text: str) -> None:
    assert counted(number, "row") == text


def test_an_irregular_plural_is_given() -> None:
    assert [counted(number, "query", "queries") for number in (0, 1, 2)] == ["0 queries", "1 query", "2 queries"]
