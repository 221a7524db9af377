"""Messages of canonical rows whose images are references in their texts, with the images under `image_sources`."""

import base64
from collections.abc import Sequence

from hf_reward.data.image_source import ImageSource
from hf_reward.data.preference_row import IMAGE_SOURCES, Message, PreferenceRow
from hf_reward.data.row_text import REFERENCE


def images_of(row: PreferenceRow) -> list[ImageSource]:
    """Return the images of a canonical row's prompt, in the order of their references."""
    if isinstance(row.prompt, str):
        return []
    return images_in(row.prompt)


def images_in(messages: Sequence[Message]) -> list[ImageSource]:
    """Return the images of messages, in the order of their references."""
    return [source for message in messages for source in message.get(IMAGE_SOURCES, ())]


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
        own = [next(left) for _ in message.get(IMAGE_SOURCES, ())]
        references = iter([source.reference for source in own])
        content = REFERENCE.sub(lambda _, new=references: next(new), message["content"]) if own else None
        result.append({**message, "content": content, IMAGE_SOURCES: own} if own else message)
    return result


def as_raw(messages: Sequence[Message], *, paths: bool = True) -> list[Message]:
    """Return messages as in a raw row: messages with images have parts, and each image is a path or a data URL.

    Args:
        messages: Messages; they are not changed.
        paths: Whether images in files become paths; otherwise all are data URLs.

    Returns:
        The messages.
    """
    result: list[Message] = []
    for message in messages:
        left, raw = iter(message.get(IMAGE_SOURCES, ())), as_parts(message)
        if raw is not message:
            parts = raw["content"]
            images = [
                {**part, "image": _raw_image(next(left), paths)} if part["type"] == "image" else part for part in parts
            ]
            raw = {**raw, "content": images}
        result.append(raw)
    return result


def _raw_image(source: ImageSource, paths: bool) -> str:
    return source.path if paths and source.path is not None else data_url(source.encoded())


def as_parts(message: Message) -> Message:
    """Return a message whose references are parts of type `image` again, as chat templates expect."""
    if not message.get(IMAGE_SOURCES):
        return message
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(REFERENCE.split(message["content"])):
        if place % 2:
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return {name: value for name, value in message.items() if name != IMAGE_SOURCES} | {"content": parts}


def data_url(data: bytes) -> str:
    """Return an encoded image as data URL."""
    return f"data:image/*;base64,{base64.b64encode(data).decode()}"
