"""Options that several commands of `hf-reward` have, and how their values are read."""

import json
import re
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Folder or Hub id of a reward model or adapter.")]
BaseModel = Annotated[str, typer.Option(help="Where an adapter's base model is, if not where it says.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read weights that are pickles (tensors only).")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")]
Dtype = Annotated[str, typer.Option(help="Precision of the backbone: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; by default a GPU if there is one.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens computed together; 0 is what suits the device.")]
MaxLength = Annotated[int, typer.Option(help="Longest text in tokens; 0 is the model's own limit.")]
LengthCorrection = Annotated[
    bool, typer.Option("--length-correction", help="Take off each reward what the model's stored length curve says.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="Our column name = yours, such as `response=answer`; may be repeated, or one JSON object."),
]
Layout = Annotated[str, typer.Option(help="Row layout: auto, pairs, hh, ranked, votes or tokenized.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs instead of a table.")]


def folder_option(value: Any) -> Any:
    """Check the `--out` of a command that writes several files, as a callback of its option.

    Args:
        value: What was given.

    Returns:
        The same.

    Raises:
        typer.BadParameter: If it is `-`, with which other commands mean standard output.
    """
    if value is not None and str(value) == "-":
        raise typer.BadParameter("several files are written, which cannot go to standard output; name a folder")
    return value


def parse_columns(values: list[str] | None) -> dict[str, str] | None:
    """Read `--columns`.

    Args:
        values: `ours=theirs` each, or several of them with commas in between, or JSON objects of such.

    Returns:
        Our name -> theirs, or None if nothing was given.

    Raises:
        typer.BadParameter: If one is none of these.
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
                f"--columns must be `ours=theirs`, such as `chosen=good`, or a JSON object of such, but is {value!r}."
            )
        columns |= found
    return columns or None


def loading_options(dtype: str, **given: Any) -> dict[str, Any]:
    """What a model is loaded with.

    Args:
        dtype: Precision of the backbone.
        **given: Other options; 0, an empty text and False mean that an option was not given.

    Returns:
        Arguments of `RewardScorer.from_pretrained`.

    Raises:
        typer.BadParameter: If the precision is unknown.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype must be float32, bfloat16 or float16, but is {dtype!r}.")
    return {"dtype": dtype, **{name: value for name, value in given.items() if value}}
