"""`hf-reward verify | export | import | push`: saved models."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    LOADING_PANEL,
    OUTPUT_PANEL,
    AllowPickle,
    AsJson,
    BaseModel,
    Columns,
    Quiet,
    RemoteCode,
    Verbose,
    complete_dtype,
    folder_option,
    one_of,
)
from hf_reward.cli.output import Output, start_output
from hf_reward.cli.serving import verify_server

_SERVER = "Verify a server"
_REPOSITORY = "Repository"
Folder = Annotated[Path, typer.Argument(help="Folder of a saved model or adapter.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output folder if it exists.", rich_help_panel=OUTPUT_PANEL)
]
OutputDtype = Annotated[
    str,
    typer.Option(
        help="Precision of the written weights: float32, bfloat16 or float16.",
        rich_help_panel=OUTPUT_PANEL,
        autocompletion=complete_dtype,
    ),
]


def verify(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a saved model or adapter.")] = None,
    base_model: BaseModel = "",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="Check only this compute precision; may be repeated.", autocompletion=complete_dtype),
    ] = None,
    server: Annotated[
        str,
        typer.Option(
            help="URL of a server to compare with --model; URL#NAME for one of several models.", rich_help_panel=_SERVER
        ),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="Kind of server: auto, hf_reward, vllm, sglang or openrlhf.",
            rich_help_panel=_SERVER,
            autocompletion=one_of("auto", "hf_reward", "vllm", "sglang", "openrlhf"),
        ),
    ] = "auto",
    model: Annotated[str, typer.Option(help="Folder or Hub id of the served model.", rich_help_panel=_SERVER)] = "",
    data: Annotated[
        str, typer.Option(help="Rows to compare, at most 256; by default the probe texts.", rich_help_panel=_SERVER)
    ] = "",
    columns: Columns = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the server's token; or set HF_REWARD_SERVER_TOKEN.", rich_help_panel=_SERVER),
    ] = None,
    trust_remote_code: RemoteCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Verify that a saved model or a server gives the expected rewards.

    The model is loaded by stock transformers in a fresh process, and its rewards are compared with those that were
    recorded when it was saved. With --server and --model, the rewards of the server are compared with the model's.

    Exit code 0: equal. 1: different, or the model cannot be loaded. 2: wrong options.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    if server:
        if not (model or folder) or (model and folder):
            raise typer.BadParameter("--server needs the served model: --model FOLDER_OR_ID")
        loading = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        loading |= {"base_model_name_or_path": base_model} if base_model else {}
        verify_server(server, kind, model or str(folder), data, columns, token_file, as_json, **loading)
    if folder is None or model or data or token_file:
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
    output.finish(then=["hf-reward", "serve", "--model", folder] if found.equal else ())
    raise typer.Exit(0 if found.equal else 1)


def export(
    source: Annotated[
        list[str],
        typer.Argument(help="Folder or Hub id of a model or adapter, then the new folder.", metavar="FROM OUT"),
    ],
    average: Annotated[
        bool, typer.Option("--average", help="Average the weights of several models: `--average A B C OUT`.")
    ] = False,
    original_base: Annotated[
        bool,
        typer.Option(
            "--original-base", help="QLoRA: merge into the unquantised base model and report the change in rewards."
        ),
    ] = False,
    base_model: BaseModel = "",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    dtype: OutputDtype = "float32",
    max_shard_size: Annotated[
        str, typer.Option(help="Largest size of a weight file.", rich_help_panel=OUTPUT_PANEL)
    ] = "5GB",
    legacy_rope: Annotated[
        bool,
        typer.Option(
            "--legacy-rope",
            help="Deprecated: every save writes `rope_theta` for transformers 4.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    strip: Annotated[
        bool,
        typer.Option(
            "--strip",
            help="Do not write reward_config.json. A folder without it cannot be verified.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    allow_unserved: Annotated[
        bool,
        typer.Option(
            "--allow-unserved",
            help="Write the model even if no inference server can load it.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export a model or adapter to the standard transformers format.

    Adapters are merged in float32. The new folder is created only if verification in a fresh process
    succeeds.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
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
            raise typer.BadParameter(
                "--average needs complete models, or adapters that name their base; leave --base-model and "
                "--original-base out"
            )
        report = average_reward_models(sources, target, rule, **options)
    elif len(sources) != 1:
        raise typer.BadParameter("give FROM and OUT, or `--average A B [C ...] OUT`")
    else:
        options |= {"base_model": base_model or None, "original_base": original_base}
        report = export_reward_model(sources[0], target, rule, **options)
    _print_report(report, output)


def import_model(
    source: Annotated[Path, typer.Option("--from", help="Folder of a reward model in another layout.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.", callback=folder_option)],
    format: Annotated[str, typer.Option(help="Layout of the model; `auto` recognises it.")] = "auto",
    base_model: Annotated[
        str,
        typer.Option(
            help="Base model of an adapter, or model with the configuration and tokenizer if they are missing.",
            rich_help_panel=LOADING_PANEL,
        ),
    ] = "",
    allow_pickle: AllowPickle = False,
    dtype: OutputDtype = "float32",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a reward model from another library to the standard transformers format.

    The new model gives the same rewards. The folder is created only if verification succeeds.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.publishing.export import ExportRule
    from hf_reward.publishing.importers.stock_folder import import_reward_model

    options: dict[str, Any] = {"base_model": base_model or None, "allow_pickle": allow_pickle, "overwrite": overwrite}
    _print_report(import_reward_model(source, out, format=format, rule=ExportRule(dtype=dtype), **options), output)


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: `user/name`.")],
    branch: Annotated[str, typer.Option(help="Branch to update.", rich_help_panel=_REPOSITORY)] = "main",
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.", rich_help_panel=_REPOSITORY)
    ] = False,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of the repository.", rich_help_panel=_REPOSITORY),
    ] = None,
    gated: Annotated[
        str,
        typer.Option(
            help="Access requests: auto, manual or off.",
            rich_help_panel=_REPOSITORY,
            autocompletion=one_of("auto", "manual", "off"),
        ),
    ] = "",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace the model if the repository holds another one.", rich_help_panel=_REPOSITORY
        ),
    ] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.", rich_help_panel=_REPOSITORY)] = "Reward model",
    adapter: Annotated[bool, typer.Option("--adapter", help="Also publish the adapter, in adapter/.")] = False,
    training_state: Annotated[
        str, typer.Option(help="Folder of the repository in which to publish the optimizer and RNG states.")
    ] = "",
    base_model: Annotated[str, typer.Option(help="Hub id of the base model, if the files name a local folder.")] = "",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Publish a saved model on the Hub.

    The files are staged, downloaded again and verified before they become visible. Log in with `hf auth login`.
    """
    from dataclasses import asdict

    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
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
    revision = ["--revision", branch] if branch != "main" else []
    question = ["--prompt", "What is 2 + 2?", "--response", "4", "--response", "5"]
    then = ["hf-reward", "score", "--model", repo_id, *revision, *question]
    output.finish(then=() if create_pr else then)


