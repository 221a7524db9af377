"""Fields of a benchmark's rows -> checked values; errors name the field."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_reward.data.preference_row import Prompt


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text, possibly empty, because benchmarks contain empty responses on purpose."""
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be text, but is {_kind(value)}. Correct the file, or use the official one.")
    return value


def texts(row: Mapping[str, Any], name: str, *, least: int = 1) -> list[str]:
    """Return a list of texts."""
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"`{name}` must be a list of texts, but is {_kind(value)}. Use the official file.")
    if len(value) < least:
        raise ValueError(f"`{name}` needs {least} or more texts, but has {len(value)}. Use the official file.")
    return value


def answer(row: Mapping[str, Any], name: str) -> str:
    """Return the text of an answer in the form `{"llm_name": ..., "answer": ...}`."""
    value = row[name]
    if not isinstance(value, Mapping) or not isinstance(value.get("answer"), str):
        raise ValueError(f"`{name}` must be an object with the text `answer`, but is {_kind(value)}.")
    return value["answer"]


def turns(row: Mapping[str, Any], name: str) -> Prompt:
    """Return a prompt: text, or messages with role and content."""
    value = row[name]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(_is_message(each) for each in value):
        raise ValueError(f"`{name}` must be text or messages with `role` and `content`, but is {_kind(value)}.")
    return [{"role": each["role"], "content": each["content"]} for each in value]


def image_prompt(question: str, image: Any) -> Prompt:
    """Return a user turn with an image before the question, or in the place of its `<image>`."""
    from hf_reward.data.images import with_references  # noqa: PLC0415 - not for texts

    return with_references({"prompt": question, "image": image})["prompt"]


def one_of(value: Any, name: str, allowed: Sequence[Any]) -> Any:
    """Return a value that must be one of `allowed`."""
    value = next((each for each in allowed if isinstance(each, int) and value == str(each)), value)  # from a CSV file
    if isinstance(value, bool) or value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"`{name}` must be one of {listed}, but is {value!r}. Correct the file, or use other data.")
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
