"""Writers keep columns and types and are deterministic; schemas are inferred from rows without types."""

import datetime
import decimal
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_reward.data.tables.arrow_rows import ParquetTable
from hf_reward.data.tables.input_row import InputRow, Span
from hf_reward.data.tables.row_writers import (
    JsonLinesWriter,
    ParquetWriter,
    ScoredRow,
    copy_json_lines,
    copy_parquet,
    json_line,
)
from hf_reward.data.tables.schemas import require_writable, schema_of_rows, unify


def scored(rows, **added) -> list[ScoredRow]:
    return [ScoredRow(InputRow(number=n, row=row), {k: v[n] for k, v in added.items()}) for n, row in enumerate(rows)]


def parquet_of(rows, schema) -> bytes:
    file = io.BytesIO()
    writer = ParquetWriter(file, schema)
    writer.write(rows)
    writer.close()
    return file.getvalue()


def test_json_lines_keep_columns_and_characters():
    file = io.BytesIO()
    JsonLinesWriter(file).write(scored([{"a": "é\u2028", "b": [1, None]}], reward=[0.1]))
    assert file.getvalue() == '{"a": "é\u2028", "b": [1, null], "reward": 0.1}\n'.encode()


def test_values_that_json_does_not_support_become_text():
    row = {
        "date": datetime.date(2020, 1, 2),
        "time": datetime.datetime(2020, 1, 2, 3, 4),
        "bytes": b"\xff",
        "price": decimal.Decimal("1.50"),
        "array": np.array([1, 2]),
        "number": np.float32(0.5),
    }
    assert json_line(row) == (
        b'{"date": "2020-01-02", "time": "2020-01-02T03:04:00", "bytes": "/w==", "price": "1.50", '
        b'"array": [1, 2], "number": 0.5}\n'
    )


def test_parquet_columns_keep_their_values_and_types(tmp_path):
    table = pa.table(
        {
            "text": ["a", None, "c"],
            "nanoseconds": pa.array([1, 2, 3], type=pa.timestamp("ns")),
            "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.25")]),
            "words": pa.array(["x", "y", "x"]).dictionary_encode(),
            "messages": [[{"role": "user", "content": "q"}], [], None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(ParquetTable(tmp_path / "a.parquet").read(Span(0, 3)))
    schema = pa.schema([*pq.read_schema(tmp_path / "a.parquet"), ("reward", pa.float32())])
    kept = [ScoredRow(rows[place], {"reward": float(place)}) for place in (0, 2)]
    found = pq.read_table(io.BytesIO(parquet_of(kept, schema)))
    assert found.drop(["reward"]) == table.take([0, 2])
    assert found["reward"].to_pylist() == [0.0, 2.0]
    assert parquet_of(kept, schema) == parquet_of(kept, schema)


def test_rows_of_files_with_other_columns_fit_one_schema(tmp_path):
    tables = [
        pa.table({"n": pa.array([1], pa.int32()), "m": [[{"role": "user"}]], "none": pa.nulls(1)}),
        pa.table({"n": [2.5], "m": [[{"role": "user", "name": "x"}]], "none": ["text"], "extra": [True]}),
    ]
    parts = []
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        parts.append(ParquetTable(tmp_path / f"{number}.parquet"))
    schema = unify((part.name, part.schema) for part in parts)
    found = [
        pq.read_table(io.BytesIO(parquet_of([ScoredRow(row, {}) for row in part.read(Span(0, 1))], schema)))
        for part in parts
    ]
    assert all(part.schema == schema for part in found)
    assert pa.concat_tables(found).to_pylist() == [
        {"n": 1.0, "m": [{"role": "user", "name": None}], "none": None, "extra": None},
        {"n": 2.5, "m": [{"role": "user", "name": "x"}], "none": "text", "extra": True},
    ]


def test_tables_of_different_types_are_refused_by_name():
    with pytest.raises(ValueError, match=r"b\.parquet must match .* n .* write JSONL: name the output \*\.jsonl"):
        unify([("a.parquet", pa.schema([("n", pa.int64())])), ("b.parquet", pa.schema([("n", pa.string())]))])


def test_types_are_found_over_all_rows():
    rows = [{"n": 1, "m": [{"role": "user"}], "none": None}] * 1500 + [{"n": 2.5, "late": "x", "m": [{"name": "y"}]}]
    schema = schema_of_rows((f"line {place}", row) for place, row in enumerate(rows))
    assert schema is not None
    assert {field.name: str(field.type) for field in schema} == {
        "n": "double",
        "m": "list<item: struct<role: string, name: string>>",
        "none": "string",
        "late": "string",
    }
    assert schema_of_rows(iter([])) is None


@pytest.mark.parametrize("values", [["x", 1], [1, True], [{"a": 1}, "x"], [2**70, 1], [[1], 1]])
def test_a_column_of_mixed_types_is_refused_with_its_place(values):
    with pytest.raises(ValueError, match=r"'a' mixes types in the 2 rows from line 0 on .* JSONL"):
        schema_of_rows((f"line {place}", {"a": value}) for place, value in enumerate(values))
    with pytest.raises(ValueError, match="JSONL"):
        schema_of_rows([*[("early", {"a": values[1]})] * 1000, ("late", {"a": values[0]})])


def test_an_object_without_fields_is_refused_before_anything_is_written():
    require_writable(pa.schema([("a", pa.list_(pa.null()))]))
    with pytest.raises(ValueError, match=r"cannot be written as Parquet .*'a'"):
        require_writable(pa.schema([("a", pa.struct([]))]))


def test_joined_files_are_their_rows_in_order():
    schema = pa.schema([("a", pa.string()), ("reward", pa.float32())])
    parts = [parquet_of(scored([{"a": name}], reward=[1.0]), schema) for name in ("x", "y")]
    empty = parquet_of([], schema)
    file = io.BytesIO()
    copy_parquet(map(io.BytesIO, [parts[0], empty, parts[1]]), file, schema)
    found = pq.ParquetFile(io.BytesIO(file.getvalue()))
    assert found.read()["a"].to_pylist() == ["x", "y"]
    assert found.num_row_groups == 2
    text = io.BytesIO()
    copy_json_lines(map(io.BytesIO, [b"a\n", b"", b"b\n"]), text)
    assert text.getvalue() == b"a\nb\n"
