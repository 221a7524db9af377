"""`hf-reward`: the command line. Each command imports what it needs when it runs, so that `--help` is instant."""

import json
import runpy
import signal
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli import audit as cli_audit
from hf_reward.cli import benchmark as cli_benchmark
from hf_reward.cli import data as cli_data
from hf_reward.cli import scoring as cli_scoring
from hf_reward.cli import serving as cli_serving
from hf_reward.cli.options import AllowPickle, AsJson, BaseModel, Columns, RemoteCode, folder_option
from hf_reward.cli.output import quiet
from hf_reward.data.interface import Interface, used_through

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they could show a token among the local names
    help="Train, measure and publish reward models.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    """Train, measure and publish reward models."""
    context.with_resource(used_through(Interface.COMMAND))
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


# --- scoring --------------------------------------------------------------------------------------------------------

app.command()(cli_scoring.score)
app.command()(cli_scoring.rank)
app.command()(cli_serving.serve)


# --- measuring ------------------------------------------------------------------------------------------------------

app.add_typer(cli_benchmark.app, name="benchmark")
app.add_typer(cli_audit.app, name="audit")
app.command("check-data")(cli_data.check_data)
app.command("split")(cli_data.split)


# --- saved models ---------------------------------------------------------------------------------------------------

Folder = Annotated[Path, typer.Argument(help="Folder of a saved model or adapter.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the target folder if it is there.")]
Dtype = Annotated[str, typer.Option(help="Precision of the weights: float32, bfloat16 or float16.")]


@app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a saved model or adapter.")] = None,
    base_model: BaseModel = "",
    dtype: Annotated[list[str] | None, typer.Option(help="Check only this compute precision; may be repeated.")] = None,
    server: Annotated[str, typer.Option(help="Compare this server's rewards with those of --model instead.")] = "",
    kind: Annotated[str, typer.Option(help="What it is: auto, hf_reward, vllm, sglang or openrlhf.")] = "auto",
    model: Annotated[str, typer.Option(help="Folder or Hub id of the model that the server should have.")] = "",
    data: Annotated[str, typer.Option(help="Rows to compare, 256 at most; by default the probe texts.")] = "",
    columns: Columns = None,
    trust_remote_code: RemoteCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Reload a saved model with stock transformers in a fresh process: does it give the rewards it was saved with?

    With --server and --model: does a server give them? Exit code 0: equal. 1: it differs, or cannot be loaded.
    """
    quiet()
    if server:
        if not (model or folder) or (model and folder):
            raise typer.BadParameter("--server needs the model that it should have: --model FOLDER_OR_ID")
        loading = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        loading |= {"base_model_name_or_path": base_model} if base_model else {}
        cli_serving.verify_server(server, kind, model or str(folder), data, columns, as_json, **loading)
    if folder is None or model or data:
        raise typer.BadParameter("give the folder of a saved model, or --server URL --model FOLDER_OR_ID")
    from hf_reward.publishing.verify import verify_checkpoint

    found = verify_checkpoint(
        folder,
        base_model=base_model or None,
        dtypes=dtype or None,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print_checks(found)
    raise typer.Exit(0 if found.equal else 1)


@app.command()
def export(
    source: Annotated[
        list[str],
        typer.Argument(help="Folder or Hub id of a model or adapter, then the new folder.", metavar="FROM OUT"),
    ],
    average: Annotated[
        bool, typer.Option("--average", help="Average the weights of several models: `--average A B C OUT`.")
    ] = False,
    dtype: Dtype = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    legacy_rope: Annotated[
        bool, typer.Option("--legacy-rope", help="Also write `rope_theta`, which transformers 4 reads.")
    ] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave out reward_config.json; nobody can verify the folder then.")
    ] = False,
    allow_unserved: Annotated[
        bool, typer.Option("--allow-unserved", help="Write a model that no server can load.")
    ] = False,
    original_base: Annotated[
        bool,
        typer.Option(
            "--original-base", help="QLoRA: merge into the base as it was before quantisation, and say what that moves."
        ),
    ] = False,
    base_model: BaseModel = "",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a model or adapter as one stock folder, merged in float32 and verified before it appears."""
    quiet()
    from hf_reward.publishing.averaging import average_reward_models
    from hf_reward.publishing.export import ExportRule, export_reward_model

    *sources, target = source
    rule = ExportRule(
        dtype=dtype,
        max_shard_size=max_shard_size,
        legacy_rope=legacy_rope,
        strip=strip,
        allow_unserved=allow_unserved,
        trust_remote_code=trust_remote_code,
    )
    options: dict[str, Any] = {"allow_pickle": allow_pickle, "overwrite": overwrite}
    if average:
        if original_base or base_model:
            raise typer.BadParameter("--average takes whole models and adapters that know their base.")
        report = average_reward_models(sources, target, rule, **options)
    elif len(sources) != 1:
        raise typer.BadParameter("give FROM and OUT, or `--average A B [C ...] OUT`")
    else:
        options |= {"base_model": base_model or None, "original_base": original_base}
        report = export_reward_model(sources[0], target, rule, **options)
    _print_report(report, as_json)


@app.command(name="import")
def import_model(
    source: Annotated[Path, typer.Option("--from", help="Folder of a reward model in another layout.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.", callback=folder_option)],
    format: Annotated[str, typer.Option(help="Its layout; `auto` recognises it.")] = "auto",
    dtype: Dtype = "float32",
    base_model: Annotated[
        str,
        typer.Option(
            help="The base of an adapter, and whose configuration and tokenizer to use if the folder has none."
        ),
    ] = "",
    allow_pickle: AllowPickle = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Turn a reward model of another library into a stock folder with the same rewards."""
    quiet()
    from hf_reward.publishing.export import ExportRule
    from hf_reward.publishing.importers.stock_folder import import_reward_model

    options: dict[str, Any] = {"base_model": base_model or None, "allow_pickle": allow_pickle, "overwrite": overwrite}
    _print_report(import_reward_model(source, out, format=format, rule=ExportRule(dtype=dtype), **options), as_json)


@app.command()
def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="`user/name` on the Hub.")],
    branch: Annotated[str, typer.Option(help="Branch to move.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Who sees the repository.")] = None,
    gated: Annotated[str, typer.Option(help="`auto` or `manual`: readers have to ask; `off` ends that.")] = "",
    adapter: Annotated[bool, typer.Option("--adapter", help="Publish the adapter too, under adapter/.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Allow a repository that holds another model.")] = False,
    base_model: Annotated[str, typer.Option(help="Hub id of the base, if the files name a local folder.")] = "",
    allow_pickle: AllowPickle = False,
    training_state: Annotated[
        str, typer.Option(help="Publish optimizer and random state too, under this folder of the repository.")
    ] = "",
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Reward model",
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Publish a saved model: staged, downloaded back, verified, and only then visible. Log in with `hf auth login`."""
    from dataclasses import asdict

    quiet()
    from hf_reward.publishing.push import PushRule, push_reward_model

    rule = PushRule(
        branch=branch,
        create_pr=create_pr,
        private=private,
        gated={"": None, "off": False, "False": False}.get(gated, gated),
        adapter=adapter,
        replace=replace,
        base_model=base_model or None,
        allow_pickle=allow_pickle,
        training_state=training_state or None,
        message=message,
        trust_remote_code=trust_remote_code,
    )
    report = push_reward_model(folder, repo_id, rule)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(f"Pushed to {report.pull_request or report.url} (commit {report.commit[:8]}, {len(report.files)} files)")
    for note in report.notes:
        typer.echo(f"  {note}")


def _print_checks(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "checked", "found", title=found.folder, title_justify="left")
    for check in found.checks:
        table.add_row("ok" if check.passed else "DIFFERS", check.name, check.detail)
    console = Console()
    console.print(table)
    for note in found.notes:
        console.print(f"  {note}", highlight=False)
    console.print("Equal." if found.equal else "Not equal: rewards are not those that the model was saved with.")


def _print_report(report: Any, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    console = Console()
    console.print(f"Written: {report.folder} ({report.dtype})", highlight=False, soft_wrap=True)
    for step, difference in report.differences.items():
        console.print(f"  {step}: rewards move by at most {difference:.1e}", highlight=False, soft_wrap=True)
    if report.verification is not None:
        console.print(f"  verified in a fresh process: {report.verification}", highlight=False, soft_wrap=True)
    for note in [*report.notes, *(report.verification.notes if report.verification else [])]:
        console.print(f"  {note}", highlight=False, soft_wrap=True)
    table = Table("program", "reward", "note")
    for verdict in report.compatibility:
        table.add_row(verdict.program, verdict.outcome, verdict.note)
    console.print(table)
    console.print("transformers was run. The verdicts on the other programs follow from their source code.")


# --- the program itself ---------------------------------------------------------------------------------------------


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
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"
    path = folder / name
    if not path.exists():
        raise typer.BadParameter(f"there is no recipe {name!r} in {folder}")
    return path


def main() -> None:
    """Run the command line; an error that a user can mend is one line, not a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was written aside is removed
    try:
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        typer.echo(f"hf-reward: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
