"""JSONL and CSV: unreadable lines are reported with their location, and spans give the same rows as the full file."""

import csv

import pytest
from bulk_runs import text_rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from hf_reward.data.file_identity import FULL_HASH_LIMIT, file_identity
from hf_reward.data.tables import text_records
from hf_reward.data.tables.csv_file import MAX_FIELD_CHARACTERS, CsvTable
from hf_reward.data.tables.input_row import DamagedFile, Span
from hf_reward.data.tables.json_lines import JsonLinesTable

EVERYTHING = 2**40


def full(table) -> list:
    return [row for span in table.spans(EVERYTHING) for row in table.read(span)]


def in_spans(table, rows: int, backwards: bool = False) -> list:
    """Read a table span by span."""
    spans = list(table.spans(rows))
    assert all(span.rows == rows for span in spans[:-1])
    parts = [list(table.read(span)) for span in (reversed(spans) if backwards else spans)]
    return [row for part in (reversed(parts) if backwards else parts) for row in part]


def write_csv(path, rows, header=("prompt", "response")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# --- JSONL -----------------------------------------------------------------------------------------------------------


def test_rows_have_numbers_lines_and_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, b"\n", b"   \r\n", {"a": 2}])
    assert [(row.number, row.line, row.row) for row in full(JsonLinesTable(path))] == [
        (0, 1, {"a": 1}),
        (1, 4, {"a": 2}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "x", "resp', "not valid JSON"),
        (b'{"prompt": "\xff\xfe"}\n', "not UTF-8 (byte 21 of the file is 0xFF"),
        (b"[1, 2]\n", "must be a JSON object, but is a list"),
        (b"null\n", "must be a JSON object, but is a NoneType"),
        (b'{"a": "\\ud83d alone"}\n', "lone surrogate (U+D83D)"),
        (b'{"a": "\\uDE00"}\n', "lone surrogate"),
        (b"[" * 100_000 + b"\n", "cannot be read"),
        (b'{"a": ' + b"9" * 5_000 + b"}\n", "cannot be read"),
        (b'\x00{"a": 1}\n', "not valid JSON"),
    ],
)
def test_a_bad_line_is_a_problem_and_the_others_are_rows(tmp_path, line, message):
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, line])
    good, bad = full(JsonLinesTable(path))
    assert good.row == {"a": 1}
    assert bad.row is None
    assert message in bad.problem
    assert (bad.number, bad.line) == (1, 2)
    assert bad.raw == line.decode("utf-8", "replace").rstrip("\n")[:2000]


def test_escaped_pairs_and_line_separators_are_text(tmp_path):
    line = b'{"a": "\\ud83d\\ude00", "b": "one\xe2\x80\xa8line"}\r\n'
    [row] = full(JsonLinesTable(write_jsonl(tmp_path / "a.jsonl", [line])))
    assert row.row == {"a": "\N{GRINNING FACE}", "b": "one\u2028line"}


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [b"\xef\xbb\xbf" + b'{"a": 1}\n', {"a": 2}])
    assert [row.row for row in in_spans(JsonLinesTable(path), 1)] == [{"a": 1}, {"a": 2}]


def test_a_line_beyond_the_bound_is_skipped_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(text_records, "MAX_RECORD_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"a": "x" * 1000}, {"a": 2}, {"a": "y" * 500}])
    found = in_spans(JsonLinesTable(path), 1)
    assert [row.row for row in found] == [{"a": 1}, None, {"a": 2}, None]
    assert "longer than" in found[1].problem
    assert len(found[1].raw) == 100


def test_a_text_of_a_megabyte_is_a_row(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": "é" * 2**20}])
    assert len(full(JsonLinesTable(path))[0].row["a"]) == 2**20


def test_an_empty_file_has_no_spans(tmp_path):
    assert list(JsonLinesTable(write_jsonl(tmp_path / "a.jsonl", [])).spans(5)) == []


@given(
    lines=st.lists(
        st.sampled_from([b'{"a": 1}\n', b"\n", b"  \n", b"{half\n", b"\xff\n", b'{"b": "\xc3\xa9"}\r\n']), max_size=12
    ),
    tail=st.sampled_from([b"", b'{"end": 1}', b"{cut", b" "]),
    rows=st.integers(1, 5),
)
def test_spans_read_separately_give_all_rows(tmp_path_factory, lines, tail, rows):
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    path.write_bytes(b"".join(lines) + tail)
    table = JsonLinesTable(path)
    expected = full(table)
    assert [row.number for row in expected] == list(range(len(expected)))
    assert len(expected) == sum(bool(line.strip()) for line in [*lines, tail])
    assert in_spans(table, rows) == in_spans(table, rows, backwards=True) == expected


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_rows_are_text_by_column(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["p", "r"], ["two\nlines", 'quote " here'], ["", "é"]])
    found = full(CsvTable(path))
    assert [row.row for row in found] == [
        {"prompt": "p", "response": "r"},
        {"prompt": "two\nlines", "response": 'quote " here'},
        {"prompt": "", "response": "é"},
    ]
    assert [row.line for row in found] == [2, 3, 5]
    assert CsvTable(path).schema.names == ["prompt", "response"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"only one\n", "must have 2 fields, as the header does, but has 1"),
        (b"a,b,c\n", "but has 3"),
        (b"\xff\xfe,b\n", "not UTF-8 (byte 20 of the file is 0xFF"),
        (b'"a"b,c\n', "not valid CSV"),
    ],
)
def test_a_bad_csv_row_is_a_problem(tmp_path, line, message):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,response\np,r\n" + line + b"q,s\n")
    first, bad, last = full(CsvTable(path))
    assert (first.row["prompt"], last.row["prompt"]) == ("p", "q")
    assert message in bad.problem
    assert (bad.number, bad.line) == (1, 3)


