"""Descriptions of all settings of a training run, and the help text made of them."""

import os
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from itertools import groupby
from typing import Any, Union, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import TrainingArguments

from hf_reward.training.run_arguments import EXAMPLES, USAGE, RunArguments
from hf_reward.training.setting_groups import COMMON_HELP, INHERITED_GROUPS, OTHER, SETTING_GROUPS
from hf_reward.training.training_args import RewardConfig

_MOST_CHOICES = 5
"""Enumerations with more values are shown as text."""
_METAVARS = {
    "bool": "true|false",
    "int": "NUMBER",
    "float": "NUMBER",
    "str": "TEXT",
    "list[str]": "TEXT ...",
    "dict": "JSON",
}
_LONGEST_METAVAR = len("auto|true|false")
_NARROW = 80
"""In terminals with fewer columns, the help of an option is below its name instead of beside it."""
_OPTIONS = (
    ("--config", "FILE", "YAML file of settings. Options override it."),
    ("--quiet", "", "Print only the results and errors."),
    ("--verbose", "", "Also print the libraries' info messages."),
    ("--help", "", "Print the common settings and exit."),
    ("--help-all", "", "Print all settings, including those of `TrainingArguments`, and exit."),
)
"""Options that are not settings: name, metavar and help."""


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


def print_help(*, every_setting: bool) -> None:
    """Print the settings by topic to standard output, in the width of the terminal.

    Args:
        every_setting: Include the less common settings of `TrainingArguments`.
    """
    # In a terminal without capabilities (`TERM=dumb`), rich ignores COLUMNS, and a width without a height.
    columns = os.environ.get("COLUMNS", "")
    console = Console(highlight=False, width=int(columns), height=25) if columns.isdigit() else Console(highlight=False)
    console.print(Text.assemble("\nUsage: ", (USAGE, "bold")), soft_wrap=True)
    console.print(
        "\nTrain a reward model. Every setting is an option and a key of the YAML file: `--learning_rate 1e-5` is "
        "`learning_rate: 1e-5`. `hf-reward recipes` lists files to start from.\n"
    )
    console.print(f"Examples:\n{EXAMPLES}\n", soft_wrap=True, markup=False)
    console.print(
        _panel("Options", [_row(name, metavar, text, "null") for name, metavar, text in _OPTIONS], console.width)
    )
    shown = [each for each in describe_settings() if every_setting or each.group in SETTING_GROUPS]
    for group, settings in groupby(shown, key=lambda each: each.group):
        console.print(_panel(group, [_setting_row(each) for each in settings], console.width))
    if not every_setting:
        console.print("`hf-reward train --help-all` also prints the other settings of `TrainingArguments`.")


def _setting_row(each: SettingDescription) -> tuple[Text, Text, Text]:
    if "|" in each.type and len(each.type) > _LONGEST_METAVAR:
        help_text = f"{each.help} One of {', '.join(each.type.split('|'))}."
        return _row(f"--{each.name}", "TEXT", help_text, each.default)
    metavar = "|".join(_METAVARS.get(word, word) for word in each.type.split("|"))
    return _row(f"--{each.name}", metavar, each.help, each.default)


def _row(name: str, metavar: str, help_text: str, default: str) -> tuple[Text, Text, Text]:
    described = Text(help_text)
    if default == "required":
        described.append(" [required]", "dim red")
    elif default not in ("null", "''", "[]"):
        described.append(f" [default: {default}]", "dim")
    return Text(name, "bold cyan"), Text(metavar, "bold yellow"), described


def _panel(title: str, rows: list[tuple[Text, Text, Text]], width: int) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0))
    if width < _NARROW:
        for name, metavar, described in rows:
            table.add_row(Text.assemble(name, "  ", metavar))
            table.add_row(Padding(described, (0, 0, 0, 4)))
    else:
        for no_wrap in (True, True, False):
            table.add_column(no_wrap=no_wrap, overflow="fold")
        for row in rows:
            table.add_row(*row)
    return Panel(table, title=title, title_align="left", border_style="dim")
