"""An error names settings in the syntax of the interface in use, and a null is not called a missing column."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_reward.cli.app import app
from hf_reward.data.interface import Interface, setting, used_through
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import detect_layout, to_preference_row
from hf_reward.data.score_request import requests_of_row

NAMES = {"prompt": "question", "response_a": "one", "response_b": "two"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        (Interface.PYTHON, "`columns={'chosen': 'your_column'}`"),
        (Interface.COMMAND, "`--columns chosen=your_column`"),
        (Interface.TRAIN, """`--columns '{"chosen": "your_column"}'`"""),
        (Interface.YAML, "`columns: {chosen: your_column}`"),
    ],
)
def test_columns_that_fit_no_layout_are_named_in_the_syntax_of_the_interface(interface, message):
    with used_through(interface), pytest.raises(PreferenceFormatError) as caught:
        detect_layout(["better", "worse"])
    assert message in str(caught.value)
    assert setting("columns") == "columns"  # outside it is Python again


def test_a_command_answers_in_options(tmp_path):
    data = write(tmp_path / "rows.jsonl", {"better": "a", "worse": "b"})
    result = CliRunner().invoke(app, ["check-data", "--data", str(data), "--out", str(tmp_path / "out")])
    assert "`--columns chosen=your_column`" in str(result.exception)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--columns", "chosen=good"]
    result = CliRunner().invoke(app, ["split", *words])
    assert "`--columns` names 'good', which the data lacks" in str(result.exception)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "test.jsonl", {})
    result = CliRunner().invoke(app, ["split", "--data", str(data), "--out", str(tmp_path / "out")])
    assert "`--overwrite`" in str(result.exception)
    assert setting("overwrite", True) == "overwrite=True"


@pytest.mark.parametrize("columns", [None, NAMES])
def test_a_null_prompt_in_a_mapped_column_is_reported_as_null(columns):
    named = columns or {name: name for name in NAMES}
    row = {named["prompt"]: None, named["response_a"]: "x", named["response_b"]: "y", "winner": "a"}
    with pytest.raises(PreferenceFormatError, match="`prompt` must be text or messages, but is null") as caught:
        to_preference_row(row, columns=columns)
    assert caught.value.field == "prompt"
    assert "column" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": None, "response": "x"}, "prompt"),
        ({"prompt": None, "responses": ["x"]}, "prompt"),
        ({"prompt": "x", "responses": None}, "responses"),
    ],
)
def test_a_null_in_a_row_to_score_is_not_a_missing_column(row, field):
    with pytest.raises(PreferenceFormatError, match=f"`{field}` must be") as caught:
        requests_of_row(row)
    assert caught.value.field == field
    text = requests_of_row({**row, "text": "full"})
    assert [request.response for request in text] == ["full"]
