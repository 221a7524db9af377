"""Print our benchmark numbers, those of the original code, and the differences.

    python tests/evaluation/golden_table.py

`tests/evaluation/golden*.json` hold rewards and what the original code made of them: allenai/reward-bench
(sections, best of four, Ties), THU-KEG/RM-Bench, ScalerLab/JudgeBench, for-ai/m-rewardbench, sustech-nlp/BiasScope
(JudgeBench-Pro), kimsh0507/RewardMATH_official, vl-rewardbench/VL_RewardBench and
facebookresearch/multimodal_rewardbench, with commits. Needs a checkout; a second, offline.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hf_reward.data.image_source import ImageSource
from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, Outcome
from hf_reward.evaluation.benchmarks.judgebench import SOURCES, JudgeBench
from hf_reward.evaluation.benchmarks.judgebench_pro import JudgeBenchPro
from hf_reward.evaluation.benchmarks.m_rewardbench import MRewardBench
from hf_reward.evaluation.benchmarks.multimodal_rewardbench import MultimodalRewardBench
from hf_reward.evaluation.benchmarks.rewardbench import RewardBench, section_scores
from hf_reward.evaluation.benchmarks.rewardbench2 import RewardBench2
from hf_reward.evaluation.benchmarks.rewardmath import RewardMATH
from hf_reward.evaluation.benchmarks.rm_bench import RMBench
from hf_reward.evaluation.benchmarks.spreads import outcome_of
from hf_reward.evaluation.benchmarks.vl_rewardbench import VLRewardBench

TESTS = Path(__file__).parent
Line = tuple[str, float, float]
"""Name, our number, number of the original code."""


def golden_lines(folder: Path = TESTS) -> Iterator[Line]:
    """Return all expected numbers of the golden files with our results for the same rewards.

    Args:
        folder: Where they are.

    Yields:
        Line: Name, ours, the original's.
    """
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    yield from _rewardbench(golden["rewardbench_v1"])
    yield from _best_of_four(golden["rewardbench_2_bon"])
    for place, case in enumerate(golden["rewardbench_2_ties"]):
        rows = [_ties_row(row) for row in case["rows"]]
        outcome = _outcome(RewardBench2(), rows, [row["scores"] for row in case["rows"]])
        yield f"RewardBench 2, Ties {place}", float(outcome.sections["Ties"]), case["overall_score"]
    yield from _rm_bench(golden["rm_bench"])
    yield from _judgebench(json.loads((folder / "golden_judgebench.json").read_text(encoding="utf-8")))
    added = json.loads((folder / "golden_added.json").read_text(encoding="utf-8"))
    yield from _m_rewardbench(added["m_rewardbench"])
    yield from _judgebench_pro(added["judgebench_pro"])
    for each in added["rewardmath"]["cases"]:
        yield from _rewardmath(each)
    images = json.loads((folder / "golden_images.json").read_text(encoding="utf-8"))
    yield from _vl_rewardbench(images["vl_rewardbench"])
    yield from _multimodal_rewardbench(images["multimodal_rewardbench"])


def _outcome(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], rewards: Sequence[Sequence[float]]) -> Outcome:
    comparisons = [benchmark.read(row, "", place) for place, row in benchmark.gather(rows)]
    kept = [each for each in comparisons if isinstance(each, Comparison)]
    return outcome_of(benchmark, kept, [np.asarray(each, float) for each in rewards])


def _rewardbench(case: dict[str, Any]) -> Iterator[Line]:
    accuracies = {name: np.array(value) for name, value in case["subset_accuracy"].items()}
    sections = section_scores(accuracies)
    for name, expected in case["sections"].items():
        yield f"RewardBench, {name}", float(sections[name]), expected
    yield "RewardBench, overall", float(RewardBench().combine(accuracies).overall), case["mean4"]


def _best_of_four(case: dict[str, Any]) -> Iterator[Line]:
    benchmark = RewardBench2()
    rows = [
        {"id": place, "subset": "Math", "prompt": str(place), "chosen": ["a"], "rejected": ["b", "c", "d"]}
        for place in range(len(case["scores"]))
    ]
    for place, (row, scores, expected) in enumerate(zip(rows, case["scores"], case["per_row"], strict=True)):
        yield f"RewardBench 2, row {place}", float(_outcome(benchmark, [row], [scores]).overall), expected
    yield "RewardBench 2, best of four", float(_outcome(benchmark, rows, case["scores"]).overall), case["accuracy"]


def _ties_row(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = [str(place) for place in range(len(row["scores"]))]
    correct = row["num_correct"]
    return {"id": row["id"], "subset": "Ties", "prompt": "", "chosen": texts[:correct], "rejected": texts[correct:]}


def _rm_bench(case: dict[str, Any]) -> Iterator[Line]:
    rows = [
        {"id": place, "prompt": str(place), "domain": each["domain"], "chosen": ["a"] * 3, "rejected": ["b"] * 3}
        for place, each in enumerate(case["results"])
    ]
    outcome = _outcome(RMBench(), rows, [each["score_chosen"] + each["score_rejected"] for each in case["results"]])
    ours = {"total_avg_acc": outcome.overall, **outcome.sections}
    for name, expected in case["expected"].items():
        yield f"RM-Bench, {name}", float(ours[name if name in ours else name.removesuffix("_acc")]), expected


def _judgebench(case: dict[str, Any]) -> Iterator[Line]:
    rows = [{**each, "question": each["pair_id"], "response_A": "a", "response_B": "b"} for each in case["rows"]]
    for part in (*SOURCES, "overall"):
        places = [place for place, row in enumerate(rows) if part == "overall" or row["source"].startswith(part)]
        outcome = _outcome(JudgeBench(), [rows[each] for each in places], [rows[each]["scores"] for each in places])
        yield f"JudgeBench, one game, {part}", 100 * float(outcome.overall), case["expected"]["one_game"][part]
        two = 100 * float(outcome.measures["two_games"])
        yield f"JudgeBench, two games, {part}", two, case["expected"]["two_games"][part]


def _m_rewardbench(case: dict[str, Any]) -> Iterator[Line]:
    def outcome(rows: list[dict[str, Any]]) -> Outcome:
        texts = {"prompt": "p", "chosen": "a", "rejected": "b"}
        return _outcome(MRewardBench(), [texts | row for row in rows], [row["scores"] for row in rows])

    yield "M-RewardBench, overall", float(outcome(case["rows"]).overall), case["average"]
    for language, expected in case["expected"].items():
        found = outcome([row for row in case["rows"] if row["language"] == language])
        for name, number in expected.items():
            ours = found.overall if name == "score" else found.measures[name]
            yield f"M-RewardBench, {language}, {name}", float(ours), number


def _judgebench_pro(case: dict[str, Any]) -> Iterator[Line]:
    rows = [{**row, "question": "q", "response_A": "a", "response_B": "b"} for row in case["rows"]]
    outcome = _outcome(JudgeBenchPro(), rows, [row["scores"] for row in rows])
    for name, rate in case["error_rates"].items():
        ours = outcome.overall if name == "overall" else outcome.sections[name]
        yield f"JudgeBench-Pro, error rate, {name}", 1 - float(ours), rate


def _rewardmath(case: dict[str, Any]) -> Iterator[Line]:
    kinds = ["chosen"] + ["rejected"] * 9
    rows = [
        {"problem_id": place, "problem": "p", "eval_solution": ["s"], "solution_type": kind}
        for place in range(len(case["scores"]))
        for kind in kinds
    ]
    outcome = _outcome(RewardMATH(), rows, case["scores"])
    for name, expected in case["expected"].items():
        ours = outcome.overall if name == "accuracy" else outcome.measures[name]
        yield f"RewardMATH, {case['model']}, {name}", float(ours), expected


IMAGE = ImageSource("0" * 64, content=b"")


def _vl_rewardbench(case: dict[str, Any]) -> Iterator[Line]:
    texts = {"query": "q", "response": ["a", "b"], "image": IMAGE}
    outcome = _outcome(VLRewardBench(), [texts | row for row in case["rows"]], [row["scores"] for row in case["rows"]])
    ours = {"overall": outcome.overall, **outcome.sections, **outcome.measures}
    for name, expected in case["expected"].items():
        yield f"VL-RewardBench, {name}", float(ours[name]), expected


def _multimodal_rewardbench(case: dict[str, Any]) -> Iterator[Line]:
    texts = {"Text": "q", "Output1": "a", "Output2": "b", "Image": IMAGE}
    rows = [texts | row for row in case["rows"]]
    outcome = _outcome(MultimodalRewardBench(), rows, [row["scores"] for row in rows])
    ours = {"all": outcome.overall, **outcome.sections, **outcome.subsets}
    for name, expected in case["expected"].items():
        yield f"Multimodal RewardBench, {name}", float(ours[name]), expected


def main() -> None:
    """Print the table; exit code 1 if any difference is above 1e-9."""
    table = Table("number", "ours", "original code", "difference")
    differences = []
    for name, ours, expected in golden_lines():
        differences.append(abs(ours - expected))
        table.add_row(name, f"{ours:.12g}", f"{expected:.12g}", f"{ours - expected:.1e}")
    console = Console()
    console.print(table)
    console.print(f"Largest difference: {max(differences):.1e}")
    sys.exit(not all(each <= 1e-9 for each in differences))  # NaN counts as a difference


if __name__ == "__main__":
    main()
