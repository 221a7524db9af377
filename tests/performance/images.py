"""Training speed with images in the shared prefix, next to each response encoded separately with its image.

    python tests/performance/images.py
    python tests/performance/images.py --responses 2 8 --rounds 3 --json images.json

Both sides are the same model with random weights (8 layers of SmolLM2's shape behind a vision tower of 6 layers, in the
architecture of Qwen2.5-VL), with the same rows, forward and backward of one batch with a frozen tower, in float32.
"Separate" is the stock forward: a padded batch with one sequence and one copy of the image for each response. "Shared"
is a packed batch: the tower computes each image once, and its tokens occur once. "Cached" is the same with stored
features, as from the second epoch on. Sides alternate; times are medians.
"""

import json
import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[2] / "recipes"))

from geometries import GEOMETRIES
from image_quickstart import COLOURS, make_picture, make_tokenizer
from machine import core_count, cpu_name
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLConfig, Qwen2VLImageProcessor

from hf_reward import AutoModelForRewardScoring
from hf_reward.losses.functions import bradley_terry_loss
from hf_reward.modeling.image_features import ImageFeatureStore, freeze_vision
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.rewards import compute_rewards
from hf_reward.preprocessing.image_inputs import ImageBatch, of_columns
from hf_reward.preprocessing.image_processor import load_image_processing
from hf_reward.preprocessing.model_inputs import pad
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer

SIZE = 840  # pixels: 60 x 60 patches of 14, so 900 image tokens
WORDS = 100
"""Tokens of a response."""


def main() -> None:
    """Measure and print a table."""
    parser = ArgumentParser(description="Training speed with images.")
    parser.add_argument("--responses", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--sequences", type=int, default=8, help="responses in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, images = make_model(Path(folder))
        for count in options.responses:
            rows = make_rows(options.sequences // count, count, tokenizer, images)
            results.append(measure(model, tokenizer, images, rows, options.rounds))
            print_table(results)
    if options.json is not None:
        machine = f"{core_count()} cores of {cpu_name()}, {torch.get_num_threads()} threads"
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


def make_model(folder: Path) -> tuple[Any, Any, Any]:
    """Return a reward model with random weights, its tokenizer and its image processing."""
    tokenizer = make_tokenizer()
    names = ("image_token", "vision_start_token", "vision_end_token")
    ids: dict[str, Any] = {f"{name}_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) for name in names}
    save_random_model(folder, tokenizer, len(tokenizer), ids)
    model: Any = AutoModelForRewardScoring.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    freeze_vision(model)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder))
    return model.train(), tokenizer, load_image_processing(str(folder), model.config, tokenizer)


def save_random_model(folder: Path, tokenizer: Any, vocabulary: int, image_ids: dict[str, Any]) -> None:
    """Save a generative model with random weights, its tokenizer and its image processor."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    text = {**GEOMETRIES["smollm2-8-layers"], "vocab_size": vocabulary, "rope_parameters": rope}
    text |= {"model_type": "qwen2_5_vl_text", "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    vision = {"depth": 6, "hidden_size": 384, "out_hidden_size": 576, "intermediate_size": 1152, "num_heads": 6}
    config: Any = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **image_ids)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    Qwen2VLImageProcessor(size=size).save_pretrained(folder)


def make_rows(count: int, responses: int, tokenizer: Any, images: Any) -> list[dict[str, Any]]:
    """Return prepared rows, each with an image and responses of random words."""
    draw = random.Random(responses)
    rows = [
        {
            "images": [make_picture(draw, draw.choice(COLOURS), "circle", 3).resize((SIZE, SIZE))],
            "prompt": "<image> Describe the picture .",
            "responses": [" ".join(draw.choices(COLOURS, k=WORDS)) for _ in range(responses)],
            "ranks": list(range(responses)),
        }
        for _ in range(count)
    ]
    rule = PreparationRule(format=FormatRule(max_length=None), images=images)
    return list(prepare_preferences(rows, tokenizer, rule)[0])


# --- sides -----------------------------------------------------------------------------------------------------------


def measure(model: Any, tokenizer: Any, images: Any, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Return tokens and seconds of the sides, and the largest difference of their rewards."""
    separate = separate_batch(tokenizer, images, rows)
    shared = DataCollatorForPackedPreference(ImageBatch(images))(rows)
    ranks = shared["ranks"]
    with tempfile.TemporaryDirectory() as folder:
        store = ImageFeatureStore(Path(folder))

        def of_shared(with_store: bool) -> torch.Tensor:
            model.feature_store = store if with_store else None
            with packed_model(model):
                return compute_rewards(model, shared)

        sides: dict[str, Callable[[], torch.Tensor]] = {
            "separate": lambda: model(**separate).logits.reshape(ranks.shape),
            "shared": lambda: of_shared(False),
            "cached": lambda: of_shared(True),
        }
        rewards = {name: side().detach() for name, side in sides.items()}  # warm-up, which fills the store
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(timed(model, side, ranks))
    difference = max(float((found - rewards["separate"]).abs().max()) for found in rewards.values())
    return {
        "responses": ranks.shape[1],
        "sequences": ranks.numel(),
        "tokens_separate": int(separate["attention_mask"].sum()),
        "tokens_shared": shared["input_ids"].numel(),
        "seconds": seconds,
        "largest_difference": difference,
    }


def separate_batch(tokenizer: Any, images: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the inputs of the stock forward: each response with its own copy of the image."""
    batch = ImageBatch(images)
    sequences, distinct = batch.numbered(
        [ids for row in rows for ids in row["input_ids"]],
        [own for row in rows for own in [images_of_row(row)] * len(row["input_ids"])],
    )
    inputs = batch.complete(pad(sequences, pad_token_id=tokenizer.pad_token_id), distinct)
    repeats = [len(row["input_ids"]) for row in rows]
    pixels = [each for each, count in zip(inputs.pop("image_inputs"), repeats, strict=True) for _ in range(count)]
    inputs.pop("image_index")
    names = ("pixel_values", "image_grid_thw")
    return {**inputs, **{name: torch.cat([each[name] for each in pixels]) for name in names}}


def images_of_row(row: dict[str, Any]) -> list[Any]:
    """Return the images of a prepared row."""
    return of_columns(row["images"])


def timed(model: Any, side: Callable[[], torch.Tensor], ranks: torch.Tensor) -> float:
    """Return the seconds of a forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    bradley_terry_loss(side(), ranks).mean().backward()
    return time.perf_counter() - start


def print_table(results: list[dict[str, Any]]) -> None:
    """Print tokens and speed of all numbers of responses."""
    table = Table(
        "responses", "tokens, separate", "tokens, shared", "ratio", "s, separate", "shared", "cached", "faster"
    )
    for each in results:
        seconds = {name: median(values) for name, values in each["seconds"].items()}
        ratios = f"{seconds['separate'] / seconds['shared']:.1f}, {seconds['separate'] / seconds['cached']:.1f}"
        share = f"{each['tokens_separate'] / each['tokens_shared']:.1f}"
        times = [f"{seconds[name]:.2f}" for name in ("separate", "shared", "cached")]
        table.add_row(
            str(each["responses"]), str(each["tokens_separate"]), str(each["tokens_shared"]), share, *times, ratios
        )
    console = Console()
    console.print(table)
    console.print(f"Largest difference of rewards {max(each['largest_difference'] for each in results):.1e}")


if __name__ == "__main__":
    main()
