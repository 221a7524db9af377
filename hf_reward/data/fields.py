"""Raw value of one field -> checked value. Every error names the field, what was found, and the cure."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hf_reward.data.interface import setting
from hf_reward.data.preference_row import Message, PreferenceFormatError, Prompt, Response, dense_ranks
from hf_reward.data.python_values import to_python

_ROLE = re.compile(r"(?=.{1,64}\Z)[\w.-]+( [\w.-]+)*")
"""Templates write roles as they are, so one with a line break or a delimiter could begin another turn."""


def read_text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """Text that says something, unless it need not."""
    if not isinstance(value, str):
        raise _refusal(name, f"must be text, but is {_kind(value)}", f" {_shown(value)}", ". Correct or drop the row.")
    if not may_be_empty and not value.strip():
        raise PreferenceFormatError(f"`{name}` is empty. Correct or drop the row.", field=name)
    return _whole(value, name)


def _whole(value: str, name: str) -> str:
    """Text that can be written as UTF-8; a tokenizer takes no other."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        raise PreferenceFormatError(
            f"`{name}` holds half a character (U+{half:04X} alone). Correct or drop the row.", field=name
        ) from None
    return value


def _kind(value: Any) -> str:
    # Those that are UTF-8 were decoded before.
    return "binary data that is not UTF-8" if isinstance(value, bytes) else type(value).__name__


def read_messages(value: Any, name: str) -> list[Message]:
    """Messages with role and text."""
    if not isinstance(value, list) or not value:
        rule = f"must be text or a non-empty list of messages, but is {_kind(value)}"
        raise _refusal(name, rule, f" {_shown(value)}")
    return [_read_message(message, name) for message in value]


def _read_message(message: Any, name: str) -> Message:
    """A message with its content as text, parts joined; null where there are only tool calls (see `render_chat`)."""
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        if not _ROLE.fullmatch(message["role"]):
            rule = ". A role is one to 64 letters, digits, single spaces and _ - . between them."
            raise _refusal(name, "holds the role", f" {_shown(message['role'])}", rule)
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            return {**message, "content": None}
        if isinstance(content, list):
            content = _joined_parts(content, name)
        if isinstance(content, str):
            return {**message, "content": content}
    rule = "must hold messages with `role` and `content` as text (or `tool_calls`)"
    raise _refusal(name, rule, f", but holds {_shown(message)}")


def _joined_parts(parts: list[Any], name: str) -> str:
    """Parts of text one after the other, as templates that know parts print them."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            found = f"a part of type {_shown(kind)}" if kind else _shown(part)
            rule = "must hold parts of text ({'type': 'text', 'text': ...})"
            cure = ", which a reward model of text cannot read. Correct or drop the row."
            raise _refusal(name, rule, f", but holds {found}", cure)
        texts.append(text)
    return "".join(texts)


def column_example(name: str) -> str:
    """How a user says which column of the data is ours, in backquotes."""
    return f"`{setting('columns', {name: 'your_column'})}`"


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The raw prompt of a row that has to have one."""
    if "prompt" not in row:
        raise PreferenceFormatError(
            f"`prompt` is missing. Found: {', '.join(map(str, row))}. Name your column: {column_example('prompt')}.",
            field="prompt",
        )
    return row["prompt"]


def read_prompt(value: Any) -> Prompt:
    """A prompt: text, perhaps empty, or messages."""
    if value is None:
        raise PreferenceFormatError(
            "`prompt` must be text or messages, but is null. Give the prompt, or an empty text where there is none, or "
            "drop the row.",
            field="prompt",
        )
    if isinstance(value, str):
        return _whole(value, "prompt")
    return read_messages(value, "prompt") if value != [] else []


def is_blank(prompt: Prompt) -> bool:
    """Whether a prompt says nothing."""
    if isinstance(prompt, str):
        return not prompt.strip()
    return not any((message["content"] or "").strip() or message.get("tool_calls") for message in prompt)


def prompt_of_kind(prompt: Prompt, responses: Sequence[Any]) -> Prompt:
    """The prompt as its responses are: before messages, a text is one user turn, and none if it is blank."""
    if isinstance(prompt, str) and responses and all(isinstance(response, list) for response in responses):
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    return prompt


