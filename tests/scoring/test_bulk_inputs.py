"""Inputs of bulk scoring are opened as tables; invalid inputs are errors with a remedy."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import text_rows, write_jsonl
from datasets import Dataset

from hf_reward.data.tables.arrow_rows import DatasetTable, ParquetTable
from hf_reward.data.tables.csv_file import CsvTable
from hf_reward.data.tables.json_lines import JsonLinesTable
from hf_reward.scoring.bulk import BulkSettings
from hf_reward.scoring.bulk.inputs import open_tables
from hf_reward.scoring.bulk.processes import Worker, spooled_input


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", JsonLinesTable), ("a.ndjson", JsonLinesTable), ("a.csv", CsvTable), ("a.parquet", ParquetTable)],
)
def test_the_suffix_determines_the_format(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"")
    for data in (tmp_path / name, str(tmp_path / name), [tmp_path / name], tmp_path):
        [table] = open_tables(data)
        assert isinstance(table, kind)
        assert table.name == name


def test_a_folder_gives_its_tables_in_order_without_hidden_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "_log.jsonl", ".part.jsonl", "notes.txt"):
        write_jsonl(tmp_path / name, text_rows(1))
    (tmp_path / "c.jsonl").mkdir()
    assert [table.name for table in open_tables(tmp_path)] == ["a.jsonl", "b.jsonl"]


def test_a_list_keeps_its_order(tmp_path):
    paths = [write_jsonl(tmp_path / folder / f"{folder}.jsonl", text_rows(1)) for folder in ("z", "a")]
    assert [table.name for table in open_tables(paths)] == ["z.jsonl", "a.jsonl"]


def test_datasets_and_rows_are_tables():
    for data in (Dataset.from_list(text_rows(3)), text_rows(3), pd.DataFrame(text_rows(3))):
        with spooled_input(data, BulkSettings(), Worker.of(BulkSettings())) as source:
            assert source is data
        [table] = open_tables(data)
        assert isinstance(table, DatasetTable)
        assert table.name == "data"


@pytest.mark.parametrize(
    ("files", "data", "error", "message"),
    [
        ([], "missing.jsonl", FileNotFoundError, "no file 'missing.jsonl'"),
        ([], "./nowhere", FileNotFoundError, "no file or folder"),
        (["a.txt"], ".", FileNotFoundError, "contains no .jsonl"),
        (["a.txt"], "a.txt", ValueError, "but its suffix is .txt"),
        (["a.json"], "a.json", ValueError, "one object per line and name it .jsonl"),
        (["a.jsonl.gz"], "a.jsonl.gz", ValueError, "Decompress it"),
        (["a.jsonl", "b.csv"], ".", ValueError, "same format, but found .csv, .jsonl"),
        (["a.jsonl", "a.ndjson"], ["a.jsonl", "a.ndjson"], ValueError, "same format"),
        (["x/a.jsonl", "y/a.jsonl"], ["x/a.jsonl", "y/a.jsonl"], ValueError, "Two files are named a"),
        (["a.jsonl"], ["a.jsonl", "b.jsonl"], FileNotFoundError, r"no file 'b.jsonl'"),
    ],
)
def test_wrong_names_are_refused(tmp_path, monkeypatch, files, data, error, message):
    monkeypatch.chdir(tmp_path)
    for name in files:
        write_jsonl(tmp_path / name, text_rows(1))
    with pytest.raises(error, match=message):
        open_tables(data)


def test_streams_are_refused():
    with pytest.raises(TypeError, match="Save it as JSONL or Parquet"):
        open_tables(Dataset.from_list(text_rows(2)).to_iterable_dataset())


def test_nothing_is_read_before_it_is_needed(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    assert [table.name for table in open_tables(tmp_path)] == ["a.parquet", "b.parquet"]
