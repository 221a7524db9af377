"""Score the probes of a saved folder with stock transformers (and PEFT for adapters).

`verify` runs this file as a separate program and gets one line of JSON. The program does not import hf_reward, so its
rewards are those of users without hf_reward. Only `--with-hf-reward`, for architectures without a classifier in
transformers, imports hf_reward. The model card of an adapter contains the source of `load_adapter`, and that of a
model with images the source of `with_images`. Verification therefore also tests the code in the card.
"""

import argparse
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer, pipeline

WAYS = ("alone", "right", "left", "pipeline")
LONGEST = "longest"
"""Name of the probe of maximum length. It is scored in a batch of its own, because padding to it is slow."""


def main(argv: list[str]) -> None:
    """Score the probes of a folder in the given precisions and ways, and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["alone", "right"])
    parser.add_argument("--base")
    parser.add_argument("--with-hf-reward", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--allow-pickle", action="store_true")
    options = parser.parse_args(argv)
    folder = Path(options.folder)
    recorded = _read_json(folder / "reward_config.json")["probes"]
    conversations, pictures = recorded["conversations"], recorded.get("images")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    texts = [as_text(probe, tokenizer) for probe in conversations]
    longest = len(texts) - (conversations[-1]["name"] == LONGEST)
    ids = [as_inputs([text.parts], tokenizer, text.special)["input_ids"][0] for text in texts]
    result: dict[str, Any] = {"input_ids": ids, "missing": [], "rewards": {}}
    loading: dict[str, Any] = {} if options.allow_pickle else {"use_safetensors": True}
    for dtype in options.dtypes:
        if options.with_hf_reward:
            permits = {"allow_pickle": options.allow_pickle, "trust_remote_code": options.trust_remote_code}
            model, missing = load_with_hf_reward(folder, dtype, options.base, **permits), []
        else:
            loading |= {"dtype": getattr(torch, dtype), "trust_remote_code": options.trust_remote_code}
            model, missing = load(folder, options.base, **loading)
        result["missing"] = missing
        result["rewards"][dtype] = {
            way: score(model.eval(), tokenizer, texts[:longest], way) + score(model, tokenizer, texts[longest:], way)
            for way in options.ways
        }
        if pictures and pictures["conversations"]:
            own = model if options.with_hf_reward else None
            found = checked_pictures(folder, model, own, pictures["conversations"])
            result.setdefault("images", {"rewards": {}})["rewards"][dtype] = found.pop("rewards", [])
            result["images"] |= found
        del model
    print(json.dumps(result))  # noqa: T201 - the output of this program


class ProbeText(NamedTuple):
    """Input of the tokenizer for one probe."""

    parts: tuple[str, ...]
    """One text or two."""
    special: bool
    """Whether the tokenizer adds its special tokens."""


def as_text(probe: dict[str, Any], tokenizer: Any) -> ProbeText:
    """Return the input of the tokenizer for a probe."""
    if "messages" in probe:  # the template adds all special tokens
        return ProbeText((tokenizer.apply_chat_template(probe["messages"], tokenize=False),), False)
    return ProbeText(tuple(probe[name] for name in ("text", "text_pair") if name in probe), True)


def adds_special_tokens(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds special tokens to a text by default."""
    return tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]


