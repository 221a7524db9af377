"""Images in memory and in files: where their bytes are, and which image they are.

Images are identified by a hash of their encoded bytes. The header is checked before an image is decoded.
"""

import base64
import binascii
import hashlib
import io
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DownloadManager
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_reward.data.preference_row import PreferenceFormatError

MAX_BYTES = 32 * 2**20
"""Largest encoded image."""
MAX_PIXELS = 64 * 10**6
"""Largest width times height. A larger image is not decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted encodings. The first frame of an animation is used."""
ALLOW_URLS = "HF_REWARD_ALLOW_IMAGE_URLS"
"""Environment variable that allows downloads, if it is 1. A server never downloads what its clients name."""

# These code points are reserved for internal use, so that no text contains them.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


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
        return f"{OPEN}{self.sha256}{CLOSE}"

    def encoded(self) -> bytes:
        """Return the encoded bytes.

        Returns:
            The bytes in memory or in the file.

        Raises:
            PreferenceFormatError: If the file cannot be read, or has changed.
        """
        data = _read_file(str(self.path)) if self.content is None else self.content
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise image_error(f"the image {self.path} has changed since it was read. Do not change images during a run")
        return data

    def decode(self) -> Image.Image:
        """Decode the image, upright and in RGB.

        Returns:
            The image.

        Raises:
            PreferenceFormatError: If the file has changed, or is no image of `FORMATS` with at most `MAX_PIXELS`.
        """
        return decode_image(self.encoded())


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
        raise image_error(f"an image must be one of {', '.join(FORMATS)}, but is not") from None
    except Exception as error:  # damaged headers raise errors of many types, which depend on the format
        raise image_error(f"an image cannot be decoded ({error})") from None
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Return an image upright and in RGB, after a check of its size."""
    if image.width * image.height > MAX_PIXELS:
        raise image_error(
            f"an image must have at most {MAX_PIXELS:,} pixels, but has {image.width:,} x {image.height:,}. Make it "
            "smaller"
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # damaged files raise errors of many types, which depend on the format
        raise image_error(f"an image cannot be decoded ({error})") from None


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
    raise image_error(f"an image must be a path, bytes or an image, but is {type(value).__name__}")


def _of_bytes(data: bytes) -> ImageSource:
    if len(data) > MAX_BYTES:
        raise image_error(f"an image must have at most {MAX_BYTES:,} bytes, but has {len(data):,}. Make it smaller")
    return ImageSource(hashlib.sha256(data).hexdigest(), content=data)


def _of_text(value: str, local_files: bool, folder: str | Path) -> ImageSource:
    start, comma, data = value.partition(",")
    if start.startswith("data:") and comma:
        if not start.endswith(";base64") or len(data) > 4 * MAX_BYTES // 3 + 4:
            raise image_error(f"a data URL must be encoded in base64 and have at most {MAX_BYTES:,} bytes")
        try:
            return _of_bytes(base64.b64decode(data, validate=True))
        except binascii.Error:
            raise image_error("a data URL has invalid base64") from None
    if not local_files:
        raise image_error("an image must be a data URL", value)
    is_url = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", value)
    path = _downloaded(value) if is_url else str(Path(folder, value).absolute())
    return ImageSource(hashlib.sha256(_read_file(path)).hexdigest(), path=path)


def _downloaded(url: str) -> str:
    """Return the file of an image in the cache of `datasets`."""
    if os.environ.get(ALLOW_URLS) != "1":
        raise image_error(f"an image must not be a URL, unless the environment variable {ALLOW_URLS} is 1", url)
    if not re.match("https?://", url, re.IGNORECASE):
        raise image_error("the URL of an image must start with https:// or http://", url)
    try:
        return str(DownloadManager().download(url))
    except Exception as error:  # the errors of `fsspec` and of its HTTP client
        raise image_error(f"an image cannot be downloaded ({type(error).__name__}: {error})", url) from None


def _read_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe or a device may never end
            raise image_error(f"the image {path} must be a file, but is not")
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except PreferenceFormatError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise image_error(f"the image {path} cannot be read ({reason})") from None
    if len(data) > MAX_BYTES:
        raise image_error(f"an image must have at most {MAX_BYTES:,} bytes, but {path} has more. Make it smaller")
    return data


def image_error(rule: str, found: str = "") -> PreferenceFormatError:
    """Return the error for a row with an unusable image: the rule, and the text that it repeats."""
    repeats = f": {found[:80]!r}" if found else ""
    return PreferenceFormatError(
        f"{rule[0].upper()}{rule[1:]}{repeats}. Correct or drop the row.", field="images", repeats=repeats
    )
