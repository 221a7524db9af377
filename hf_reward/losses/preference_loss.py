"""`PreferenceLoss`: a loss function with checked settings, group weights and optional penalties."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hf_reward.losses.functions import (
    PADDING_RANK,
    _check_per_group,
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    group_weights,
    hinge_loss,
    length_correlation_penalty,
    plackett_luce_loss,
    rao_kupper_loss,
)


@dataclass(frozen=True, kw_only=True)
class LossKind:
    """A loss function, and the inputs that it can use in addition to rewards and ranks."""

    function: Callable[..., Tensor]
    uses_margins: bool = False
    uses_probabilities: bool = False
    models_ties: bool = False
    strict_order: bool = False
    options: tuple[str, ...] = ()
    """Names of the function's keyword settings."""
    default_tie_parameter: float | None = None


LOSSES: dict[str, LossKind] = {
    "bradley_terry": LossKind(
        function=bradley_terry_loss,
        uses_margins=True,
        uses_probabilities=True,
        options=("label_smoothing",),
    ),
    "hinge": LossKind(function=hinge_loss, uses_margins=True),
    "rao_kupper": LossKind(
        function=rao_kupper_loss, models_ties=True, options=("tie_parameter",), default_tie_parameter=2.0
    ),
    "davidson": LossKind(
        function=davidson_loss, models_ties=True, options=("tie_parameter",), default_tie_parameter=1.0
    ),
    "plackett_luce": LossKind(function=plackett_luce_loss, strict_order=True),
}
"""Value of `RewardConfig.loss_type` -> loss."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A loss with checked settings, called with a batch.

    Raises:
        ValueError: If a setting is out of range, or has no effect on this loss.
    """

    loss_type: str = "bradley_terry"
    label_smoothing: float = 0.0
    center_rewards_coefficient: float | None = None
    tie_parameter: float | None = None
    length_penalty: float | None = None
    """Weight of `length_correlation_penalty`, which is added once per batch."""

    def __post_init__(self) -> None:
        if self.loss_type not in LOSSES:
            raise ValueError(f"`loss_type` must be one of {sorted(LOSSES)}, but is {self.loss_type!r}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`label_smoothing` must be in [0, 0.5), but is {self.label_smoothing}: at 0.5 a label has no "
                "information."
            )
        neutral = {"label_smoothing": 0.0, "tie_parameter": None}
        for field in fields(self):
            unused = field.name in neutral and field.name not in self.kind.options
            if unused and getattr(self, field.name) != neutral[field.name]:
                takers = sorted(name for name, kind in LOSSES.items() if field.name in kind.options)
                raise ValueError(
                    f"`{field.name}` has no effect with loss_type={self.loss_type!r}; "
                    f"it is a setting of {', '.join(takers)}. Remove it or change `loss_type`."
                )
        for name in ("center_rewards_coefficient", "length_penalty"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(
                    f"`{name}` must be a finite number of 0 or more, but is {value}. Leave it unset to disable it."
                )
        self._check_tie_parameter()

    def _check_tie_parameter(self) -> None:
        lowest = {"rao_kupper": 1.0, "davidson": 0.0}.get(self.loss_type)
        if lowest is not None and self.tie_parameter is not None and not lowest < self.tie_parameter < math.inf:
            raise ValueError(
                f"`tie_parameter` must be finite and above {lowest} for loss_type={self.loss_type!r}, but is "
                f"{self.tie_parameter}. At {lowest} ties are impossible: use loss_type='bradley_terry' if your rows "
                "have none."
            )

    @property
    def kind(self) -> LossKind:
        """The loss function and the inputs that it can use."""
        return LOSSES[self.loss_type]

    @property
    def options(self) -> dict[str, float]:
        """Keyword settings of the loss function, including defaults."""
        options: dict[str, float] = {}
        if "label_smoothing" in self.kind.options:
            options["label_smoothing"] = self.label_smoothing
        if self.kind.default_tie_parameter is not None:
            options["tie_parameter"] = (
                self.kind.default_tie_parameter if self.tie_parameter is None else self.tie_parameter
            )
        return options

    @property
    def settings(self) -> dict[str, Any]:
        """Name and settings as JSON values for the checkpoint record; penalties only if enabled."""
        penalties = {name: getattr(self, name) for name in ("center_rewards_coefficient", "length_penalty")}
        return {"loss_type": self.loss_type, **self.options, **{k: value for k, value in penalties.items() if value}}

    @property
    def of_preferences(self) -> "PreferenceLoss":
        """The same loss without the length penalty, which depends on the batch: the loss that evaluation reports."""
        return replace(self, length_penalty=None)

    def weights(self, ranks: Tensor, probabilities: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Weight of each group in this loss, shape `(G,)`; their sum over a full batch is its `normalizer`."""
        return group_weights(ranks, probabilities, weights, models_ties=self.kind.models_ties)

    def __call__(
        self,
        rewards: Tensor,
        ranks: Tensor,
        margins: Tensor | None = None,
        probabilities: Tensor | None = None,
        weights: Tensor | None = None,
        normalizer: Tensor | float | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean of the loss over the groups of a batch, plus the length penalty if enabled.

        The penalty of a micro-batch is weighted by its share of the normalizer. The micro-batches of a batch therefore
        add up to the weighted mean of their penalties.

        Args:
            rewards: Rewards, shape `(G, K)`.
            ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
            margins: Reward gaps, shape `(G,)`.
            probabilities: P(first response preferred), NaN for rows without one, shape `(G,)`.
            weights: Row weights, shape `(G,)`.
            normalizer: Divisor of the weighted sum; by default the sum of this batch's weights.
            lengths: Length of each response, shape `(G, K)`; required by `length_penalty`, otherwise ignored.

        Returns:
            Loss, shape `()`, float32, in nats (reward units for `hinge`).

        Raises:
            ValueError: If the rows have margins or probabilities that this loss cannot use, shapes differ, or required
                lengths are missing.
        """
        losses, group_weight = self.of_groups(rewards, ranks, margins, probabilities, weights)
        total = group_weight.sum() if normalizer is None else normalizer
        weighted = (losses * group_weight).sum()
        if self.length_penalty:
            weighted = weighted + self.length_penalty * group_weight.sum() * _penalty(rewards.float(), lengths, ranks)
        # A batch without a usable group has loss 0 and gradient 0, not 0 / 0.
        return weighted / torch.as_tensor(total, device=losses.device).clamp(min=1e-12)

    def of_groups(
        self,
        rewards: Tensor,
        ranks: Tensor,
        margins: Tensor | None = None,
        probabilities: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the weight of each group, without the length penalty.

        Args:
            rewards: Rewards, shape `(G, K)`.
            ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
            margins: Reward gaps, shape `(G,)`.
            probabilities: P(first response preferred), NaN for rows without one, shape `(G,)`.
            weights: Row weights, shape `(G,)`.

        Returns:
            Losses and weights, both `(G,)` and float32. The loss of a batch is the sum of their products divided by the
            sum of the weights.

        Raises:
            ValueError: If the rows have margins or probabilities that this loss cannot use, or shapes differ.
        """
        if rewards.shape != ranks.shape:
            raise ValueError(
                f"`rewards` and `ranks` must have the same shape (G, K), but have {tuple(rewards.shape)} and "
                f"{tuple(ranks.shape)}. Pad the ranks with {PADDING_RANK}."
            )
        _check_per_group(rewards, margins=margins, probabilities=probabilities, weights=weights)
        for name, values, used in (
            ("margin", margins, self.kind.uses_margins),
            ("probability", probabilities, self.kind.uses_probabilities),
        ):
            if values is not None and not used:
                raise ValueError(
                    f"The rows have a `{name}`, which loss_type={self.loss_type!r} cannot use. "
                    "Remove this column or use loss_type='bradley_terry'."
                )
        extra = {"margins": margins, "probabilities": probabilities}
        extra = {name: values for name, values in extra.items() if values is not None}
        rewards = rewards.float()
        losses = self.kind.function(rewards, ranks, **extra, **self.options)
        if self.center_rewards_coefficient:
            losses = losses + self.center_rewards_coefficient * centering_penalty(rewards, ranks)
        return losses, self.weights(ranks, probabilities, weights)


def _penalty(rewards: Tensor, lengths: Tensor | None, ranks: Tensor) -> Tensor:
    if lengths is None:
        raise ValueError(
            "`length_penalty` requires the `lengths` of the responses, shape (G, K), but this batch has none. Return "
            "them from the data collator (see `data_collator.group_columns`), or leave `length_penalty` unset."
        )
    return length_correlation_penalty(rewards, lengths, ranks)
