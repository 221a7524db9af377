"""Lone surrogates, text that looks like numbers, encodings and line numbers: equal for every reader of a file."""

import csv
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bulk_runs import FakeScorer, read_jsonl, settings

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.score_request import read_request
from hf_reward.data.sources import Source, load_source
from hf_reward.data.split_files import SplitRule, write_split
from hf_reward.data.splits import split_by_prompt
from hf_reward.evaluation.benchmarks.data import DataChoice, load_benchmark_data
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.data_check import check_data
from hf_reward.evaluation.data_check.report_text import sections
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.scoring.bulk import score_files

SKIP = PreparationRule(format=FormatRule(max_length=None), skip_bad_rows=True)
STOP = PreparationRule(format=FormatRule(max_length=None))
HALF = '{"prompt": "b", "chosen": "Hi \\ud83d", "rejected": "no", "response": "Hi \\ud83d"}'
GOOD = [
    {"prompt": f"{name} ", "chosen": f"yes {name}", "rejected": f"no {name}", "response": f"yes {name}"}
    for name in "acde"
]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def canonical(data: Any, **options: Any) -> list[Any]:
    rows: Any = load_source(Source(data=data if isinstance(data, list) else str(data), **options))
    return [to_preference_row(row, columns=options.get("columns")) for row in rows]


def write_csv(path: Path, header: list[str], *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def with_half(tmp_path: Path) -> Path:
    """Five rows. The second one, in line 4, is bad; a blank line and a line of spaces are before it."""
    lines = [json.dumps(GOOD[0]), "", "  ", HALF, *map(json.dumps, GOOD[1:])]
    path = tmp_path / "half.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- lone surrogates -------------------------------------------------------------------------------------------------

MESSAGE = r"half\.jsonl, line 4: the text has a lone surrogate \(U\+D83D\)"


def test_half_a_character_is_one_bad_row_in_training(with_half, text_tokenizer):
    for source in (str(with_half), load_source(Source(data=str(with_half)))):
        with pytest.raises(PreferenceFormatError, match=MESSAGE):
            prepare_preferences(source, text_tokenizer, STOP)
        data, summary = prepare_preferences(source, text_tokenizer, SKIP)
        assert (summary.rows, summary.kept, summary.dropped) == (5, 4, {"unreadable (row)": 1})
        assert data["row"][:] == [0, 2, 3, 4]


def test_half_a_character_is_one_bad_row_for_check_data_and_split(with_half, tmp_path):
    report = check_data(str(with_half))
    assert (report.data.rows, report.data.usable) == (5, 4)
    assert report.data.unusable == {"the text has a lone surrogate": 1}
    assert report.data.unusable_rows == {"the text has a lone surrogate": [1]}
    assert report.data.places == {1: "half.jsonl, line 4"}
    with pytest.raises(PreferenceFormatError, match=MESSAGE):
        write_split(str(with_half), tmp_path / "stopped", SplitRule(test_size=1))
    found = write_split(str(with_half), tmp_path / "out", SplitRule(test_size=1, skip_bad_rows=True))
    assert found["skipped_rows"] == 1
    rows = read_jsonl(tmp_path / "out" / "train.jsonl") + read_jsonl(tmp_path / "out" / "test.jsonl")
    assert sorted(rows, key=lambda row: row["prompt"]) == GOOD


def test_half_a_character_is_one_bad_row_for_scoring_and_benchmarks(with_half, tmp_path):
    report = score_files(FakeScorer(), with_half, tmp_path / "out.jsonl", settings())
    assert (report.counts.rows_out, sum(report.counts.quarantined.values())) == (4, 1)
    [rejected_row] = read_jsonl(tmp_path / "out.quarantine.jsonl")
    assert (rejected_row["row"], rejected_row["line"]) == (1, 4)
    with pytest.raises(ValueError, match=MESSAGE):
        load_benchmark_data(benchmark_named("pairs"), DataChoice(data=str(with_half)))


def test_half_a_character_in_a_json_list_is_not_removed_but_a_bad_row(tmp_path, text_tokenizer):
    path = tmp_path / "half.json"
    path.write_text(f"[{json.dumps(GOOD[0])}, {HALF}]", encoding="utf-8")
    with pytest.raises(PreferenceFormatError, match=r"Row 1: the text has a lone surrogate"):
        prepare_preferences(str(path), text_tokenizer, STOP)
    assert prepare_preferences(str(path), text_tokenizer, SKIP)[1].kept == 1


def test_half_a_character_in_rows_at_hand_is_one_bad_row(text_tokenizer):
    rows = [*GOOD, json.loads(HALF)]
    with pytest.raises(PreferenceFormatError, match=r"Row 4: the text has a lone surrogate"):
        prepare_preferences(rows, text_tokenizer, STOP)
    assert prepare_preferences(rows, text_tokenizer, SKIP)[1].dropped == {"unreadable (row)": 1}
    for prompt, response, field in (("a\ude00", "b", "prompt"), ("a", "b\ud83d", "response")):
        with pytest.raises(PreferenceFormatError, match=rf"`{field}` .* lone surrogate \(U\+D"):
            read_request(prompt, response)


def test_escaped_surrogate_pairs_are_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOOD[0], "chosen": "\N{GRINNING FACE}"}) + "\n", encoding="utf-8")
    assert "\\ud83d\\ude00" in path.read_text(encoding="utf-8")
    assert canonical(path)[0].responses[0] == "\N{GRINNING FACE}"


