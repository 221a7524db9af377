"""Validate and convert the value of one field. Every error names the field, the value found and the remedy."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from hf_reward.data.interface import setting
from hf_reward.data.preference_row import Message, PreferenceFormatError, Prompt, Response, dense_ranks, has_images
from hf_reward.data.python_values import to_python, without_arrays

_ROLE = re.compile(r"(?=.{1,64}\Z)[\w.-]+( [\w.-]+)*")
"""Templates print roles unescaped, so a role with a line break or delimiter could start a new turn."""


def read_text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """Validate text, which must not be blank unless `may_be_empty`."""
    if not isinstance(value, str):
        raise _error(name, f"must be text, but is {_kind(value)}", _detail(value), ". Correct or drop the row.")
    if not may_be_empty and not value.strip():
        raise PreferenceFormatError(f"`{name}` is empty. Correct or drop the row.", field=name)
    return _require_utf8(value, name)


def _require_utf8(value: str, name: str) -> str:
    """Refuse text that cannot be encoded as UTF-8, because tokenizers fail on it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(value[error.start])
        raise PreferenceFormatError(
            f"`{name}` must be valid Unicode, but has a lone surrogate (U+{surrogate:04X}), which is half a character. "
            "Correct or drop the row.",
            field=name,
        ) from None
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    # Bytes that are UTF-8 have been decoded before.
    return "binary data that is not UTF-8" if isinstance(value, bytes) else type(value).__name__


def read_messages(value: Any, name: str) -> list[Message]:
    """Validate messages, which must have a role and text."""
    if not isinstance(value, list) or not value:
        rule = f"must be text or a non-empty list of messages, but is {_kind(value)}"
        raise _error(name, rule, _detail(value), ". Correct or drop the row.")
    return [_read_message(message, name) for message in value]


def _read_message(message: Any, name: str) -> Message:
    """Return a message with its content joined into one text, or null if it has only tool calls (see `render_chat`)."""
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        if not _ROLE.fullmatch(message["role"]):
            rule = "has a role that is not made of 1 to 64 letters, digits, single spaces, `_`, `-` and `.`"
            raise _error(name, rule, f": {_shown(message['role'])}", ". Correct or drop the row.")
        if "image_sources" in message and not _are_sources(message["image_sources"]):
            rule = "must not have messages with `image_sources`, which is a reserved key"
            raise _error(name, rule, "", ". Remove it, or rename it.")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            return {**message, "content": None}
        if isinstance(content, list):
            content = _joined_parts(content, name)
        if isinstance(content, str):
            return {**message, "content": content}
    rule = "must be messages with `role` and `content` as text (or `tool_calls`)"
    raise _error(name, rule, f", but has {_shown(message)}", ". Correct or drop the row.")


def _are_sources(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(hasattr(image, "reference") for image in value)


def _joined_parts(parts: list[Any], name: str) -> str:
    """Join text parts without separator, as chat templates with support for parts do."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            found = f"a part of type {_shown(kind)}" if kind else _shown(part)
            rule = "must have only text parts ({'type': 'text', 'text': ...})"
            remedy = ", which a text model cannot process. Correct or drop the row."
            raise _error(name, rule, f", but has {found}", remedy)
        texts.append(text)
    return "".join(texts)


def is_image_part(part: Any) -> bool:
    """Return whether a part of a message's content is an image."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def may_have_images(row: Mapping[str, Any]) -> bool:
    """Return whether a raw row has a column of images or a message with image parts."""
    return "images" in row or "image" in row or any(map(_has_image_part, row.values()))


def _has_image_part(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], (Mapping, list, tuple)):
        return False  # such as a long list of token ids
    for turn in value:
        content = turn.get("content") if isinstance(turn, Mapping) else turn
        if isinstance(content, (list, tuple)) and (any(map(is_image_part, content)) or _has_image_part(content)):
            return True
    return False


def with_image_references(row: dict[str, Any], *, local_files: bool) -> dict[str, Any]:
    """Replace the images of a raw row by references in its messages: see `images.with_references`."""
    if any(isinstance(value, np.ndarray) for value in row.values()):  # such as batches of Ray Data
        row = {name: without_arrays(value) for name, value in row.items()}
    if not may_have_images(row):
        return row
    from hf_reward.data.images import as_layout, needs_references, with_references  # noqa: PLC0415 - not for texts

    row = as_layout(row)
    return with_references(row, local_files=local_files) if needs_references(row) else row


def require_no_images(responses: Sequence[Response]) -> None:
    """Refuse responses with images, which are supported in prompts only."""
    if any(map(has_images, responses)):
        raise PreferenceFormatError(
            "Only a prompt may have images, but a response has one. Correct or drop the row.", field="images"
        )


def require_decodable_images(prompt: Prompt) -> None:
    """Decode the images of a prompt, to find damaged ones before a run."""
    if not has_images(prompt):
        return
    from hf_reward.data.image_messages import images_in  # noqa: PLC0415 - not for texts

    for image in images_in(prompt):
        image.decode()


def column_example(name: str) -> str:
    """Return an example that maps a field to a column of the data, in the syntax of the interface in use."""
    return f"`{setting('columns', {name: 'your_column'})}`"


def prompt_of(row: Mapping[str, Any]) -> Any:
    """Return the raw prompt of a row whose layout requires one."""
    if "prompt" not in row:
        raise missing_column("prompt", row)
    return row["prompt"]


def missing_column(name: str, row: Mapping[str, Any]) -> PreferenceFormatError:
    """Return the error for a row that lacks a required column."""
    return PreferenceFormatError(
        f"`{name}` is missing. Columns found: {', '.join(map(str, row))}. If yours has a different name, map it with "
        f"{column_example(name)}.",
        field=name,
    )


