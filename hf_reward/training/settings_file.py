"""YAML file -> the settings of a run with the line of each; names that are no settings are refused together."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from hf_reward.data.text_files import read_utf8

_MOST_VALUES = 100_000


class UnknownSettingError(ValueError):
    """Names that are no settings."""


@dataclass(frozen=True)
class SettingsFile:
    """What a YAML file sets."""

    path: str
    values: dict[str, Any]
    """Setting -> value; those that are null are left out."""
    lines: dict[str, int]
    """Setting -> its line, from 1."""


def read_settings(path: str | Path, known: Collection[str]) -> SettingsFile:
    """Read a YAML file of settings.

    Args:
        path: The file.
        known: All settings that there are.

    Returns:
        Its settings.

    Raises:
        FileNotFoundError: If there is no such file.
        UnknownSettingError: If it names settings that there are not: each once, with its line and the nearest setting.
        ValueError: If it is not a mapping of settings.
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise FileNotFoundError(f"There is no configuration file {str(path)!r} (looked in {Path.cwd()}).")
    text = read_utf8(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        settings = yaml.load(text, Loader=_OneOfEach)
    except Exception as error:  # a tag that names a Python object, a tab, a date that is none, ...
        raise ValueError(f"{path} is no YAML of plain values: {error}. Correct it.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings such as `learning_rate: 1e-5`, one per line.")
    _require_small(settings, path)
    assert isinstance(node, yaml.MappingNode)
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise UnknownSettingError(
            "; ".join(f"{path}, line {lines.get(str(name), 1)}: {no_setting(str(name), known)}" for name in unknown)
        )
    return SettingsFile(str(path), {name: value for name, value in settings.items() if value is not None}, lines)


def no_setting(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Say that there is no such setting, and which is nearest.

    Args:
        name: What a user wrote.
        known: All settings that there are.
        prefix: What stands before the name of a setting, as `--`.

    Returns:
        A clause.
    """
    found = get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.75)
    return f"there is no setting {prefix}{name}" + (f" (did you mean {prefix}{found[0]}?)" if found else "")


class _OneOfEach(yaml.SafeLoader):
    """YAML's safe loader, which would silently let the last of several equal names win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        places: dict[str, list[int]] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                places.setdefault(key.value, []).append(key.start_mark.line + 1)
        repeated = [
            f"{name} is given more than once, in lines {', '.join(map(str, lines))}"
            for name, lines in places.items()
            if len(lines) > 1
        ]
        if repeated:
            raise ValueError("; ".join(repeated))
        return super().construct_mapping(node, deep)


def _require_small(settings: dict[Any, Any], path: str | Path) -> None:
    """Stop at aliases that would unfold without end, or nearly so."""
    waiting: list[Any] = [settings]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        waiting += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    raise ValueError(f"{path} holds more than {_MOST_VALUES:,} values, or an alias (`*name`) inside of itself.")
