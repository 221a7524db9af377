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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from hf_reward.data.fields import is_image_part
from hf_reward.data.preference_row import Message, PreferenceFormatError, PreferenceRow
from hf_reward.data.row_text import REFERENCE

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
        if image.width * image.height > MAX_PIXELS:
            raise _error(
                f"an image must have at most {MAX_PIXELS:,} pixels, but has {image.width:,} x {image.height:,}. "
                "Make it smaller"
            )
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise _error(f"an image must be one of {', '.join(FORMATS)}, but is not") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _error(f"an image cannot be decoded ({error})") from None


def image_source(value: Any, *, local_files: bool = True) -> ImageSource:
    """Make the source of an image from a value of a row.

    Args:
        value: A path, a data URL, encoded bytes, a `PIL.Image.Image`, or a mapping with `bytes` or `path` as in
            `datasets`.
        local_files: Whether paths are accepted.

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
        value.save(encoded, "PNG")
        return _of_bytes(encoded.getvalue())
    if isinstance(value, Path) or (isinstance(value, str) and value):
        return _of_text(str(value), local_files)
    raise _error(f"an image must be a path, bytes or an image, but is {type(value).__name__}")


def _of_bytes(data: bytes) -> ImageSource:
    if len(data) > MAX_BYTES:
        raise _error(f"an image must have at most {MAX_BYTES:,} bytes, but has {len(data):,}. Make it smaller")
    return ImageSource(hashlib.sha256(data).hexdigest(), content=data)


def _of_text(value: str, local_files: bool) -> ImageSource:
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
    return ImageSource(hashlib.sha256(_read_file(value)).hexdigest(), path=str(Path(value).absolute()))


def _read_file(path: str) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise _error(f"an image must have at most {MAX_BYTES:,} bytes, but {path} has {size:,}. Make it smaller")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _error(f"the image {path} cannot be read ({reason})") from None


# --- raw rows --------------------------------------------------------------------------------------------------------


def has_images(row: Mapping[str, Any]) -> bool:
    """Return whether a raw row has image parts, or a column of images, so that `with_references` applies."""
    return bool(_column(row)) or any(_has_parts(row.get(name)) for name in _MESSAGES) or _has_parts_inside(row)


def with_references(row: Mapping[str, Any], *, local_files: bool = True) -> dict[str, Any]:
    """Replace the images of a raw row by references in its messages.

    Parts of type `image` and `image_url` are replaced where they are; a part without an image takes the next one of the
    column. If no message has such a part, the images of the column replace `<image>` in the prompt if it has as many,
    else they come before the prompt.

    Args:
        row: A raw row; it is not changed.
        local_files: Whether paths are accepted.

    Returns:
        A row whose prompt is messages with `image_sources`, without the column.

    Raises:
        PreferenceFormatError: If an image cannot be read, there are too few or too many, or a response has one.
    """
    given = _column(row)
    sources = [image_source(value, local_files=local_files) for value in given]
    result = {name: value for name, value in row.items() if not (given and name in _COLUMNS)}
    found = 0
    for name in (name for name in _MESSAGES if _has_parts(row.get(name))):
        result[name], used = _turns(row[name], sources, local_files)
        if given and used != len(sources):
            raise _error(f"the row has {len(sources)} images, but its messages have {used} image parts")
        found += 1
    if isinstance(row.get("responses"), (list, tuple)) and any(map(_has_parts, row["responses"])):
        raise _in_response()
    if sources and not found:
        result |= _in_prompt(row, sources)
    for name in ("chosen", "rejected", "response", "response_a", "response_b", "messages"):
        value = result.get(name)
        turns = value if isinstance(value, list) else []
        if turns and isinstance(turns[-1], Mapping) and turns[-1].get(SOURCES):
            raise _in_response()
    return result


def _in_response() -> PreferenceFormatError:
    return _error("only a prompt may have images, but a response has one")


def _column(row: Mapping[str, Any]) -> list[Any]:
    """Return the images of the column, or none if its values are of another kind (such as links)."""
    for name in _COLUMNS:
        value = row.get(name)
        values = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if values and all(map(_looks_like_an_image, values)):
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
    return {name: _storable(value) for name, value in row.items()}


def _storable(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview, Image.Image)):
        data = image_source(value).content
        return f"data:image/*;base64,{base64.b64encode(data or b'').decode()}"
    if isinstance(value, Mapping):
        return {name: _storable(part) for name, part in value.items()}
    return [_storable(part) for part in value] if isinstance(value, (list, tuple)) else value


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


def _turns(turns: Sequence[Any], column: Sequence[ImageSource], local_files: bool) -> tuple[list[Any], int]:
    """Return the turns of a conversation with references, and the number of images taken from the column."""
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
    return result, len(column) - len(list(left))


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
    """Place images in the first user turn of a row whose messages have no image parts."""
    name = next((name for name in ("prompt", "chosen", "messages") if row.get(name) is not None), None)
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return {"prompt": [_first_turn({"role": "user", "content": prompt}, sources)]}
    if isinstance(prompt, (list, tuple)) and prompt:
        return {"prompt": _with_first_turn(prompt, sources)}
    if name in ("chosen", "messages") and isinstance(row[name], (list, tuple)):
        names = ("chosen", "rejected") if name == "chosen" else ("messages",)
        return {
            each: _with_first_turn(row[each], sources) for each in names if isinstance(row.get(each), (list, tuple))
        }
    raise _error("a row with images needs a prompt")


def _with_first_turn(turns: Sequence[Any], sources: list[ImageSource]) -> list[Any]:
    for place, turn in enumerate(turns):
        if isinstance(turn, Mapping) and turn.get("role") == "user" and isinstance(turn.get("content"), str):
            return [*turns[:place], _first_turn(turn, sources), *turns[place + 1 :]]
    raise _error("a row with images needs a user turn with text in its prompt")


def _first_turn(turn: Mapping[str, Any], sources: list[ImageSource]) -> Message:
    content = _checked(turn["content"])
    if content.count(_PLACEHOLDER) == len(sources):
        left = iter(sources)
        content = re.sub(_PLACEHOLDER, lambda _: next(left).reference, content)
    else:
        content = "".join(source.reference for source in sources) + content
    return {**turn, "content": content, SOURCES: sources}


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
    return _storable(source.content) if source.path is None else source.path


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
