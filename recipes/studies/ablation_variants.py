"""Variants of the ablation of training methods: changes of the rows, of the settings or of the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from study_runs import Row
from torch import Tensor

from hf_reward.data.off_prompt import off_prompt_rows
from hf_reward.evaluation.audit.edits.format_edits import FORMAT_EDITS
from hf_reward.evaluation.audit.edits.noise_edits import NOISE_EDITS
from hf_reward.losses.preference_loss import PreferenceLoss


@dataclass(frozen=True)
class Variant:
    """A change of the rows, of the settings or of the loss."""

    rows: Callable[[list[Row], int], list[Row]] = lambda rows, seed: rows
    settings: tuple[tuple[str, Any], ...] = ()
    consistency: float | None = None
    """Weight of |r(x) - r(edit(x))|, which replaces the loss of neutral pairs."""


def gap_of(row: Row) -> float:
    """Return how much better the chosen response is: the `gap`, or the difference of the votes (at least 1)."""
    return float(row["gap"]) if "gap" in row else max(1.0, row["votes_chosen"] - row["votes_rejected"])


def scaled(rows: list[Row], seed: int) -> list[Row]:
    """Weight the loss by the gap: -m log sigmoid(r_chosen - r_rejected)."""
    return [row | {"weight": gap_of(row)} for row in rows]


def with_margins(rows: list[Row], seed: int) -> list[Row]:
    """Require the gap, with mean 1 over the rows, as margin: -log sigmoid(r_chosen - r_rejected - m)."""
    mean = float(np.mean([gap_of(row) for row in rows]))
    return [row | {"margin": gap_of(row) / mean} for row in rows]


def vote_shares(rows: list[Row], seed: int) -> list[Row]:
    """Replace labels by the share of votes; votes for neither count half for each side."""
    shares = []
    for row in rows:
        neither = row.get("votes_equal", 0)
        total = row["votes_chosen"] + row["votes_rejected"] + neither
        shares.append(row | {"probability": (row["votes_chosen"] + neither / 2) / total})
    return shares


def off_prompt(rejected: float, tie: float) -> Callable[[list[Row], int], list[Row]]:
    """Add rows with responses to other prompts (RRM)."""

    def add(rows: list[Row], seed: int) -> list[Row]:
        return [*rows, *off_prompt_rows(rows, rejected_share=rejected, tie_share=tie, seed=seed)]

    return add


TRAINED_EDITS = tuple(edit for edit in FORMAT_EDITS if edit.name in ("bold", "bullets", "header", "blank_lines"))
HELD_OUT_EDITS = (
    *(edit for edit in FORMAT_EDITS if edit.name == "numbered"),
    *(edit.apply for edit in NOISE_EDITS if edit.name in ("typos_3", "lower_case")),
)


def neutral_pairs(share: float) -> Callable[[list[Row], int], list[Row]]:
    """Add pairs of a response and its edited version, as ties (the neutral half of Crome)."""

    def add(rows: list[Row], seed: int) -> list[Row]:
        random, made = np.random.default_rng(seed), []
        for place in random.permutation(len(rows)):
            row, edit = rows[int(place)], TRAINED_EDITS[int(random.integers(len(TRAINED_EDITS)))]
            text = row[("chosen", "rejected")[int(random.integers(2))]]
            edited = edit(text)
            if edited is not None and len(made) < share * len(rows):
                made.append({"prompt": row["prompt"], "chosen": text, "rejected": edited, "probability": 0.5})
        return [*rows, *made]

    return add


def flipped(share: float, then: Callable[[list[Row], int], list[Row]] | None = None) -> Any:
    """Exchange the responses of a share of the rows, and then apply another change."""

    def change(rows: list[Row], seed: int) -> list[Row]:
        wrong = set(np.random.default_rng(seed).permutation(len(rows))[: round(share * len(rows))].tolist())
        noisy = [
            row | ({"chosen": row["rejected"], "rejected": row["chosen"]} if place in wrong else {})
            for place, row in enumerate(rows)
        ]
        return noisy if then is None else then(noisy, seed)

    return change


VARIANTS = {
    "plain": Variant(),
    "grouped by prompt": Variant(settings=(("group_by_prompt", "true"),)),
    "plain, 1.5 epochs": Variant(settings=(("num_train_epochs", 1.5),)),
    "scaled": Variant(scaled),
    "margin": Variant(with_margins),
    "vote shares": Variant(vote_shares),
    "off-prompt": Variant(off_prompt(0.25, 0.25)),
    "off-prompt rejected": Variant(off_prompt(1, 0)),
    "neutral ties": Variant(neutral_pairs(0.5)),
    "consistency": Variant(neutral_pairs(0.5), consistency=1.0),
    "smoothing 0.1": Variant(settings=(("label_smoothing", 0.1),)),
    "smoothing 0.2": Variant(settings=(("label_smoothing", 0.2),)),
    "20% flipped": Variant(flipped(0.2)),
    "20% flipped, smoothing 0.2": Variant(flipped(0.2), (("label_smoothing", 0.2),)),
}


@dataclass(frozen=True, kw_only=True)
class ConsistencyLoss(PreferenceLoss):
    """The loss, with weight * |r_1 - r_2| for neutral pairs (those with probability 0.5)."""

    consistency: float = 1.0

    def of_groups(
        self,
        rewards: Tensor,
        ranks: Tensor,
        margins: Tensor | None = None,
        probabilities: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the weight of each group."""
        losses, group_weight = super().of_groups(rewards, ranks, margins, probabilities, weights)
        if probabilities is None:
            return losses, group_weight
        gaps = (rewards[:, 0] - rewards[:, 1]).float().abs()
        return torch.where(probabilities == 0.5, self.consistency * gaps, losses), group_weight
