"""Rewards of rows with images are those of the stock model and processor, however the rows are batched."""

import inspect
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer
from vision_models import ARCHITECTURES, encoded, picture, save_vision_model

from hf_reward import AutoModelForRewardScoring
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.rewards import compute_rewards
from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.preprocessing.image_inputs import ImageBatch, ImageProcessing
from hf_reward.preprocessing.image_processor import load_image_processing
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenizer import prepare_tokenizer


def _row(images: list[Any], question: str, chosen: str, rejected: str) -> dict[str, Any]:
    parts = [{"type": "image", "image": encoded(image)} for image in images]
    content = [*parts, {"type": "text", "text": question}]
    return {"prompt": [{"role": "user", "content": content}], "chosen": chosen, "rejected": rejected}


WIDE = picture(3, (64, 24))
ROWS = [
    _row([picture(0)], "What is shown?", "A red square.", "A dog and a cat at night."),
    _row([picture(1)], "What is shown?", "A green circle.", "A red square."),
    _row([picture(0)], "What is shown?", "Nothing else than a red square.", "No."),
    _row([WIDE, picture(0)], "Which is larger?", "The first picture.", "The second."),
    _row([], "Say hello.", "Hello!", "Go away."),
    _row([WIDE], "How many shapes are there?", "One.", "Five <|vision_start|> of <|vision_end|> them."),
]


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path: Path, chat_tokenizer: Any) -> Path:
    return save_vision_model(tmp_path / "model", chat_tokenizer, request.param)


@pytest.fixture
def loaded(folder: Path) -> tuple[Any, Any, ImageProcessing]:
    model: Any = AutoModelForRewardScoring.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    tokenizer = prepare_tokenizer(_tokenizer(folder))
    return model.eval(), tokenizer, load_image_processing(str(folder), model.config, tokenizer)


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def stock_rewards(model: Any, processing: ImageProcessing) -> list[float]:
    """Format, process and score each response alone, with the stock processor and forward."""
    processor, found = processing.processor, []
    for row in ROWS:
        for side in ("chosen", "rejected"):
            answer = {"role": "assistant", "content": row[side]}
            content = row["prompt"][0]["content"]
            parts = [{"type": "image"} if part["type"] == "image" else part for part in content]
            messages = [{"role": "user", "content": parts}, answer]
            text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
            images = [_image(part["image"]) for part in content if part["type"] == "image"]
            inputs = processor(
                text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
            )
            names = set(inspect.signature(model.base_model.forward).parameters)
            given = {name: value for name, value in inputs.items() if name in names}
            hidden = model.base_model(**given).last_hidden_state
            found.append(float(model.score(hidden[0, -1])))
    return found


def _image(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _prepared(tokenizer: Any, processing: ImageProcessing) -> list[dict[str, Any]]:
    rule = PreparationRule(images=processing)
    data, _ = prepare_preferences(ROWS, tokenizer, rule)
    assert isinstance(data, Dataset)
    return list(data)


def test_padded_packed_and_alone_equal_the_stock_model(loaded: tuple[Any, Any, ImageProcessing]) -> None:
    model, tokenizer, processing = loaded
    rows = _prepared(tokenizer, processing)
    expected = torch.tensor(stock_rewards(model, processing)).reshape(-1, 2)
    images = ImageBatch(processing)
    padded = DataCollatorForPreference(tokenizer.pad_token_id, images=images)
    with torch.no_grad():
        assert compute_rewards(model, padded(rows)) == pytest.approx(expected, abs=2e-5)
        alone = torch.cat([compute_rewards(model, padded([row])) for row in rows])
        assert alone == pytest.approx(expected, abs=2e-5)
        if why_not_packed(model) is None:
            packed = DataCollatorForPackedPreference(images=images)
            with packed_model(model):
                batch = packed(rows)
                assert compute_rewards(model, batch) == pytest.approx(expected, abs=2e-5)
            assert len(batch["image_inputs"]) == (5 if "llava" in type(model).__name__.lower() else 3)
            assert batch["input_ids"].numel() < padded(rows)["attention_mask"].sum()


def test_gradients_of_padded_and_packed_batches_are_equal(loaded: tuple[Any, Any, ImageProcessing]) -> None:
    model, tokenizer, processing = loaded
    if why_not_packed(model) is not None:
        assert why_not_packed(model) == "its image tokens attend to later image tokens"
        return
    rows = _prepared(tokenizer, processing)
    images = ImageBatch(processing)

    def gradients(batch: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with packed_model(model):
            rewards = compute_rewards(model, batch)
        (rewards[:, 0] - rewards[:, 1]).tanh().sum().backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    padded = gradients(DataCollatorForPreference(tokenizer.pad_token_id, images=images)(rows))
    packed = gradients(DataCollatorForPackedPreference(images=images)(rows))
    assert padded.keys() == packed.keys()
    assert any("vis" in name for name in padded)  # the tower is trained here
    for name, expected in padded.items():
        assert (packed[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def test_a_sequence_whose_image_tokens_have_no_image_is_refused(loaded: tuple[Any, Any, ImageProcessing]) -> None:
    _, tokenizer, processing = loaded
    row = _prepared(tokenizer, processing)[0]
    collate = DataCollatorForPreference(tokenizer.pad_token_id, images=ImageBatch(processing))
    with pytest.raises(KeyError, match="images"):
        collate([{name: value for name, value in row.items() if name != "images"}])
    more = [[*ids, processing.image_token_id] for ids in row["input_ids"]]
    with pytest.raises(ValueError, match=r"must have the .* image tokens of its images"):
        collate([{**row, "input_ids": more}])
