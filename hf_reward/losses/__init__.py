"""Loss functions of rewards and ranks, in pure torch."""

from hf_reward.losses.functions import (
    PADDING_RANK,
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    group_weights,
    hinge_loss,
    length_correlation_penalty,
    plackett_luce_loss,
    present_pairs,
    rao_kupper_loss,
    strict_pairs,
    tied_pairs,
)
from hf_reward.losses.preference_loss import LOSSES, LossKind, PreferenceLoss

__all__ = [
    "LOSSES",
    "PADDING_RANK",
    "LossKind",
    "PreferenceLoss",
    "bradley_terry_loss",
    "centering_penalty",
    "davidson_loss",
    "group_weights",
    "hinge_loss",
    "length_correlation_penalty",
    "plackett_luce_loss",
    "present_pairs",
    "rao_kupper_loss",
    "strict_pairs",
    "tied_pairs",
]
