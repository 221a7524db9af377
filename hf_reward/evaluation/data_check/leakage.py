"""Find evaluation rows that also occur in training."""

from dataclasses import dataclass

import numpy as np

from hf_reward.data.near_duplicates import RowClusters, TextClusters, text_hash
from hf_reward.evaluation.data_check.facts import NAMED_ROWS, RowFacts

KINDS = ("whole row", "prompt group", "prompt", "near prompt", "response", "near response")
"""Ways in which an evaluation row can occur in training, worst first."""
KIND_NAMES = {
    "whole row": "complete row",
    "prompt group": "prompt group",
    "prompt": "prompt",
    "near prompt": "near-duplicate prompt",
    "response": "response",
    "near response": "near-duplicate response",
}
"""Kind -> its name for readers."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Evaluation rows that occur in training, complete or in part."""

    eval_rows: int
    leaked_rows: int
    """Rows of any kind."""
    kinds: dict[str, int]
    """Kind of `KINDS` -> evaluation rows; a row may be of several kinds. Near duplicates include equal texts; they are
    missing without rensa."""
    examples: dict[str, list[int]]
    """The first few rows of each kind, by their number in the evaluation data."""


def find_leakage(train: RowFacts, held: RowFacts, clusters: RowClusters, first_eval: int) -> Leakage:
    """Find evaluation rows that share a prompt or a response with training rows.

    Args:
        train: Training rows.
        held: Evaluation rows.
        clusters: Clusters of equal and similar texts of both sets.
        first_eval: Number of the first evaluation row in the clusters.

    Returns:
        The counts.
    """
    own = held.number + first_eval
    leaks = {
        "whole row": np.isin(_row_keys(held), _row_keys(train)),
        "prompt group": np.isin(held.group, train.group),
        # Rows without a prompt do not share one.
        "prompt": np.isin(held.prompt, train.prompt) & (held.prompt != np.uint64(text_hash(""))),
        "response": np.isin(own, _shared_rows(clusters.responses, clusters.responses.exact, first_eval)),
    }
    for kind, texts in (("near prompt", clusters.prompts), ("near response", clusters.responses)):
        if texts.compared:
            leaks[kind] = np.isin(own, _shared_rows(texts, texts.near, first_eval))
    kinds = [kind for kind in KINDS if kind in leaks]
    return Leakage(
        eval_rows=held.usable,
        leaked_rows=int(np.any(list(leaks.values()), axis=0).sum()),
        kinds={kind: int(leaks[kind].sum()) for kind in kinds},
        examples={
            kind: [int(number) for number in held.number[leaks[kind]][:NAMED_ROWS]]
            for kind in kinds
            if leaks[kind].any()
        },
    )


def _row_keys(facts: RowFacts) -> np.ndarray:
    """Hash each row's prompt and set of responses, without the preference."""
    content = np.zeros(facts.usable, np.uint64)
    mixed = (facts.response ^ (facts.response >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    np.add.at(content, facts.response_row, mixed ^ (mixed >> np.uint64(32)))
    return content * np.uint64(0x9E3779B97F4A7C15) ^ facts.prompt


def _shared_rows(texts: TextClusters, labels: np.ndarray, first_eval: int) -> np.ndarray:
    """Return the evaluation rows with a text that has the label of a training text."""
    held = texts.rows >= first_eval
    return texts.rows[held][np.isin(labels[held], labels[~held])]