# --- text stays text -------------------------------------------------------------------------------------------------

LOOKS = ["2", "02139", "NA", "null", "True", "1e5", "2024-01-01", "nan", " x ", "1,5"]


def test_the_text_columns_of_a_csv_file_are_text_and_its_numbers_numbers(tmp_path):
    header = ["prompt", "chosen", "rejected", "margin", "weight", "probability", "group", "tools"]
    cells = [[text, text, f"not {text}", "0.5", "2", "0.75", "007", ""] for text in LOOKS]
    cells.append(["p", "a", "b", "", "", "", "", ""])
    path = write_csv(tmp_path / "rows.csv", header, *cells)
    stated = {"margin": 0.5, "weight": 2.0, "probability": 0.75, "group": "007"}
    rows = [{"prompt": text, "chosen": text, "rejected": f"not {text}", **stated} for text in LOOKS]
    rows.append({"prompt": "p", "chosen": "a", "rejected": "b"})
    expected = [to_preference_row(row) for row in rows]
    for row in expected:  # an empty cell is a column without a value
        row.meta = {}
    assert canonical(path) == expected
    assert [row.responses[0] for row in expected[:-1]] == LOOKS


def test_ranked_and_judged_rows_of_a_csv_file_are_those_of_jsonl(tmp_path):
    ranked = write_csv(
        tmp_path / "ranked.csv", ["prompt", "responses", "scores"], ["p", '["2", "NA", "c"]', "[1, 3.5, 2]"]
    )
    [row] = canonical(ranked)
    assert (row.responses, row.ranks) == (["2", "NA", "c"], [2, 0, 1])
    header = ["prompt", "response_a", "response_b", "winner"]
    judged = write_csv(tmp_path / "judged.csv", header, ["p", "1", "2", "1"], ["p", "1", "2", "2.0"])
    assert [row.ranks for row in canonical(judged)] == [[0, 1], [1, 0]]
    votes = write_csv(tmp_path / "votes.csv", [*header[:3], "votes_a", "votes_b"], ["p", "1", "2", "1", "4"])
    assert canonical(votes)[0].ranks == [1, 0]
    report = check_data(str(votes))
    assert report.votes is not None
    assert report.votes.votes == 5


def test_every_command_loads_the_same_texts_from_a_csv_file(tmp_path, text_tokenizer):
    header = ["prompt", "chosen", "rejected", "response"]
    cells = [[f"{text} ", text, f"not {text}", text] for text in LOOKS]
    path = write_csv(tmp_path / "rows.csv", header, *cells)
    rows = [dict(zip(header, row, strict=True)) for row in cells]
    found = [prepare_preferences(data, text_tokenizer, STOP)[0]["input_ids"][:] for data in (str(path), rows)]
    assert found[0] == found[1]
    assert check_data(str(path)).data.usable == len(LOOKS)
    write_split(str(path), tmp_path / "split", SplitRule(test_size=3))
    both = read_jsonl(tmp_path / "split" / "train.jsonl") + read_jsonl(tmp_path / "split" / "test.jsonl")
    assert sorted(row["chosen"] for row in both) == sorted(LOOKS)
    found = load_benchmark_data(benchmark_named("pairs"), DataChoice(data=str(path)))
    assert [each.responses[0] for each in found.comparisons] == LOOKS
    score_files(FakeScorer(), path, tmp_path / "out.jsonl", settings())
    assert [row["response"] for row in read_jsonl(tmp_path / "out.jsonl")] == LOOKS


def test_dates_in_json_are_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "2024-01-01", "chosen": "2024-01-01T00:00:00Z", "rejected": "2023-12-31"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert canonical(path)[0].responses == ["2024-01-01T00:00:00Z", "2023-12-31"]


