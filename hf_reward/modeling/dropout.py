"""Dropout of a model: detection and removal."""

from collections.abc import Iterable

from torch import nn


def disable_dropout(model: nn.Module, skip: Iterable[str] = ("lora_dropout",)) -> None:
    """Set all dropout of the backbone to 0, in place. Dropout of an adapter is kept, because the user configured it.

    Args:
        model: Any model.
        skip: Parts of module names to skip.
    """
    for name, module in model.named_modules():
        if any(part in name for part in skip):
            continue
        for attribute in _dropouts(module):
            setattr(module, attribute, 0.0)


def has_dropout(model: nn.Module) -> bool:
    """Return whether a model has dropout in training."""
    return any(_dropouts(module) for module in model.modules())


def _dropouts(module: nn.Module) -> list[str]:
    """Return the names of a module's attributes that are dropout probabilities above 0."""
    if isinstance(module, nn.Dropout):
        return ["p"] if module.p > 0 else []
    return [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float) and value > 0]
