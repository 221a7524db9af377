"""YAML file -> the settings of a run, each with its line; all unknown names are reported in one error."""

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
    """Unknown names of settings."""


@dataclass(frozen=True)
class SettingsFile:
    """The settings in a YAML file."""

    path: str
    values: dict[str, Any]
    """Setting -> value, without settings that are null."""
    lines: dict[str, int]
    """Setting -> its line, counted from 1."""


def read_settings(path: str | Path, known: Collection[str]) -> SettingsFile:
    """Read a YAML file of settings.

    Args:
        path: The file.
        known: Names of all settings.

    Returns:
        The settings.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnknownSettingError: If it has unknown settings; names each with its line and the nearest setting.
        ValueError: If the file is not a mapping of settings.
    """
    if not os.path.isfile(path):  # Path.is_file raises if a name is too long
        raise FileNotFoundError(f"There is no configuration file {str(path)!r} (looked in {Path.cwd()}).")
    text = read_utf8(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        settings = yaml.load(text, Loader=_UniqueKeysLoader)
    except Exception as error:  # a tag that names a Python object, a tab, an invalid date, ...
        raise ValueError(f"{path} is not YAML with plain values: {error}. Correct it.") from error
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
    """Return the message that a setting does not exist, with the nearest name.

    Args:
        name: The unknown name.
        known: Names of all settings.
        prefix: Text before the name, such as `--`.

    Returns:
        A clause.
    """
    found = get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.75)
    return f"there is no setting {prefix}{name}" + (f" (did you mean {prefix}{found[0]}?)" if found else "")


class _UniqueKeysLoader(yaml.SafeLoader):
    """YAML's safe loader, but repeated keys are an error; the safe loader would use the last one."""

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
    """Refuse aliases that expand endlessly or to a very large structure."""
    waiting: list[Any] = [settings]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        waiting += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    raise ValueError(f"{path} holds more than {_MOST_VALUES:,} values, or an alias (`*name`) that contains itself.")
