"""The configured loss: a kind, its weights and the optional penalties."""

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
    """What a loss function can use beside rewards and ranks."""

    function: Callable[..., Tensor]
    uses_margins: bool = False
    uses_probabilities: bool = False
    models_ties: bool = False
    strict_order: bool = False
    options: tuple[str, ...] = ()
    """Names of the keyword settings that the function takes."""
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
"""The losses by the name that `RewardConfig.loss_type` takes."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A loss with its settings checked, called with a batch.

    Raises:
        ValueError: If a setting is out of range, or has no effect on this loss.
    """

    loss_type: str = "bradley_terry"
    label_smoothing: float = 0.0
    center_rewards_coefficient: float | None = None
    tie_parameter: float | None = None
    length_penalty: float | None = None
    """Weight of `length_correlation_penalty`, which is added once for a batch."""

    def __post_init__(self) -> None:
        if self.loss_type not in LOSSES:
            raise ValueError(f"`loss_type` must be one of {sorted(LOSSES)}, but is {self.loss_type!r}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`label_smoothing={self.label_smoothing}` must be in [0, 0.5): at 0.5 a label carries no information."
            )
        neutral = {"label_smoothing": 0.0, "tie_parameter": None}
        for field in fields(self):
            unused = field.name in neutral and field.name not in self.kind.options
            if unused and getattr(self, field.name) != neutral[field.name]:
                takers = sorted(name for name, kind in LOSSES.items() if field.name in kind.options)
                raise ValueError(
                    f"`{field.name}` has no effect with loss_type={self.loss_type!r}; "
                    f"it belongs to {', '.join(takers)}. Remove it or change `loss_type`."
                )
        for name, neutral_word in (("center_rewards_coefficient", "centering"), ("length_penalty", "penalty")):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(
                    f"`{name}={value}` must be a finite number of 0 or more; None or 0 is no {neutral_word}."
                )
        self._check_tie_parameter()

    def _check_tie_parameter(self) -> None:
        lowest = {"rao_kupper": 1.0, "davidson": 0.0}.get(self.loss_type)
        if lowest is not None and self.tie_parameter is not None and not lowest < self.tie_parameter < math.inf:
            raise ValueError(
                f"`tie_parameter={self.tie_parameter}` must be finite and above {lowest} for "
                f"loss_type={self.loss_type!r}: there ties become impossible (use 'bradley_terry' for rows without "
                "ties), at infinity certain."
            )

    @property
    def kind(self) -> LossKind:
        """What this loss uses."""
        return LOSSES[self.loss_type]

    @property
    def options(self) -> dict[str, float]:
        """The keyword settings passed to the loss function, defaults filled in."""
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
        """Name and settings as JSON values, for the record; penalties only where they are on."""
        penalties = {name: getattr(self, name) for name in ("center_rewards_coefficient", "length_penalty")}
        return {"loss_type": self.loss_type, **self.options, **{k: value for k, value in penalties.items() if value}}

    @property
    def of_preferences(self) -> "PreferenceLoss":
        """The same loss without what belongs to a batch instead of its groups: what evaluation reports."""
        return replace(self, length_penalty=None)

    def weights(self, ranks: Tensor, probabilities: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Weight of each group in this loss, shape `(G,)`; their sum over a whole batch is its `normalizer`."""
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
        """Weighted mean of the loss over the groups of a batch, and the length penalty if there is one.

        The penalty of a micro-batch counts with its share of the normalizer, so that the parts of a batch add up to the
        weighted mean of their penalties.

        Args:
            rewards: Rewards, shape `(G, K)`.
            ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
            margins: Reward gaps, shape `(G,)`.
            probabilities: P(first response preferred), NaN where none is stated, shape `(G,)`.
            weights: Row weights, shape `(G,)`.
            normalizer: What to divide the weighted sum by; the sum of this batch's weights when absent.
            lengths: Length of each response, shape `(G, K)`; needed by `length_penalty`, else not read.

        Returns:
            Loss, shape `()`, float32, in nats (reward units for `hinge`).

        Raises:
            ValueError: If the rows carry margins or probabilities that this loss cannot use, shapes disagree, or the
                lengths that it needs are not there.
        """
        losses, group_weight = self.of_groups(rewards, ranks, margins, probabilities, weights)
        total = group_weight.sum() if normalizer is None else normalizer
        weighted = (losses * group_weight).sum()
        if self.length_penalty:
            weighted = weighted + self.length_penalty * group_weight.sum() * _penalty(rewards.float(), lengths, ranks)
        # A batch without any usable group has loss 0 and gradient 0, not 0 / 0.
        return weighted / torch.as_tensor(total, device=losses.device).clamp(min=1e-12)

    def of_groups(
        self,
        rewards: Tensor,
        ranks: Tensor,
        margins: Tensor | None = None,
        probabilities: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of each group, without what belongs to a whole batch, and the group's weight.

        Args:
            rewards: Rewards, shape `(G, K)`.
            ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
            margins: Reward gaps, shape `(G,)`.
            probabilities: P(first response preferred), NaN where none is stated, shape `(G,)`.
            weights: Row weights, shape `(G,)`.

        Returns:
            Losses and weights, both `(G,)` and float32. The loss of a batch is the sum of their products over the sum
            of the weights.

        Raises:
            ValueError: If the rows carry margins or probabilities that this loss cannot use, or shapes disagree.
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
                    f"The rows carry a `{name}`, which loss_type={self.loss_type!r} cannot use. "
                    "Drop that column or use loss_type='bradley_terry'."
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
            "`length_penalty` needs the `lengths` of the responses, shape (G, K), which this batch lacks. Let the data "
            "collator return them (see `data_collator.group_columns`), or leave `length_penalty` unset."
        )
    return length_correlation_penalty(rewards, lengths, ranks)
