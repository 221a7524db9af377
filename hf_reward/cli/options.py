"""Options that several commands of `hf-reward` share, and the parsing of their values."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# --- help -------------------------------------------------------------------------------------------------------------

DATA_PANEL = "Data"
LOADING_PANEL = "Model loading"
OUTPUT_PANEL = "Output"
_TYPE_WORDS = {"bool": "", "int": "NUMBER", "float": "NUMBER", "Path": "PATH"}


class _PlainHelp:
    """Help in which types are PATH, NUMBER and TEXT, switches have none, and paragraphs fill the terminal."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        paragraphs = (help or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().__init__(*args, help=text or None, **options)  # pyright: ignore[reportCallIssue] - a mixin

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for each in params:
            kind = each.bare_type().removeprefix("list[").removesuffix("]")
            words = _TYPE_WORDS.get(kind, "TEXT")
            each.display_type = lambda _, words=words: words
        return params


class Command(_PlainHelp, TyperCommand):
    """A command with plain help."""


class Group(_PlainHelp, TyperGroup):
    """A group of commands with plain help."""


def examples(*commands: str) -> str:
    """Return the last paragraph of a command's help.

    Args:
        *commands: Commands that work as printed, given the files that they name.

    Returns:
        The commands, one on a line.
    """
    return "\n".join([f"Example{'s' if len(commands) > 1 else ''}:", *commands])


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Return the shell completion of an option with few values.

    Args:
        *values: The values.

    Returns:
        Start of a value -> the values that start with it.
    """

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


# --- shared options ---------------------------------------------------------------------------------------------------

PRECISIONS = ("float32", "bfloat16", "float16")
complete_dtype = one_of(*PRECISIONS)
complete_layout = one_of("auto", "pairs", "hh", "ranked", "votes", "tokenized")

Model = Annotated[str, typer.Option(help="Folder or Hub id of a reward model or adapter.")]
BaseModel = Annotated[
    str,
    typer.Option(
        help="Base model of an adapter (folder or Hub id), instead of the one the adapter names.",
        rich_help_panel=LOADING_PANEL,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Allow weights in pickle files; only tensors are loaded from them.",
        rich_help_panel=LOADING_PANEL,
    ),
]
RemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Allow the model to run its own Python code.", rich_help_panel=LOADING_PANEL
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the backbone: float32, bfloat16 or float16.",
        rich_help_panel=LOADING_PANEL,
        autocompletion=complete_dtype,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device such as cpu, cuda, cuda:1 or mps; by default a GPU if there is one.",
        rich_help_panel=LOADING_PANEL,
    ),
]
BatchTokens = Annotated[
    int,
    typer.Option(help="Tokens in a batch; 0 chooses a number for the device.", rich_help_panel=LOADING_PANEL),
]
MaxLength = Annotated[
    int,
    typer.Option(help="Longest sequence in tokens; 0 is the model's own limit.", rich_help_panel=LOADING_PANEL),
]
LengthCorrection = Annotated[
    bool,
    typer.Option(
        "--length-correction",
        help="Apply the length correction that is stored with the model.",
        rich_help_panel=LOADING_PANEL,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        help="Column mapping: `response=answer` uses column `answer` as `response`; may be repeated. Or a JSON object.",
        rich_help_panel=DATA_PANEL,
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        help="Row layout: auto, pairs, hh, ranked, votes or tokenized.",
        rich_help_panel=DATA_PANEL,
        autocompletion=complete_layout,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT_PANEL)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result and errors.", rich_help_panel=OUTPUT_PANEL)]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Also print the libraries' info messages.", rich_help_panel=OUTPUT_PANEL),
]


# --- values -----------------------------------------------------------------------------------------------------------


def folder_option(value: Any) -> Any:
    """Check the `--out` of a command that writes several files, as a callback of its option.

    Args:
        value: The value of the option.

    Returns:
        The same value.

    Raises:
        typer.BadParameter: If it is `-`, which means standard output for other commands.
    """
    if value is not None and str(value) == "-":
        raise typer.BadParameter("several files are written, so standard output is not possible; name a folder")
    return value


def parse_columns(values: list[str] | None) -> dict[str, str] | None:
    """Parse `--columns`.

    Args:
        values: Each is `ours=theirs`, several of these with commas in between, or a JSON object.

    Returns:
        Our name -> theirs, or None without values.

    Raises:
        typer.BadParameter: If a value has another form.
    """
    columns: dict[str, str] = {}
    for value in values or []:
        if value.lstrip().startswith("{"):
            try:
                found = json.loads(value)
            except json.JSONDecodeError as error:
                raise typer.BadParameter(f"--columns {value!r} is not valid JSON: {error}.") from error
        else:
            pairs = [word.partition("=") for word in re.split(r",(?=[^,=]+=)", value)]
            found = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
        if not all(name and isinstance(theirs, str) and theirs for name, theirs in found.items()):
            raise typer.BadParameter(
                f"--columns must be `ours=theirs`, such as `chosen=good`, or a JSON object of these, but is {value!r}."
            )
        columns |= found
    return columns or None


def loading_options(dtype: str, **given: Any) -> dict[str, Any]:
    """Return the keyword arguments for loading a model.

    Args:
        dtype: Precision of the backbone.
        **given: Other options; 0, an empty text and False mean that an option is not set.

    Returns:
        Arguments of `RewardScorer.from_pretrained`.

    Raises:
        typer.BadParameter: If the precision is unknown.
    """
    if dtype not in PRECISIONS:
        raise typer.BadParameter(f"--dtype must be float32, bfloat16 or float16, but is {dtype!r}.")
    return {"dtype": dtype, **{name: value for name, value in given.items() if value}}
