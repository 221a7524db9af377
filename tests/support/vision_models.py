"""Tiny vision-language models of several architectures, with tokenizer and image processor, and pictures for them."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    InternVLConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from hf_reward import AutoModelForRewardScoring
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.export import save_merged

TOKENS = {
    "image_token": "<image>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "video_token": "<video>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
_TURN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 64,  # 32 for each head, the smallest that vLLM supports on a CPU
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}}
_QWEN3 = {**_TEXT, "head_dim": 32, "rope_parameters": {**_MROPE["rope_parameters"], "mrope_interleaved": True}}
_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "vision_use_head": False,
}


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model."""

    config: Callable[[Callable[[str], int], dict[str, Any]], Any]
    """Makes the configuration from a function of token ids and common text settings."""
    image: str
    """What the chat template prints for an image."""
    image_processor: dict[str, Any]
    processor: dict[str, Any]


def _qwen2(token: Any, text: Any) -> Any:
    vision = {**_TOWER, "embed_dim": 16, "hidden_size": 64, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config={**text, **_MROPE}, vision_config=vision, **_qwen_tokens(token))


def _qwen25(token: Any, text: Any) -> Any:
    vision = {**_TOWER, "hidden_size": 16, "out_hidden_size": 64, "intermediate_size": 32}
    vision |= {"fullatt_block_indexes": [1], "window_size": 16}
    return Qwen2_5_VLConfig(text_config={**text, **_MROPE}, vision_config=vision, **_qwen_tokens(token))


def _qwen3(token: Any, text: Any) -> Any:
    vision = {**_TOWER, "hidden_size": 16, "out_hidden_size": 64, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return Qwen3VLConfig(text_config={**text, **_QWEN3}, vision_config=vision, **_qwen_tokens(token))


def _qwen_tokens(token: Any) -> dict[str, Any]:
    names = ("vision_start_token", "vision_end_token", "image_token", "video_token")
    return {f"{name}_id": token(TOKENS[name]) for name in names}


def _smolvlm(token: Any, text: Any) -> Any:
    vision = {**_SIGLIP, "model_type": "smolvlm_vision"}
    vision.pop("vision_use_head")
    text = {**text, "model_type": "llama"}
    return SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=token("<image>"), scale_factor=2)


def _internvl(token: Any, text: Any) -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [16, 16], "patch_size": [4, 4]}
    text = {**text, "model_type": "qwen2"}
    return InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=token("<IMG_CONTEXT>"), image_seq_length=4
    )


def _llava(token: Any, text: Any) -> Any:
    grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
    return LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2"},
        vision_config=_SIGLIP,
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=grid,
    )


def _gemma3(token: Any, text: Any) -> Any:
    return Gemma3Config(
        text_config={**text, "head_dim": 32, "sliding_window": 64},
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=token("<image>"),
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
    )


_QWEN_IMAGES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 64 * 16}}
_QWEN_IMAGE = "<|vision_start|><image><|vision_end|>"
ARCHITECTURES = {
    "qwen2_vl": Architecture(_qwen2, _QWEN_IMAGE, _QWEN_IMAGES, {}),
    "qwen2_5_vl": Architecture(_qwen25, _QWEN_IMAGE, _QWEN_IMAGES, {}),
    "qwen3_vl": Architecture(_qwen3, _QWEN_IMAGE, _QWEN_IMAGES, {}),
    "smolvlm": Architecture(
        _smolvlm,
        "<image>",
        {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": True},
        {"image_seq_len": 4},
    ),
    "internvl": Architecture(
        _internvl, "<IMG_CONTEXT>", {"size": {"height": 16, "width": 16}, "max_patches": 4}, {"image_seq_length": 4}
    ),
    "llava_onevision": Architecture(
        _llava,
        "<image>",
        {"size": {"height": 16, "width": 16}, "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]]},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "gemma3": Architecture(_gemma3, "<start_of_image>", {"size": {"height": 16, "width": 16}}, {"image_seq_length": 4}),
}


def vision_tokenizer(base: PreTrainedTokenizerFast, architecture: str) -> PreTrainedTokenizerFast:
    """Return a copy of a tokenizer with the tokens and the chat template of a vision-language model."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        extra_special_tokens=TOKENS,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        bos_token=base.bos_token,
    )
    tokenizer.add_tokens(_TILES, special_tokens=True)
    tokenizer.chat_template = _TURN.replace("IMAGE", ARCHITECTURES[architecture].image)
    return tokenizer


def save_vision_model(folder: Path, base: PreTrainedTokenizerFast, architecture: str, seed: int = 0) -> Path:
    """Save a tiny generative vision-language model with random weights, its tokenizer and its image processor."""
    made = ARCHITECTURES[architecture]
    tokenizer = vision_tokenizer(base, architecture)
    text: dict[str, Any] = {**_TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vocabulary = tokenizer.get_vocab()
    config = made.config(vocabulary.__getitem__, text)
    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processors: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    image_processors["pil"](**made.image_processor).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(made.processor))
    return folder


def picture(number: int, size: tuple[int, int] = (40, 28)) -> Image.Image:
    """Draw a picture of a few coloured shapes, a different one for each number."""
    colours = ["red", "green", "blue", "orange", "purple", "black"]
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for place in range(1 + number % 3):
        left = 3 + 11 * place
        box = (left, 4 + number % 7, left + 8, 16 + number % 5)
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape(box, fill=colours[(number + place) % len(colours)])
    return image


def encoded(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def save_vision_reward_model(folder: Path, base: PreTrainedTokenizerFast, architecture: str = "qwen2_vl") -> Path:
    """Save a tiny vision-language reward model with a random head, as after a training."""
    source = save_vision_model(folder / "base", base, architecture)
    model: Any = AutoModelForRewardScoring.from_pretrained(source)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(source))
    return save_merged(model, tokenizer, folder / "reward", verify=False)


def data_url(image: Image.Image) -> str:
    """Return a picture as data URL."""
    return f"data:image/png;base64,{base64.b64encode(encoded(image)).decode()}"
