"""Files, folders, lists, datasets and mixtures become raw rows; errors name the unreadable input."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_reward.data.preference_row import PreferenceFormatError, PreferencePair
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.python_values import rows_of
from hf_reward.data.row_locations import with_row_locations
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
ROWS = [
    {"prompt": "a ", "chosen": "yes", "rejected": "no"},
    {"prompt": "b ", "chosen": "good", "rejected": "bad"},
    {"prompt": "c ", "chosen": "up", "rejected": "down"},
]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(data: Any, **settings: Any) -> Any:
    streaming = settings.pop("streaming", False)
    (source,) = as_sources(data, **settings)
    return load_source(source, streaming=streaming)


def read(data: Any) -> list[Any]:
    """Return the canonical rows of data."""
    rows = load(data)
    with with_row_locations(rows):
        return [to_preference_row(row, row_index=number) for number, row in enumerate(rows)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


# --- accepted data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", [str, Path])
def test_every_kind_of_file_gives_its_rows(tmp_path, suffix, kind):
    assert load(kind(write(tmp_path / f"rows{suffix}", ROWS))).to_list() == ROWS


def test_a_file_can_be_streamed(tmp_path):
    stream = load(write(tmp_path / "rows.jsonl", ROWS), streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == ROWS


def test_a_folder_gives_the_requested_split(tmp_path):
    write(tmp_path / "mix" / "train.jsonl", ROWS[:2])
    write(tmp_path / "mix" / "test.jsonl", ROWS[2:])
    assert load(tmp_path / "mix").to_list() == ROWS[:2]
    assert load(tmp_path / "mix", split="test").to_list() == ROWS[2:]


def test_a_folder_of_shards_gives_all_of_them_in_order(tmp_path):
    for number, row in enumerate(ROWS):
        write(tmp_path / "shards" / f"train-{number:05d}-of-00003.parquet", [row])
        write(tmp_path / "parts" / f"part-{number}.parquet", [row])
    assert load(tmp_path / "shards").to_list() == ROWS
    assert load(tmp_path / "parts").to_list() == ROWS


def test_rows_with_different_keys_keep_all_of_them():
    rows = [ROWS[0], {**ROWS[1], "margin": 0.5}]
    assert load(rows).to_list() == [{**ROWS[0], "margin": None}, rows[1]]


def test_preference_pairs_are_rows():
    pairs = [PreferencePair(prompt="a ", chosen="yes", rejected="no"), PreferencePair(**ROWS[1], margin=0.5)]
    assert load(pairs).to_list() == [{**ROWS[0], "margin": None}, {**ROWS[1], "margin": 0.5}]


def test_a_list_of_something_else_is_refused():
    with pytest.raises(PreferenceFormatError, match="must be a dict or a `PreferencePair`, but is a int"):
        load([1, 2])
    with pytest.raises(TypeError, match=r"Data must be a path.*but is a int"):
        load(3)


def test_datasets_are_returned_unchanged():
    data = Dataset.from_list(ROWS)
    stream = data.to_iterable_dataset()
    assert load(data) is data
    assert load(stream) is stream
    assert load(DatasetDict(train=data, test=data.select([2])), split="test").to_list() == ROWS[2:]
    assert load(IterableDatasetDict({"train": stream})) is stream


def test_columns_layout_and_split_are_defaults_that_a_source_may_overrule(tmp_path):
    write(tmp_path / "mix" / "train.jsonl", ROWS[:2])
    write(tmp_path / "mix" / "dev.jsonl", ROWS[2:])
    plain, own = as_sources(
        [{"path": str(tmp_path / "mix"), "name": "x"}, {"path": str(tmp_path / "mix"), "layout": "hh", "split": "dev"}],
        columns={"chosen": "good"},
        layout="pairs",
    )
    assert (plain.split, plain.layout, plain.columns, plain.weight) == ("train", "pairs", {"chosen": "good"}, 1.0)
    assert (own.split, own.layout, own.columns, own.name) == ("dev", "hh", {"chosen": "good"}, "mix")
    assert load_source(own).to_list() == ROWS[2:]


def test_a_mixture_can_be_named_by_dicts_json_objects_paths_and_sources(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", ROWS))
    parts = [
        {"path": path, "name": "a", "weight": 2.0},
        {"data": Dataset.from_list(ROWS), "name": "b"},
        Source(data=path, name="c", weight=0.5),
        path,
    ]
    sources = as_sources(parts)
    assert [(source.name, source.weight) for source in sources] == [("a", 2.0), ("b", 1.0), ("c", 0.5), ("rows", 1.0)]
    assert [load_source(source).to_list() for source in sources] == [ROWS] * 4
    assert parts[0] == {"path": path, "name": "a", "weight": 2.0}
    texts = [json.dumps(parts[0]), path]
    assert [(source.data, source.name, source.weight) for source in as_sources(texts)] == [
        (path, "a", 2.0),
        (path, "rows", 1.0),
    ]
    assert as_sources(json.dumps(parts[0]))[0].weight == 2.0


def test_sources_are_named_after_their_file_or_its_folder(tmp_path):
    names = [as_sources(name)[0].name for name in ("x/hh/train.jsonl", "x/helpful.jsonl", "owner/set", tmp_path / "m")]
    assert names == ["hh", "helpful", "set", "m"]
    assert [source.name for source in as_sources([Dataset.from_list(ROWS)] * 2)] == ["data", "source1"]


def test_a_column_that_mixes_types_is_read_so_that_the_bad_row_can_be_named(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "chosen": True}, ROWS[2]]
    for data in (rows, write(tmp_path / "rows.jsonl", rows), write(tmp_path / "rows.json", rows)):
        assert load(data).to_list() == rows
        with pytest.raises(PreferenceFormatError, match="Row 1: `chosen` must be text, but is bool True"):
            [to_preference_row(row, row_index=place) for place, row in enumerate(load(data))]


def test_a_line_break_inside_a_text_does_not_end_its_row(tmp_path):
    rows = [{**ROWS[0], "chosen": True}, {**ROWS[1], "chosen": "one\u2028two\x85three"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert load(path).to_list() == rows


def test_a_json_file_of_mixed_types_may_hold_lines(tmp_path):
    rows = [{**ROWS[0], "chosen": True}, ROWS[1]]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load(tmp_path / "rows.json").to_list() == rows


# --- refused data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "data/sets/nowhere"])
def test_a_path_that_does_not_exist_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder '{name}'") as error:
        load(name)
    assert str(tmp_path) in str(error.value)


def test_a_file_of_unknown_kind_and_a_folder_of_two_kinds_are_refused(tmp_path):
    (tmp_path / "rows.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows: data files must all have the same format, one of .jsonl.*found \.txt"):
        load(tmp_path / "rows.txt")
    write(tmp_path / "two" / "part-0.jsonl", ROWS)
    write(tmp_path / "two" / "part-1.csv", ROWS)
    with pytest.raises(ValueError, match="all have the same format"):
        load(tmp_path / "two")


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing here", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"must have a data file \(.jsonl, .json, .csv, .parquet\)"):
        load(tmp_path)


def test_a_bad_json_line_is_named_with_its_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n{'chosen': 1}\n", encoding="utf-8")
    with pytest.raises(PreferenceFormatError, match=r"rows\.jsonl, line 3: the row is not valid JSON"):
        read(path)


def test_a_json_line_that_is_not_a_row_is_named_with_its_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n3\n", encoding="utf-8")
    with pytest.raises(PreferenceFormatError, match=r"rows\.jsonl, line 2: .*object.*int"):
        read(path)


def test_a_broken_json_file_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.json must be a valid JSON list"):
        load(path)


def test_a_truncated_parquet_file_says_which_reader_failed(tmp_path):
    path = write(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"rows: the files cannot be read as parquet: .*[Pp]arquet"):
        load(path)


def test_a_missing_split_is_refused_with_the_existing_ones(tmp_path):
    data = Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\], not 'dev'. Choose one"):
        load(DatasetDict(train=data, test=data), split="dev")
    write(tmp_path / "mix" / "train.jsonl", ROWS[:2])
    write(tmp_path / "mix" / "test-00000-of-00001.jsonl", ROWS[2:])
    with pytest.raises(ValueError, match=r"mix has the splits \['test', 'train'\], not 'dev'"):
        load(tmp_path / "mix", split="dev")


def test_a_mixture_refuses_unknown_keys_equal_names_and_weight_zero(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(ValueError, match=r"among path, data, name, weight.* but one has wieght"):
        as_sources([{"path": path, "wieght": 2}])
    with pytest.raises(ValueError, match=r"different names, but have \['rows', 'rows'\]"):
        as_sources([path, path])
    for weight in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="`weight` of a source must be above 0"):
            as_sources([{"path": path, "weight": weight}])


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="'data' must have at least one row"):
        load([])


# --- a real file -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED_DATA / "pandalm_test").is_dir(), reason="the shared data is not here")
def test_pandalm_s_human_votes_are_read_and_every_row_is_accounted_for(text_tokenizer):
    path = SHARED_DATA / "pandalm_test" / "testset-v1.jsonl"
    columns = {"prompt": "instruction", "response_a": "response1", "response_b": "response2", "winner": "annotator1"}
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sides = ("response1", "response2")  # an unquoted "True" or an empty text is not a response
    empty = [row for row in raw if not all(isinstance(row[side], str) and row[side].strip() for side in sides)]
    rest = [row for row in raw if row not in empty]
    equal = [row for row in rest if row["response1"] == row["response2"]]
    tied = [row for row in rest if row["annotator1"] == 0 and row not in equal]
    assert empty
    assert tied

    rule = PreparationRule(format=FormatRule(max_length=None), skip_bad_rows=True)
    data, summary = prepare_preferences(path, text_tokenizer, rule, name="pandalm", columns=columns)
    unreadable = {key: count for key, count in summary.dropped.items() if key.startswith("unreadable")}
    assert set(unreadable) <= {"unreadable (response_a)", "unreadable (response_b)"}
    assert sum(unreadable.values()) == len(empty)
    assert summary.dropped.get("identical responses", 0) == len(equal)
    assert summary.dropped["tied"] == len(tied)
    assert summary.rows == len(raw)
    assert summary.kept == len(data) == len(raw) - sum(summary.dropped.values())
    assert all(
        ranks == ([0, 1] if raw[row]["annotator1"] == 1 else [1, 0])
        for ranks, row in zip(data["ranks"], data["row"], strict=True)
    )


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf null\n" + b'{"prompt": "a"}', "rows.jsonl, line 1: the row must"),
        ("rows.jsonl", b'\r\n\tnull\n{"prompt": "a"}', "rows.jsonl, line 2: the row must"),
        ("rows.jsonl", b'{"prompt": "a"}\n' * 3000 + b"null\n" * 3000, "rows.jsonl, line 3001: the row must"),
        ("rows.json", b'[null, {"prompt": "a"}]', "Row 0: the row must"),
        ("rows.json", b'null\n{"prompt": "a"}', "rows.json, line 1: the row must"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_of_null_is_a_bad_row_and_does_not_end_the_process(name, content, place, streaming, tmp_path):
    (tmp_path / name).write_bytes(content)
    data = load(tmp_path / name, streaming=streaming)
    bad = [number for number, row in enumerate(data) if row["_unreadable"]]
    assert bad == ([0] if content.count(b"null") == 1 else list(range(3000, 6000)))
    if not streaming:
        with (
            with_row_locations(data),
            pytest.raises(PreferenceFormatError, match="must be a JSON object, but is a NoneType") as error,
        ):
            to_preference_row(data[bad[0]], row_index=bad[0])
        with pytest.raises(PreferenceFormatError, match=place), with_row_locations(data):
            raise error.value


@pytest.mark.parametrize(("name", "content"), [("rows.jsonl", b"null"), ("rows.json", b"null"), ("a.json", b"[null]")])
def test_a_file_of_nulls_alone_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"no row can be read\. Problem of the first row: the row must be a JSON object",
    ):
        load(tmp_path / name)


def test_null_inside_rows_is_a_value(tmp_path):
    row = {"prompt": "a", "chosen": "b\nnull", "rejected": "c", "margin": None}
    (tmp_path / "rows.json").write_text(json.dumps([row], indent=1))
    assert load_source(Source(data=str(tmp_path / "rows.json")))[0] == row
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n\n")
    assert load_source(Source(data=str(tmp_path / "one.jsonl")))[0] == row


def test_a_data_frame_with_two_columns_of_one_name_is_refused():
    frame = pd.DataFrame([["a", "yes", "no", "x"]], columns=["prompt", "chosen", "rejected", "chosen"])
    for read in (lambda: load_source(Source(data=frame)), lambda: rows_of(frame)):
        with pytest.raises(ValueError, match="two columns 'chosen'"):
            read()


def test_a_folder_of_save_to_disk_is_recognised(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        with pytest.raises(ValueError, match="Load it with `load_from_disk`"):
            load_source(Source(data=str(tmp_path / name)))


def test_a_csv_file_with_only_a_header_has_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    found = load_source(Source(data=str(tmp_path / "a.csv")))
    assert (len(found), found.column_names) == (0, ["prompt", "chosen", "rejected"])
