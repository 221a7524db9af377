"""Images in the messages of a row: where their bytes are, which image they are, and their place in the text.

In a raw row, an image is a part of a message's content or a value of the column `image` or `images`. In a canonical
row, the content is text in which a reference stands for each image, and the message has the images under
`image_sources`. So every function of texts also works for rows with images, and texts with different images differ.

Images are identified by a hash of their encoded bytes. The header is checked before an image is decoded.
"""

import base64
import binascii
import hashlib
import io
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_reward.data.fields import is_image_part
from hf_reward.data.preference_row import Message, PreferenceFormatError, PreferenceRow
from hf_reward.data.python_values import to_python
from hf_reward.data.row_text import REFERENCE
from hf_reward.metrics.counts import counted

SOURCES = "image_sources"
"""Key of a message with the `ImageSource` of each reference in its content."""
MAX_BYTES = 32 * 2**20
"""Largest encoded image."""
MAX_PIXELS = 64 * 10**6
"""Largest width times height. A larger image is not decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted encodings. The first frame of an animation is used."""

# These code points are reserved for internal use, so that no text contains them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_COLUMNS = ("images", "image")
_MESSAGES = ("prompt", "chosen", "rejected", "messages", "response", "response_a", "response_b")
_PLACEHOLDER = "<image>"
_REMEDY = "Correct or drop the row."


@dataclass(frozen=True)
class ImageSource:
    """An encoded image."""

    sha256: str
    """Hash of the encoded bytes, which identifies the image."""
    path: str | None = field(default=None, compare=False)
    """File with the bytes, if they are not in `content`."""
    content: bytes | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.sha256

    @property
    def key(self) -> str:
        """Name under which features of the image are stored."""
        return self.sha256

    @property
    def reference(self) -> str:
        """The text that stands for the image in a message."""
        return f"{_OPEN}{self.sha256}{_CLOSE}"

    def decode(self) -> Image.Image:
        """Decode the image, upright and in RGB.

        Returns:
            The image.

        Raises:
            PreferenceFormatError: If the file has changed, or is no image of `FORMATS` with at most `MAX_PIXELS`.
        """
        data = _read_file(str(self.path)) if self.content is None else self.content
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise _error(f"the image {self.path} has changed since it was read. Do not change images during a run")
        return decode_image(data)


@dataclass(frozen=True)
class ExpandedImage(ImageSource):
    """An image and the text with which the processor of a model replaces its placeholder."""

    placeholder: str = field(default="", compare=False)
    text: str = field(default="", compare=False)
    tokens: int = field(default=0, compare=False)
    """Number of image tokens in the text."""
    grid_rows: int = field(default=0, compare=False)
    """Rows of its image tokens, if the model's positions have three axes; else 0."""
    grid_columns: int = field(default=0, compare=False)
    several: bool = False
    """Whether the conversation has other images and the processor therefore treats this one differently."""

    @property
    def key(self) -> str:
        """Name under which features of the image are stored."""
        return f"{self.sha256}-several" if self.several else self.sha256


