"""Infer column types, which Parquet requires before the first row is written."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_reward.metrics.counts import counted

_BATCH = 1_000
REMEDY = "Parquet requires one type per column. Correct the data, or write JSONL: name the output *.jsonl."
"""Remedy for rows whose types do not match."""


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return a schema that fits the rows of several tables.

    Args:
        schemas: Name and schema of each table.

    Returns:
        The columns of all tables; rows of tables without a column have nulls. Integers become floats if both occur.

    Raises:
        ValueError: If the types of a column cannot be combined. The message names the table.
    """
    unified: pa.Schema | None = None
    for name, schema in schemas:
        try:
            unified = schema if unified is None else pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"The column types of {name} must match those of the rows before, but do not ({error}). {REMEDY}"
            ) from error
    if unified is None:
        raise ValueError("The input must have at least one readable row, but has none. Check the input files.")
    return unified


def schema_of_rows(rows: Iterable[tuple[str, dict[str, Any]]]) -> pa.Schema | None:
    """Infer the schema of rows without declared types. All rows are read.

    Args:
        rows: Location and columns of each row.

    Returns:
        A schema that fits every row; None if there are no rows.

    Raises:
        ValueError: If a column mixes types.
    """
    schemas = _batch_schemas(iter(rows))
    first = next(schemas, None)
    if first is None:
        return None
    return _without_nulls(unify(chain([first], schemas)))


def _batch_schemas(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, pa.Schema]]:
    while batch := list(islice(rows, _BATCH)):
        places, values = zip(*batch, strict=True)
        yield f"the {counted(len(batch), 'row')} from {places[0]} on", _inferred(values, places[0])


def _inferred(rows: Sequence[dict[str, Any]], place: str) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    fields = []
    for name in names:
        try:
            fields.append((name, pa.array([row.get(name) for row in rows]).type))  # stricter than `infer_type`
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"The column {name!r} mixes types in the {counted(len(rows), 'row')} from {place} on ({error}). "
                f"{REMEDY}"
            ) from error
    return pa.schema(fields)


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    """Make columns without any value text columns, because some programs cannot read the type null."""
    fields = [pa.field(each.name, pa.string()) if pa.types.is_null(each.type) else each for each in schema]
    return pa.schema(fields)


def require_writable(schema: pa.Schema) -> None:
    """Refuse columns that Parquet cannot store, before a run starts.

    Args:
        schema: The columns.

    Raises:
        ValueError: If there is such a column, for example an object without fields.
    """
    try:
        pq.ParquetWriter(io.BytesIO(), schema).close()
    except pa.ArrowException as error:
        raise ValueError(
            f"These columns cannot be written as Parquet ({error}). Write JSONL: name the output *.jsonl."
        ) from error
