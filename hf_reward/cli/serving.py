"""`hf-reward serve`, and `verify --server`: rewards over HTTP."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    AllowPickle,
    BatchTokens,
    Device,
    Dtype,
    LengthCorrection,
    MaxLength,
    Quiet,
    RemoteCode,
    Verbose,
    parse_columns,
)
from hf_reward.cli.output import start_output

_LIMITS = "Limits"


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            help="Folder or Hub id of a reward model or adapter. Several models need names: --model a=PATH --model "
            "b=PATH; requests select one by its name."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free port and logs it.")] = 8000,
    workers: Annotated[
        int, typer.Option(help="Processes that serve the port, each with a copy of the models; one per GPU.")
    ] = 1,
    served_model_name: Annotated[str, typer.Option(help="Name of a single model in responses.")] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must send; or set HF_REWARD_SERVER_TOKEN."),
    ] = None,
    max_length: MaxLength = 0,
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    length_correction: LengthCorrection = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    max_queue_tokens: Annotated[
        int, typer.Option(help="Tokens in the queue; further requests get status 429.", rich_help_panel=_LIMITS)
    ] = 2**20,
    max_queue_rows: Annotated[
        int, typer.Option(help="Responses in the queue; further requests get status 429.", rich_help_panel=_LIMITS)
    ] = 8192,
    max_body_bytes: Annotated[
        int, typer.Option(help="Bytes in a request; larger requests get status 413.", rich_help_panel=_LIMITS)
    ] = 2**24,
    read_timeout_seconds: Annotated[
        int,
        typer.Option(
            help="Time limit for receiving the headers, and separately for the body.", rich_help_panel=_LIMITS
        ),
    ] = 30,
    shutdown_seconds: Annotated[
        int, typer.Option(help="Time to finish accepted requests at shutdown.", rich_help_panel=_LIMITS)
    ] = 300,
    run_step: Annotated[
        int,
        typer.Option(
            help="Responses in a step of a monitored run (?run=NAME after the path of a request).",
            rich_help_panel=_LIMITS,
        ),
    ] = 128,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve one or several reward models over HTTP.

    The endpoints are /score and /rank, and those of RL trainers, vLLM, rerankers and decision models; /docs lists them.
    SIGHUP loads the models again.
    """
    output = start_output(quiet=quiet, verbose=verbose)
    from hf_reward.evaluation.monitoring.served_run import run_monitors
    from hf_reward.scoring.server_token import read_token
    from hf_reward.scoring.serving.server import serve as serve_model
    from hf_reward.scoring.serving.settings import ServerSettings

    token = read_token(token_file)
    models = _named_models(model, served_model_name)
    name, source = ("", models) if isinstance(models, str) else next(iter(models.items()))
    check = ["--model", source, *(["--token-file", token_file] if token_file else [])]
    serve_model(
        models,
        ServerSettings(
            host=host,
            port=port,
            workers=workers,
            served_model_name=served_model_name or None,
            device=device or None,
            dtype=dtype,
            max_length=max_length or None,
            batch_tokens=batch_tokens or None,
            length_correction=length_correction,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            max_queue_tokens=max_queue_tokens,
            max_queue_rows=max_queue_rows,
            max_body_bytes=max_body_bytes,
            read_timeout_seconds=read_timeout_seconds,
            shutdown_seconds=shutdown_seconds,
            token=token,
        ),
        quiet=quiet,
        observe=run_monitors(run_step),
        on_start=lambda url: output.finish(
            then=["hf-reward", "verify", "--server", f"{url}#{name}" if name else url, *check], err=True
        ),
    )


_NAMED = re.compile(r"([A-Za-z0-9][\w.:-]*(?:/[\w.:-]+)*)=(.+)", re.DOTALL)


def _named_models(given: list[str], served_model_name: str) -> str | dict[str, str]:
    """Return the model, or the models by their names."""
    found = [None if Path(each).exists() else _NAMED.fullmatch(each) for each in given]
    if len(given) == 1 and found[0] is None:
        return given[0]
    names = [each[1] for each in found if each is not None]
    if len(names) < len(given) or len(set(names)) < len(names):
        raise ValueError(
            f"Several models need different names, but `--model` is {', '.join(given)}. Write --model NAME=PATH for "
            "each."
        )
    if served_model_name:
        raise ValueError("`--served-model-name` is for a single model without a name. Leave it out.")
    return {each[1]: each[2] for each in found if each is not None}


def verify_server(
    server: str,
    kind: str,
    model: str,
    data: str,
    columns: list[str] | None,
    token_file: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Compare the rewards of a server with those of the model and print the result.

    Args:
        server: URL of the server, with #NAME if it has several models.
        kind: Kind of server: auto, hf_reward, vllm, sglang or openrlhf.
        model: Folder or Hub id of the served model.
        data: Rows to score; empty for the probe texts.
        columns: Values of `--columns`.
        token_file: File with the server's token, or None.
        as_json: Print JSON.
        **loading: Arguments of `RewardScorer.from_pretrained`.

    Raises:
        typer.Exit: With code 0 if the rewards are equal up to rounding in half precision, else 1.
    """
    from hf_reward.data.preference_row import rename_columns
    from hf_reward.scoring.server_check import MAX_ROWS, check_server
    from hf_reward.scoring.server_token import read_token

    rows = [rename_columns(row, parse_columns(columns)) for row in _first_rows(data, MAX_ROWS)] if data else None
    found = check_server(server, model, rows, kind=kind, token=read_token(token_file), **loading)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    raise typer.Exit(0 if found.passed else 1)


def _first_rows(data: str, count: int) -> list[dict[str, Any]]:
    from hf_reward.scoring.bulk.inputs import open_tables

    rows = (row for table in open_tables(data) for span in table.spans(count) for row in table.read(span))
    found = list(islice(rows, count))
    wrong = next((row for row in found if row.row is None), None)
    if wrong is not None:
        place = f"row {wrong.number}" if wrong.line is None else f"line {wrong.line}"
        raise ValueError(f"{data}, {place}: {wrong.problem}. Correct or drop it.")
    return [row.row for row in found if row.row is not None]
