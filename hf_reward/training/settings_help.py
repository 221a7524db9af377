"""Descriptions of all settings of a training run, and the help text made of them."""

import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from hf_reward.training.run_arguments import RunArguments
from hf_reward.training.setting_groups import COMMON_HELP, INHERITED_GROUPS, OTHER, SETTING_GROUPS
from hf_reward.training.training_args import RewardConfig

_MOST_CHOICES = 5
"""Enumerations with more values are shown as text."""


@dataclass(frozen=True)
class SettingDescription:
    """One setting: a key of the YAML file, an option of `hf-reward train` and a field of a dataclass."""

    name: str
    group: str
    type: str
    """`int`, `float`, `bool`, `str`, `dict`, `list[str]`, or the values with `|` in between."""
    default: str
    """As in YAML; `required`, or `null` if unset."""
    help: str
    is_inherited: bool
    """Whether the setting is a field of `TrainingArguments` that `RewardConfig` leaves unchanged."""


def describe_settings() -> list[SettingDescription]:
    """Describe every field of `RunArguments` and `RewardConfig`.

    Returns:
        The settings in the order of `SETTING_GROUPS`, then of `INHERITED_GROUPS`, then all others.
    """
    found = {each.name: each for kind in (RunArguments, RewardConfig) for each in _described(kind)}
    listed = [name for group in (SETTING_GROUPS | INHERITED_GROUPS).values() for name in group if name in found]
    return [found[name] for name in dict.fromkeys([*listed, *found])]


def _described(kind: type) -> Iterator[SettingDescription]:
    groups = {name: group for group, names in (SETTING_GROUPS | INHERITED_GROUPS).items() for name in names}
    hints = get_type_hints(kind)
    for each in fields(kind):
        if not each.init:
            continue
        inherited = TrainingArguments.__dataclass_fields__.get(each.name) is each
        help_text = " ".join(str(each.metadata.get("help", "")).replace("%%", "%").split())
        yield SettingDescription(
            name=each.name,
            group=groups.get(each.name, OTHER),
            type=str(each.metadata.get("metavar") or _type_text(hints[each.name])),
            default=_default_text(each),
            help=COMMON_HELP.get(each.name, help_text) if inherited else help_text,
            is_inherited=inherited,
        )


def _type_text(hint: Any) -> str:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    parts = [part for part in parts if part is not type(None)]
    choices = next((part for part in parts if isinstance(part, type) and issubclass(part, Enum)), None)
    if choices is not None:
        values = [str(each.value) for each in choices]
        return "|".join(values) if len(values) <= _MOST_CHOICES else "str"
    kinds = [get_origin(part) or part for part in parts]
    for kind, text in ((list, "list[str]"), (dict, "dict"), (int, "int"), (float, "float"), (str, "str")):
        if kind in kinds:
            return text
    return "bool" if bool in kinds else getattr(kinds[0], "__name__", str(kinds[0]))


def _default_text(each: Field[Any]) -> str:
    default = each.default_factory() if each.default_factory is not MISSING else each.default
    if default is MISSING:
        return "required"
    if default is None:
        return "null"
    if isinstance(default, list):
        return " ".join(map(str, default)) or "[]"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default.value if isinstance(default, Enum) else default) or "''"
