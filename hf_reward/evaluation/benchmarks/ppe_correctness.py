"""PPE, correctness: 32 answers to each question, each correct or wrong.

Source: Frick et al. (2025), "How to evaluate reward models for RLHF". A tie counts as wrong in the accuracy and as half
correct in the AUC.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    Means,
    Outcome,
    RowCredits,
    average,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.best_of_n import best_of_n_curve

SUBSETS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")


class PPECorrectness(Benchmark):
    """PPE, correctness."""

    name = "ppe_correctness"
    title = "PPE correctness"
    checked = "built from the published description; the best-of-K curve is the mean over all subsets, not over draws"
    not_verified = "data and arithmetic (not compared with outputs of the original code)"
    order = "response_1, response_2, ...; id is `subset/question_id/model_name`"
    hub = tuple(HubSource(f"lmarena-ai/PPE-{name}-Best-of-K", split="train", subset=name) for name in SUBSETS)
    local = "a folder with the rows of lmarena-ai/PPE-{MMLU-Pro,MATH,GPQA,IFEval,MBPP-Plus}-Best-of-K, a file each"
    columns = ("question_id", "prompt", "response_1", "response_2", "scores")
    counts = dict.fromkeys(SUBSETS, 0)

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. The subset is the column `subset`, else part of the file's name."""
        subset = row.get("subset") or next((each for each in SUBSETS if each.lower() in file.lower()), file)
        subset = one_of(subset, "subset", SUBSETS)
        scores = row["scores"]
        if not isinstance(scores, list) or not all(each in (0, 1) for each in scores):
            raise ValueError(f"`scores` must say for each answer whether it is correct, but is {str(scores)[:60]!r}.")
        missing = [name for name in (f"response_{n + 1}" for n in range(len(scores))) if row.get(name) is None]
        if missing or len(scores) < 2:
            raise ValueError(f"`scores` has {len(scores)} entries, but {', '.join(missing) or 'two'} are needed.")
        return Comparison(
            id=f"{subset}/{row['question_id']}" + (f"/{row['model_name']}" if row.get("model_name") else ""),
            prompt=text(row, "prompt"),
            responses=[text(row, f"response_{n + 1}") for n in range(len(scores))],
            ranks=[0 if each else 1 for each in scores],
            subset=subset,
            facts={"pairs": _sampled_pairs(row, scores)},
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        name, correct = comparison.subset, np.asarray(comparison.ranks) == 0
        curve = best_of_n_curve(rewards, correct.astype(float))
        earned = {_curve_key(name, n): float(value) for n, value in enumerate(curve, start=1)}
        earned[f"{name} oracle"] = float(correct.any())
        if 0 < correct.sum() < len(correct):
            gaps = rewards[correct][:, None] - rewards[~correct][None, :]
            earned[f"{name} auc"] = float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
            pairs = comparison.facts["pairs"] or comparison.pairs()
            earned[name] = float(np.mean([pair_credit(rewards[i], rewards[j], tie) for i, j in pairs]))
        return earned

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """See `Benchmark.is_right`: a single answer has the highest reward, and it is correct."""
        top = np.flatnonzero(rewards == rewards.max())
        return len(top) == 1 and comparison.ranks[top[0]] == 0

    def combine(self, means: Means) -> Outcome:
        """Overall is the unweighted mean of the subsets' accuracies; all questions have the same weight."""
        sections = present(means, SUBSETS)
        measures: dict[str, FloatArray] = {}
        for name in SUBSETS:
            if f"{name} auc" in means:
                measures[f"{name} auc"] = means[f"{name} auc"]
            if _curve_key(name, 1) in means:
                measures |= _curve_measures(name, means)
        losses = frozenset(name for name in measures if name.endswith(" loss"))
        return Outcome(average(sections.values()), sections, measures=measures, differences=losses)


def _curve_key(name: str, n: int) -> str:
    return f"{name} best of {n}"


def _curve_measures(name: str, means: Means) -> dict[str, FloatArray]:
    """Return the curve, its maximum, its end, and the loss against an oracle."""
    last = 1
    while _curve_key(name, last + 1) in means:
        last += 1
    curve = {_curve_key(name, n): means[_curve_key(name, n)] for n in range(1, last + 1)}
    end = curve[_curve_key(name, last)]
    return curve | {
        f"{name} highest": np.max(np.stack(list(curve.values())), axis=0),
        f"{name} end": end,
        f"{name} loss": means[f"{name} oracle"] - end,
    }


def _sampled_pairs(row: Mapping[str, Any], scores: list[Any]) -> list[tuple[int, int]]:
    """Return the pairs that the benchmark sampled, better first; empty if there are none, and all pairs count."""
    pairs = row.get("sampled_conflict_pairs")
    pairs = json.loads(pairs) if isinstance(pairs, str) else pairs or []
    found = []
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(each, int) and 0 <= each < len(scores) for each in pair):
            raise ValueError(
                f"`sampled_conflict_pairs` must hold pairs of indices below {len(scores)}, but holds {pair!r}."
            )
        i, j = pair
        if bool(scores[i]) == bool(scores[j]):
            raise ValueError(f"`sampled_conflict_pairs` holds {pair!r}, two answers that are equally correct.")
        found.append((i, j) if scores[i] else (j, i))
    return found
