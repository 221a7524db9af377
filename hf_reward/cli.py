"""`hf-reward`: the command line. Each command imports what it needs when it runs, so that `--help` is instant."""

import runpy
import sys
from importlib.resources import files
from pathlib import Path

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train, measure and publish reward models.")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Train, measure and publish reward models."""
    if version:
        from hf_reward import __version__

        typer.echo(f"hf-reward {__version__}")
        raise typer.Exit


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train a reward model: `hf-reward train --config x.yaml [--learning_rate 1e-5 ...]`; `--help` lists settings."""
    script = recipe("train.py")
    sys.argv = [str(script), *context.args]
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def recipes(name: str = typer.Argument(None, help="Print this recipe, such as quickstart.yaml.")) -> None:
    """List the recipes that came with the package, or print one."""
    if name is None:
        for path in sorted(recipe(".").rglob("*.yaml")):
            typer.echo(path)
    else:
        typer.echo(recipe(name).read_text(encoding="utf-8"))


def recipe(name: str) -> Path:
    """A file of `recipes/`: in the wheel beside this file, in a checkout at the repository's root.

    Args:
        name: Path below `recipes/`.

    Returns:
        The path.

    Raises:
        typer.BadParameter: If there is no such recipe.
    """
    packaged = Path(str(files("hf_reward"))) / "recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"
    path = folder / name
    if not path.exists():
        raise typer.BadParameter(f"there is no recipe {name!r} in {folder}")
    return path


def main() -> None:
    """Run the command line; an error that a user can mend is one line, not a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        typer.echo(f"hf-reward: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