def test_an_edited_csv_file_is_read_again(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ["chosen", "rejected"], ["a", "b"])
    assert canonical(path)[0].responses == ["a", "b"]
    write_csv(path, ["chosen", "rejected"], ["c", "dd"])
    assert canonical(path)[0].responses == ["c", "dd"]


def test_a_streamed_csv_file_gives_the_same_rows(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ["chosen", "rejected"], ["02", "NA"], ["a", "b"])
    stream = load_source(Source(data=str(path)), streaming=True)
    assert [to_preference_row(row).responses for row in stream] == [["02", "NA"], ["a", "b"]]


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_of_wide_characters_is_refused_with_the_remedy(encoding, suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    text = "chosen,rejected\r\né,b\r\n" if suffix == ".csv" else '{"chosen": "é", "rejected": "b"}\n'
    path.write_bytes(text.encode(encoding))
    message = r"the file must be UTF-8, but is UTF-(16|32)(LE|BE)?\. Convert it with `iconv -f UTF-"
    with pytest.raises(ValueError, match=rf"rows\{suffix}: {message}"):
        load_source(Source(data=str(path)))
    with pytest.raises(ValueError, match=rf"rows\{suffix}: {message}"):
        score_files(FakeScorer(), path, tmp_path / "out.jsonl", settings())


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_line_of_latin_1_is_a_bad_row_with_its_byte_and_the_remedy(suffix, tmp_path, text_tokenizer):
    lines = ["prompt,chosen,rejected", "a ,x,y", "b ,é,y"] if suffix == ".csv" else []
    rows = [{"prompt": "a ", "chosen": "x", "rejected": "y"}, {"prompt": "b ", "chosen": "é", "rejected": "y"}]
    lines = lines or [json.dumps(row, ensure_ascii=False) for row in rows]
    content = ("\n".join(lines) + "\n").encode("latin-1")
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    line, byte = len(lines), content.index(b"\xe9")
    message = (
        rf"rows\{suffix}, line {line}: the row is not UTF-8 \(byte {byte} of the file is 0xE9 .*iconv -f WINDOWS-1252"
    )
    with pytest.raises(PreferenceFormatError, match=message):
        prepare_preferences(str(path), text_tokenizer, STOP)
    assert prepare_preferences(str(path), text_tokenizer, SKIP)[1].dropped == {"unreadable (row)": 1}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_a_byte_order_mark_is_left_out(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    row = {"chosen": "é", "rejected": "b"}
    texts = {".jsonl": json.dumps(row), ".json": json.dumps([row]), ".csv": "chosen,rejected\r\né,b"}
    path.write_bytes(texts[suffix].encode("utf-8-sig") + b"\n")
    assert canonical(path)[0].responses == ["é", "b"]


# --- lines -----------------------------------------------------------------------------------------------------------


def bad_csv(tmp_path: Path) -> Path:
    """A header, a record of three lines, a blank line; the bad record starts in line 6."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,chosen,rejected\r\na,"x\r\ny\r\nz",n\r\n\r\nb,,n\r\nc,x,n\r\n')
    return path


def bad_jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "chosen": "x", "rejected": "n"}, {"prompt": "b", "chosen": "", "rejected": "n"}]
    path.write_text("\n\n\n".join(map(json.dumps, [*rows, {**rows[0], "prompt": "c"}])), encoding="utf-8")
    return path


@pytest.mark.parametrize(("make", "line"), [(bad_csv, 6), (bad_jsonl, 4)])
def test_every_reader_reports_the_line_number_of_an_editor(make, line, tmp_path, text_tokenizer):
    path = make(tmp_path)
    message = rf"{path.name}, line {line}: `chosen` is empty"
    with pytest.raises(PreferenceFormatError, match=message):
        prepare_preferences(str(path), text_tokenizer, STOP)
    with pytest.raises(PreferenceFormatError, match=message):
        write_split(str(path), tmp_path / "out")
    rows: Any = load_source(Source(data=str(path)))
    with pytest.raises(PreferenceFormatError, match=message):  # selected and shuffled rows keep their lines
        split_by_prompt(rows.select([2, 1]), test_size=1)
    for part in (
        rows.select(range(1, 3)),
        rows.select(range(1, 3)).select([1, 0]),
    ):  # `datasets` does not keep the number
        with pytest.raises(PreferenceFormatError, match=message):
            prepare_preferences(part, text_tokenizer, STOP)
    stream: Any = load_source(Source(data=str(path)), streaming=True)
    for part in (stream, stream.shuffle(seed=3, buffer_size=3), stream.skip(1)):
        with pytest.raises(PreferenceFormatError, match=message):
            prepare_preferences(part, text_tokenizer, STOP)
    found = load_benchmark_data(benchmark_named("pairs"), DataChoice(data=str(path)))
    assert [row.place for row in found.comparisons if row.problem] == [f"{path.name}, line {line}"]
    report = check_data(str(path))
    assert report.data.places == {1: f"{path.name}, line {line}"}
    shown = [part.note for section in sections(report) for part in section.lines if part.name == "unusable"]
    assert shown == [f"`chosen` is empty ({path.name}, line {line})"]
    score_files(FakeScorer(), path, tmp_path / "s.jsonl", settings(columns={"response": "chosen"}))
    assert [rejected_row["line"] for rejected_row in read_jsonl(tmp_path / "s.quarantine.jsonl")] == [line]


@pytest.mark.parametrize("streaming", [False, True])
def test_remarks_name_lines_too(streaming, tmp_path, text_tokenizer):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": prompt, "chosen": "x", "rejected": "n"} for prompt in ("a", "", "b", " ")]
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    message = "(rows.jsonl, lines 3, 5)"
    summary = prepare_preferences(load_source(Source(data=str(path)), streaming=streaming), text_tokenizer, STOP)[1]
    assert summary.remark_rows == {"blank_prompt": [1, 3]}
    assert message in str(summary)
    assert summary.remark_places == {"blank_prompt": ["rows.jsonl, line 3", "rows.jsonl, line 5"]}
    shown = [part.note for section in sections(check_data(str(path))) for part in section.lines]
    assert sum(note.endswith(message) for note in shown) == 1


def test_an_ambiguous_location_is_not_guessed(tmp_path, text_tokenizer):
    """Equal rows could be any part of the file; rows of a different file are no part of it."""
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "chosen": "", "rejected": "n"}
    path.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    rows: Any = load_source(Source(data=str(path)))
    with pytest.raises(PreferenceFormatError, match=r"^Row 0: `chosen` is empty"):
        prepare_preferences(rows.select(range(1, 3)), text_tokenizer, STOP)
    changed = rows.select(range(1, 3)).map(lambda row: {"prompt": "b"})
    with pytest.raises(PreferenceFormatError, match=r"^Row 0: `chosen` is empty"):
        prepare_preferences(changed, text_tokenizer, STOP)


def test_rows_without_lines_are_numbered_from_0(tmp_path, text_tokenizer):
    rows = [{"prompt": "a", "chosen": "x", "rejected": "n"}, {"prompt": "b", "chosen": "", "rejected": "n"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for data in (rows, str(tmp_path / "rows.json")):
        with pytest.raises(PreferenceFormatError, match=r"^Row 1: `chosen` is empty"):
            prepare_preferences(data, text_tokenizer, STOP)
        assert check_data(data).data.places == {1: "row 1"}


def test_a_row_of_the_second_file_is_reported_with_its_file(tmp_path, text_tokenizer):
    (tmp_path / "in").mkdir()
    for name, rows in (("train-0", GOOD), ("train-1", [*GOOD[:2], {**GOOD[2], "rejected": " "}])):
        path = tmp_path / "in" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(PreferenceFormatError, match=r"train-1\.jsonl, line 3: `rejected` is empty"):
        prepare_preferences(str(tmp_path / "in"), text_tokenizer, STOP, num_proc=2)


def test_a_csv_record_with_too_few_fields_is_a_bad_row(tmp_path, text_tokenizer):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected\na,x,n\nb,x\nc,"x,n\n', encoding="utf-8")
    with pytest.raises(PreferenceFormatError, match=r"rows\.csv, line 3: the row must have 3 fields.* has 2"):
        prepare_preferences(str(path), text_tokenizer, STOP)
    summary = prepare_preferences(str(path), text_tokenizer, SKIP)[1]
    assert (summary.kept, summary.dropped) == (1, {"unreadable (row)": 2})


def test_a_run_that_holds_rows_out_counts_its_bad_rows_and_does_not_stop_at_them(with_half, text_tokenizer):
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "train.py"))
    source = recipe["read"](Source(data=str(with_half)))
    settings = SimpleNamespace(skip_bad_rows=True, seed=1)
    train, held_out = recipe["hold_out"](source, 1, settings)
    summary = prepare_preferences(train, text_tokenizer, SKIP)[1]
    assert (summary.kept, summary.dropped, len(held_out)) == (3, {"unreadable (row)": 1}, 1)
    assert len(recipe["canonical_rows"]([source], True)) == 4
    with pytest.raises(PreferenceFormatError, match="half a character"):
        recipe["canonical_rows"]([source], False)
    with pytest.raises(PreferenceFormatError, match=MESSAGE):
        recipe["hold_out"](source, 1, SimpleNamespace(skip_bad_rows=False, seed=1))
