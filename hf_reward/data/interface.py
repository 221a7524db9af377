"""The interface through which a user gives settings, so that an error can answer in its syntax.

`setting("columns", {"chosen": "better"})` is `columns={'chosen': 'better'}` in Python, `--columns chosen=better` for
the commands of `hf-reward`, `--columns '{"chosen": "better"}'` for `hf-reward train`, and
`columns: {chosen: better}` where that run has a YAML file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, Literal


class Interface(Enum):
    """Where settings come from."""

    PYTHON = "arguments of a Python call"
    COMMAND = "options of a command, as `--max-length 512`"
    TRAIN = "options of `hf-reward train`, as `--max_length 512`"
    YAML = "the YAML file of a training run, as `max_length: 512`"


_UNSET: Any = object()
_in_use = [Interface.PYTHON]  # of the process: threads that read data answer in the same syntax


@contextmanager
def used_through(interface: Interface) -> Iterator[None]:
    """Within this, errors name settings in the syntax of an interface.

    Args:
        interface: The interface in use.

    Yields:
        None: While it is in use.
    """
    _in_use.append(interface)
    try:
        yield
    finally:
        _in_use.pop()


def setting(name: str, value: Any = _UNSET) -> str:
    """Write a setting as the user of the interface in use does.

    Args:
        name: Its name in Python.
        value: Its value; without one, the name alone is written.

    Returns:
        The setting, without quotes around it.
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
    """Read a setting that is "auto", true or false, as the command line, YAML or Python gives it.

    Args:
        name: The setting.
        value: Its value; text in any case.

    Returns:
        "auto", True or False.

    Raises:
        ValueError: If it is something else.
    """
    choices: dict[str, bool | Literal["auto"]] = {"auto": "auto", "true": True, "false": False}
    try:
        return choices[str(value).lower()]
    except KeyError:
        raise ValueError(f"`{name}` must be 'auto', True or False, but is {value!r}.") from None
