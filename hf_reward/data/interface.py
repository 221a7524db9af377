"""Write the settings in error messages in the syntax of Python, the command line or YAML.

`setting("columns", {"chosen": "better"})` is `columns={'chosen': 'better'}` in Python, `--columns chosen=better` for
the commands of `hf-reward`, `--columns '{"chosen": "better"}'` for `hf-reward train`, and `columns: {chosen: better}`
for a training run with a YAML file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, Literal


class Interface(Enum):
    """An interface through which a user passes settings."""

    PYTHON = "arguments of a Python call"
    COMMAND = "options of a command, as `--max-length 512`"
    TRAIN = "options of `hf-reward train`, as `--max_length 512`"
    YAML = "the YAML file of a training run, as `max_length: 512`"


_UNSET: Any = object()
_in_use = [Interface.PYTHON]  # per process, so that threads that read data use the same syntax


@contextmanager
def used_through(interface: Interface) -> Iterator[None]:
    """Context manager: errors within it name settings in the syntax of an interface.

    Args:
        interface: The interface in use.

    Yields:
        None: Within the context.
    """
    _in_use.append(interface)
    try:
        yield
    finally:
        _in_use.pop()


def setting(name: str, value: Any = _UNSET) -> str:
    """Format a setting in the syntax of the interface in use.

    Args:
        name: Name in Python.
        value: Value; if omitted, only the name is formatted.

    Returns:
        The setting, without surrounding quotes.
    """
    interface = _in_use[-1]
    if interface is Interface.PYTHON:
        return name if value is _UNSET else f"{name}={value!r}"
    if interface is Interface.YAML:
        return name if value is _UNSET else f"{name}: {_yaml(value)}"
    option = f"--{name}" if interface is Interface.TRAIN else f"--{name.replace('_', '-')}"
    if value is _UNSET or (value is True and interface is Interface.COMMAND):
        return option
    if interface is Interface.COMMAND and isinstance(value, Mapping):
        return " ".join(f"{option} {key}={part}" for key, part in value.items())
    return f"{option} '{json.dumps(value)}'" if isinstance(value, Mapping) else f"{option} {_plain(value)}"


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(part)}" for key, part in value.items()) + "}"
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def auto_or_bool(name: str, value: Any) -> bool | Literal["auto"]:
    """Parse a setting that may be "auto", true or false, from the command line, YAML or Python.

    Args:
        name: The setting.
        value: Its value; text in upper or lower case.

    Returns:
        "auto", True or False.

    Raises:
        ValueError: If the value is none of these.
    """
    choices: dict[str, bool | Literal["auto"]] = {"auto": "auto", "true": True, "false": False}
    try:
        return choices[str(value).lower()]
    except KeyError:
        raise ValueError(f"`{name}` must be 'auto', True or False, but is {value!r}.") from None
