"""Parquet and datasets: spans in any order, nested columns, and damage at the end or inside."""

import datetime
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_reward.data.tables import arrow_rows
from hf_reward.data.tables.arrow_rows import DatasetTable, ParquetTable, content_size
from hf_reward.data.tables.input_row import DamagedFile, Span


def numbers(rows) -> list[int]:
    return [row.row["n"] for row in rows]


def write_parquet(path, count: int, group: int = 1000, **columns):
    table = pa.table({"n": list(range(count)), "text": [f"text {n}" for n in range(count)], **columns})
    pq.write_table(table, path, row_group_size=group)
    return path


@given(
    count=st.integers(0, 60),
    group=st.integers(1, 25),
    size=st.integers(1, 25),
    order=st.randoms(use_true_random=False),
    batch=st.integers(1, 20),
)
def test_spans_in_any_order_give_their_rows(tmp_path_factory, count, group, size, order, batch):
    table = ParquetTable(write_parquet(tmp_path_factory.mktemp("p") / "a.parquet", count, group))
    spans = list(table.spans(size))
    assert sum(span.rows for span in spans) == count
    order.shuffle(spans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_rows, "_BATCH", batch)
        for span in spans:
            found = list(table.read(span))
            assert numbers(found) == [row.number for row in found] == list(range(span.first, span.stop))
            assert all(rows.slice(place, 1).to_pylist() == [row.row] for row in found for rows, place in [row.arrow])
    table.close()


def test_spans_in_order_are_decoded_once(tmp_path, monkeypatch):
    table = ParquetTable(write_parquet(tmp_path / "a.parquet", 5_000, group=5_000))
    opened = []
    real = ParquetTable._open
    monkeypatch.setattr(ParquetTable, "_open", lambda self: opened.append(1) or real(self))
    for span in table.spans(100):
        assert numbers(table.read(span)) == list(range(span.first, span.stop))
    assert len(opened) == 2  # the footer, and the rows


def test_a_later_row_group_is_begun_without_decoding_those_before(tmp_path, monkeypatch):
    table = ParquetTable(write_parquet(tmp_path / "a.parquet", 5_000, group=500))
    decoded = []
    real = ParquetTable._decode
    monkeypatch.setattr(ParquetTable, "_decode", lambda self: decoded.append(1) or real(self))
    list(table.read(Span(0, 10)))
    assert numbers(table.read(Span(4_990, 10))) == list(range(4_990, 5_000))
    assert len(decoded) <= 3


def test_a_reader_that_was_left_in_the_middle_starts_over(tmp_path):
    table = ParquetTable(write_parquet(tmp_path / "a.parquet", 1_000))
    assert next(table.read(Span(300, 400))).number == 300
    assert numbers(table.read(Span(300, 400))) == list(range(300, 700))


