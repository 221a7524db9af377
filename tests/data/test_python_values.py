"""Nulls, binary text, decimals, arrays and content parts are handled equally in training and scoring."""

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from training_runs import make_trainer

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.python_values import rows_of, to_python
from hf_reward.data.ratings import to_pairs
from hf_reward.data.score_request import request_from_messages, requests_of_row
from hf_reward.data.sources import Source, load_source
from hf_reward.data.split_files import SplitRule, write_split
from hf_reward.evaluation.data_check import check_data
from hf_reward.evaluation.data_check.votes import read_votes
from hf_reward.preprocessing.preparation import prepare_preferences
from hf_reward.scoring.bulk.inputs import open_tables
from hf_reward.scoring.serving.protocols.own import Row
from hf_reward.scoring.serving.protocols.vllm import ClassifyBody

USER = {"role": "user", "content": "Weather?"}


def call(**arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}


def test_nulls_that_arrow_adds_are_removed_at_any_depth():
    rows = [
        {"prompt": [USER], "chosen": [call(city="Paris")], "rejected": [call(x=[{"a": 1}, {"b": 2}])],
         "tools": [{"function": {"name": "f", "parameters": {"city": {"type": "string"}}}}],
         "chat_template_kwargs": {"style": {"brief": True}}},
        {"prompt": [USER], "chosen": [call(y={"deep": "1"})], "rejected": [call()], "tools": None,
         "chat_template_kwargs": {"other": 1}},
    ]  # fmt: skip
    stored = Dataset.from_list(rows)
    assert stored[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "y": None}
    for row, given in zip(stored, rows, strict=True):
        read, meant = to_preference_row(row), to_preference_row(given)
        assert (read.prompt, read.responses, read.template) == (meant.prompt, meant.responses, meant.template)
        assert read.responses[0] == [{**given["chosen"][0], "content": None}]
        asked = {"prompt": row["prompt"], "response": row["chosen"], "tools": row["tools"]}
        (request,) = requests_of_row(asked)
        assert request.response == meant.responses[0]
        (served,) = Row(**asked).requests()
        assert served == request


PARTS = [{"type": "text", "text": "Wea", "image": None}, {"type": "text", "text": "ther?"}]


def test_parts_of_text_are_joined_wherever_messages_are_read():
    turn, answer = {"role": "user", "content": PARTS}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    read = to_preference_row({"prompt": [turn], "chosen": [answer], "rejected": "y"})
    assert (read.prompt, read.responses[0]) == ([USER], [{"role": "assistant", "content": "x"}])
    for request in (
        request_from_messages([turn, answer]),
        *requests_of_row({"prompt": [turn], "response": [answer]}),
        *Row(messages=[turn, answer]).requests(),
        *ClassifyBody(messages=[turn, answer]).requests(),
    ):
        assert (request.prompt, request.response) == (read.prompt, read.responses[0])


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "video", "video": "x.mp4"}, "'video'"),
        ({"type": "text"}, "'text'"),
        ("Hi", "'Hi'"),
        ({"text": "a"}, "'a'"),
    ],
)
def test_other_parts_are_refused_with_their_row(part: Any, found: str):
    bad = [{"role": "user", "content": [PARTS[0], part]}]
    with pytest.raises(PreferenceFormatError, match=rf"Row 3: `prompt` must have only text parts .* {found}"):
        to_preference_row({"prompt": bad, "chosen": "x", "rejected": "y"}, row_index=3)
    with pytest.raises(PreferenceFormatError, match="only text parts"):
        requests_of_row({"prompt": bad, "response": "x"})
    with pytest.raises(PreferenceFormatError, match="`content` as text"):
        to_preference_row({"prompt": [{"role": "user", "content": {"a": 1}}], "chosen": "x", "rejected": "y"})


def test_nulls_in_the_json_of_tools_are_removed_like_those_of_arrow():
    tools = [{"function": {"name": "f", "parameters": {"city": {"default": None}}}}]
    for given in (tools, json.dumps(tools)):
        (request,) = requests_of_row({"prompt": "a b", "response": "x", "tools": given})
        assert request.template == {"tools": [{"function": {"name": "f", "parameters": {"city": {}}}}]}


def test_values_of_numpy_and_arrow_become_python_values():
    given = {"a": np.array([{"b": np.float32(0.5), "c": None}], dtype=object), "d": (b"\xc3\xa9", Decimal("2.5"))}
    assert to_python(given) == {"a": [{"b": 0.5}], "d": ["\u00e9", 2.5]}
    assert [to_python(value) for value in (Decimal("2.0"), np.int64(3), b"\xff", True, None)] == [
        2,
        3,
        b"\xff",
        True,
        None,
    ]
    assert type(to_python(Decimal("2.0"))) is int


FRAME = {
    "prompt": ["Why?", "How come?"],
    "chosen": ["Because.", "So."],
    "rejected": ["No.", "Never."],
    "margin": [Decimal("1.50"), None],
}


