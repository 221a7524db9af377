"""Scores are stored by row id; lines that do not fit the data are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import pair

from hf_reward.evaluation.benchmarks.data import DataChoice, load_benchmark_data
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.benchmarks.reporting import results_from_scores
from hf_reward.evaluation.benchmarks.results import ResultRule
from hf_reward.evaluation.benchmarks.scores_file import finished_lines, read_scores, score_line
from hf_reward.metrics.preference import preference_metrics

ROWS = [pair(number) for number in range(4)]
GOOD = [{"id": f"alpacaeval-easy/{number}", "rewards": [1.0, 0.5]} for number in range(4)]


@pytest.fixture
def comparisons() -> Any:
    return load_benchmark_data(benchmark_named("rewardbench"), DataChoice(data=ROWS)).comparisons


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lines_may_come_in_any_order(tmp_path: Path, comparisons: Any) -> None:
    lines = [{**line, "rewards": [float(place), 0.0]} for place, line in enumerate(GOOD)]
    found = read_scores(write(tmp_path / "s.jsonl", lines[::-1]), comparisons)
    assert [each.tolist() for each in found.rewards] == [[float(place), 0.0] for place in range(4)]


def test_scores_are_read_back_exactly(tmp_path: Path, comparisons: Any) -> None:
    rewards = np.float32([0.1, -1e-30]).astype(float)
    path = tmp_path / "s.jsonl"
    path.write_text("".join(score_line(each, rewards.tolist(), "") for each in comparisons))
    assert (np.stack(read_scores(path, comparisons).rewards) == rewards).all()


BAD: list[tuple[str, list[Any], str]] = [
    (
        "other row",
        [*GOOD[:3], {**GOOD[3], "id": "alpacaeval-easy/9"}],
        r"line 4: the data has no row 'alpacaeval-easy/9'",
    ),
    ("missing", GOOD[:2], r"lacks 2 of the data's 4 rows, such as 'alpacaeval-easy/2'"),
    ("twice", [*GOOD, GOOD[0]], r"line 5: row 'alpacaeval-easy/0' occurs twice"),
    ("NaN", [{**GOOD[0], "rewards": [float("nan"), 1]}, *GOOD[1:]], r"line 1: reward 0 .* finite number, but is nan"),
    ("infinite", [{**GOOD[0], "rewards": [1, float("inf")]}, *GOOD[1:]], r"line 1: reward 1 .* but is inf"),
    ("null", [{**GOOD[0], "rewards": [1, None]}, *GOOD[1:]], r"reward 1 .* but is None"),
    ("text", [{**GOOD[0], "rewards": ["1", 0]}, *GOOD[1:]], r"reward 0 .* but is '1'"),
    ("boolean", [{**GOOD[0], "rewards": [True, 0]}, *GOOD[1:]], r"reward 0 .* but is True"),
    ("too few", [{**GOOD[0], "rewards": [1]}, *GOOD[1:]], r"has 2 responses, but 1 reward\."),
    ("no rewards", [{"id": "alpacaeval-easy/0"}, *GOOD[1:]], r'line 1: must be \{"id": ..., "rewards": \[...\]\}'),
    ("damaged", [*GOOD[:3], '{"id": "alp'], r"line 4: not valid JSON"),
]


@pytest.mark.parametrize(("lines", "message"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_scores_that_do_not_fit_are_refused(lines: Any, message: str, tmp_path: Path, comparisons: Any) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(write(tmp_path / "s.jsonl", lines), comparisons)


def test_a_missing_file(tmp_path: Path, comparisons: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*`--scores` takes the scores.jsonl of a run"):
        read_scores(tmp_path / "s.jsonl", comparisons)


def test_a_row_that_could_not_be_scored_has_a_reason(tmp_path: Path) -> None:
    lines = [{**GOOD[0], "rewards": [None, 1.0], "problem": "too long"}, *GOOD[1:]]
    path = write(tmp_path / "s.jsonl", lines)
    left_out = results_from_scores("rewardbench", ROWS, path)
    assert left_out["overall"] == 1.0
    assert left_out["n"] == 3
    assert left_out["unscored"] == {
        "n": 1,
        "counted_as": "leave_out",
        "first": {"alpacaeval-easy/0": "too long"},
    }
    assert left_out["partial"][-1] == "1 row that could not be scored"
    wrong = results_from_scores("rewardbench", ROWS, path, rule=ResultRule(unscored="wrong"))
    assert (wrong["overall"], wrong["n"], wrong["unscored"]["counted_as"]) == (0.75, 4, "wrong")
    assert "could not be scored" not in " ".join(wrong["partial"])


def test_no_row_that_could_be_scored(tmp_path: Path) -> None:
    lines = [{**each, "rewards": [None, None], "problem": "too long"} for each in GOOD]
    with pytest.raises(ValueError, match=r"None of the 4 rows could be scored. The first: too long"):
        results_from_scores("rewardbench", ROWS, write(tmp_path / "s.jsonl", lines))


def test_scores_of_rows_that_are_not_compared_are_ignored(tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": "p", "response_a": "x", "response_b": "y", "winner": w} for name, w in
            (("a", "a"), ("b", "tie"), ("c", "b"))]  # fmt: skip
    path = write(tmp_path / "s.jsonl", [{"id": name, "rewards": [1.0, 0.0]} for name in "abc"])
    found = results_from_scores("pairs", rows, path)
    assert (found["n"], found["rows_left_out"], found["overall"]) == (2, 1, 0.5)
    more = write(tmp_path / "more.jsonl", [{"id": name, "rewards": [1.0, 0.0]} for name in "abcd"])
    with pytest.raises(ValueError, match="the data has no row 'd'"):
        results_from_scores("pairs", rows, more)


def test_scores_of_other_subsets_are_ignored(tmp_path: Path) -> None:
    rows = [pair(0), pair(1, subset="alpacaeval-hard")]
    lines = [{"id": f"alpacaeval-{kind}/{place}", "rewards": [1.0, 0.0]} for place, kind in enumerate(("easy", "hard"))]
    choice = DataChoice(subsets=("alpacaeval-hard",))
    found = results_from_scores("rewardbench", rows, write(tmp_path / "s.jsonl", lines), choice=choice)
    assert found["n"] == 1


def test_an_unusable_response_does_not_stop_the_run(tmp_path: Path) -> None:
    """Empty, blank, boolean and missing responses in each layout: their preference is known, but they have no score."""
    rows: list[dict[str, Any]] = [
        {"id": "good", "prompt": "p", "chosen": "x", "rejected": "y"},
        {"id": "empty", "prompt": "q", "chosen": "", "rejected": "y"},
        {"id": "blank", "prompt": "q", "chosen": "x", "rejected": " \n"},
    ]
    path = write(tmp_path / "s.jsonl", [{"id": "good", "rewards": [1.0, 0.0]}])
    found = results_from_scores("pairs", rows, path)
    assert (found["n"], found["overall"], found["unscored"]["n"]) == (1, 1.0, 2)
    assert found["unscored"]["first"]["empty"].startswith("`chosen` is empty")
    assert "2 rows that could not be scored" in found["partial"]
    wrong = results_from_scores("pairs", rows, path, rule=ResultRule(unscored="wrong"))
    assert (wrong["n"], wrong["overall"]) == (3, pytest.approx(1 / 3))
    votes = [{"id": "v", "prompt": "p", "response_a": True, "response_b": "y", "winner": "b"},
             {"id": "good", "prompt": "p", "response_a": "x", "response_b": "y", "winner": "a"}]  # fmt: skip
    assert results_from_scores("pairs", votes, path)["unscored"]["first"]["v"].startswith("`response_a` must be text")
    other = [{"role": "assistant", "content": "y"}]
    turns = [
        {"id": name, "prompt": "p", "chosen": [{"role": "assistant", "content": text}], "rejected": other}
        for name, text in (("t", ""), ("good", "x"))
    ]
    assert results_from_scores("pairs", turns, path)["unscored"]["n"] == 1
    lists = [{"id": "l", "prompt": "p", "responses": ["a", "", "c"], "ranks": [0, 1, 2]},
             {"id": "good", "prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}]  # fmt: skip
    assert results_from_scores("lists", lists, path)["unscored"]["n"] == 1


def test_a_broken_verdict_is_still_refused_with_its_row(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "p", "response_a": "", "response_b": "y", "winner": "c"}]
    with pytest.raises(ValueError, match=r"row 0: `winner` must be"):
        results_from_scores("pairs", rows, write(tmp_path / "s.jsonl", []))


@pytest.mark.parametrize("cut", [0, 5, 45, 46, 100])
def test_an_unfinished_file_keeps_its_complete_lines(cut: int, tmp_path: Path, comparisons: Any) -> None:
    text = "".join(score_line(each, [1.0, 0.0], "") for each in comparisons)
    path = tmp_path / "s.jsonl"
    path.write_text(text[: len(text) - cut])
    kept = finished_lines(path, comparisons)
    assert text.startswith("".join(kept))
    assert len(kept) == text[: len(text) - cut].count("\n")


def test_an_unusable_rule() -> None:
    with pytest.raises(ValueError, match="must be"):
        ResultRule(unscored="right")


def test_three_accuracies_of_the_same_rewards_have_three_names(tmp_path: Path) -> None:
    """In order: 1 of 3 pairs and not the best; 1 of 1; 1 of 1. Pooled 3 of 5, by row 7 / 9, the best 2 of 3."""
    rewards = [[2.0, 1.0, 3.0], [1.0, 0.0], [1.0, 0.0]]
    rows = [
        {"id": str(place), "prompt": f"p{place}", "responses": [*"abc"][: len(each)], "ranks": list(range(len(each)))}
        for place, each in enumerate(rewards)
    ]
    path = write(tmp_path / "s.jsonl", [{"id": str(place), "rewards": each} for place, each in enumerate(rewards)])
    pairs, lists = (results_from_scores(name, rows, path) for name in ("pairs", "lists"))
    assert pairs["overall"] == pytest.approx(7 / 9)
    assert pairs["measures"]["pairs_pooled"] == lists["measures"]["pairs_pooled"] == pytest.approx(3 / 5)
    assert lists["measures"]["pairs"] == pytest.approx(7 / 9)
    assert lists["overall"] == pytest.approx(2 / 3)
    assert pairs["overall_is"] == "share of a row's pairs in order, mean over rows"
    assert lists["overall_is"] == "best response at the top, mean over rows"
    padded = np.array([[2.0, 1, 3], [1, 0, 0], [1, 0, 0]])
    ranks = np.array([[0, 1, 2], [0, 1, -100], [0, 1, -100]])
    assert preference_metrics(padded, ranks)["accuracy"] == pytest.approx(3 / 5)  # as logged in training