def decode_image(data: bytes) -> Image.Image:
    """Decode an image, upright and in RGB.

    Args:
        data: The encoded image.

    Returns:
        The image.

    Raises:
        PreferenceFormatError: If it is no image of `FORMATS`, is truncated, or has more than `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads only the header
    except UnidentifiedImageError:
        raise _error(f"an image must be one of {', '.join(FORMATS)}, but is not") from None
    except Exception as error:  # damaged headers raise errors of many types, which depend on the format
        raise _error(f"an image cannot be decoded ({error})") from None
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Return an image upright and in RGB, after a check of its size."""
    if image.width * image.height > MAX_PIXELS:
        raise _error(
            f"an image must have at most {MAX_PIXELS:,} pixels, but has {image.width:,} x {image.height:,}. Make it "
            "smaller"
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # damaged files raise errors of many types, which depend on the format
        raise _error(f"an image cannot be decoded ({error})") from None


def image_source(value: Any, *, local_files: bool = True, folder: str | Path = "") -> ImageSource:
    """Make the source of an image from a value of a row.

    Args:
        value: A path, a data URL, encoded bytes, a `PIL.Image.Image`, or a mapping with `bytes` or `path` as in
            `datasets`.
        local_files: Whether paths are accepted.
        folder: Folder to which paths are relative; by default the working directory.

    Returns:
        The source.

    Raises:
        PreferenceFormatError: If the value is no image, the file cannot be read, or the image is too large.
    """
    if isinstance(value, ImageSource):
        return value
    if isinstance(value, Mapping):
        inside = value.get("bytes")
        value = value.get("path") if inside is None else inside
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _of_bytes(bytes(value))
    if isinstance(value, Image.Image):
        encoded = io.BytesIO()
        _upright(value).save(encoded, "PNG")  # PNG has neither the orientation of a photo nor modes such as CMYK
        return _of_bytes(encoded.getvalue())
    if isinstance(value, Path) or (isinstance(value, str) and value):
        return _of_text(str(value), local_files, folder)
    raise _error(f"an image must be a path, bytes or an image, but is {type(value).__name__}")


def _of_bytes(data: bytes) -> ImageSource:
    if len(data) > MAX_BYTES:
        raise _error(f"an image must have at most {MAX_BYTES:,} bytes, but has {len(data):,}. Make it smaller")
    return ImageSource(hashlib.sha256(data).hexdigest(), content=data)


def _of_text(value: str, local_files: bool, folder: str | Path) -> ImageSource:
    start, comma, data = value.partition(",")
    if start.startswith("data:") and comma:
        if not start.endswith(";base64") or len(data) > 4 * MAX_BYTES // 3 + 4:
            raise _error(f"a data URL must be encoded in base64 and have at most {MAX_BYTES:,} bytes")
        try:
            return _of_bytes(base64.b64decode(data, validate=True))
        except binascii.Error:
            raise _error("a data URL has invalid base64") from None
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", value):
        raise _error("an image must not be a URL, because nothing is downloaded. Download it and pass its path", value)
    if not local_files:
        raise _error("an image must be a data URL", value)
    path = str(Path(folder, value).absolute())
    return ImageSource(hashlib.sha256(_read_file(path)).hexdigest(), path=path)


def _read_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe or a device may never end
            raise _error(f"the image {path} must be a file, but is not")
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except PreferenceFormatError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _error(f"the image {path} cannot be read ({reason})") from None
    if len(data) > MAX_BYTES:
        raise _error(f"an image must have at most {MAX_BYTES:,} bytes, but {path} has more. Make it smaller")
    return data


# --- raw rows --------------------------------------------------------------------------------------------------------


def has_images(row: Mapping[str, Any]) -> bool:
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
    for name in _COLUMNS:
        value = row.get(name)
        values = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if any(map(_looks_like_an_image, values)):
            return values
    return []


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
        return _data_url(image_source(value).content or b"")
    if isinstance(value, Mapping):
        return {name: _storable(part, is_image or is_image_part(value)) for name, part in value.items()}
    return [_storable(part, is_image) for part in value] if isinstance(value, (list, tuple)) else value


def _data_url(data: bytes) -> str:
    return f"data:image/*;base64,{base64.b64encode(data).decode()}"


def undecoded(data: Any) -> Any:
    """Return a dataset whose images are read as encoded bytes or paths, not decoded by `datasets`.

    `datasets` decodes an image without a limit of its size and stops at a broken one.

    Args:
        data: A dataset or a stream of `datasets`.

    Returns:
        The dataset; the same object if it has no column of images.
    """
    for name, feature in (data.features or {}).items():
        if (encoded := _undecoded(feature)) != feature:
            data = data.cast_column(name, encoded)
    return data


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return {name: _undecoded(part) for name, part in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


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
        result.append({**turn, "content": "".join(texts), SOURCES: sources})
    unused = len(list(left))
    if unused:
        raise _error(
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
        raise _error("an image part has no image, and the column `images` has none for it")
    return image_source(value, local_files=local_files)


def _text_of(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise _error("a message with images must have parts of type `text` and `image` only")
    return _checked(text)


def _checked(text: str) -> str:
    if _OPEN in text or _CLOSE in text:
        raise _error("the text has a code point that is reserved for references to images (U+FDD0 or U+FDD1)")
    return text


def _in_prompt(row: Mapping[str, Any], sources: list[ImageSource]) -> dict[str, Any]:
    """Place images in the user turns of a row whose messages have no image parts."""
    prompt = to_python(row.get("prompt"))
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    given = {"prompt": prompt} if prompt else {name: row.get(name) for name in ("chosen", "rejected", "messages")}
    conversations = {name: turns for name, turns in given.items() if isinstance(turns, (list, tuple))}
    if not conversations:
        raise _error("a row with images must have a prompt, but has none")
    return {name: _with_images(turns, sources) for name, turns in conversations.items()}


def _with_images(turns: Sequence[Any], sources: list[ImageSource]) -> list[Any]:
    texts = {place: _user_text(turn) for place, turn in enumerate(turns) if _is_user(turn)}
    if not texts:
        raise _error("a row with images must have a user turn in its prompt, but has none")
    count = sum(text.count(_PLACEHOLDER) for text in texts.values())
    if count not in (0, len(sources)):
        raise _error(
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
            result[place] = {**turns[place], "content": content, SOURCES: own}
    return result


def _is_user(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("role") == "user" and turn.get("content") is not None


def _user_text(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    if isinstance(content, (list, tuple)):
        return "".join(map(_text_of, content))
    if not isinstance(content, str):
        raise _error(f"the content of a user turn must be text, but is {type(content).__name__}")
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
        raise _error("a row must have no `video`, because videos are not supported, but has one", str(row["video"]))
    texts = ("question", "chosen", "rejected")
    if row.get("prompt") is None and all(isinstance(row.get(name), str) for name in texts):
        return {name: value for name, value in row.items() if name != "question"} | {"prompt": row["question"]}
    return dict(row)


# --- canonical rows --------------------------------------------------------------------------------------------------


def images_of(row: PreferenceRow) -> list[ImageSource]:
    """Return the images of a canonical row's prompt, in the order of their references."""
    if isinstance(row.prompt, str):
        return []
    return images_in(row.prompt)


def images_in(messages: Sequence[Message]) -> list[ImageSource]:
    """Return the images of messages, in the order of their references."""
    return [source for message in messages for source in message.get(SOURCES, ())]


def with_images(messages: Sequence[Message], sources: Sequence[ImageSource]) -> list[Message]:
    """Replace the images of messages.

    Args:
        messages: Messages; they are not changed.
        sources: As many images as the messages have, in the order of their references.

    Returns:
        The messages with the new references and images.
    """
    left = iter(sources)
    result: list[Message] = []
    for message in messages:
        own = [next(left) for _ in message.get(SOURCES, ())]
        references = iter([source.reference for source in own])
        content = REFERENCE.sub(lambda _, new=references: next(new), message["content"]) if own else None
        result.append({**message, "content": content, SOURCES: own} if own else message)
    return result


def as_raw(messages: Sequence[Message]) -> list[Message]:
    """Return messages as in a raw row: messages with images have parts, and each image is a path or a data URL."""
    result: list[Message] = []
    for message in messages:
        left, raw = iter(message.get(SOURCES, ())), as_parts(message)
        if raw is not message:
            parts = raw["content"]
            images = [{**part, "image": _raw_image(next(left))} if part["type"] == "image" else part for part in parts]
            raw = {**raw, "content": images}
        result.append(raw)
    return result


def _raw_image(source: ImageSource) -> str:
    return _data_url(source.content or b"") if source.path is None else source.path


def as_parts(message: Message) -> Message:
    """Return a message whose references are parts of type `image` again, as chat templates expect."""
    if not message.get(SOURCES):
        return message
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(REFERENCE.split(message["content"])):
        if place % 2:
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return {name: value for name, value in message.items() if name != SOURCES} | {"content": parts}


def _error(rule: str, found: str = "") -> PreferenceFormatError:
    repeats = f": {found[:80]!r}" if found else ""
    return PreferenceFormatError(f"{rule[0].upper()}{rule[1:]}{repeats}. {_REMEDY}", field="images", repeats=repeats)
