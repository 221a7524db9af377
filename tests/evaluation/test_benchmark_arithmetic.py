"""Each benchmark's numbers equal those of the original code on golden vectors; tie rules are checked by hand."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import (
    arena,
    biased,
    four,
    instructed,
    judged,
    outcome_of,
    pair,
    rmb_list,
    rmb_pair,
    solutions,
    styles,
    tied,
    transformed,
    translated,
    verified,
)

from hf_reward.evaluation.benchmarks.base import LeftOut
from hf_reward.evaluation.benchmarks.judgebench import JudgeBench
from hf_reward.evaluation.benchmarks.judgebench_pro import JudgeBenchPro
from hf_reward.evaluation.benchmarks.llmbar import LLMBar
from hf_reward.evaluation.benchmarks.m_rewardbench import MRewardBench
from hf_reward.evaluation.benchmarks.own import Lists, Pairs
from hf_reward.evaluation.benchmarks.ppe_correctness import PPECorrectness
from hf_reward.evaluation.benchmarks.ppe_preference import PPEPreference
from hf_reward.evaluation.benchmarks.registry import PUBLIC
from hf_reward.evaluation.benchmarks.rewardbench import PRIOR_SETS, RewardBench, section_scores
from hf_reward.evaluation.benchmarks.rewardbench2 import RewardBench2
from hf_reward.evaluation.benchmarks.rewardmath import RewardMATH
from hf_reward.evaluation.benchmarks.rewordbench import ReWordBench
from hf_reward.evaluation.benchmarks.rm_bench import RMBench
from hf_reward.evaluation.benchmarks.rmb import RMB
from hf_reward.evaluation.benchmarks.spreads import Number, leave_out

RECIPE = Path(__file__).parents[2] / "tests" / "evaluation" / "golden_table.py"


def close(found: Any, expected: float) -> None:
    assert float(found) == pytest.approx(expected, abs=1e-12)


# --- the original code's outputs ---


def _golden_lines() -> list[tuple[str, float, float]]:
    spec = importlib.util.spec_from_file_location("golden_table", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.golden_lines())


@pytest.mark.parametrize("line", _golden_lines(), ids=lambda line: line[0])
def test_numbers_equal_those_of_the_original_code(line: tuple[str, float, float]) -> None:
    assert line[1] == pytest.approx(line[2], abs=1e-9)


def test_golden_vectors_contain_ties_and_zero_spread() -> None:
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    ties = [row for case in golden["rewardbench_2_ties"] for row in case["rows"] if row["id"].startswith("tied")]
    spreads = [max(row["scores"][: row["num_correct"]]) - min(row["scores"][: row["num_correct"]]) for row in ties]
    assert spreads.count(0) > 0
    assert any(len(set(row)) < len(row) for row in golden["rewardbench_2_bon"]["scores"])
    assert any(row["score_chosen"] == row["score_rejected"] for row in golden["rm_bench"]["results"])


def test_every_public_benchmark_states_how_it_was_checked() -> None:
    golden = {line[0].partition(",")[0] for line in _golden_lines()}
    for benchmark in PUBLIC.values():
        against_code = "original code" in benchmark.checked and not benchmark.checked.startswith("built from")
        assert against_code == (benchmark.title in golden), benchmark.title
        assert against_code or benchmark.not_verified, benchmark.title
    verified = {name for name, each in PUBLIC.items() if not each.not_verified}
    assert verified == {"rewardbench", "rewardbench2", "rm_bench", "judgebench"}


def test_the_documentation_states_which_parts_were_not_verified() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "benchmarks.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, benchmark in PUBLIC.items():
        assert ("not verified" in rows[name]) == bool(benchmark.not_verified), name


# --- RewardBench ---


def test_rewardbench_counts_a_tie_as_wrong_and_half_credit_as_half() -> None:
    rows = [pair(0), pair(1), pair(2)]
    rewards = [[1, 0], [1, 1], [0, 1]]
    close(outcome_of(RewardBench(), rows, rewards).overall, 1 / 3)
    close(outcome_of(RewardBench(), rows, rewards, tie=0.5).overall, 1.5 / 3)


def test_rewardbench_weights_subsets_by_constants_and_not_by_available_rows() -> None:
    rows = [pair(0, subset="math-prm"), pair(1, subset="hep-cpp"), pair(2, subset="hep-cpp")]
    close(outcome_of(RewardBench(), rows, [[1, 0], [0, 1], [0, 1]]).overall, 984 / (984 + 164))


def test_rewardbench_section_without_subsets_is_0_as_in_the_original_and_left_out_of_our_mean() -> None:
    accuracies = {"mt-bench-hard": np.array(0.5)}
    assert {name: float(value) for name, value in section_scores(accuracies).items()} == {
        "Chat": 0.0,
        "Chat Hard": 0.5,
        "Safety": 0.0,
        "Reasoning": 0.0,
    }
    outcome = RewardBench().combine(accuracies)
    assert list(outcome.sections) == ["Chat Hard"]
    close(outcome.overall, 0.5)


@pytest.mark.parametrize(
    ("sections", "prior", "published"),
    [((96.9, 76.8, 92.2, 97.3), 74.3, 88.97), ((99.4, 65.1, 87.8, 86.4), 74.9, 83.6)],
)
def test_rewardbench_average_with_prior_sets_is_the_published_one(
    sections: tuple[float, ...], prior: float, published: float
) -> None:
    # ArmoRM and FsfairX; one subset represents each section.
    names = ("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm")
    means = {name: np.array(value) for name, value in zip(names, sections, strict=True)}
    means |= dict.fromkeys(PRIOR_SETS, np.array(prior))
    outcome = RewardBench().combine(means)
    assert float(outcome.measures["overall_with_prior_sets"]) == pytest.approx(published, abs=0.05)
    close(outcome.overall, sum(sections) / 4)
    means.pop("shp")
    assert "overall_with_prior_sets" not in RewardBench().combine(means).measures


# --- RewardBench 2 ---


@pytest.mark.parametrize(
    ("rewards", "expected"), [([1, 1, 0, 0], 1 / 2), ([1, 1, 1, 1], 1 / 4), ([0, 1, 0, 0], 0.0), ([2, 1, 0, 0], 1.0)]
)
def test_rewardbench2_shares_the_credit_of_a_tie_at_the_top(rewards: list[float], expected: float) -> None:
    close(outcome_of(RewardBench2(), [four(0)], [rewards]).overall, expected)


def test_rewardbench2_ties_by_hand() -> None:
    rows = [tied("ref", 1), tied("tied", 1)]
    # ref: correct 3 over wrong 1: gap 2. tied: correct 5 and 4 over wrong 1: gap 3, spread 1.
    outcome = outcome_of(RewardBench2(), rows, [[3, 1, 0], [5, 4, 1, 0]])
    close(outcome.sections["Ties"], 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(2 / 1 - 1))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # no spread and no gap: 0/0 counts 0; nothing is strictly above.
        ([1.0, 1.0, 1.0, 0.0], 0.3),
        # no spread, a gap: the margin is at its limit of 1.
        ([1.0, 1.0, 0.0, 0.0], 0.3 + 0.3 + 0.2 + 0.2 + 0.01),
        # no spread, a negative gap: the margin is at -1.
        ([1.0, 1.0, 2.0, 0.0], 0.3 - 0.01),
        # the gap equals the spread: not strictly above, tanh(0) = 0.
        ([3.0, 2.0, 1.0, 0.0], 0.3 + 0.3),
    ],
)
def test_rewardbench2_ties_rule_for_equal_numbers(rewards: list[float], expected: float) -> None:
    rows = [tied("ref", 1), tied("tied", 1)]
    close(outcome_of(RewardBench2(), rows, [[9, 1, 0], rewards]).sections["Ties"], expected)


def test_rewardbench2_combines_only_numbers_with_both_rows() -> None:
    rows = [tied("ref", 1), tied("tied", 1), tied("ref", 2), tied("tied", 3)]
    rewards = [[3, 1, 0], [5, 4, 1, 0], [0, 1, 0], [0, 0, 1, 1]]
    outcome = outcome_of(RewardBench2(), rows, rewards)
    close(outcome.subsets["Ties accuracy ref"], 0.5)
    close(outcome.subsets["Ties accuracy tied"], 0.5)
    close(outcome.subsets["Ties gap above spread"], 1.0)


def test_rewardbench2_overall_is_the_plain_mean_of_the_subsets() -> None:
    rows = [four(0), four(1), four(2, subset="Focus")]
    close(outcome_of(RewardBench2(), rows, [[1, 0, 0, 0]] * 2 + [[0, 1, 0, 0]]).overall, 0.5)


# --- RM-Bench ---


def test_rm_bench_levels_by_hand() -> None:
    # right answers score 1, 2, 3, wrong ones 0, 2, 9: cells (i, j) with right_i > wrong_j are (0,0) (1,0) (2,0) (2,1).
    outcome = outcome_of(RMBench(), [styles(0)], [[1, 2, 3, 0, 2, 9]])
    close(outcome.sections["hard"], 0)
    close(outcome.sections["normal"], 1 / 3)
    close(outcome.sections["easy"], 1)
    close(outcome.overall, (0 + 1 / 3 + 1) / 3)
    half = outcome_of(RMBench(), [styles(0)], [[1, 2, 3, 0, 2, 9]], tie=0.5)
    close(half.sections["normal"], 1.5 / 3)  # cell (1,1) is the tie


def test_rm_bench_pools_both_safety_sets_by_row() -> None:
    rows = [styles(0, "safety-refuse"), styles(1, "safety-refuse"), styles(2, "safety-response")]
    right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    outcome = outcome_of(RMBench(), rows, [right, right, wrong])
    close(outcome.sections["safety"], 2 / 3)
    close(outcome.subsets["safety-response hard"], 0)


# --- JudgeBench ---


def test_judgebench_counts_a_tie_as_b_and_two_games_as_wrong() -> None:
    rows = [judged(0, "A>B"), judged(1, "B>A"), judged(2, "A>B")]
    rewards = [[1, 1], [1, 1], [2, 1]]
    outcome = outcome_of(JudgeBench(), rows, rewards)
    close(outcome.overall, 2 / 3)
    close(outcome.measures["two_games"], 1 / 3)
    close(outcome_of(JudgeBench(), rows, rewards, tie=0.5).overall, 2 / 3)


def test_judgebench_half_credit_replaces_the_rule() -> None:
    close(outcome_of(JudgeBench(), [judged(0, "B>A")], [[1, 1]], tie=0.5).overall, 0.5)


# --- the others ---


def test_llmbar_pools_all_rows_and_averages_the_adversarial_sets() -> None:
    rows = [
        instructed(0),
        instructed(1, 2, "Adversarial/Neighbor"),
        instructed(2, 1, "Neighbor"),
        instructed(3, 2, "Manual"),
    ]
    outcome = outcome_of(LLMBar(), rows, [[1, 0], [0, 1], [0, 1], [1, 1]])
    close(outcome.overall, 2 / 4)
    close(outcome.sections["Adversarial"], (0.5 + 0) / 2)
    close(outcome.subsets["Neighbor"], 0.5)


@pytest.mark.parametrize(("rewards", "strict", "half"), [([2, 1, 1], 1, 1), ([1, 1, 0], 0, 0.5), ([1, 2, 0], 0, 0)])
def test_rmb_list_is_right_only_if_the_best_beats_every_loser(rewards: list[float], strict: float, half: float) -> None:
    close(outcome_of(RMB(), [rmb_list(0)], [rewards]).overall, strict)
    close(outcome_of(RMB(), [rmb_list(0)], [rewards], tie=0.5).overall, half)


def test_rmb_overall_is_the_mean_of_four_sections() -> None:
    rows = [rmb_pair(0), rmb_pair(1), rmb_pair(2, "Harmlessness"), rmb_list(3), rmb_list(4, "Harmlessness")]
    outcome = outcome_of(RMB(), rows, [[1, 0], [0, 1], [1, 0], [1, 0, 0], [0, 1, 0]])
    close(outcome.overall, (0.5 + 1 + 1 + 0) / 4)
    close(outcome.subsets["Pairwise_set/Helpfulness/Chat/Casual"], 0.5)


def test_ppe_preference_leaves_out_ties() -> None:
    benchmark = PPEPreference()
    assert benchmark.read(arena(0, "tie"), "", 0) == LeftOut("q0")
    assert benchmark.read(arena(0, "tie (bothbad)"), "", 0) == LeftOut("q0")
    rows = [arena(1, "model_b"), arena(2, language="German"), arena(3, is_code=True)]
    outcome = outcome_of(benchmark, rows, [[0, 1], [1, 1], [1, 0]])
    close(outcome.overall, 2 / 3)
    assert {name: float(value) for name, value in outcome.sections.items()} == {
        "English": 1.0,
        "other languages": 0.0,
        "is_code": 1.0,
    }


def test_ppe_correctness_by_hand() -> None:
    row = verified(0, [True, False, False])
    outcome = outcome_of(PPECorrectness(), [row], [[2, 1, 3]])
    close(outcome.overall, 0.5)
    close(outcome.measures["MATH auc"], 0.5)
    # sorted by reward: wrong, correct, wrong. V_1 = 1/3; of the three pairs one has the correct one on top.
    close(outcome.measures["MATH best of 1"], 1 / 3)
    close(outcome.measures["MATH best of 2"], 1 / 3)
    close(outcome.measures["MATH best of 3"], 0)
    close(outcome.measures["MATH highest"], 1 / 3)
    close(outcome.measures["MATH loss"], 1)
    assert outcome.differences == {name for name in outcome.measures if name.endswith(" loss")} != set()
    tie = outcome_of(PPECorrectness(), [row], [[1, 1, 0]])
    close(tie.overall, 0.5)
    close(tie.measures["MATH auc"], 0.75)
    close(tie.measures["MATH end"], 0.5)


def test_ppe_correctness_uses_the_sampled_pairs_if_there_are_any() -> None:
    row = verified(0, [True, False, False], sampled_conflict_pairs=[[2, 0]])
    close(outcome_of(PPECorrectness(), [row], [[2, 1, 3]]).overall, 0)
    row = verified(0, [True, False, False], sampled_conflict_pairs=[[1, 0]])
    close(outcome_of(PPECorrectness(), [row], [[2, 1, 3]]).overall, 1)


# --- M-RewardBench ---


def test_m_rewardbench_weights_subsets_and_averages_languages() -> None:
    rows = [translated(0), translated(1, source="mt-bench-med"), translated(2, source="donotanswer")]
    rows += [translated(0, "jpn_Jpan"), translated(1, "jpn_Jpan")]
    # German: Chat (79 * 1 + 38 * 0) / 117, Safety 1; Japanese: Chat 0.5, one of two rows is a tie.
    outcome = outcome_of(MRewardBench(), rows, [[1, 0], [0, 1], [1, 0], [1, 1], [2, 1]])
    chat = 79 / 117
    close(outcome.sections["deu_Latn"], (chat + 1) / 2)
    close(outcome.sections["jpn_Jpan"], 0.5)
    close(outcome.overall, ((chat + 1) / 2 + 0.5) / 2)
    close(outcome.measures["Chat"], (chat + 0.5) / 2)
    close(outcome.measures["Safety"], 1)
    assert set(outcome.measures) == {"Chat", "Safety"}
    half = outcome_of(MRewardBench(), rows, [[1, 0], [0, 1], [1, 0], [1, 1], [2, 1]], tie=0.5)
    close(half.sections["jpn_Jpan"], 0.75)


def test_m_rewardbench_reports_the_translations_apart() -> None:
    sets = [translated(n, "translation", source=name) for n, name in enumerate(["maple-a", "maple-a", "maple-b"])]
    outcome = outcome_of(MRewardBench(), [translated(0), *sets], [[1, 0], [1, 0], [0, 1], [0, 0]])
    close(outcome.overall, 1)
    assert list(outcome.sections) == ["deu_Latn"]
    assert {name: float(value) for name, value in outcome.measures.items()} == {
        "Chat": 1.0,
        "translation": pytest.approx(1 / 3),
        "translation maple-a": 0.5,
        "translation maple-b": 0.0,
    }


# --- JudgeBench-Pro ---


def test_judgebench_pro_pools_pairs_and_counts_a_tie_as_wrong() -> None:
    rows = [biased(0), biased(1, 2), biased(2, 2, "code")]
    rewards = [[1, 0], [1, 1], [0, 1]]
    outcome = outcome_of(JudgeBenchPro(), rows, rewards)
    close(outcome.overall, 2 / 3)
    assert {name: float(value) for name, value in outcome.sections.items()} == {"math": 0.5, "code": 1.0}
    close(outcome_of(JudgeBenchPro(), rows, rewards, tie=0.5).overall, 2.5 / 3)


# --- RewardMATH ---


@pytest.mark.parametrize(
    ("correct", "accuracy", "with_ties", "reciprocal", "half"),
    [(10, 1, 1, 1, 1), (9, 0, 1, 1 / 2, 1 / 2), (8.5, 0, 0, 1 / 2, 0), (7, 0, 0, 1 / 4, 0), (-1, 0, 0, 1 / 10, 0)],
)
def test_rewardmath_by_hand(correct: float, accuracy: float, with_ties: float, reciprocal: float, half: float) -> None:
    rewards = [correct, 9, 8, 7, 6, 5, 4, 3, 2, 1]  # a tied wrong solution ranks before the correct one
    outcome = outcome_of(RewardMATH(), solutions(0), [rewards])
    close(outcome.overall, accuracy)
    close(outcome.measures["accuracy_with_ties"], with_ties)
    close(outcome.measures["reciprocal_rank"], reciprocal)
    close(outcome_of(RewardMATH(), solutions(0), [rewards], tie=0.5).overall, half)


# --- reWordBench ---


def test_rewordbench_compares_transformed_pairs_with_their_originals() -> None:
    rows = [transformed(0), transformed(1, subset="donotanswer"), transformed(2)]
    rows += [transformed(0, "quotes"), transformed(1, "quotes", subset="donotanswer")]
    rows += [transformed(0, "rot-13"), transformed(3, "rot-13")]  # the original of pair 3 is missing
    rewards = [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 1], [1, 0]]
    outcome = outcome_of(ReWordBench(), rows, rewards)
    # original: Chat 1/2, Safety 1. quotes: Chat 1 -> 0, Safety 1 -> 1. rot-13: Chat 1 -> 0 (tie); pair 3 has no drop.
    assert {name: float(value) for name, value in outcome.sections.items()} == {"quotes": 0.5, "rot-13": 0.5}
    close(outcome.overall, 0.5)
    assert {name: float(value) for name, value in outcome.measures.items()} == {
        "original": 0.75,
        "drop": 0.75,
        "drop quotes": 0.5,
        "drop rot-13": 1.0,
        "drop in Chat": 1.0,
        "drop in Safety": 0.0,
    }
    assert outcome.differences == {name for name in outcome.measures if name.startswith("drop")}
    close(outcome_of(ReWordBench(), rows, rewards, tie=0.5).measures["drop rot-13"], 0.5)


def test_rewordbench_without_originals_has_accuracies_only() -> None:
    outcome = outcome_of(ReWordBench(), [transformed(0, "quotes")], [[1, 0]])
    close(outcome.overall, 1)
    assert not outcome.measures


def test_a_drop_has_the_interval_of_a_mean_and_not_of_a_rate() -> None:
    benchmark, random = ReWordBench(), np.random.default_rng(0)
    rows = [transformed(n, name) for n in range(200) for name in ("original", "quotes")]
    comparisons = [benchmark.read(row, "", place) for place, row in enumerate(rows)]
    rewards = [np.array([0.2 * (row.subset == "original"), 0]) + random.normal(size=2) for row in comparisons]
    found = leave_out(benchmark, benchmark.credits(comparisons, rewards, 0.0), [row.cluster for row in comparisons])
    right = np.array([each[0] > each[1] for each in rewards], float)
    drops = right[0::2] - right[1::2]
    low, high = found.interval(Number("measures", "drop")).bounds or (0, 0)
    error = drops.std(ddof=1) / np.sqrt(len(drops))
    assert (low + high) / 2 == pytest.approx(drops.mean(), abs=1e-9)
    assert (high - low) / 2 == pytest.approx(1.972 * error, rel=0.01)


def test_own_lists_share_the_credit_of_a_tie_at_the_top() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [0, 0, 1]}
    outcome = outcome_of(Lists(), [row], [[1, 0, 1]])
    close(outcome.overall, 0.5)
    close(outcome.measures["pairs"], 0)
    close(outcome.measures["by_chance"], 2 / 3)


def test_own_pairs_have_sections_by_subset() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "subset": name} for name in ("x", "x", "y")]
    outcome = outcome_of(Pairs(), rows, [[1, 0], [0, 1], [0, 0]])
    close(outcome.overall, 1 / 3)
    assert {name: float(value) for name, value in outcome.sections.items()} == {"x": 0.5, "y": 0.0}
    close(outcome_of(Pairs(), rows, [[1, 0], [0, 1], [0, 0]], tie=0.5).sections["y"], 0.5)