def test_a_data_frame_is_rows(text_tokenizer):
    frame = pd.DataFrame(FRAME)
    meant, _ = prepare_preferences(Dataset.from_dict({**FRAME, "margin": [1.5, None]}), text_tokenizer)
    for data in (frame, [frame], Source(data=frame, name="data")):
        read, _ = prepare_preferences(data, text_tokenizer)
        assert read["input_ids"][:] == meant["input_ids"][:]
        assert read["margin"][:] == [1.5, None]
    assert check_data(frame).data.usable == 2
    assert rows_of(frame)[1]["margin"] is None
    mixed = pd.DataFrame({**FRAME, "note": [1, "x"]}, index=[7, 7])  # Arrow requires one type
    assert load_source(Source(data=mixed)).column_names == [*FRAME, "note"]
    rated = pd.DataFrame({"prompt": ["a b"] * 2, "response": ["x", "y"], "score": [Decimal("2.5"), Decimal("1")]})
    assert [pair["chosen"] for pair in to_pairs(rated)] == ["x"]


def test_conversations_of_a_data_frame_are_read_through_the_arrays_that_pandas_makes(tmp_path, chat_tokenizer):
    row = {"prompt": [USER], "chosen": [{"role": "assistant", "content": "x"}], "rejected": [call(city="Rome")]}
    Dataset.from_list([row, row]).to_parquet(str(tmp_path / "rows.parquet"))
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    assert isinstance(frame["prompt"][0], np.ndarray)
    meant = to_preference_row(row)
    read = to_preference_row(frame.iloc[0].to_dict())
    assert (read.prompt, read.responses) == (meant.prompt, meant.responses)
    (request,) = requests_of_row({"prompt": frame["prompt"][0], "response": frame["chosen"][0]})
    assert (request.prompt, request.response) == (meant.prompt, meant.responses[0])


def test_binary_text_and_decimals_of_a_parquet_file_are_read_by_training_check_and_scoring(tmp_path, text_tokenizer):
    path = tmp_path / "rows.parquet"
    columns: dict[str, Any] = {
        name: pa.array([text.encode() for text in FRAME[name]], pa.binary())
        for name in ("prompt", "chosen", "rejected")
    }
    columns["margin"] = pa.array(FRAME["margin"], pa.decimal128(5, 2))
    columns["responses"] = pa.array([[b"a", b"b"], [b"c", b"d"]], pa.list_(pa.large_binary()))
    pq.write_table(pa.table(columns), path)
    meant, _ = prepare_preferences(Dataset.from_dict({**FRAME, "margin": [1.5, None]}), text_tokenizer)
    read, _ = prepare_preferences(str(path), text_tokenizer)
    assert read["input_ids"][:] == meant["input_ids"][:]
    assert read["margin"][:] == [1.5, None]
    assert check_data(str(path)).data.usable == 2
    (table,) = open_tables(path)
    rows = [each.row for span in table.spans(10) for each in table.read(span)]
    assert [[request.response for request in requests_of_row(row)] for row in rows if row] == [["a", "b"], ["c", "d"]]


def test_binary_data_that_is_not_utf8_is_reported():
    with pytest.raises(
        PreferenceFormatError, match=r"Row 4: `chosen` must be text, but is binary data that is not UTF-8"
    ):
        to_preference_row({"prompt": "a b", "chosen": b"\xff\xfe", "rejected": "x"}, row_index=4)
    with pytest.raises(PreferenceFormatError, match="`rejected` must be text, but is int 2"):
        to_preference_row({"prompt": "a b", "chosen": "x", "rejected": Decimal("2")})


def test_the_trainer_and_tables_accept_a_data_frame(make_model_folder, text_tokenizer, tmp_path):
    frame = pd.DataFrame({**FRAME, "chosen": [text.encode() for text in FRAME["chosen"]]})
    trainer = make_trainer(make_model_folder("gpt2", tokenizer=text_tokenizer), frame, tmp_path, evaluation=frame)
    meant = Dataset.from_dict({**FRAME, "margin": [1.5, None]})
    assert np.array_equal(trainer.predict(frame).predictions, trainer.predict(meant).predictions)
    assert trainer.evaluate(frame)["eval_num_pairs"] == 2
    (table,) = open_tables(frame)
    rows = [each.row for span in table.spans(10) for each in table.read(span)]
    assert [row["chosen"] for row in rows if row] == [b"Because.", b"So."]


def test_splitting_writes_binary_text_as_text_and_decimals_as_numbers(tmp_path):
    columns = {name: [text.encode() for text in FRAME[name]] * 10 for name in ("chosen", "rejected")}
    prompts = [f"Why {number}?".encode() for number in range(20)]
    stored = Dataset.from_dict({"prompt": prompts, **columns, "margin": [Decimal("1.5")] * 20})
    write_split(stored, tmp_path / "out", SplitRule(test_size=0.5))
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["chosen"] for row in rows} <= {"Because.", "So."}
    assert {row["margin"] for row in rows} == {1.5}


def test_votes_that_are_decimals_are_votes():
    assert read_votes({"votes_a": Decimal("2"), "votes_b": np.int64(1)}) == (2, 1, 0)
    assert read_votes({"annotators": [b"a", "b", "a"]}) == (2, 1, 0)
