"""Lazy imports of optional packages, with errors that name the extra to install."""

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType

logger = logging.getLogger(__name__)

_PURPOSES = {
    "audit": "figures and length corrections",
    "data": "near duplicates and the TF-IDF baseline",
    "serve": "servers",
    "tuning": "hyperparameter searches",
}
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Import name -> name of the distribution, where they differ."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Full name, such as "matplotlib.figure".
        extra: The extra of hf_reward that installs the package: one of `audit`, `data`, `serve` and `tuning`.

    Returns:
        The module.

    Raises:
        MissingExtraError: If the package is not installed. The message names the extra. If an installed package cannot
            import a requirement of its own, its error is raised unchanged.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        name, remedy = _DISTRIBUTIONS.get(package, package), f'Install it with: pip install "hf_reward[{extra}]"'
        message = f"The package {name} is required for {_PURPOSES[extra]}, but is not installed. {remedy}"
        raise MissingExtraError(message, name=error.name) from error


def optional(module: str, extra: str, without: str) -> ModuleType | None:
    """Import a module of an optional package for a feature that can be skipped.

    Args:
        module: Full name.
        extra: The extra of hf_reward that installs the package.
        without: A sentence on the skipped feature, logged once per process if the package is missing.

    Returns:
        The module, or None if the package is not installed.
    """
    try:
        return require(module, extra)
    except MissingExtraError as error:
        _warn_once(f"{without} {error}")
        return None


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)
