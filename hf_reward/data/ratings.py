"""Make preference pairs from rated or ranked responses."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from hf_reward.data.fields import prompt_of, read_list, read_number, read_ranks, require_same_length
from hf_reward.data.interface import setting
from hf_reward.data.preference_row import PreferenceFormatError, Prompt, Response, as_mapping, rename_columns
from hf_reward.data.python_values import columns_to_python, rows_of
from hf_reward.data.repeated_prompts import read_sides

_READ = ("prompt", "response", "responses", "score", "rating", "scores", "ranks")


def to_pairs(
    rows: Iterable[Any],
    *,
    min_gap: float = 0.0,
    margin_from_scores: bool = False,
    weight_from_scores: bool = False,
    max_pairs_per_prompt: int | None = None,
    columns: Mapping[str, str] | None = None,
    refused: list[PreferenceFormatError] | None = None,
) -> list[dict[str, Any]]:
    """Make preference pairs from rated or ranked responses.

    Accepts rows with one rated response (`prompt`, `response`, `score`), which are grouped by prompt, and rows with a
    list (`prompt`, `responses`, and `scores`, higher is better, or `ranks`, lower is better). Every two responses to a
    prompt whose scores differ by at least `min_gap`, and by more than 0, make a pair.

    Args:
        rows: Raw rows, or a pandas `DataFrame`.
        min_gap: Smallest difference of scores (or ranks) that counts as a preference.
        margin_from_scores: Whether to store the difference as the `margin` of the pair, in units of the score.
        weight_from_scores: Whether to store the difference as the `weight` of the pair. The Bradley-Terry loss of a
            row, times its weight, is then the scaled Bradley-Terry loss of HelpSteer2-Preference (Wang et al. 2024,
            arXiv:2410.01257, section 4): -m log sigmoid(r_chosen - r_rejected), where m is the difference.
        max_pairs_per_prompt: Largest number of pairs per prompt; pairs with the largest difference are kept.
        columns: Field -> name of its column in the rows.
        refused: List that receives an error for each unusable row. Without it, the first such row raises its error.

    Returns:
        Rows with `prompt`, `chosen`, `rejected`, `group`, and `margin` and `weight` if requested.

    Raises:
        PreferenceFormatError: If a score is missing or not a finite number, or the lists have unequal lengths.
        ValueError: If `min_gap` is negative or NaN, or `max_pairs_per_prompt` is below 1.
    """
    if not min_gap >= 0:
        raise ValueError(f"`{setting('min_gap')}` must be 0 or more, in units of the score, but is {min_gap}.")
    if max_pairs_per_prompt is not None and max_pairs_per_prompt < 1:
        raise ValueError(
            f"`max_pairs_per_prompt` must be 1 or more, or None for all pairs, but is {max_pairs_per_prompt}."
        )
    stored = [name for name, wanted in (("margin", margin_from_scores), ("weight", weight_from_scores)) if wanted]
    found = [] if refused is None else refused
    rated = _gather_by_prompt(rows, columns, found)
    if refused is None and found:
        raise found[0]
    pairs: list[dict[str, Any]] = []
    for prompt_key, (prompt, responses, scores) in rated.items():
        gaps = []
        for i, j in combinations(range(len(responses)), 2):
            gap = scores[i] - scores[j]
            if gap != 0 and abs(gap) >= min_gap:
                gaps.append((abs(gap), (i, j) if gap > 0 else (j, i)))
        gaps.sort(key=lambda item: -item[0])
        for gap, (best, worst) in gaps[:max_pairs_per_prompt]:
            group = hashlib.sha256(prompt_key.encode()).hexdigest()[:16]
            pair = {"prompt": prompt, "chosen": responses[best], "rejected": responses[worst], "group": group}
            pairs.append(pair | dict.fromkeys(stored, gap))
    return pairs


def _gather_by_prompt(
    rows: Iterable[Any], columns: Mapping[str, str] | None, refused: list[PreferenceFormatError]
) -> dict[str, tuple[Prompt, list[Response], list[float]]]:
    rated: dict[str, tuple[Prompt, list[Response], list[float]]] = {}
    for index, raw in enumerate(rows_of(rows)):
        try:
            row = columns_to_python(rename_columns(as_mapping(raw), columns), _READ)
            if "response" in row:
                responses = [row["response"]]
                scores = [read_number(row.get("score", row.get("rating")), "score")]
            else:
                responses, scores = _scored_list(row)
            sides = read_sides(prompt_of(row), responses, ["responses"] * len(responses))
        except PreferenceFormatError as error:
            refused.append(PreferenceFormatError(error.message, index, error.field))
            continue
        key = json.dumps(sides.prompt, sort_keys=True, default=str)
        _, all_responses, all_scores = rated.setdefault(key, (sides.prompt, [], []))
        all_responses += sides.responses
        all_scores += scores
    return rated


def _scored_list(row: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    responses = read_list(row.get("responses"), "responses")
    if row.get("scores") is not None:
        scores = [read_number(score, "scores") for score in read_list(row["scores"], "scores")]
        require_same_length(scores, responses, "scores")
        return responses, scores
    ranks = read_ranks(row.get("ranks"), responses)
    return responses, [-float(rank) for rank in ranks]
