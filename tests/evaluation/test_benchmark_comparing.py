"""The paired difference of two runs: known differences, McNemar by hand, and runs that cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import instructed, styles, write_rows
from scipy import stats

from hf_reward.evaluation.benchmarks.comparing import compare, mcnemar
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.benchmarks.reporting import results_from_scores
from hf_reward.evaluation.benchmarks.results import ResultRule
from hf_reward.evaluation.benchmarks.spreads import OVERALL, Number, compared, leave_out
from hf_reward.metrics.intervals import mean_difference

ROWS = [instructed(number, 1, ("Natural", "Manual")[number % 2]) for number in range(60)]


def run(folder: Path, right: Any, rows: Any = ROWS) -> Path:
    """Write a run with some rows right and the others wrong."""
    lines = [
        {"id": f"{row['subset']}/{row['idx']}", "rewards": [1.0, 0.0] if good else [0.0, 1.0]}
        for row, good in zip(rows, right, strict=True)
    ]
    scores = write_rows(folder / "scores.jsonl", lines)
    results_from_scores("llmbar", rows, scores, out=folder, rule=ResultRule())
    return folder


def test_a_known_difference(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [number < 45 for number in range(60)])
    b = run(tmp_path / "b", [number < 30 for number in range(60)])
    found = compare(a, b)
    assert found["difference"] == pytest.approx(15 / 60)
    assert (found["a"]["overall"], found["b"]["overall"]) == (0.75, 0.5)
    low, high = found["ci"]
    assert 0 < low < 0.25 < high
    assert [low, high] == pytest.approx(
        mean_difference(np.repeat([1.0, 0.0], [15, 45]), np.arange(60)).interval().bounds
    )
    assert found["p_value"] < 0.001
    assert found["mcnemar"] == {"only_a_right": 15, "only_b_right": 0, "p_value": pytest.approx(2 * 0.5**15)}
    assert found["sections"]["Natural"]["difference"] == pytest.approx(8 / 30, abs=0.04)
    turned = compare(b, a)
    assert turned["difference"] == -found["difference"]
    assert turned["ci"] == pytest.approx([-high, -low])


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [number % 3 > 0 for number in range(60)])
    found = compare(a, a)
    assert (found["difference"], found["p_value"], found["mcnemar"]["p_value"]) == (0.0, 1.0, 1.0)
    # Wilson's bound for 0 differences in 60 prompts, with t of 59 degrees of freedom.
    score = stats.t.ppf(0.975, 59) ** 2
    assert found["ci"] == pytest.approx([-score / (60 + score), score / (60 + score)])


def test_prompts_with_many_rows_get_a_clustered_test_and_no_mcnemar(tmp_path: Path) -> None:
    """12 prompts of 100 rows; A is right on 7 prompts and B on 5. McNemar's p over rows would be 1e-8."""
    rows = [{"prompt": f"p{n // 100}", "chosen": f"a{n}", "rejected": f"b{n}", "id": str(n)} for n in range(1200)]
    folders = []
    for name, right in (("a", range(7)), ("b", range(7, 12))):
        lines = [{"id": str(n), "rewards": [1.0, 0.0] if n // 100 in right else [0.0, 1.0]} for n in range(1200)]
        scores = write_rows(tmp_path / name / "scores.jsonl", lines)
        results_from_scores("pairs", rows, scores, out=tmp_path / name)
        folders.append(tmp_path / name)
    found = compare(*folders)
    low, high = found["ci"]
    assert low < 0 < high
    assert found["p_value"] > 0.5
    assert found["mcnemar"] is None
    assert found["too_few_prompts"]


def test_a_weighted_difference_has_the_interval_of_its_parts(tmp_path: Path) -> None:
    """RewardBench 2's mean of two subsets of 30 and 10 prompts: variances add up with the squares of 1 / 2."""
    credits = [[{"Math": float(n % 3 > 0)} for n in range(30)] + [{"Safety": float(n % 2)} for n in range(10)]]
    credits.append([{"Math": float(n % 5 > 0)} for n in range(30)] + [{"Safety": 1.0} for n in range(10)])
    found = compared(benchmark_named("rewardbench2"), *credits, [str(n) for n in range(40)])
    values = [[a[name] - b[name] for a, b in zip(*credits, strict=True) if name in a] for name in ("Math", "Safety")]
    assert found[OVERALL].difference == pytest.approx(np.mean([np.mean(each) for each in values]))
    assert found[Number("sections", "Math")].interval.bounds == pytest.approx(
        mean_difference(np.array(values[0]), np.arange(30)).interval().bounds
    )
    spread = leave_out(benchmark_named("rewardbench2"), credits[0], [str(n) for n in range(40)]).spread(OVERALL)
    parts = [np.var([row[name] for row in credits[0] if name in row], ddof=1) for name in ("Math", "Safety")]
    exact = np.sqrt(parts[0] / 30 + parts[1] / 10) / 2
    assert exact < spread.error < 1.06 * exact  # each part's rows leave one out of 30 and of 10


def test_pairing_makes_the_interval_narrower(tmp_path: Path) -> None:
    # Two models that are right on the same rows except three; unpaired intervals would be much wider.
    right = [number % 2 == 0 for number in range(60)]
    a, b = (
        run(tmp_path / "a", right),
        run(tmp_path / "b", [good or number in (1, 3, 5) for number, good in enumerate(right)]),
    )
    low, high = compare(a, b)["ci"]
    alone = json.loads((a / "results.json").read_text())["ci"]
    assert high - low < 0.5 * np.sqrt(2) * (alone[1] - alone[0])


def test_mcnemar_by_hand() -> None:
    a = [True] * 10 + [False] * 2 + [True] * 5 + [False] * 3
    b = [False] * 10 + [True] * 2 + [True] * 5 + [False] * 3
    found = mcnemar(a, b)
    # two-sided sign test on 12 rows: 2 * (C(12,0) + C(12,1) + C(12,2)) / 2^12
    assert found == {"only_a_right": 10, "only_b_right": 2, "p_value": pytest.approx(2 * (1 + 12 + 66) / 4096)}
    assert found["p_value"] == pytest.approx(stats.binomtest(2, 12).pvalue)
    with pytest.raises(ValueError, match="same rows"):
        mcnemar([True], [])


def test_a_row_of_rm_bench_is_right_if_all_nine_comparisons_are(tmp_path: Path) -> None:
    rows = [styles(0), styles(1)]
    for name, last in (("a", 0.0), ("b", 5.0)):
        lines = [{"id": f"chat/{n}", "rewards": [1.0, 1.0, 1.0, 0.0, 0.0, last]} for n in range(2)]
        scores = write_rows(tmp_path / name / "scores.jsonl", lines)
        results_from_scores("rm_bench", rows, scores, out=tmp_path / name, rule=ResultRule())
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found["mcnemar"]["only_a_right"] == 2
    assert found["difference"] == pytest.approx(1 / 3)
    assert found["too_few_prompts"]


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [True] * 60)
    with pytest.raises(FileNotFoundError, match=r"There is no .*results.json and no .*credits.jsonl"):
        compare(a, tmp_path / "nowhere")
    part = run(tmp_path / "part", [True] * 10, ROWS[:10])
    with pytest.raises(ValueError, match=r"count different rows: 50 are only in"):
        compare(a, part)
    changed = run(tmp_path / "changed", [True] * 60, [{**row, "label": 2} for row in ROWS])
    with pytest.raises(ValueError, match="same ids but different texts or labels"):
        compare(a, changed)
    results = json.loads((part / "results.json").read_text())
    (part / "results.json").write_text(json.dumps({**results, "benchmark": "pairs"}))
    with pytest.raises(ValueError, match=r"a run of llmbar and .* one of pairs"):
        compare(a, part)
    (part / "credits.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        compare(a, part)
