"""Packages that a bare install lacks: imported where they are used, with the extra that installs them."""

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType

logger = logging.getLogger(__name__)

_PURPOSES = {
    "audit": "figures and length corrections",
    "data": "near duplicates and the TF-IDF baseline",
    "serve": "servers",
}
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Packages that pip knows by another name."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Its full name, such as "matplotlib.figure".
        extra: The extra of hf_reward that installs the package: one of `audit`, `data` and `serve`.

    Returns:
        The module.

    Raises:
        MissingExtraError: If the package is not installed. The message names the extra. An installed package that
            cannot import one of its own requirements raises its own error.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        name, remedy = _DISTRIBUTIONS.get(package, package), f'Run pip install "hf_reward[{extra}]".'
        message = f"The package {name} is not installed; {_PURPOSES[extra]} need it. {remedy}"
        raise MissingExtraError(message, name=error.name) from error


def optional(module: str, extra: str, without: str) -> ModuleType | None:
    """Imports a module of an optional package for something that can be left out.

    Args:
        module: Its full name.
        extra: The extra of hf_reward that installs the package.
        without: A sentence on what is left out without the package; it is logged once a process.

    Returns:
        The module, None if the package is not installed.
    """
    try:
        return require(module, extra)
    except MissingExtraError as error:
        _warn_once(f"{without} {error}")
        return None


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)