def test_nested_columns_are_lists_and_dicts(tmp_path):
    messages = [[{"role": "user", "content": "hi"}, {"role": "tool", "content": "x", "name": "f"}], []]
    table = pa.table({"messages": messages, "responses": [["a", "b"], ["c"]], "when": [datetime.date(2020, 1, 2)] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = [row.row for row in ParquetTable(tmp_path / "a.parquet").read(Span(0, 2))]
    assert rows[0]["messages"][1] == {"role": "tool", "content": "x", "name": "f"}
    assert rows[0]["messages"][0]["name"] is None  # removed later by `columns_to_python`
    assert rows[1] == {"messages": [], "responses": ["c"], "when": datetime.date(2020, 1, 2)}


def test_text_that_is_not_utf8_makes_only_its_row_unreadable(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], type=pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    found = list(ParquetTable(tmp_path / "a.parquet").read(Span(0, 3)))
    assert [row.row and row.row["text"] for row in found] == ["good", None, "fine"]
    assert "not UTF-8" in found[1].problem


@pytest.mark.parametrize("keep", [0, 3, 100, -9, -1])
def test_a_truncated_file_is_reported_when_opened(tmp_path, keep):
    path = write_parquet(tmp_path / "cut.parquet", 1_000)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFile, match=r"cut\.parquet must be a Parquet file.* copy it again"):
        _ = ParquetTable(path).schema


def test_damage_is_reported_with_its_first_row_and_earlier_groups_are_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", 2_000, group=1_000)
    metadata = pq.read_metadata(path)
    begins = metadata.row_group(1).column(0).dictionary_page_offset or metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[begins : begins + 40] = bytes(40)
    path.write_bytes(content)
    table = ParquetTable(path)
    assert len(list(table.read(Span(0, 900)))) == 900
    with pytest.raises(DamagedFile, match=r"a\.parquet: rows from number 1000 on cannot be decoded .* intact copy"):
        list(table.read(Span(1_000, 500)))
    assert len(list(table.read(Span(0, 900)))) == 900


def test_a_flipped_bit_is_found_by_the_checksums_of_its_page(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.arange(1000.0)}), path, write_page_checksum=True, use_dictionary=False)
    offset = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="cannot be decoded"):
        list(ParquetTable(path).read(Span(0, 10)))


def test_a_file_that_lost_rows_since_the_start_is_reported(tmp_path):
    table = ParquetTable(write_parquet(tmp_path / "a.parquet", 10))
    with pytest.raises(DamagedFile, match="has only 10 rows"):
        list(table.read(Span(50, 10)))


def test_a_large_row_group_is_not_kept_in_memory(tmp_path):
    texts = [str(n) * 20_000 for n in range(1_000, 3_000)]  # 160 MB in one row group
    options = {"compression": "zstd", "use_dictionary": False, "write_batch_size": 16}  # pages of 1 MB
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **options)
    del texts
    table = ParquetTable(tmp_path / "a.parquet")
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for number, _ in enumerate(table.read(Span(0, 2_000))):
        if number % 100 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert peak < 60e6
    table.close()


def test_sizes_do_not_depend_on_how_a_row_was_decoded(tmp_path):
    table = ParquetTable(write_parquet(tmp_path / "a.parquet", 500, m=[[{"a": "xy", "b": None}]] * 500))
    together = [row.size for row in table.read(Span(0, 500))]
    alone = [row.size for span in table.spans(7) for row in table.read(span)]
    assert together == alone == [8 + len(f"text {n}") + 2 + 8 for n in range(500)]
    assert content_size([1.0] * 100) == 800
    assert content_size({"a": ["xyz", b"12"]}) == 5


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_gives_its_rows_shuffled_or_not():
    dataset = Dataset.from_list([{"n": n, "m": [{"role": "user", "content": str(n)}]} for n in range(700)])
    assert numbers(DatasetTable(dataset, "d").read(Span(250, 300))) == list(range(250, 550))
    turned = dataset.select(range(699, -1, -1))
    rows = list(DatasetTable(turned, "d").read(Span(0, 300)))
    assert numbers(rows) == list(range(699, 399, -1))
    assert rows[5].arrow[0].slice(rows[5].arrow[1], 1).to_pylist() == [rows[5].row]


def test_a_dataset_with_a_format_gives_python_values():
    dataset = Dataset.from_dict({"n": [1, 2]}).with_format("numpy")
    assert [type(row.row["n"]) for row in DatasetTable(dataset, "d").read(Span(0, 2))] == [int, int]


def test_datasets_are_identified_by_content():
    first, again, other = (Dataset.from_dict({"n": values}) for values in ([1, 2], [1, 2], [1, 3]))
    identities = [DatasetTable(each, "d").identity() for each in (first, again, other)]
    assert identities[0] == identities[1] != identities[2]
    assert list(DatasetTable(first, "d").spans(1)) == [Span(0, 1), Span(1, 1)]
    assert DatasetTable(first, "d").schema.names == ["n"]
