"""`check-data` and `split` on the command line: files, exit codes, errors."""

import json
from pathlib import Path

import pytest
import typer
from datasets import load_dataset
from typer.testing import CliRunner

from hf_reward.cli import data as cli_data
from hf_reward.data.split_files import SplitRule, write_split

app = typer.Typer()
app.command("check-data")(cli_data.check_data)
app.command("split")(cli_data.split)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Forty prompts, each in two rows."""
    return [
        {"prompt": f"question {i // 2}", "chosen": f"yes it is {i}", "rejected": f"no it is {i}"} for i in range(80)
    ]


@pytest.fixture
def data(tmp_path, rows) -> Path:
    return write(tmp_path / "rows.jsonl", rows)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- check-data ------------------------------------------------------------------------------------------------------


def test_check_writes_both_files_and_prints_the_tables(call, data, tmp_path):
    result = call("check-data", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 0
    for part in ("Rows", "Repetition", "Fix these first", "data_report.json", "80 of 80 rows usable"):
        assert part in result.output
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert report["data"]["rows"] == 80
    assert (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_a_folder_the_report_is_only_printed(call, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("check-data", "--data", data)
    assert result.exit_code == 0
    assert "80 of 80 rows usable" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.suffix or path.name.startswith("data_")] == ["rows.jsonl"]


def test_only_json_is_printed(call, data, tmp_path):
    result = call("check-data", "--data", data, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))


def test_strict_exits_with_three_only_if_there_are_findings_to_fix(call, data, rows, tmp_path):
    clean = write(
        tmp_path / "clean.jsonl",
        [{"prompt": f"what {i}", "chosen": f"{'ab'[i % 2]} {i}", "rejected": f"{'ba'[i % 2]} {i}"} for i in range(40)],
    )
    assert call("check-data", "--data", clean, "--out", tmp_path / "a", "--strict").exit_code == 0
    leak = ("--data", data, "--eval-data", write(tmp_path / "held.jsonl", rows[:5]), "--out", tmp_path / "b")
    result = call("check-data", *leak, "--strict")
    assert result.exit_code == 3
    assert "leakage: 5 of 5 evaluation rows (100.0%)" in result.output
    assert (tmp_path / "b" / "data_report.json").is_file()
    assert call("check-data", *leak).exit_code == 0


def test_columns_as_options_or_json_and_token_lengths(call, tmp_path, text_tokenizer):
    text_tokenizer.save_pretrained(tmp_path / "tokenizer")
    other = write(tmp_path / "other.jsonl", [{"q": f"{i}?", "yes": f"a {i}", "no": f"b {i}"} for i in range(6)])
    options = ("--tokenizer", tmp_path / "tokenizer", "--max-length", 64, "--out", tmp_path / "out")
    for columns in (
        ("--columns", "prompt=q", "--columns", "chosen=yes", "--columns", "rejected=no"),
        ("--columns", '{"prompt": "q", "chosen": "yes", "rejected": "no"}'),
    ):
        result = call("check-data", "--data", other, *columns, *options, "--json")
        assert result.exit_code == 0
        report = json.loads(result.stdout)
        assert report["data"]["usable"] == report["tokens"]["rows"] == 6
        assert report["tokens"]["max_length"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "prompt"), "ours=theirs"),
        (("--columns", "{prompt: q}"), "not valid JSON"),
        (("--columns", '{"prompt": 3}'), "ours=theirs"),
        (("--layout", "chat"), "must be auto"),
        (("--max-length", "1"), "at least 2 tokens"),
        (("--over-length", "cut"), "over_length"),
        (("--max-length", "many"), "--max-length"),
    ],
)
def test_wrong_options_are_exit_code_two(call, data, tmp_path, options, message):
    result = call("check-data", "--data", data, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_missing_data_is_the_error_that_main_prints(call, tmp_path):
    result = call("check-data", "--data", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    assert isinstance(result.exception, FileNotFoundError)
    assert call("check-data", "--out", tmp_path).exit_code == 2


# --- split -----------------------------------------------------------------------------------------------------------


def test_split_writes_all_rows_to_two_files_without_shared_prompts(call, data, rows, tmp_path):
    result = call("split", "--data", data, "--out", tmp_path / "out", "--test-size", 0.2)
    assert result.exit_code == 0
    train, test = (read(tmp_path / "out" / f"{side}.jsonl") for side in ("train", "test"))
    assert sorted([*train, *test], key=str) == sorted(rows, key=str)
    assert len(test) == 16
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert "train.jsonl: 64 rows, 32 prompt groups" in result.output.replace("\n", "")
    assert "test.jsonl: 16 rows, 8 prompt groups" in result.output.replace("\n", "")
    folder = {
        name: load_dataset("json", data_files=str(tmp_path / "out" / f"{name}.jsonl"))["train"]
        for name in ("train", "test")
    }
    assert folder["train"].num_rows == 64


def test_split_by_rows_seed_and_json(call, data, tmp_path):
    held = []
    for place, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(place)
        result = call("split", "--data", data, "--out", out, "--test-size", 10, "--seed", seed, "--json")
        counts = json.loads(result.stdout)
        assert (counts["test"]["rows"], counts["train"]["rows"], counts["skipped_rows"]) == (10, 70, 0)
        assert counts["settings"] == {"test_size": 10, "near_duplicates": False, "seed": seed}
        held.append(read(out / "test.jsonl"))
    assert held[0] == held[1] != held[2]


def test_parquet_keeps_columns_and_types(call, tmp_path):
    source = write(
        tmp_path / "rows.jsonl",
        [{"prompt": f"p {i}", "chosen": f"a{i}", "rejected": "b", "n": i, "votes": [3, i]} for i in range(20)],
    )
    assert call("split", "--data", source, "--out", tmp_path / "out", "--format", "parquet").exit_code == 0
    parts = [
        load_dataset("parquet", data_files=str(tmp_path / "out" / f"{side}.parquet"))["train"]
        for side in ("train", "test")
    ]
    assert sorted(row["n"] for part in parts for row in part) == list(range(20))
    assert parts[0][0]["votes"] == [3, parts[0][0]["n"]]


def test_near_duplicates_stay_together(call, tmp_path):
    text = "please explain in a few words how the water comes to the mill and why it never stops there {}"
    rows = [{"prompt": text.format(number), "chosen": f"a{number}", "rejected": "b"} for number in range(4)]
    rows += [{"prompt": f"short {number}", "chosen": "c", "rejected": "d"} for number in range(6)]
    data = write(tmp_path / "near.jsonl", rows)
    for seed in range(3):
        out = tmp_path / str(seed)
        call("split", "--data", data, "--out", out, "--test-size", 3, "--seed", seed, "--near-duplicates")
        held = sum(row["prompt"].startswith("please") for row in read(out / "test.jsonl"))
        assert held in (0, 4)


def test_an_earlier_split_is_replaced_only_with_overwrite(call, data, tmp_path):
    out = ("--out", tmp_path / "out")
    call("split", "--data", data, *out)
    before = (tmp_path / "out" / "test.jsonl").read_bytes()
    for other in ((), ("--format", "parquet")):
        result = call("split", "--data", data, *out, "--seed", 7, *other)
        assert isinstance(result.exception, FileExistsError)
        assert "test.jsonl, train.jsonl" in str(result.exception)
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == before
    assert call("split", "--data", data, *out, "--seed", 7, "--format", "parquet", "--overwrite").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]


def test_unreadable_rows_stop_the_split_or_are_skipped(call, rows, tmp_path):
    data = write(tmp_path / "bad.jsonl", [*rows, {"prompt": "x", "chosen": "", "rejected": "y"}])
    result = call("split", "--data", data, "--out", tmp_path / "out")
    assert "bad.jsonl, line 81: `chosen` is empty" in str(result.exception)
    assert not (tmp_path / "out").exists()
    result = call("split", "--data", data, "--out", tmp_path / "out", "--skip-bad-rows")
    assert result.exit_code == 0
    assert "skipped: 1 unreadable row" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test-size", "much"), "a fraction such as 0.1"),
        (("--format", "csv"), "jsonl, parquet"),
        (("--layout", "x"), "auto"),
    ],
)
def test_wrong_options_of_split_are_exit_code_two(call, data, tmp_path, options, message):
    result = call("split", "--data", data, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_invalid_sizes_and_sources_are_refused(data, rows, tmp_path):
    for size in (0.0, 80, 1.5):
        with pytest.raises(ValueError, match="Change `test_size`"):
            write_split(str(data), tmp_path / "out", SplitRule(test_size=size))
    with pytest.raises(ValueError, match="Split each source separately"):
        write_split([str(data), {"path": str(data), "name": "again"}], tmp_path / "out")
    bad = [{"prompt": "a", "chosen": "", "rejected": "b"}] * 2
    with pytest.raises(ValueError, match="None of the 2 rows"):
        write_split(bad, tmp_path / "out", SplitRule(skip_bad_rows=True))
    assert not (tmp_path / "out").exists()


def test_help_lists_the_exit_codes(call):
    text = " ".join(call("check-data", "--help").output.split())
    assert "Exit code 0" in text
    assert "--eval-data" in text
