"""Edits of the images of a prompt. Imported only for rows with images."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from PIL import Image

from hf_reward.data.image_messages import images_in, with_images
from hf_reward.data.image_source import ImageSource, image_source
from hf_reward.data.preference_row import Message


def exchanged(messages: Sequence[Message], other: Sequence[Message]) -> list[Message] | None:
    """Replace the images of a prompt by those of another one, which are repeated if they are fewer.

    Args:
        messages: The prompt.
        other: A prompt with images.

    Returns:
        A new prompt; None if the prompts share an image.
    """
    own, others = images_in(messages), images_in(other)
    if not set(own).isdisjoint(others):
        return None
    return with_images(messages, [source for source, _ in zip(cycle(others), own, strict=False)])


def noised(messages: Sequence[Message]) -> list[Message]:
    """Replace the images of a prompt by noise of the same sizes.

    Args:
        messages: The prompt.

    Returns:
        A new prompt.

    Raises:
        PreferenceFormatError: If an image cannot be decoded.
    """
    return with_images(messages, [noise_like(source) for source in images_in(messages)])


def noise_like(source: ImageSource) -> ImageSource:
    """Return an image of the same size whose pixels are black or white at random, the same one in every audit.

    One bit per pixel keeps the noise for the largest accepted image small.

    Args:
        source: The image.

    Returns:
        The noise.

    Raises:
        PreferenceFormatError: If the image cannot be decoded.
    """
    width, height = source.decode().size
    random = np.random.default_rng(int(source.sha256, 16))
    noise = Image.frombytes("1", (width, height), random.bytes((width + 7) // 8 * height))
    return image_source(noise)
