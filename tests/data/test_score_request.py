"""The row layouts of scoring, and the errors for other rows."""

from typing import Any

import pytest

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.score_request import request_from_messages, requests_of_row

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "Why?", "response": "Because."}, "Why?", ["Because."]),
        ({"prompt": [USER], "response": "Because."}, [USER], [[ANSWER]]),
        ({"prompt": "Why?", "response": [ANSWER]}, [USER], [[ANSWER]]),
        ({"prompt": [USER], "response": [USER, ANSWER]}, [USER], [[ANSWER]]),
        ({"prompt": "Why?", "responses": ["a", "b"]}, "Why?", ["a", "b"]),
        ({"prompt": "Why?", "responses": '["a", "b"]'}, "Why?", ["a", "b"]),
        ({"messages": [USER, ANSWER]}, [USER], [[ANSWER]]),
        ({"messages": '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]'},
         [USER], [[ANSWER]]),
        ({"text": "<|im_start|>..."}, "", ["<|im_start|>..."]),
        ({"prompt": "", "response": "Because."}, "", ["Because."]),
        ({"messages": None, "prompt": "Why?", "response": ""}, "Why?", [""]),
    ],
)  # fmt: skip
def test_layouts(row: Any, prompt: Any, responses: Any) -> None:
    found = requests_of_row(row)
    assert [(each.prompt, each.response) for each in found] == [(prompt, response) for response in responses]


def test_arrow_fills_messages_with_none_and_templates_never_see_it() -> None:
    row = {"messages": [{**USER, "name": None}, {**ANSWER, "name": None}], "tools": None}
    (found,) = requests_of_row(row)
    assert found.prompt == [USER]


def test_columns_are_renamed_and_tools_reach_the_template() -> None:
    row = {"question": "Why?", "answer": "Because.", "tools": '[{"name": "t"}]', "other": 1}
    (found,) = requests_of_row(row, {"prompt": "question", "response": "answer"})
    assert (found.prompt, found.response, found.template) == ("Why?", "Because.", {"tools": [{"name": "t"}]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?", "answer": "Because."}, "nothing to score.*Found: question, answer.*columns="),
        ({}, "Found: no column"),
        ({"prompt": "Why?", "responses": []}, "empty list"),
        ({"prompt": "Why?", "responses": "no JSON"}, "must be a list, or JSON text of one"),
        ({"prompt": "Why?", "response": None}, "`response` must be text, but is missing or null"),
        ({"prompt": "Why?", "response": True}, "`response` must be text, but is bool"),
        ({"prompt": 5, "response": "x"}, "`prompt` must be text or a non-empty list of messages"),
        ({"messages": [USER]}, "end with the user"),
        ({"messages": []}, "non-empty list"),
        ({"messages": [USER, {"role": "assistant"}]}, "`role` and `content`"),
        ({"messages": [USER, "Because."]}, "`role` and `content`"),
        ({"text": 3}, "`text` must be text"),
        (
            {"prompt": "Why?", "response": "x", "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "must only set variables .* but sets chat_template",
        ),
    ],
)
def test_rows_that_fit_no_layout_are_refused_with_the_needed_columns(row: Any, message: str) -> None:
    with pytest.raises(PreferenceFormatError, match=message):
        requests_of_row(row)


def test_a_missing_mapped_column_is_named() -> None:
    with pytest.raises(PreferenceFormatError, match="'answer', which the data lacks"):
        requests_of_row({"prompt": "a", "response": "b"}, {"response": "answer"})


def test_a_response_of_tool_calls_only_is_not_empty() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert not request_from_messages([USER, call]).is_empty()
    assert request_from_messages([USER, {"role": "assistant", "content": " "}]).is_empty()
