"""Folders in the layouts of other libraries, with the rewards that these libraries compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import DECODERS
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

TEXTS = [
    "<|im_start|>user\nWhat boils?<|im_end|>\n<|im_start|>assistant\nWater boils.<|im_end|>",
    "Two is even, and three is not.<|im_end|>",
    "No.",
    "ice melts at zero " * 5,
]
HIDDEN = 32
ARCHITECTURES = ["llama", "qwen2", "mistral", "gpt2", "gpt_neox"]


class Foreign:
    """A tiny language model with a random head: what a foreign trainer has in memory before it saves."""

    def __init__(self, arch: str, tokenizer: Any, **settings: Any) -> None:
        torch.manual_seed(3)
        config = DECODERS[arch](len(tokenizer))
        for name, value in settings.items():
            setattr(config, name, value)
        self.tokenizer = tokenizer
        self.language_model: Any = AutoModelForCausalLM.from_config(config).eval()
        self.head = torch.randn(1, HIDDEN) * 0.3
        self.bias = torch.tensor([0.75])

    @property
    def backbone(self) -> PreTrainedModel:
        return self.language_model.base_model

    def weights(self, prefix: str, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """The backbone's weights under a prefix, and the head's."""
        state = {prefix + key: tensor for key, tensor in self.backbone.state_dict().items()}
        return {key: tensor.clone().contiguous() for key, tensor in {**state, **head}.items()}

    def language_model_weights(self, head: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        own = {prefix + key: tensor for key, tensor in self.language_model.state_dict().items()}
        return {key: tensor.clone().contiguous() for key, tensor in {**own, **head}.items()}

    def rewards(self, texts: list[str], bias: float = 0.0, head: Tensor | None = None) -> Tensor:
        """The reward of each text alone, at its last token: what all the foreign classes compute."""
        head = self.head if head is None else head
        ids = [self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
        with torch.no_grad():
            return torch.stack([(self.backbone(each)[0][0, -1] @ head[0]) + bias for each in ids])


def write(folder: Path, model: Foreign, weights: dict[str, Tensor] | None, **settings: Any) -> Path:
    """Write configuration, tokenizer and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(model.language_model.config.to_json_string(use_diff=False))
    content.update({"architectures": [type(model.language_model).__name__], **settings})
    (folder / "config.json").write_text(json.dumps(content))
    model.tokenizer.save_pretrained(folder)
    if weights is not None:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def as_pickle(folder: Path, wrap: str | None = None, name: str = "pytorch_model.bin") -> Path:
    weights = load_file(folder / "model.safetensors")
    torch.save({wrap: weights} if wrap else weights, folder / name)
    (folder / "model.safetensors").unlink()
    return folder


def trl(folder: Path, model: Foreign) -> Path:
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    return write(folder, model, model.language_model_weights(head))


def trl_zero3(folder: Path, model: Foreign) -> Path:
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    return write(folder, model, model.language_model_weights(head, "pretrained_model."))


def llama_factory(folder: Path, model: Foreign) -> Path:
    model.language_model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder


def grm(folder: Path, model: Foreign) -> Path:
    settings = {"vhead_layer_type": "linear", "vhead_num_neurons": 1024, "vhead_num_layers": 1}
    head = {"v_head.summary.weight": model.head, "v_head.summary.bias": model.bias}
    return write(folder, model, model.language_model_weights(head), **settings)


def openrlhf(folder: Path, model: Foreign, name: str = "value_head", **settings: Any) -> Path:
    prefix = f"{model.language_model.base_model_prefix}."
    weights = model.weights(prefix, {f"{name}.weight": model.head})
    settings = {"value_head_prefix": name, "mean": 0.5, "std": 2.5, **settings}
    return write(folder, model, weights, architectures=["RewardModel"], normalize_reward=False, **settings)


def ultrarm(folder: Path, model: Foreign) -> Path:
    weights = model.weights("model.", {"regression_head.weight": model.head})
    auto_map = {"AutoModel": "modeling_eurus_rm.EurusRewardModel"}
    return write(folder, model, weights, architectures=["EurusRewardModel"], auto_map=auto_map)


def deepspeed_chat(folder: Path, model: Foreign) -> Path:
    return write(folder, model, model.weights("rwtransformer.", {"v_head.weight": model.head}))


def starling(folder: Path, model: Foreign) -> Path:
    weights = model.weights("transformer.", {"v_head.weight": model.head})
    whole = model.language_model_weights({}, prefix="model.")
    return write(folder, model, {**whole, **weights}, architectures=["LlamaForSequenceClassification"])


def xtuner(folder: Path, model: Foreign) -> Path:
    prefix = f"{model.language_model.base_model_prefix}."
    return write(folder, model, model.weights(prefix, {"v_head.weight": model.head}), reward_token_id=7)


def xtuner_training(folder: Path, model: Foreign) -> Path:
    return write(folder, model, model.weights("llm.", {"v_head.weight": model.head}))


def token_classifier(folder: Path, model: Foreign) -> Path:
    prefix = f"{model.language_model.base_model_prefix}."
    weights = model.weights(prefix, {"score.weight": model.head, "score.bias": model.bias})
    return write(folder, model, weights, architectures=["Qwen2ForTokenClassification"])


def nemotron(folder: Path, model: Foreign) -> Path:
    """The reward head lies in the first row of the language model's own head, as NVIDIA's conversion put it."""
    folder = folder / "Tiny-Nemotron-0B-Reward-HF"
    with torch.no_grad():
        model.language_model.get_output_embeddings().weight[:1] = model.head
    model.language_model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


LAYOUTS: dict[str, tuple[Callable[[Path, Foreign], Path], str, list[str]]] = {
    "trl": (trl, "trl", ARCHITECTURES),
    "trl_zero3": (trl_zero3, "trl", ["llama", "gpt2", "gpt_neox"]),
    "llama_factory": (llama_factory, "llama_factory", ARCHITECTURES),
    "grm": (grm, "grm", ["llama", "gemma2", "mistral"]),
    "openrlhf": (openrlhf, "openrlhf", [*ARCHITECTURES, "qwen3", "granite"]),
    "ultrarm": (ultrarm, "ultrarm", ["llama", "mistral"]),
    "deepspeed_chat": (deepspeed_chat, "deepspeed_chat", [*ARCHITECTURES, "opt"]),
    "starling": (starling, "starling", ["llama", "gpt2"]),
    "xtuner": (xtuner, "xtuner", ["llama", "qwen2", "gpt_neox"]),
    "xtuner_training": (xtuner_training, "xtuner", ["llama", "qwen2"]),
    "token_classifier": (token_classifier, "token_classifier", ["qwen2", "llama"]),
    "nemotron": (nemotron, "nemotron", ARCHITECTURES),
}
CASES = [(layout, arch) for layout, (_, _, archs) in LAYOUTS.items() for arch in archs]
WITH_BIAS = {"trl", "trl_zero3", "llama_factory", "grm", "token_classifier"}


def own_rewards(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Rewards in one right-padded batch."""
    inputs = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model.eval()(**inputs).logits[:, 0]


def close(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= 1e-5 * other.abs().clamp(min=1)).all())


def check_rewards(imported: Any, expected: Tensor, texts: list[str] = TEXTS) -> None:
    assert expected.std() > 0.05, "a head that gives the same for all texts would prove nothing"
    together = own_rewards(imported.model, imported.tokenizer, texts) + imported.offset
    alone = [own_rewards(imported.model, imported.tokenizer, [text]) for text in texts]
    assert close(together, expected), (together - expected).abs().max()
    assert close(torch.cat(alone) + imported.offset, expected)
