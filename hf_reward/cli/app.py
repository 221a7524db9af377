"""`hf-reward`: the command line. Each command imports what it needs when it runs, so that `--help` is instant."""

import runpy
import signal
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from hf_reward.cli import audit as cli_audit
from hf_reward.cli import benchmark as cli_benchmark
from hf_reward.cli import data as cli_data
from hf_reward.cli import judging as cli_judging
from hf_reward.cli import mitigate as cli_mitigate
from hf_reward.cli import models as cli_models
from hf_reward.cli import scoring as cli_scoring
from hf_reward.cli import serving as cli_serving
from hf_reward.cli.options import Command, Group, Quiet, examples
from hf_reward.cli.output import Output
from hf_reward.data.interface import Interface, used_through

TRAIN, SCORE, MEASURE, PUBLISH = "Train", "Score", "Measure", "Publish"
"""Panels of `hf-reward --help`."""


class _OrderedGroup(Group):
    """Lists the commands in the order of use; typer lists groups such as `audit` last."""

    def list_commands(self, ctx: Any) -> list[str]:
        order, commands = (TRAIN, SCORE, MEASURE, PUBLISH), cast(dict[str, Any], self.commands)
        return sorted(super().list_commands(ctx), key=lambda name: order.index(commands[name].rich_help_panel))


app = typer.Typer(
    cls=_OrderedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they could show a token among the local names
    epilog="`hf-reward COMMAND --help` shows the options of a command.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    """Train, evaluate, use and publish reward models."""
    context.with_resource(used_through(Interface.COMMAND))
    if version:
        from hf_reward import __version__

        typer.echo(f"hf-reward {__version__}")
        raise typer.Exit


# --- train ------------------------------------------------------------------------------------------------------------


@app.command(
    cls=Command,
    rich_help_panel=TRAIN,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train a reward model on preference data."""
    script = recipe("train.py")
    sys.argv = [str(script), *context.args]
    runpy.run_path(str(script), run_name="__main__")


def recipe_names() -> list[str]:
    """Return the paths of all recipes below `recipes/`."""
    folder = recipe(".")
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]


def _complete_recipe(incomplete: str) -> list[str]:
    return [name for name in recipe_names() if name.startswith(incomplete)]


@app.command(
    cls=Command,
    rich_help_panel=TRAIN,
    epilog=examples("hf-reward recipes", "hf-reward recipes quickstart.yaml > run.yaml"),
)
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print, such as quickstart.yaml.", autocompletion=_complete_recipe)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """List the bundled recipes, or print one.

    A recipe is a YAML file for `hf-reward train --config` or `accelerate launch --config_file`.
    """
    if name is not None:
        typer.echo(recipe(name).read_text(encoding="utf-8"))
        return
    for each in recipe_names():
        typer.echo(recipe(each))
    Output(quiet=quiet).finish(then=["hf-reward", "recipes", "quickstart.yaml"], err=True)


def _add(function: Callable[..., None], panel: str, *lines: str, name: str | None = None) -> None:
    """Add a command with its panel in `hf-reward --help` and examples in its own help."""
    app.command(name, cls=Command, rich_help_panel=panel, epilog=examples(*lines))(function)


_add(cli_data.check_data, TRAIN, "hf-reward check-data --data pairs.jsonl --out report", name="check-data")
_add(cli_data.split, TRAIN, "hf-reward split --data pairs.jsonl --out data --test-size 0.1")
_add(
    cli_judging.label,
    TRAIN,
    "hf-reward label --judge http://127.0.0.1:8000/v1/chat/completions#MODEL --data pairs.jsonl --out labelled.jsonl",
    "hf-reward label --judge outputs/run --data pairs.jsonl --out labelled.jsonl",
)

_add(
    cli_mitigate.mitigate,
    TRAIN,
    "hf-reward mitigate --audit audit --model outputs/run --data train.jsonl --out outputs/mitigated",
)

# --- score, measure, publish ------------------------------------------------------------------------------------------

_add(
    cli_scoring.score,
    SCORE,
    "hf-reward score --model outputs/run --data rows.jsonl --out scored.jsonl",
    "hf-reward score --model outputs/run --prompt 'What is 2 + 2?' --response 4 --response 5",
)
_add(cli_scoring.rank, SCORE, "hf-reward rank --model outputs/run --data lists.jsonl --out ranked.jsonl")
_add(cli_serving.serve, SCORE, "hf-reward serve --model outputs/run --port 8000")

app.add_typer(cli_benchmark.app, name="benchmark", rich_help_panel=MEASURE)
app.add_typer(cli_audit.app, name="audit", rich_help_panel=MEASURE)

_add(
    cli_models.verify,
    PUBLISH,
    "hf-reward verify outputs/run",
    "hf-reward verify --server http://127.0.0.1:8000 --model outputs/run",
)
_add(
    cli_models.export,
    PUBLISH,
    "hf-reward export outputs/run/adapter merged",
    "hf-reward export --average run1 run2 averaged",
)
_add(cli_models.import_model, PUBLISH, "hf-reward import --from other_model --out imported", name="import")
_add(cli_models.push, PUBLISH, "hf-reward push outputs/run user/my-reward-model --private")


# --- the program ------------------------------------------------------------------------------------------------------


def recipe(name: str) -> Path:
    """Return a file of `recipes/`, which is in the package of the wheel and at the root of a checkout.

    Args:
        name: Path below `recipes/`.

    Returns:
        The path.

    Raises:
        typer.BadParameter: If there is no such recipe.
    """
    packaged = Path(str(files("hf_reward"))) / "recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"
    path = folder / name
    if not path.exists():
        raise typer.BadParameter(f"there is no recipe {name!r} in {folder}; `hf-reward recipes` lists them")
    return path


def main() -> None:
    """Run the command line; expected errors are printed as one line without a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    try:
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        typer.echo(f"hf-reward: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