def load_adapter(folder: str, base: str | None = None, **options: Any) -> Any:
    """Load a reward model's adapter, with its head and pad token, on its base."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.get("trust_remote_code", False))
    options = {"num_labels": 1, "problem_type": "regression", **options}
    if base is None:
        adapter = PeftConfig.from_pretrained(folder)
        base, options["revision"] = str(adapter.base_model_name_or_path), adapter.revision or "main"
    model = AutoModelForSequenceClassification.from_pretrained(base, **options)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # a pad token was added
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(model, folder)


def load(folder: Path, base: str | None, **options: Any) -> tuple[Any, list[str]]:
    """Load a complete model, or an adapter on its base. Also return the names of missing weights."""
    if not (folder / "adapter_config.json").is_file():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, output_loading_info=True, **options
        )
        return model, sorted(info["missing_keys"])
    adapter = _read_json(folder / "adapter_config.json")
    quantization = _read_json(folder / "reward_config.json").get("quantization")
    if quantization:  # the adapter was fitted to the quantised weights
        options["quantization_config"] = quantization
    saved = adapter.get("modules_to_save") or []
    try:
        model = load_adapter(str(folder), base, **options)
    except KeyError as error:  # PEFT raises it for a missing head
        lost = [part for part in sorted(set(saved)) if f".{part}." in str(error)]
        raise ValueError(f"the adapter's weights lack {', '.join(lost) or error} of `modules_to_save`") from error
    modules = {name.removeprefix("base_model.model.") for name, _ in model.named_modules()}
    keys = _adapter_keys(folder)
    parts = sorted(modules.intersection(saved))
    lost = [part for part in parts if not any(f".{part}." in key for key in keys)]
    if lost:
        raise ValueError(f"the adapter's weights lack {', '.join(lost)} of `modules_to_save`")
    return model, []


def _adapter_keys(folder: Path) -> list[str]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():  # only with --allow-pickle
        return list(torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True))
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_with_hf_reward(folder: Path, dtype: str, base: str | None, **permits: bool) -> Any:
    """Load a folder whose architecture has a classifier only in hf_reward."""
    from hf_reward import AutoModelForRewardScoring  # noqa: PLC0415

    options: dict[str, Any] = {"base_model_name_or_path": base} if base else {}
    options |= {"dtype": dtype, "is_trainable": False, **permits}
    return AutoModelForRewardScoring.from_pretrained(folder, **options)


@torch.no_grad()
def score(model: Any, tokenizer: Any, texts: list[ProbeText], way: str) -> list[float]:
    """Score texts alone, in one batch padded on the right or left, or with the stock pipeline."""
    if not texts:
        return []
    special = texts[0].special
    if way == "pipeline":
        classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, device=model.device)
        pairs = [parts[0] if len(parts) == 1 else {"text": parts[0], "text_pair": parts[1]} for parts, _ in texts]
        # Without options, as users call it; tokenizers saved by hf_reward 0.1 may add a second BOS by default.
        options = {} if special or not adds_special_tokens(tokenizer) else {"add_special_tokens": False}
        return [float(classify([pair], **options)[0]["score"]) for pair in pairs]
    batches = [[text.parts] for text in texts] if way == "alone" else [[text.parts for text in texts]]
    rewards = []
    for batch in batches:
        side = {} if way == "alone" else {"padding": True, "padding_side": way}
        inputs = as_inputs(batch, tokenizer, special, return_tensors="pt", **side).to(model.device)
        rewards.append(model(**inputs).logits[:, 0].float())
    return torch.cat(rewards).tolist()


def with_images(processor: Any, messages: list[dict[str, Any]], images: list[Any]) -> Any:
    """Return the inputs of a conversation whose parts `{"type": "image"}` are the given images."""
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    return processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")


def processor_of(folder: Path, model: Any = None) -> Any:
    """Load the processor of a folder; for a model that was loaded with hf_reward, without the part for videos."""
    if model is None:
        return AutoProcessor.from_pretrained(folder)
    from hf_reward.preprocessing.image_processor import load_image_processing  # noqa: PLC0415

    return load_image_processing(str(folder), model.config, AutoTokenizer.from_pretrained(folder)).processor


def checked_pictures(folder: Path, model: Any, own: Any, conversations: list[dict[str, Any]]) -> dict[str, Any]:
    """Score conversations with pictures, or return the reason why that is not possible as `problem`."""
    try:
        return score_pictures(model, processor_of(folder, own), conversations)
    except Exception as error:  # a missing library, file or class; texts are checked anyway
        return {"problem": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def score_pictures(model: Any, processor: Any, conversations: list[dict[str, Any]]) -> dict[str, Any]:
    """Score conversations with pictures, each alone; also return token ids and the class of the image processor."""
    found: dict[str, Any] = {"input_ids": [], "rewards": [], "processor": type(processor.image_processor).__name__}
    for probe in conversations:
        messages, images = without_pictures(probe["messages"])
        inputs = with_images(processor, messages, images).to(model.device)
        found["input_ids"].append(inputs["input_ids"][0].tolist())
        found["rewards"].append(model(**inputs).logits[0, 0].item())
    return found


def without_pictures(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages whose image parts have no data, and the images in order."""
    from PIL import Image  # noqa: PLC0415 - not for text models

    images, result = [], []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, list):
            urls = [part["image"] for part in parts if part["type"] == "image"]
            files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
            images += [Image.open(file).convert("RGB") for file in files]
            parts = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        result.append({**message, "content": parts})
    return result, images


def as_inputs(batch: list[tuple[str, ...]], tokenizer: Any, special: bool, **options: Any) -> Any:
    """Tokenize texts or text pairs as lists; otherwise a single pair would lose an empty second text."""
    columns = [list(column) for column in zip(*batch, strict=True)]
    return tokenizer(*columns, add_special_tokens=special, **options)


if __name__ == "__main__":
    main(sys.argv[1:])
