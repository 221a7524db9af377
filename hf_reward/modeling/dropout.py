"""Dropout of a model: whether it has any, and off."""

from collections.abc import Iterable

from torch import nn


def disable_dropout(model: nn.Module, skip: Iterable[str] = ("lora_dropout",)) -> None:
    """Set every dropout of the backbone to 0, in place; an adapter's own dropout was asked for and stays.

    Args:
        model: Any model.
        skip: Parts of module names to leave alone.
    """
    for name, module in model.named_modules():
        if any(part in name for part in skip):
            continue
        for attribute in _dropouts(module):
            setattr(module, attribute, 0.0)


def has_dropout(model: nn.Module) -> bool:
    """Whether some dropout of a model would be at work in training."""
    return any(_dropouts(module) for module in model.modules())


def _dropouts(module: nn.Module) -> list[str]:
    """Names of a module's own attributes that are probabilities of dropout, under whichever name, and above 0."""
    if isinstance(module, nn.Dropout):
        return ["p"] if module.p > 0 else []
    return [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float) and value > 0]
