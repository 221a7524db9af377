"""Raw rows with images -> rows whose messages have references to them.

In a raw row, an image is a part of a message's content or a value of the column `image` or `images`. In a canonical
row, the content is text in which a reference stands for each image, and the message has the images under
`image_sources`. So every function of texts also works for rows with images, and texts with different images differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from hf_reward.data.fields import is_image_part
from hf_reward.data.image_messages import data_url
from hf_reward.data.image_source import CLOSE, OPEN, ImageSource, image_error, image_source
from hf_reward.data.preference_row import IMAGE_SOURCES
from hf_reward.data.python_values import to_python
from hf_reward.metrics.counts import counted

_COLUMNS = ("images", "image")
_MESSAGES = ("prompt", "chosen", "rejected", "messages", "response", "response_a", "response_b")
_PLACEHOLDER = "<image>"


def needs_references(row: Mapping[str, Any]) -> bool:
    """Return whether a raw row has image parts, or a column of images, so that `with_references` applies."""
    return bool(_column(row)) or any(_has_parts(row.get(name)) for name in _MESSAGES) or _has_parts_inside(row)


def with_references(row: Mapping[str, Any], *, local_files: bool = True) -> dict[str, Any]:
    """Replace the images of a raw row by references in its messages.

    Parts of type `image` and `image_url` are replaced where they are; a part without an image takes the next one of the
    column. If no message has such a part, the images of the column replace `<image>` in the user turns of the prompt,
    which must have as many, or come before the first user turn if none has it.

    Args:
        row: A raw row; it is not changed.
        local_files: Whether paths are accepted.

    Returns:
        A row whose prompt is messages with `image_sources`, without the column.

    Raises:
        PreferenceFormatError: If an image cannot be read, or there are too few or too many.
    """
    given = _column(row)
    sources = [image_source(value, local_files=local_files) for value in given]
    result = {name: value for name, value in row.items() if not (given and name in _COLUMNS)}
    found = False
    for name in (name for name in _MESSAGES if _has_parts(row.get(name))):
        result[name], found = _turns(row[name], sources, local_files), True
    if _has_parts_inside(row):
        responses = [_turns(each, sources, local_files) if _has_parts(each) else each for each in row["responses"]]
        result["responses"], found = responses, True
    if sources and not found:
        result |= _in_prompt(row, sources)
    return result


def _column(row: Mapping[str, Any]) -> list[Any]:
    """Return the images of the column, or none if its values are of another kind (such as links)."""
    found = {name: values for name in _COLUMNS if (values := _values_of(row, name))}
    if len(found) > 1:
        raise image_error("a row must have its images in one column, but has `images` and `image`")
    return next(iter(found.values()), [])


def _values_of(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    values = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return values if any(map(_looks_like_an_image, values)) else []


def _looks_like_an_image(value: Any) -> bool:
    if isinstance(value, str):
        suffix = value.lower().rpartition(".")[2]
        return value.startswith("data:image/") or suffix in ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    return isinstance(value, (bytes, bytearray, Image.Image, ImageSource, Path))


def storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose images in memory are data URLs, because a table cannot hold all their forms.

    Args:
        row: A raw row; it is not changed.

    Returns:
        A row with paths and data URLs.
    """
    return {name: _storable(value, name in _COLUMNS) for name, value in row.items()}


def _storable(value: Any, is_image: bool) -> Any:
    if isinstance(value, Image.Image) or (is_image and isinstance(value, (bytes, bytearray, memoryview))):
        return data_url(image_source(value).content or b"")
    if isinstance(value, Mapping):
        return {name: _storable(part, is_image or is_image_part(value)) for name, part in value.items()}
    return [_storable(part, is_image) for part in value] if isinstance(value, (list, tuple)) else value


def _has_parts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(
        isinstance(turn, Mapping) and any(map(is_image_part, _parts(turn))) for turn in value
    )


def _has_parts_inside(row: Mapping[str, Any]) -> bool:
    responses = row.get("responses")
    return isinstance(responses, (list, tuple)) and any(map(_has_parts, responses))


