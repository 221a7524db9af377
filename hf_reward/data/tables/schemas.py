"""Types of the columns that Parquet needs before the first row is written."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH = 1_000
REMEDY = "Parquet holds one type in a column. Correct the data, or write JSONL: name the output *.jsonl."
"""What to do where rows do not fit."""


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """Find the schema that holds the rows of several tables.

    Args:
        schemas: Name and schema of each table.

    Returns:
        The columns of all; a table that lacks one has nulls there. Whole numbers become fractions where they mix.

    Raises:
        ValueError: If a column has types that no one type holds; the table is named.
    """
    unified: pa.Schema | None = None
    for name, schema in schemas:
        try:
            unified = schema if unified is None else pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{name} does not fit what came before it ({error}). {REMEDY}") from error
    if unified is None:
        raise ValueError("There is no row whose columns could be written.")
    return unified


def schema_of_rows(rows: Iterable[tuple[str, dict[str, Any]]]) -> pa.Schema | None:
    """Find the schema of rows that state no types, reading them all.

    Args:
        rows: Where each row is, and its columns.

    Returns:
        The schema that holds every row, None if there are no rows.

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
        yield f"{places[0]} (or one of the {len(batch)} rows from there)", _inferred(values, places[0])


def _inferred(rows: Sequence[dict[str, Any]], place: str) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    fields = []
    for name in names:
        try:
            fields.append((name, pa.array([row.get(name) for row in rows]).type))  # `infer_type` is laxer
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"The column {name!r} mixes types in the {len(rows)} rows from {place} on ({error}). {REMEDY}"
            ) from error
    return pa.schema(fields)


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    """A column in which no row has a value is text: a column of the type null is not read by all programs."""
    fields = [pa.field(each.name, pa.string()) if pa.types.is_null(each.type) else each for each in schema]
    return pa.schema(fields)


def require_writable(schema: pa.Schema) -> None:
    """Stop before a run whose columns Parquet cannot hold.

    Args:
        schema: The columns.

    Raises:
        ValueError: If there is such a column, as an object without fields.
    """
    try:
        pq.ParquetWriter(io.BytesIO(), schema).close()
    except pa.ArrowException as error:
        raise ValueError(
            f"These columns cannot be written as Parquet ({error}). Write JSONL: name the output *.jsonl."
        ) from error
