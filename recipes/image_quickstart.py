"""Train a tiny vision-language reward model on generated pictures: `python recipes/image_quickstart.py outputs/images`.

Each picture shows one to three shapes of one colour. The chosen response describes it; the rejected one has another
count, colour or shape. The model has random weights in the architecture of Qwen2.5-VL and is trained completely, vision
tower included. The same model is then trained on the same rows without pictures as a control, which cannot know the
answer.

Tested: 6 minutes on 2 cores of an AMD EPYC, which other programs used too. Accuracy on 500 new pictures 87.6% (95%
interval 84.4% to 90.2%), control 53.6% (49.2% to 57.9%).
"""

import random
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.table import Table
from scipy.stats import binomtest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
)

from hf_reward import RewardConfig, RewardScorer, RewardTrainer
from hf_reward.cli.console import make_console

COLOURS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square", "triangle")
COUNTS = ("one", "two", "three")
SIZE = 64
QUESTION = "Describe the picture ."
_TOKENS = {"image_token": "<image>", "vision_start_token": "<vision>", "vision_end_token": "</vision>"}
TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<vision><image></vision>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %} <end>{% endfor %}{% if add_generation_prompt %}<turn> assistant {% endif %}"
)


def main() -> None:
    """Train with and without pictures, and print the accuracy on new pictures."""
    parser = ArgumentParser(description="Train a tiny reward model on generated pictures.")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--rows", type=int, default=4000, help="training pairs")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, test = make_rows(options.rows, options.seed), make_rows(500, options.seed + 1)
    base = save_random_model(options.folder / "base", options.seed)
    table = Table("rows", "accuracy", "95% interval", "pairs")
    for name, with_images in (("with pictures", True), ("without pictures (control)", False)):
        own_train, own_test = ([row if with_images else without_images(row) for row in part] for part in (train, test))
        correct = train_and_count(str(base), options.folder / name.split()[0], own_train, own_test, options)
        interval = binomtest(correct, len(test)).proportion_ci(method="wilson")
        share = f"{correct / len(test):.1%}"
        table.add_row(name, share, f"{interval.low:.1%} to {interval.high:.1%}", str(len(test)))
    make_console().print(table)


# --- data ------------------------------------------------------------------------------------------------------------


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return preference rows with a picture each."""
    draw = random.Random(seed)
    return [make_row(draw) for _ in range(count)]


def make_row(draw: random.Random) -> dict[str, Any]:
    """Draw a picture, its description and a description that is wrong in one respect."""
    true = {"count": draw.choice(COUNTS), "colour": draw.choice(COLOURS), "shape": draw.choice(SHAPES)}
    name, values = draw.choice([("count", COUNTS), ("colour", COLOURS), ("shape", SHAPES)])
    wrong = {**true, name: draw.choice([value for value in values if value != true[name]])}
    return {
        "images": [make_picture(draw, true["colour"], true["shape"], 1 + COUNTS.index(true["count"]))],
        "prompt": f"<image> {QUESTION}",
        "chosen": describe(**true),
        "rejected": describe(**wrong),
    }


def describe(count: str, colour: str, shape: str) -> str:
    """Return a description, such as `two red circle`."""
    return f"{count} {colour} {shape}"


def make_picture(draw: random.Random, colour: str, shape: str, count: int) -> Image.Image:
    """Draw shapes at different places of a 3 x 3 grid."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    pencil, cell = ImageDraw.Draw(image), SIZE // 3
    for place in draw.sample(range(9), count):
        left, top = place % 3 * cell + draw.randint(1, 3), place // 3 * cell + draw.randint(1, 3)
        box = (left, top, left + cell - 5, top + cell - 5)
        if shape == "circle":
            pencil.ellipse(box, fill=colour)
        elif shape == "square":
            pencil.rectangle(box, fill=colour)
        else:
            pencil.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    return image


def without_images(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its picture."""
    return {"prompt": QUESTION, "chosen": row["chosen"], "rejected": row["rejected"]}


# --- model -----------------------------------------------------------------------------------------------------------


def save_random_model(folder: Path, seed: int) -> Path:
    """Save a tiny model with random weights, with a tokenizer of single words and an image processor."""
    tokenizer = make_tokenizer()
    ids: dict[str, Any] = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "initializer_range": 0.1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    vision = {
        "depth": 2,
        "initializer_range": 0.1,
        "hidden_size": 96,
        "out_hidden_size": 128,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": 8,
        "fullatt_block_indexes": [0, 1],
        "window_size": SIZE,
    }
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}  # pixels
    Qwen2VLImageProcessor(patch_size=8, size=size).save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words of the task."""
    words = [*QUESTION.split(), "user", "assistant", *COLOURS, *SHAPES, *COUNTS]
    special = ["<pad>", "<unk>", "<turn>", "<end>", *_TOKENS.values()]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([*special, *words]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens={**_TOKENS, "turn_token": "<turn>"},
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


# --- training --------------------------------------------------------------------------------------------------------


def train_and_count(model: str, folder: Path, train: list[Any], test: list[Any], options: Any) -> int:
    """Train a model, save it, load it again, and return on how many test rows the chosen response scores higher."""
    settings = RewardConfig(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        head_learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        train_vision=True,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=options.seed,
    )
    trainer = RewardTrainer(model, settings, train_dataset=train)
    trainer.train()
    trainer.save_model()
    return count_correct(RewardScorer.from_pretrained(folder), test)


def count_correct(scorer: RewardScorer, rows: list[dict[str, Any]]) -> int:
    """Return the number of rows whose chosen response has the higher reward; ties do not count."""
    prompts = [prompt_of(row) for row in rows]
    chosen, rejected = (scorer.score(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    return int((chosen > rejected).sum())


def prompt_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the prompt of a row as messages, in which the picture comes first."""
    parts = [{"type": "image", "image": image} for image in row.get("images", ())]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": f" {QUESTION}" if parts else QUESTION}]}]


if __name__ == "__main__":
    main()
