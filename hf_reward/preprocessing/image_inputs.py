"""Images of tokenised rows -> inputs of a vision-language model, in padded and packed batches.

In a batch, the tokens of each distinct image get an id of their own, from `FIRST_IMAGE_ID` on. Sequences with different
images therefore share no image token in the prefix tree, and the ids tell which feature each image token takes. The
model gets the id of its image token back, each distinct image once, and an index from image tokens to features.

Shapes: N sequences, L padded length, T packed tokens, P image tokens of the batch in row-major order.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_reward.data.image_messages import as_parts, images_in, images_of
from hf_reward.data.image_source import ExpandedImage, ImageSource
from hf_reward.data.preference_row import IMAGE_SOURCES, Message, PreferenceFormatError, PreferenceRow
from hf_reward.preprocessing.packed_layout import PackedLayout

FIRST_IMAGE_ID = 2**30
"""Ids from here on stand for the images of a batch. No vocabulary is as large."""


class ImageProcessing:
    """The image part of a processor, used for one image at a time.

    Args:
        processor: A processor of transformers with a tokenizer and an image processor.
        files: Contents of its files besides those of the tokenizer, by name.

    Raises:
        ValueError: If this version of transformers cannot expand the processor's image placeholders.
    """

    def __init__(self, processor: Any, files: Mapping[str, bytes] | None = None) -> None:
        needed = ("image_processor", "image_token", "_process_images")
        missing = [name for name in needed if not hasattr(processor, name)]
        if missing:
            raise ValueError(
                f"Images are not supported for {type(processor).__name__}: it has no {missing[0]}. Use a model of "
                "docs/guides/images.md, with transformers 5.23 or later."
            )
        self.processor, self.files = processor, dict(files or {})
        self.image_token_id = int(processor.image_token_ids[0])
        """The token whose embedding is replaced by a feature."""
        names = processor.model_input_names
        self.marks_images = "token_type_ids" in names
        """Whether the model needs `token_type_ids` that mark image tokens, which attend to each other."""
        self.implementation = type(processor.image_processor).__name__
        """Class of the image processor. transformers has one with torchvision and one with PIL."""
        content = b"".join([self.implementation.encode(), *self.files.values()])
        self.number = int(hashlib.sha256(content).hexdigest()[:15], 16)
        """Equal for processors with the same implementation and settings."""
        self._options = processor._merge_kwargs(return_tensors="pt")["images_kwargs"]
        self._cached = lru_cache(maxsize=8)(self._process)  # rows with the same image are often adjacent

    def __getstate__(self) -> dict[str, Any]:
        return {"processor": self.processor, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def save(self, folder: str | Path) -> None:
        """Write the files of the processor, except those of its tokenizer, to a folder."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)

    def expanded(self, row: PreferenceRow) -> PreferenceRow:
        """Add to each image of a row the text that stands for it.

        Args:
            row: A canonical row; it is not changed.

        Returns:
            A row in which images are `ExpandedImage`; the row itself if it has none.

        Raises:
            PreferenceFormatError: If an image cannot be decoded or processed.
        """
        count = len(images_of(row))
        if not count:
            return row
        messages: Any = row.prompt
        return replace(row, prompt=[self._expanded_message(message, count > 1) for message in messages])

    def _expanded_message(self, message: Message, several: bool) -> Message:
        sources = message.get(IMAGE_SOURCES)
        return {**message, IMAGE_SOURCES: [self._expand(source, several) for source in sources]} if sources else message

    def _expand(self, source: ImageSource, several: bool) -> ExpandedImage:
        inputs, text = self._cached(source, several)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows, columns = self._grid(inputs)
        return ExpandedImage(
            source.sha256,
            source.path,
            source.content,
            placeholder=self.processor.image_token,
            text=text,
            tokens=ids.count(self.image_token_id),
            grid_rows=rows,
            grid_columns=columns,
            several=several and "batch_num_images" in inputs,
        )

    def token_problem(self, sequences: Sequence[Sequence[int]], images: Sequence[ExpandedImage]) -> str:
        """Return why token ids do not fit the images of their row, or an empty text.

        Args:
            sequences: Token ids of each response.
            images: The images of the row.

        Returns:
            A clause; the model would fail, or take an image token without image as an ordinary word.
        """
        wanted = {self.image_token_id: sum(image.tokens for image in images)}
        video = getattr(self.processor, "video_token_id", None)  # there is no image for it, so it must not occur
        wanted |= {} if video is None or video == self.image_token_id else {int(video): 0}
        for token, count in wanted.items():
            if any(list(ids).count(token) != count for ids in sequences):
                name = self.processor.tokenizer.convert_ids_to_tokens(token)
                kind = "images" if token == self.image_token_id else "videos"
                return f"the text contains {name!r}, which the model reserves for {kind}; remove it from the text"
        return ""

    def inputs(self, source: ImageSource, *, several: bool = False) -> dict[str, Tensor]:
        """Return the tensors of one image for the model's `get_image_features`."""
        inputs, _ = self._cached(source, several)
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def _process(self, source: ImageSource, several: bool) -> tuple[dict[str, Any], str]:
        image = source.decode()
        nested = [[image, image] if several else [image]]
        try:
            images, *_ = self.processor.prepare_inputs_layout(images=nested, text=None)
            found, texts = self.processor._process_images(images, **self._options)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:  # such as extreme aspect ratios
            raise PreferenceFormatError(
                f"The image processor refuses an image of {image.width} x {image.height} pixels: {error}. Correct or "
                "drop the row.",
                field="images",
            ) from error
        if several and "batch_num_images" not in found:
            return self._cached(source, False)  # this processor treats all images in the same way
        first = {name: value[:1] if several and name != "batch_num_images" else value for name, value in found.items()}
        return first, texts[0]

    def _grid(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows and columns of an image's tokens, for models whose positions have three axes; else zeros."""
        if "image_grid_thw" not in inputs:
            return 0, 0
        _, height, width = inputs["image_grid_thw"][0].tolist()
        merge = int(self.processor.image_processor.merge_size)
        return height // merge, width // merge


def parts_and_images(messages: Sequence[Message]) -> tuple[list[Message], list[ExpandedImage]]:
    """Return messages with images as parts of their content, and the images.

    Args:
        messages: Canonical messages.

    Returns:
        Messages for a chat template, and the images in order.

    Raises:
        PreferenceFormatError: If the images were not expanded, because the model has no image processor.
    """
    images = images_in(messages)
    expanded = [image for image in images if isinstance(image, ExpandedImage)]
    if len(expanded) < len(images):
        raise PreferenceFormatError(
            "The row has an image, but no image processor was loaded: the model is a text model, was made by "
            "`model_init`, or lacks what an earlier warning names. Correct the model, or drop the row."
        )
    return [as_parts(message) for message in messages], expanded


def with_expansions(text: str, images: Sequence[ExpandedImage]) -> str:
    """Replace the placeholders that a chat template has printed by the texts of the images.

    Args:
        text: A formatted conversation.
        images: Its images, in order.

    Returns:
        The text.

    Raises:
        PreferenceFormatError: If the number of placeholders is another.
    """
    pieces = text.split(images[0].placeholder)
    if len(pieces) != len(images) + 1:
        raise PreferenceFormatError(
            f"The formatted row must have the image placeholder {images[0].placeholder!r} once for each of its "
            f"{len(images)} images, but has it {len(pieces) - 1} times: a text contains the placeholder, or the chat "
            "template omits images. Correct or drop the row."
        )
    texts = [*(image.text for image in images), ""]
    return "".join(piece + text for piece, text in zip(pieces, texts, strict=True))


def image_columns(images: Iterable[ExpandedImage]) -> list[dict[str, Any]]:
    """Return images as values of the column `images` of a prepared dataset."""
    return [asdict(image) for image in images]


def of_columns(values: Iterable[Mapping[str, Any]]) -> list[ExpandedImage]:
    """Return the images of a value of the column `images`."""
    return [ExpandedImage(**value) for value in values]


def numbered(
    sequences: Sequence[Sequence[int]], images: Sequence[Sequence[ExpandedImage]], image_token_id: int
) -> tuple[list[list[int]], list[ExpandedImage]]:
    """Replace the image tokens of each sequence by the ids of the images.

    Args:
        sequences: Token ids of each sequence.
        images: The images of each sequence, in the order of their tokens.
        image_token_id: The image token.

    Returns:
        The sequences, and the distinct images in the order of their ids.

    Raises:
        ValueError: If a sequence has a different number of image tokens than its images.
    """
    numbers: dict[ExpandedImage, int] = {}
    result = []
    for ids, own in zip(sequences, images, strict=True):
        marked = np.array(ids, dtype=np.int64)
        places = np.flatnonzero(marked == image_token_id)
        each = [FIRST_IMAGE_ID + numbers.setdefault(image, len(numbers)) for image in own]
        wanted = np.repeat(each, [image.tokens for image in own]) if own else np.zeros(0, np.int64)
        if own and len(wanted) != len(places):
            raise ValueError(
                f"A sequence must have the {len(wanted)} image tokens of its images, but has {len(places)}. Its text "
                "contains the image token, or its images were cut."
            )
        marked[places[: len(wanted)]] = wanted
        result.append(marked.tolist())
    return result, list(numbers)


class ImageBatch:
    """Complete the inputs of a batch with images.

    Args:
        processing: The image part of the processor.
        is_cached: Whether features for a key are stored, so that the pixels are not needed.
    """

    def __init__(self, processing: ImageProcessing, is_cached: Callable[[str], bool] | None = None) -> None:
        self.processing = processing
        self.is_cached = is_cached or (lambda key: False)

    def numbered(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[ExpandedImage]]
    ) -> tuple[list[list[int]], list[ExpandedImage]]:
        """Replace the image tokens of each sequence by the ids of the images; see `numbered`."""
        return numbered(sequences, images, self.processing.image_token_id)

    def sequences(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return the token ids of all responses of prepared rows, with the ids of the images."""
        return self._numbered(rows)[0]

    def of_rows(
        self, rows: Sequence[Mapping[str, Any]], arrange: Callable[[list[list[int]]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Make the inputs of prepared rows.

        Args:
            rows: Rows of `prepare_preferences` with the column `images`.
            arrange: `pad` or `pack`, with its settings.

        Returns:
            The inputs of `complete`.
        """
        sequences, images = self._numbered(rows)
        return self.complete(arrange(sequences), images)

    def _numbered(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[ExpandedImage]]:
        own = [of_columns(row["images"]) for row in rows]
        sequences = [ids for row in rows for ids in row["input_ids"]]
        images = [each for row, each in zip(rows, own, strict=True) for _ in row["input_ids"]]
        return self.numbered(sequences, images)

    def complete(self, inputs: Mapping[str, Any], images: Sequence[ExpandedImage]) -> dict[str, Any]:
        """Replace the ids of images by the image token, and add the images.

        Args:
            inputs: Result of `pad` or `pack` for sequences of `numbered`.
            images: The distinct images of `numbered`.

        Returns:
            The inputs with `image_inputs`, the tensors of each image that occurs, with its `key`; `image_index` `(P,)`,
            the feature of each image token, in the order of these images; if the model has three position axes,
            `position_ids` `(3, N, L)` or `(3, 1, T)`; and if it marks image tokens, `token_type_ids` `(N, L)`.
        """
        ids = inputs["input_ids"]
        marked = ids >= FIRST_IMAGE_ID
        result = {**inputs, "input_ids": ids.masked_fill(marked, self.processing.image_token_id)}
        numbers = (ids[marked] - FIRST_IMAGE_ID).numpy()
        used = np.unique(numbers)
        own = {int(number): images[number] for number in used}
        if len(used):
            result["image_inputs"] = [self._inputs(image) for image in own.values()]
            result["image_index"] = torch.from_numpy(_feature_index(numbers, own))
        if self.processing.marks_images:
            result["token_type_ids"] = marked.long()
        grids = {number: (image.grid_rows, image.grid_columns) for number, image in own.items()}
        if any(rows for rows, _ in grids.values()):
            result["position_ids"] = _positions(inputs, grids)
        return result

    def _inputs(self, image: ExpandedImage) -> dict[str, Any]:
        if self.is_cached(image.key):
            return {"key": image.key}
        return {"key": image.key, **self.processing.inputs(image, several=image.several)}


def _feature_index(numbers: np.ndarray, images: Mapping[int, ExpandedImage]) -> np.ndarray:
    """Return the feature of each image token: the tokens of an image take its features in order, again and again."""
    index = np.zeros(len(numbers), np.int64)
    start = 0
    for number, image in images.items():
        places = np.flatnonzero(numbers == number)
        index[places] = start + np.arange(len(places)) % image.tokens
        start += image.tokens
    return index


# --- positions with three axes ---------------------------------------------------------------------------------------


def _positions(inputs: Mapping[str, Any], grids: Mapping[int, Any]) -> Tensor:
    """Return `position_ids` of a padded `(3, N, L)` or packed `(3, 1, T)` batch."""
    ids: np.ndarray = inputs["input_ids"].numpy()
    layout: PackedLayout | None = inputs.get("packed_layout")
    if layout is None:
        return torch.from_numpy(np.stack([grid_positions(row, 0, grids)[0] for row in ids], axis=1))
    ends: list[int] = []
    parts = []
    for segment in layout.segments:
        start = ends[segment.parent] if segment.parent >= 0 else 0
        positions, end = grid_positions(ids[0, segment.start : segment.end], start, grids)
        parts.append(positions)
        ends.append(end)
    return torch.from_numpy(np.concatenate(parts, axis=1))[:, None]


def grid_positions(ids: np.ndarray, start: int, grids: Mapping[int, tuple[int, int]]) -> tuple[np.ndarray, int]:
    """Return the positions of tokens on the axes time, height and width (Qwen2-VL, arXiv 2409.12191, section 2.1).

    A text token has the same position on the three axes. The tokens of an image have the position of its first token in
    time, and their row and column from there on. The next token follows the largest of these positions.

    Args:
        ids: Token ids, with the ids of images.
        start: Position of the first token.
        grids: Rows and columns of the tokens of each image.

    Returns:
        Positions, shape `(3, len(ids))`, int64, and the position of the next token.
    """
    result = np.zeros((3, len(ids)), np.int64)
    place = 0
    while place < len(ids):
        number = int(ids[place]) - FIRST_IMAGE_ID
        if number < 0:
            later = np.flatnonzero(ids[place:] >= FIRST_IMAGE_ID)
            end = place + int(later[0]) if len(later) else len(ids)
            result[:, place:end] = start + np.arange(end - place)
            start += end - place
        else:
            rows, columns = grids[number]
            end = place + rows * columns
            grid = np.indices((1, rows, columns)).reshape(3, -1)
            result[:, place:end] = start + grid
            start += max(rows, columns)
        place = end
    return result, start