def test_an_unclosed_quote_is_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,response\np,r\nq,"open\nx,y\n')
    good, bad = full(CsvTable(path))
    assert good.row == {"prompt": "p", "response": "r"}
    assert "unexpected end of data" in bad.problem
    assert bad.raw == 'q,"open\nx,y'


def test_csv_fields_of_a_megabyte_are_accepted_and_longer_ones_are_not(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["p", "x" * 2**20], ["q", "y" * (MAX_FIELD_CHARACTERS + 10)], ["s", "t"]])
    found = full(CsvTable(path))
    assert len(found[0].row["response"]) == 2**20
    assert "field limit" in found[1].problem
    assert found[2].row == {"prompt": "s", "response": "t"}


def test_csv_with_a_byte_order_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,response\r\np,r\r\n\r\nq,s\r\n")
    assert [row.row for row in full(CsvTable(path))] == [
        {"prompt": "p", "response": "r"},
        {"prompt": "q", "response": "s"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"a,a\n1,2\n", "two columns are called a"), (b"\xff\n", "not UTF-8")],
)
def test_a_csv_file_needs_a_header(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=message):
        _ = CsvTable(path).schema


@given(
    rows=st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=8),
    bad=st.sampled_from([b"", b"one\n", b"\xff,a\n", b"\r\n"]),
    size=st.integers(1, 4),
)
def test_csv_spans_read_separately_give_all_rows(tmp_path_factory, rows, bad, size):
    path = tmp_path_factory.mktemp("spans") / "a.csv"
    write_csv(path, rows)
    with path.open("ab") as file:
        file.write(bad)
    table = CsvTable(path)
    expected = full(table)
    assert [tuple(row.row.values()) for row in expected if row.row] == rows
    assert in_spans(table, size) == in_spans(table, size, backwards=True) == expected


# --- identity --------------------------------------------------------------------------------------------------------


def test_files_are_identified_by_size_and_samples(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(3000))
    first = file_identity(path)
    assert first == file_identity(path)
    assert first["size"] == path.stat().st_size
    content = path.read_bytes()
    for place in (0, len(content) - 2):
        path.write_bytes(content[:place] + b"#" + content[place + 1 :])
        assert file_identity(path)["sample"] != first["sample"]
    path.write_bytes(content + b"\n")
    assert file_identity(path)["size"] == first["size"] + 1


def test_a_small_file_is_sampled_completely(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(50_000))
    first = file_identity(path)
    for place in range(0, 50_000, 997):
        path.write_bytes(bytes(place) + b"x" + bytes(50_000 - place - 1))
        assert file_identity(path)["sample"] != first["sample"]


def test_small_files_are_hashed_completely_and_large_ones_have_their_time(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(300_000))
    first = file_identity(path)
    path.write_bytes(bytes(50_000) + b"x" + bytes(249_999))  # between the sampled blocks
    changed = file_identity(path)
    assert first["sample"] == changed["sample"]
    assert first["content"] != changed["content"]
    assert "modified" not in changed
    assert FULL_HASH_LIMIT == 16 * 2**20
    monkeypatch.setattr("hf_reward.data.file_identity.FULL_HASH_LIMIT", 299_999)
    assert file_identity(path) == {name: value for name, value in changed.items() if name != "content"} | {
        "modified": path.stat().st_mtime_ns
    }


def test_the_end_of_a_span():
    assert Span(3, 4).stop == 7