def _parts(turn: Mapping[str, Any]) -> Sequence[Any]:
    content = turn.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _turns(turns: Sequence[Any], column: Sequence[ImageSource], local_files: bool) -> list[Any]:
    """Return the turns of a conversation with references. Parts without an image take all images of the column."""
    left = iter(column)
    result = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not any(map(is_image_part, _parts(turn))):
            result.append(turn)
            continue
        texts, sources = [], []
        for part in _parts(turn):
            if is_image_part(part):
                sources.append(_of_part(part, left, local_files))
                texts.append(sources[-1].reference)
            else:
                texts.append(_text_of(part))
        result.append({**turn, "content": "".join(texts), IMAGE_SOURCES: sources})
    unused = len(list(left))
    if unused:
        raise image_error(
            f"the column has {counted(len(column), 'image')}, but the messages have "
            f"{counted(len(column) - unused, 'image part')} without one"
        )
    return result


def _of_part(part: Mapping[str, Any], column: Iterator[ImageSource], local_files: bool) -> ImageSource:
    value: Any = next(
        (part[name] for name in ("image", "image_url", "url", "path") if part.get(name) is not None), None
    )
    if isinstance(value, Mapping) and value.get("url") is not None:
        value = value["url"]
    if value is None:
        value = next(column, None)
    if value is None:
        raise image_error("an image part has no image, and the column `images` has none for it")
    return image_source(value, local_files=local_files)


def _text_of(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise image_error("a message with images must have parts of type `text` and `image` only")
    return _checked(text)


def _checked(text: str) -> str:
    if OPEN in text or CLOSE in text:
        raise image_error("the text has a code point that is reserved for references to images (U+FDD0 or U+FDD1)")
    return text


def _in_prompt(row: Mapping[str, Any], sources: list[ImageSource]) -> dict[str, Any]:
    """Place images in the user turns of a row whose messages have no image parts."""
    prompt = to_python(row.get("prompt"))
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    given = {"prompt": prompt} if prompt else {name: row.get(name) for name in ("chosen", "rejected", "messages")}
    conversations = {name: turns for name, turns in given.items() if isinstance(turns, (list, tuple))}
    if not conversations:
        raise image_error("a row with images must have a prompt, but has none")
    return {name: _with_images(turns, sources) for name, turns in conversations.items()}


def _with_images(turns: Sequence[Any], sources: list[ImageSource]) -> list[Any]:
    texts = {place: _user_text(turn) for place, turn in enumerate(turns) if _is_user(turn)}
    if not texts:
        raise image_error("a row with images must have a user turn in its prompt, but has none")
    count = sum(text.count(_PLACEHOLDER) for text in texts.values())
    if count not in (0, len(sources)):
        raise image_error(
            f"the prompt must have `{_PLACEHOLDER}` once for each of its {counted(len(sources), 'image')}, or not at "
            f"all, but has it {counted(count, 'time')}"
        )
    if not count:
        first = min(texts)
        texts = {first: _PLACEHOLDER * len(sources) + texts[first]}
    left = iter(sources)
    result = list(turns)
    for place, text in texts.items():
        own = list(islice(left, text.count(_PLACEHOLDER)))
        if own:
            pieces = zip(text.split(_PLACEHOLDER), [*(source.reference for source in own), ""], strict=True)
            content = "".join(part for pair in pieces for part in pair)
            result[place] = {**turns[place], "content": content, IMAGE_SOURCES: own}
    return result


def _is_user(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("role") == "user" and turn.get("content") is not None


def _user_text(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    if isinstance(content, (list, tuple)):
        return "".join(map(_text_of, content))
    if not isinstance(content, str):
        raise image_error(f"the content of a user turn must be text, but is {type(content).__name__}")
    return _checked(content)


def as_layout(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a published layout with our column names.

    RLAIF-V has its prompt in `question`. MM-RLHF has rows with `video` instead of `image`.

    Args:
        row: A raw row with a column of images; it is not changed.

    Returns:
        A row with `prompt`.

    Raises:
        PreferenceFormatError: If the row has a video.
    """
    if row.get("video"):
        raise image_error(
            "a row must have no `video`, because videos are not supported, but has one", str(row["video"])
        )
    texts = ("question", "chosen", "rejected")
    if row.get("prompt") is None and all(isinstance(row.get(name), str) for name in texts):
        return {name: value for name, value in row.items() if name != "question"} | {"prompt": row["question"]}
    return dict(row)
