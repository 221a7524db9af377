"""Conversations about generated pictures, whose rewards are recorded with a vision-language model.

The record contains the pictures, so a check needs no file besides it. Only imported for models with an image processor.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from PIL import Image, ImageDraw
from torch import nn

from hf_reward.data.preference_row import Message
from hf_reward.data.score_request import request_from_messages
from hf_reward.modeling.end_tokens import logits_of
from hf_reward.modeling.probe_texts import OTHER_PICTURE, PICTURE
from hf_reward.modeling.probes import classifier_of, evaluating, finite, without_tf32
from hf_reward.preprocessing.image_inputs import ImageBatch, ImageProcessing
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, EncodedResponse, ResponseEncoder
from hf_reward.preprocessing.tokenization import FormatRule


def shapes(count: int, colour: str, size: tuple[int, int] = (56, 56), *, circles: bool = False) -> Image.Image:
    """Draw a row of squares or circles on white.

    Args:
        count: Number of shapes.
        colour: Their colour.
        size: Width and height in pixels.
        circles: Whether to draw circles.

    Returns:
        The picture, in RGB.
    """
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    step = size[0] / count
    side = 0.7 * min(step, size[1])
    for place in range(count):
        left, top = (place + 0.5) * step - side / 2, (size[1] - side) / 2
        shape = draw.ellipse if circles else draw.rectangle
        shape((left, top, left + side, top + side), fill=colour)
    return image


def _picture(image: Image.Image) -> Message:
    """Return a part of a message with a picture as data URL."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"type": "image", "image": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}


def image_conversations() -> dict[str, list[Message]]:
    """Return conversations by name; the first two differ in their picture only."""
    circle, squares = _picture(shapes(1, "red", circles=True)), _picture(shapes(3, "blue"))
    wide = _picture(shapes(4, "green", (112, 28), circles=True))
    return {
        PICTURE: _turns([circle, "What is in the picture?"], "A red circle on a white background."),
        OTHER_PICTURE: _turns([squares, "What is in the picture?"], "A red circle on a white background."),
        "two pictures": _turns([circle, squares, "Which picture has more shapes?"], "The second one: it has three."),
        "wide picture": _turns([wide, "How many shapes are there?"], "Four, in a row."),
        "picture in a later turn": _turns(
            ["I draw with simple shapes."], "Show me one of your drawings.", [squares, "Here it is."], "Three squares."
        ),
    }


def _turns(*contents: list[Any] | str) -> list[Message]:
    def parts(content: list[Any] | str) -> Any:
        if isinstance(content, str):
            return content
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]

    return [
        {"role": ("user", "assistant")[place % 2], "content": parts(content)} for place, content in enumerate(contents)
    ]


def image_probe_record(
    model: nn.Module, images: ImageProcessing, *, max_length: int | None, precisions: Mapping[str, torch.dtype | None]
) -> dict[str, Any]:
    """Score the conversations about pictures.

    Args:
        model: A vision-language reward model, with or without wrappers. For a sharded model, all processes must call
            this function.
        images: The image part of its processor, with its tokenizer.
        max_length: Length limit in tokens. Longer conversations are left out, as are those that the chat template or
            the image processor refuses.
        precisions: Autocast precision by name of the compute dtype; None without autocast.

    Returns:
        `processor` (class of the image processor), `conversations` (messages with data URLs, and token ids), and
        `rewards` by compute dtype.
    """
    conversations = image_conversations()
    encoded = zip(conversations, _encoded(conversations.values(), images), strict=True)
    limit = math.inf if max_length is None else max_length
    found = {name: each for name, each in encoded if not each.problem and len(each.input_ids) <= limit}
    return {
        "processor": images.implementation,
        "conversations": [
            {"name": name, "messages": conversations[name], "input_ids": " ".join(map(str, each.input_ids))}
            for name, each in found.items()
        ],
        "rewards": {
            name: list(map(finite, _rewards(model, images, list(found.values()), autocast)))
            for name, autocast in precisions.items()
        },
    }


def image_probe_rewards(
    model: nn.Module, images: ImageProcessing, conversations: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """Score the conversations of a record, each alone.

    Args:
        model: A vision-language reward model.
        images: The image part of its processor.
        conversations: `conversations` of `image_probe_record`.

    Returns:
        Their rewards; None for a conversation that cannot be encoded.
    """
    encoded = _encoded([each["messages"] for each in conversations], images)
    rewards = iter(_rewards(model, images, [each for each in encoded if not each.problem], None))
    return [None if each.problem else next(rewards) for each in encoded]


def _encoded(conversations: Iterable[list[Message]], images: ImageProcessing) -> list[EncodedResponse]:
    rule, tokenizer = FormatRule(max_length=None), images.processor.tokenizer
    encoder = ResponseEncoder(tokenizer=tokenizer, rule=rule, rows=CONVERSATIONS, images=images)
    return encoder.encode([request_from_messages(messages) for messages in conversations])


@torch.no_grad()
def _rewards(
    model: nn.Module, images: ImageProcessing, encoded: Sequence[EncodedResponse], autocast: torch.dtype | None
) -> list[float]:
    device = next(model.parameters()).device
    context: Any = nullcontext if autocast is None else lambda: torch.autocast(device.type, dtype=autocast)
    batch, found = ImageBatch(images), []
    with evaluating(model), without_tf32(), _without_store(model), context():
        for each in encoded:
            sequences, own = batch.numbered([each.input_ids], [each.images])
            ids = torch.tensor(sequences)
            inputs = batch.complete({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, own)
            found.append(float(logits_of(model, send_to_device(inputs, device))[0, 0]))
    return found


@contextmanager
def _without_store(model: nn.Module) -> Iterator[None]:
    """Compute features in the precision of the block, instead of loading those of a run."""
    bare: Any = classifier_of(model)
    store, bare.feature_store = bare.feature_store, None
    try:
        yield
    finally:
        bare.feature_store = store
