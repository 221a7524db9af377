"""Learning rate of the reward head: the default for a head that starts at zero, and its parameter groups."""

import logging
from pathlib import Path
from typing import Any

import torch

from hf_reward.modeling.reward_head import (
    RewardModel,
    head_parameters,
    output_layers,
    trains_only_head,
)
from hf_reward.modeling.sharding import gathered_parameters
from hf_reward.training.run_fingerprint import stored_fingerprint
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

STEP = 2.0
"""Change of a reward in one step, in reward units, that the default rate of the head allows for features of size 1."""
ZERO = 1e-6
"""Largest weight of a head that counts as zero; the mean of several heads is zero up to rounding."""


def default_head_rate(learning_rate: float, num_features: int) -> float:
    """Return the learning rate of a head that starts at zero.

    Such a head passes no gradient to the backbone at first, and little until it has grown, so it must grow fast even if
    the backbone's rate is low. In one step, an Adam-type optimizer changes each of the H weights by about the rate. A
    reward then changes by about rate * sum(|h|), which is rate * H for features h of size 1 (their size after the final
    norm). The rate is therefore `STEP / H`, and never below the backbone's.

    Args:
        learning_rate: Rate of the backbone; 0 trains nothing, and gives 0.
        num_features: Inputs of the head, H.

    Returns:
        The rate.

    Source:
        The scaling by 1 / H is that of output weights under Adam in Yang et al. (2022), "Tensor Programs V",
        arXiv 2203.03466, table 3. `STEP` was chosen by recipes/studies/head_rate.py (docs/guides/learning-rates.md).
    """
    return max(learning_rate, STEP / num_features) if learning_rate else 0.0


class HeadRate:
    """Sets the default learning rate of the head in the settings of a run.

    It applies to heads that start at zero. It does not apply to a frozen backbone, where `learning_rate` is the head's,
    and to optimizers whose steps are not of the size of the rate.

    Args:
        enabled: False if the caller made the optimizer.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._default: float | None = None

    def set_default(self, args: RewardConfig, model: RewardModel) -> None:
        """Set `head_learning_rate` in place, unless the user has set it.

        Args:
            args: Settings of the run, or of a trial of a hyperparameter search.
            model: The prepared model.
        """
        if not self.enabled or args.head_learning_rate not in (None, self._default):
            return
        args.head_learning_rate = self._default = _default_of(args, model)
        if self._default is not None and args.should_log:
            logger.info(
                "The reward head starts at zero and is trained with the learning rate %.2g; that of the backbone is "
                "%.2g. Set `head_learning_rate` to change it.",
                *(self._default, args.learning_rate),
            )

    def keep_earlier(self, args: RewardConfig, checkpoint: Path | None) -> None:
        """Remove the default, in place, if a run resumes that started before there was one.

        Args:
            args: Settings of the run.
            checkpoint: The checkpoint to resume from.
        """
        earlier = {} if checkpoint is None else stored_fingerprint(checkpoint).get("settings", {})
        if self._default is not None and "head_learning_rate" in earlier and earlier["head_learning_rate"] is None:
            args.head_learning_rate = self._default = None
            if args.should_log:
                logger.info("The head keeps the learning rate of the backbone, with which this run started.")


def _default_of(args: RewardConfig, model: RewardModel) -> float | None:
    """Return the default for a model; None for the rate of the backbone."""
    if trains_only_head(model) or not _is_adam(args) or not _starts_at_zero(model):
        return None
    rate = default_head_rate(args.learning_rate, output_layers(model)[0][1].in_features)
    return rate if rate > args.learning_rate else None


def _starts_at_zero(model: RewardModel) -> bool:
    """Return whether all output layers are zero; several heads start with small weights whose mean is zero."""
    with torch.no_grad():
        for _, layer in output_layers(model):
            with gathered_parameters(layer.parameters()):
                if layer.weight.is_meta or layer.weight.abs().max() > ZERO:
                    return False
    return True


def _is_adam(args: RewardConfig) -> bool:
    """Return whether the optimizer is of the Adam type and has parameter groups that this module may change."""
    plugin = getattr(args, "hf_deepspeed_config", None)
    if plugin is not None and plugin.config.get("optimizer"):  # DeepSpeed creates it from its own settings
        return False
    name = str(getattr(args.optim, "value", args.optim))
    return "adamw" in name and "layerwise" not in name


def separate_head_group(optimizer: torch.optim.Optimizer, model: Any, rate: float) -> None:
    """Move the head's parameters to separate parameter groups of an optimizer, in place.

    Args:
        optimizer: A new optimizer.
        model: The model, wrapped or not.
        rate: Learning rate of the head.
    """
    head = {id(parameter) for _, parameter in head_parameters(model)}
    for group in list(optimizer.param_groups):
        in_head = [parameter for parameter in group["params"] if id(parameter) in head]
        if in_head:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
            optimizer.add_param_group({**group, "params": in_head, "lr": rate})