def read_prompt(value: Any) -> Prompt:
    """Validate a prompt: messages or text, which may be empty."""
    if value is None:
        raise PreferenceFormatError(
            '`prompt` must be text or messages, but is null. Use "" for a row without a prompt, or drop the row.',
            field="prompt",
        )
    if isinstance(value, str):
        return _require_utf8(value, "prompt")
    return read_messages(value, "prompt") if value != [] else []


def is_blank(prompt: Prompt) -> bool:
    """Return whether a prompt has no text and no tool calls."""
    if isinstance(prompt, str):
        return not prompt.strip()
    return not any((message["content"] or "").strip() or message.get("tool_calls") for message in prompt)


def prompt_of_kind(prompt: Prompt, responses: Sequence[Any]) -> Prompt:
    """Convert a text prompt to messages if its responses are messages: one user turn, or none if it is blank."""
    if isinstance(prompt, str) and responses and all(isinstance(response, list) for response in responses):
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    return prompt


def read_response(value: Any, prompt: Prompt, name: str, *, may_be_empty: bool = False) -> Response:
    """Validate a response and convert it to the prompt's kind: text or messages."""
    if isinstance(prompt, str):
        return read_text(value, name, may_be_empty=may_be_empty)
    if isinstance(value, str):
        return [{"role": "assistant", "content": read_text(value, name, may_be_empty=may_be_empty)}]
    return read_conversation(value, name, may_be_empty=may_be_empty)


def read_conversation(value: Any, name: str, *, may_be_empty: bool = False) -> list[Message]:
    """Validate messages whose last content must not be blank unless `may_be_empty`."""
    messages = read_messages(value, name)
    if not messages[-1].get("tool_calls"):
        read_text(messages[-1].get("content"), name, may_be_empty=may_be_empty)
    return messages


def read_template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of the chat template, from the columns `tools` and `chat_template_kwargs`."""
    options: dict[str, Any] = {}
    if row.get("tools") not in (None, ""):  # an empty cell of a CSV file
        options["tools"] = to_python(read_structure(row["tools"], "tools", list))
    if row.get("chat_template_kwargs") not in (None, ""):
        options |= to_python(read_structure(row["chat_template_kwargs"], "chat_template_kwargs", dict))
    # Data may fill in a template, but must not replace it or change how its text is tokenised.
    refused = sorted(options.keys() & _NOT_PER_ROW)
    if refused:
        raise PreferenceFormatError(
            f"`chat_template_kwargs` must only set variables of the chat template, but sets {', '.join(refused)}. "
            "Remove it from the row.",
            field="chat_template_kwargs",
        )
    return options


_NOT_PER_ROW = {
    *("chat_template", "conversation", "tokenize", "add_generation_prompt", "continue_final_message"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "processor_kwargs"),
}


def read_structure(value: Any, name: str, kind: type) -> Any:
    """Validate a list or dict, which may be given as JSON text."""
    with suppress(ValueError, RecursionError):  # text that is not JSON is refused below, with its field
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, kind):
        rule = f"must be a {kind.__name__}, or JSON text of one"
        raise _error(name, rule, f", but is {_shown(value)}", ". Correct or drop the row.")
    return value


def read_list(value: Any, name: str) -> list[Any]:
    """Validate a list, which CSV files hold as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = read_structure(value, name, list)
    if not isinstance(value, (list, tuple)):
        raise PreferenceFormatError(
            f"`{name}` must be a list, but is {_shown(value)}. Correct or drop the row.", field=name
        )
    return list(value)


def read_number(value: Any, name: str) -> float:
    """Validate a finite number, which CSV files hold as text; booleans are refused."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        raise PreferenceFormatError(
            f"`{name}` must be a finite number, but is {_shown(value)}. Correct or drop the row.", field=name
        )
    return float(value)


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_finite(value: float) -> bool:
    """Return whether a number, which may be an integer of any size, is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _error(name: str, rule: str, found: str, remedy: str) -> PreferenceFormatError:
    """Return an error with a field's requirement, the data found (which a server does not echo) and the remedy."""
    return PreferenceFormatError(f"`{name}` {rule}{found}{remedy}", field=name, repeats=found)


def _detail(value: Any) -> str:
    return "" if value is None else f" {_shown(value)}"


def _shown(value: Any) -> str:
    """Return a short representation of a value. Python refuses to format integers of thousands of digits."""
    try:
        return repr(value[:80] if isinstance(value, str | list) else value)[:80]
    except ValueError:
        return "an integer of thousands of digits"


def read_probability(value: Any) -> float:
    """Validate a number in [0, 1]."""
    probability = read_number(value, "probability")
    if not 0 <= probability <= 1:
        raise PreferenceFormatError(
            f"`probability` must be in [0, 1], but is {probability}. Correct or drop the row.", field="probability"
        )
    return probability


def require_same_length(values: Sequence[Any], responses: Sequence[Any], name: str) -> None:
    """Refuse a list that does not have one entry per response."""
    if len(values) != len(responses):
        meaning = " (0 = best, equal = tie)" if name == "ranks" else ""
        raise PreferenceFormatError(
            f"`{name}` must have one entry per response{meaning}, but has {len(values)} for {len(responses)} "
            "`responses`. Correct or drop the row.",
            field=name,
        )


def read_ranks(value: Any, responses: Sequence[Any]) -> list[int]:
    """Validate the ranks of responses and return them without gaps, 0 is best."""
    ranks = read_list(value, "ranks")
    require_same_length(ranks, responses, "ranks")
    for rank in ranks:
        read_number(rank, "ranks")
    return dense_ranks(ranks)
