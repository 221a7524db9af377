"""Plan a run: its shards and the columns of its output."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from hf_reward.data.tables.input_row import Table
from hf_reward.data.tables.schemas import require_writable, schema_of_rows, unify
from hf_reward.scoring.bulk.manifest import Manifest, Shard
from hf_reward.scoring.bulk.row_requests import added_columns, parse_row, require_free_columns, require_layout
from hf_reward.scoring.bulk.settings import BulkSettings

_ALL_ROWS = 2**62


def plan_run(identity: dict[str, Any], tables: Sequence[Table], settings: BulkSettings, output_format: str) -> Manifest:
    """Plan a run. Text files are read once, of Parquet files only the footers.

    Args:
        identity: Identity of the run.
        tables: The inputs.
        settings: Size of shards and names of columns.
        output_format: jsonl or parquet. From JSONL to Parquet, the files are parsed a second time to determine the
            types of the columns.

    Returns:
        The manifest of the run.

    Raises:
        ValueError: If a file is damaged, no row has the required columns, an added column exists already, or the
            columns cannot be written.
    """
    for table in tables:
        _require_columns(table)
    require_layout(tables[0], settings)
    schema = _output_schema(tables, settings) if output_format == "parquet" else None
    shards = [shard for place, table in enumerate(tables) for shard in _shards(place, table, settings.rows_per_shard)]
    return Manifest(identity=identity, shards=shards, schema=schema)


def _require_columns(table: Table) -> None:
    """Open a table and check its columns, so that a damaged file is an error before anything is scored."""
    names = [] if table.schema is None else table.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{table.name}: two columns have the same name: {', '.join(twice)}. Rename one.")


def _shards(place: int, table: Table, rows: int) -> Iterator[Shard]:
    spans = list(table.spans(rows))
    stem = re.sub(r"\.(jsonl|ndjson|csv|parquet)$", "", table.name)
    stem = re.sub(r"[^\w.=-]", "_", stem)
    digits = max(5, len(str(len(spans) - 1)))  # so that names sort in the order of the shards
    for number, span in enumerate(spans):
        yield Shard(f"{stem}-{number:0{digits}d}", place, span)


def _output_schema(tables: Sequence[Table], settings: BulkSettings) -> pa.Schema:
    stated = [(table.name, table.schema) for table in tables if table.schema is not None]
    typed = len(stated) == len(tables)
    schema = _with_added(unify(stated), settings) if typed else _schema_of_lines(tables, settings)
    require_writable(schema)
    return schema


def _with_added(schema: pa.Schema, settings: BulkSettings) -> pa.Schema:
    """Return the columns of typed inputs plus the added columns."""
    require_free_columns(schema.names, settings)
    source = (settings.columns or {}).get("responses", "responses")
    reward = pa.list_(pa.float32()) if source in schema.names else pa.float32()
    added = [] if "id" in schema.names else [pa.field("id", pa.string())]
    added.append(pa.field(settings.reward_column, reward))
    if settings.rank:
        added += [pa.field(settings.rank_column, pa.list_(pa.int32())), pa.field(settings.best_column, pa.int32())]
    return pa.schema([*schema, *added], metadata=schema.metadata)


def _schema_of_lines(tables: Sequence[Table], settings: BulkSettings) -> pa.Schema:
    """Infer the output schema from untyped rows, without those that will be rejected."""
    lists = False

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal lists
        for table in tables:
            for source in chain.from_iterable(table.read(span) for span in table.spans(_ALL_ROWS)):
                row = parse_row(source, settings)
                if row.problem or source.row is None:
                    continue
                lists = lists or row.is_list
                rewards = np.zeros(len(row.requests), dtype=np.float32)
                added = added_columns(row, table.name, rewards, settings, as_list=False)
                own = {name: value for name, value in added.items() if name == "id"}
                yield f"{table.name}, line {source.line}", source.row | own

    found = schema_of_rows(rows()) or pa.schema([("id", pa.string())])
    typed = _with_added(pa.schema([*found]), settings)
    place = typed.get_field_index(settings.reward_column)
    return typed.set(place, pa.field(settings.reward_column, pa.list_(pa.float32()) if lists else pa.float32()))
