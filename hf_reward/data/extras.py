"""Packages that a bare install lacks: imported where they are used, with the extra that installs them."""

from importlib import import_module
from types import ModuleType

_PURPOSES = {
    "audit": "audits, length corrections and figures",
    "data": "data checks and the TF-IDF baseline",
    "serve": "servers",
}


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Its full name, such as "matplotlib.figure".
        extra: The extra of hf_reward that installs the package: one of `audit`, `data` and `serve`.

    Returns:
        The module.

    Raises:
        ImportError: If the package is not installed. The message names the extra. An installed package that cannot
            import one of its own requirements raises its own error.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        remedy = f'{_PURPOSES[extra]} need it. Run pip install "hf_reward[{extra}]".'
        raise ImportError(f"The package {package} is not installed; {remedy}", name=error.name) from error