def read_response(value: Any, prompt: Prompt, name: str, *, may_be_empty: bool = False) -> Response:
    """A response of its prompt's kind: text after a text prompt, messages after messages."""
    if isinstance(prompt, str):
        return read_text(value, name, may_be_empty=may_be_empty)
    if isinstance(value, str):
        return [{"role": "assistant", "content": read_text(value, name, may_be_empty=may_be_empty)}]
    return read_conversation(value, name, may_be_empty=may_be_empty)


def read_conversation(value: Any, name: str, *, may_be_empty: bool = False) -> list[Message]:
    """Messages of which the last says something, unless it need not."""
    messages = read_messages(value, name)
    if not messages[-1].get("tool_calls"):
        read_text(messages[-1].get("content"), name, may_be_empty=may_be_empty)
    return messages


def read_template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    options: dict[str, Any] = {}
    if row.get("tools") not in (None, ""):  # an empty cell of a CSV file
        options["tools"] = to_python(read_structure(row["tools"], "tools", list))
    if row.get("chat_template_kwargs") not in (None, ""):
        options |= to_python(read_structure(row["chat_template_kwargs"], "chat_template_kwargs", dict))
    # Data may fill in a template, but neither replace it nor change what is made of its text.
    refused = sorted(options.keys() & _NOT_OF_THE_DATA)
    if refused:
        raise PreferenceFormatError(
            f"`chat_template_kwargs` sets {', '.join(refused)}, which is not for a row to decide. Remove it.",
            field="chat_template_kwargs",
        )
    return options


_NOT_OF_THE_DATA = {
    *("chat_template", "conversation", "tokenize", "add_generation_prompt", "continue_final_message"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "processor_kwargs"),
}


def read_structure(value: Any, name: str, kind: type) -> Any:
    """A list or dict, given as such or as JSON text."""
    with suppress(ValueError, RecursionError):  # text that is no JSON is refused below, with its field
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, kind):
        raise _refusal(name, f"must be a {kind.__name__} or its JSON", f", but is {_shown(value)}")
    return value


def read_list(value: Any, name: str) -> list[Any]:
    """A list, or the JSON of one, as CSV files hold it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = read_structure(value, name, list)
    if not isinstance(value, (list, tuple)):
        raise PreferenceFormatError(f"`{name}` must be a list, but is {_shown(value)}.", field=name)
    return list(value)


def read_number(value: Any, name: str) -> float:
    """A finite number, or the text of one, as CSV files hold it; a boolean is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        raise PreferenceFormatError(f"`{name}` must be a finite number, but is {_shown(value)}.", field=name)
    return float(value)


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_finite(value: float) -> bool:
    """Whether a number, of any size that JSON allows, is a finite float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _refusal(name: str, rule: str, found: str, cure: str = ".") -> PreferenceFormatError:
    """An error that says what a field must be, what of the data it is (which a server does not repeat), and a cure."""
    return PreferenceFormatError(f"`{name}` {rule}{found}{cure}", field=name, repeats=found)


def _shown(value: Any) -> str:
    """A value in a message; Python refuses to write integers of thousands of digits."""
    try:
        return repr(value[:80] if isinstance(value, str | list) else value)[:80]
    except ValueError:
        return "an integer of thousands of digits"


def read_probability(value: Any) -> float:
    """A number in [0, 1]."""
    probability = read_number(value, "probability")
    if not 0 <= probability <= 1:
        raise PreferenceFormatError(f"`probability` must be in [0, 1], but is {probability}.", field="probability")
    return probability


def require_same_length(values: Sequence[Any], responses: Sequence[Any], name: str) -> None:
    """Stop where a list does not have one entry for each response."""
    if len(values) != len(responses):
        raise PreferenceFormatError(
            f"`{name}` has {len(values)} entries but `responses` has {len(responses)}. Give one per response"
            + (" (0 = best, equal = tie)." if name == "ranks" else "."),
            field=name,
        )


def read_ranks(value: Any, responses: Sequence[Any]) -> list[int]:
    """Ranks of responses without gaps, 0 is best."""
    ranks = read_list(value, "ranks")
    require_same_length(ranks, responses, "ranks")
    for rank in ranks:
        read_number(rank, "ranks")
    return dense_ranks(ranks)