def _print_checks(found: Any) -> None:
    from rich.table import Table

    from hf_reward.cli.console import make_console

    table = Table("", "checked", "found", title=found.folder, title_justify="left")
    for check in found.checks:
        table.add_row("ok" if check.passed else "DIFFERS", check.name, check.detail)
    console = make_console()
    console.print(table)
    for note in found.notes:
        console.print(f"  {note}", highlight=False)
    console.print("Equal." if found.equal else "Not equal: the checks marked DIFFERS failed.")


def _print_report(report: Any, output: Output) -> None:
    from rich.table import Table

    from hf_reward.cli.console import make_console

    if output.as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    console = make_console()
    console.print(f"{report.folder} ({report.dtype})", highlight=False, soft_wrap=True)
    for step, difference in report.differences.items():
        console.print(f"  {step}: rewards change by at most {difference:.1e}", highlight=False, soft_wrap=True)
    if report.verification is not None:
        console.print(f"  verified in a fresh process: {report.verification}", highlight=False, soft_wrap=True)
    for note in [*report.notes, *(report.verification.notes if report.verification else [])]:
        console.print(f"  {note}", highlight=False, soft_wrap=True)
    table = Table("program", "reward", "note", "evidence")
    for verdict in report.compatibility:
        table.add_row(*verdict)
    console.print(table)
    verified = report.verification is not None
    then = ["hf-reward", "verify", report.folder] if verified else ["hf-reward", "serve", "--model", report.folder]
    output.finish([report.folder], then)
