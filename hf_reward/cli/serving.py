"""`hf-reward serve`, and `verify --server`: rewards over HTTP."""

import json
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
    Model,
    RemoteCode,
    parse_columns,
)
from hf_reward.cli.output import quiet


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and says which.")] = 8000,
    served_model_name: Annotated[str, typer.Option(help="The model's name in answers.")] = "",
    max_length: MaxLength = 0,
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    length_correction: LengthCorrection = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    max_queue_tokens: Annotated[int, typer.Option(help="Tokens that may wait; beyond them requests get 429.")] = 2**20,
    max_queue_rows: Annotated[int, typer.Option(help="The same for responses.")] = 8192,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request; a larger one gets 413.")] = 2**24,
    read_timeout_seconds: Annotated[int, typer.Option(help="Time for headers, and again for a body, to arrive.")] = 30,
    shutdown_seconds: Annotated[int, typer.Option(help="Time to finish what was accepted when told to stop.")] = 300,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients must send; or set HF_REWARD_SERVER_TOKEN."),
    ] = None,
) -> None:
    """Serve a reward model over HTTP: /score, /rank, OpenRLHF's /get_reward, vLLM's /classify, /health, /metrics."""
    quiet()
    from hf_reward.scoring.server_token import read_token
    from hf_reward.scoring.serving.server import serve as serve_model
    from hf_reward.scoring.serving.settings import ServerSettings

    serve_model(
        model,
        ServerSettings(
            host=host,
            port=port,
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
            token=read_token(token_file),
        ),
    )


def verify_server(
    server: str, kind: str, model: str, data: str, columns: list[str] | None, as_json: bool, **loading: Any
) -> None:
    """Compare a server's rewards with the model's own and print what was found.

    Args:
        server: URL of the server.
        kind: What it is: auto, hf_reward, vllm, sglang or openrlhf.
        model: Folder or Hub id of the model that it should serve.
        data: A table of rows to score; empty for the probe texts.
        columns: The data's own names of columns.
        as_json: Print JSON.
        **loading: For `RewardScorer.from_pretrained`.

    Raises:
        typer.Exit: With code 0 if the rewards are the same, but for rounding in half precision, else 1.
    """
    from hf_reward.data.preference_row import rename_columns
    from hf_reward.scoring.server_check import MAX_ROWS, check_server
    from hf_reward.scoring.server_token import read_token

    rows = [rename_columns(row, parse_columns(columns)) for row in _first_rows(data, MAX_ROWS)] if data else None
    found = check_server(server, model, rows, kind=kind, token=read_token(), **loading)
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
