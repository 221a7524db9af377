"""Training speed with images next to ms-swift, which encodes the image again for each response.

    python -m venv swift && swift/bin/pip install ms-swift qwen_vl_utils torchvision
    python tests/performance/image_trainers.py --swift swift/bin/python
    python tests/performance/image_trainers.py --swift swift/bin/python --steps 6 --json trainers.json

Both train the same folder: the architecture of Qwen2.5-VL with random weights (8 layers of SmolLM2's shape behind a
vision tower of 6 layers), fully except for the frozen tower, in float32, on the same pairs in batches of 4, with one
thread for each core. Each pair has an image of 900 tokens, and responses of 100. The trainers run one after the other
in processes of their own. A step includes the optimizer; its time is the median without the first step.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "recipes"))

from image_quickstart import COLOURS, make_picture
from image_quickstart import TEMPLATE as quickstart_template
from images import SIZE, WORDS, save_random_model
from machine import core_count, cpu_name
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<|vision_start|>": 151_652,
    "<|vision_end|>": 151_653, "<|vision_pad|>": 151_654, "<|image_pad|>": 151_655, "<|video_pad|>": 151_656,
}  # fmt: skip
"""Token ids of Qwen2.5-VL, which ms-swift assumes."""
TEMPLATE = (
    quickstart_template.replace("<vision><image></vision>", "<|vision_start|><|image_pad|><|vision_end|>")
    .replace("<turn>", "<|im_start|>")
    .replace("<end>", "<|im_end|> ")
)


def main() -> None:
    """Measure and print a table."""
    parser = ArgumentParser(description="Training speed with images next to ms-swift.")
    parser.add_argument("--swift", type=Path, help="Python of an environment with ms-swift")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="pairs in a batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--own", nargs=2, type=Path, metavar=("MODEL", "ROWS"), help="used by the script itself")
    options = parser.parse_args()
    if options.own:
        model, rows = options.own
        train_own(model, rows, options.steps, options.batch)
        return
    with tempfile.TemporaryDirectory() as place:
        model, rows = Path(place, "model"), Path(place, "rows.jsonl")
        make_model(model)
        make_rows(rows, options.steps * options.batch)
        results = {"hf_reward": run_own(model, rows, options.steps, options.batch)}
        if options.swift is not None:
            results["ms-swift"] = run_swift(options.swift, model, rows, options.steps, options.batch)
    print_table(results, options.batch)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": f"{core_count()} cores of {cpu_name()}", "seconds": results}))


def make_model(folder: Path) -> None:
    """Save a model with random weights, its tokenizer and its image processor."""
    words = ["<unk>", "user", "assistant", "system", "Describe", "the", "picture", *COLOURS]
    vocabulary = {word: place for place, word in enumerate(words)} | SPECIAL
    vocabulary |= {f"<unused {place}>": place for place in range(len(words), min(SPECIAL.values()))}
    vocabulary |= {f"<unused {place}>": place for place in range(151_646, 151_652)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        extra_special_tokens={**named, "turn_token": "<|im_start|>"},
    )
    tokenizer.chat_template = TEMPLATE
    ids: dict[str, Any] = {f"{name}_id": SPECIAL[token] for name, token in named.items()}
    save_random_model(folder, tokenizer, 151_936, ids)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))


def make_rows(path: Path, count: int) -> None:
    """Write pairs in the layout of ms-swift; each has its own image."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        image = path.parent / f"{number}.png"
        make_picture(draw, draw.choice(COLOURS), "circle", 3).resize((SIZE, SIZE)).save(image)
        chosen, rejected = (" ".join(draw.choices(COLOURS, k=WORDS)) for _ in range(2))
        prompt = {"role": "user", "content": "<image> Describe the picture"}
        messages = [prompt, {"role": "assistant", "content": chosen}]
        lines.append(json.dumps({"messages": messages, "rejected_response": rejected, "images": [str(image)]}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


# --- the trainers ----------------------------------------------------------------------------------------------------


CLOCK = """
import time
from transformers.trainer_callback import CallbackHandler
begin, end, starts = CallbackHandler.on_step_begin, CallbackHandler.on_step_end, []

def on_step_begin(*args):
    starts.append(time.perf_counter())
    return begin(*args)

def on_step_end(*args):
    print(f"STEP {time.perf_counter() - starts[-1]:.4f}", flush=True)
    return end(*args)

CallbackHandler.on_step_begin, CallbackHandler.on_step_end = on_step_begin, on_step_end
"""
"""Code that prints the seconds of each step, with the optimizer, of any `Trainer`."""


def train_own(model: Path, rows: Path, steps: int, batch: int) -> None:
    """Train with hf_reward; runs in its own process."""
    from hf_reward import RewardConfig, RewardTrainer

    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    data = [
        {
            "images": row["images"],
            "prompt": row["messages"][0]["content"],
            "chosen": row["messages"][1]["content"],
            "rejected": row["rejected_response"],
        }
        for row in pairs
    ]
    settings: dict[str, Any] = {"max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-4}
    settings |= {"report_to": "none", "save_strategy": "no", "use_cpu": True, "max_length": None, "logging_steps": 1}
    config = RewardConfig(output_dir=str(rows.parent / "own"), **settings)
    exec(CLOCK, {})
    RewardTrainer(str(model), config, train_dataset=data).train()


def run_own(model: Path, rows: Path, steps: int, batch: int) -> list[float]:
    """Return the seconds of each step of hf_reward."""
    words = ["--own", str(model), str(rows), "--steps", str(steps), "--batch", str(batch)]
    return step_seconds([sys.executable, __file__, *words])


def run_swift(python: Path, model: Path, rows: Path, steps: int, batch: int) -> list[float]:
    """Return the seconds of each step of ms-swift."""
    settings = {
        "rlhf_type": "rm", "model": model, "model_type": "qwen2_5_vl", "template": "qwen2_5_vl", "tuner_type": "full",
        "dataset": rows, "torch_dtype": "float32", "per_device_train_batch_size": batch, "max_steps": steps,
        "learning_rate": 1e-4, "freeze_vit": True, "freeze_aligner": True, "attn_impl": "sdpa", "logging_steps": 1,
        "gradient_checkpointing": False, "vit_gradient_checkpointing": False, "gradient_accumulation_steps": 1,
        "save_strategy": "no", "output_dir": rows.parent / "swift", "split_dataset_ratio": 0, "report_to": "none",
        "max_length": 4096, "use_cpu": True, "dataloader_num_workers": 0, "load_from_cache_file": False,
    }  # fmt: skip
    code = f"{CLOCK}import sys\nfrom swift import rlhf_main\nrlhf_main(sys.argv[1:])"
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return step_seconds([str(python), "-c", code, *options])


def step_seconds(command: list[str]) -> list[float]:
    """Run a trainer and return the seconds of its steps."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("STEP ")]
    if done.returncode or len(found) < 2:
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {done.stderr[-2000:]}")
    return found


def print_table(results: dict[str, list[float]], batch: int) -> None:
    """Print pairs/s of each trainer."""
    table = Table("trainer", "seconds of a step", "pairs/s")
    for name, seconds in results.items():
        step = median(seconds[1:])
        table.add_row(name, f"{step:.2f}", f"{batch / step:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
