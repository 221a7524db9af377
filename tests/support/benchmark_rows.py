"""Small rows in the layout of each benchmark, and runs over them without a model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, Outcome
from hf_reward.evaluation.benchmarks.spreads import mean_credits

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""Real files, where they are at hand."""


def pair(number: int, **columns: Any) -> dict[str, Any]:
    """A row of RewardBench."""
    return {
        "id": number,
        "prompt": f"Question {number}?",
        "chosen": f"A good answer, number {number}.",
        "rejected": "A bad one." * (1 + number % 3),
        "subset": "alpacaeval-easy",
        **columns,
    }


def four(number: int, **columns: Any) -> dict[str, Any]:
    """A row of RewardBench 2."""
    responses = [f"Wrong answer {each} to {number}" for each in range(3)]
    row = {"id": str(number), "prompt": f"Question {number}?", "chosen": [f"Right answer {number}"], "subset": "Math"}
    return {**row, "rejected": responses, **columns}


def tied(kind: str, number: int, correct: int = 2, wrong: int = 2) -> dict[str, Any]:
    """A row of RewardBench 2's Ties."""
    correct = 1 if kind == "ref" else correct
    texts = [f"{kind} {number} {each}" for each in range(correct + wrong)]
    row = {"id": f"{kind}:{number}", "prompt": f"{kind} {number}?", "subset": "Ties"}
    return {**row, "chosen": texts[:correct], "rejected": texts[correct:]}


def styles(number: int, domain: str = "chat", **columns: Any) -> dict[str, Any]:
    """A row of RM-Bench."""
    texts = ["short", "a longer text", "**a** longer text with markdown"]
    row = {"id": number, "prompt": f"{domain} question {number}?", "domain": domain}
    return {
        **row,
        "chosen": [f"right {each}" for each in texts],
        "rejected": [f"wrong {each}" for each in texts],
        **columns,
    }


def judged(number: int, label: str = "A>B", source: str = "mmlu-pro-math", **columns: Any) -> dict[str, Any]:
    """A row of JudgeBench."""
    row = {"pair_id": f"p{number}", "question": f"Question {number}?", "source": source, "label": label}
    return {**row, "response_A": f"answer a {number}", "response_B": f"answer b {number} is longer", **columns}


def instructed(number: int, label: int = 1, subset: str = "Natural", **columns: Any) -> dict[str, Any]:
    """A row of LLMBar."""
    row = {"idx": number, "input": f"Do {number}.", "label": label, "subset": subset}
    return {**row, "output_1": f"done {number}", "output_2": f"not done {number}", **columns}


def rmb_pair(number: int, goal: str = "Helpfulness", **columns: Any) -> dict[str, Any]:
    """A row of RMB's pairs."""
    return {
        "pair_uid": str(number),
        "conversation_input": [{"role": "user", "content": f"Question {number}?", "language": "English"}],
        "chosen": {"llm_name": "one", "answer": f"good {number}"},
        "reject": {"llm_name": "two", "answer": f"worse answer {number}"},
        "category_path": f"Pairwise_set/{goal}/Chat/Casual",
        **columns,
    }


def rmb_list(number: int, goal: str = "Helpfulness", losers: int = 2, **columns: Any) -> dict[str, Any]:
    """A row of RMB's lists."""
    return {
        "bon_uid": str(number),
        "conversation_input": [{"role": "user", "content": f"Question {number}?", "language": "English"}],
        "bon_best": {"llm_name": "one", "answer": f"best {number}"},
        "loser_list": [{"llm_name": f"m{each}", "answer": f"loser {each} of {number}"} for each in range(losers)],
        "category_path": f"BoN_set/{goal}/S1",
        **columns,
    }


def arena(number: int, winner: str = "model_a", language: str = "English", **columns: Any) -> dict[str, Any]:
    """A row of PPE's human preference."""
    row = {"question_id": f"q{number}", "prompt": f"Question {number}?", "winner": winner, "language": language}
    return {**row, "response_1": f"first {number}", "response_2": f"second answer {number}", **columns}


def verified(number: int, scores: Sequence[bool], **columns: Any) -> dict[str, Any]:
    """A row of PPE's correctness."""
    answers = {f"response_{each + 1}": f"answer {each} to {number}" for each in range(len(scores))}
    row = {"question_id": f"q{number}", "prompt": f"Question {number}?", "scores": list(scores), "subset": "MATH"}
    return {**row, **answers, **columns}


def translated(number: int, language: str = "deu_Latn", **columns: Any) -> dict[str, Any]:
    """A row of M-RewardBench."""
    row = {"id": number, "language": language, "prompt": f"Frage {number}?", "source": "alpacaeval-easy"}
    return {**row, "chosen": f"gut {language} {number}", "rejected": f"eher schlecht {number}", **columns}


def biased(number: int, label: int = 1, domain: str = "math", **columns: Any) -> dict[str, Any]:
    """A row of JudgeBench-Pro."""
    row = {"question": f"Question {number}?", "label": label, "injected_bias": "length", "domain": domain}
    return {**row, "response_A": f"answer a {number}", "response_B": f"a longer answer b {number}", **columns}


def solutions(number: int, wrong: int = 9, **columns: Any) -> list[dict[str, Any]]:
    """The rows of a problem of RewardMATH, the correct solution first."""
    kinds = ["chosen"] + ["rejected"] * wrong
    row = {"problem_id": number, "problem": f"What is {number} + 1?", "subject": "Algebra", "level": 1}
    return [
        {**row, "eval_solution": [f"Step for {number}.", f"Solution {place}."], "solution_type": kind, **columns}
        for place, kind in enumerate(kinds)
    ]


def transformed(number: int, transformation: str = "original", **columns: Any) -> dict[str, Any]:
    """A row of reWordBench."""
    return pair(number, transformation=transformation, prompt=f"{transformation}: question {number}?", **columns)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def outcome_of(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], rewards: Sequence[Sequence[float]], tie: float = 0.0
) -> Outcome:
    """The benchmark's numbers for given rewards."""
    read = [benchmark.read(row, "", place) for place, row in benchmark.gather(rows)]
    comparisons = [each for each in read if isinstance(each, Comparison)]
    credits = benchmark.credits(comparisons, [np.asarray(each, float) for each in rewards], tie)
    return benchmark.combine(mean_credits(credits))
