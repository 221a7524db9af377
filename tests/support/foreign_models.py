"""Tiny random copies of public reward models' layouts: the same classes, tokens, templates and quirks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import _SMALL, _byte_level
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

_GROUPED: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2}

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)


def bos_adding_tokenizer(special: list[str], template: str, *, bos: str, eos: str, pad: str | None) -> Any:
    """A byte-level tokenizer that puts a BOS before every text by itself, as Llama's and Gemma's do."""
    backend = _byte_level(special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special.index(bos))]
    )
    names: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "chat_template": template}
    if pad is not None:
        names["pad_token"] = pad
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special, **names)


def llama3_tokenizer(pad: str | None) -> Any:
    """A tokenizer that adds the BOS that Llama 3's template writes too."""
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[PAD]"]
    return bos_adding_tokenizer(special, LLAMA3_TEMPLATE, bos=special[0], eos=special[1], pad=pad)


def _skywork_llama() -> tuple[Any, Any]:
    tokenizer = llama3_tokenizer("[PAD]")
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=4, **_GROUPED), tokenizer


def _skywork_gemma() -> tuple[Any, Any]:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = bos_adding_tokenizer(special, GEMMA_TEMPLATE, bos="<bos>", eos="<eos>", pad="<pad>")
    config = Gemma2Config(vocab_size=len(tokenizer), pad_token_id=0, sliding_window=8, head_dim=8, **_GROUPED)
    return config, tokenizer


def _skywork_qwen3() -> tuple[Any, Any]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
        additional_special_tokens=special,
    )
    return Qwen3Config(vocab_size=len(tokenizer), pad_token_id=0, head_dim=8, **_GROUPED), tokenizer


def _fsfairx() -> tuple[Any, Any]:
    """RLHFlow's: as Llama 3, with `[PAD]` in the configuration only."""
    tokenizer = llama3_tokenizer(None)
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=4, **_GROUPED), tokenizer


def _rm_mistral() -> tuple[Any, Any]:
    """RM-Mistral-7B: a pad token that is the end token, with which every answer ends."""
    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer = bos_adding_tokenizer(special, MISTRAL_TEMPLATE, bos="<s>", eos="</s>", pad="</s>")
    return MistralConfig(vocab_size=len(tokenizer), pad_token_id=1, sliding_window=8, **_GROUPED), tokenizer


def _grm() -> tuple[Any, Any]:
    """GRM's linear-head models: Llama 3 whose pad token is its end token."""
    tokenizer = llama3_tokenizer("<|eot_id|>")
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=1, **_GROUPED), tokenizer


def _allenai_rb2() -> tuple[Any, Any]:
    tokenizer = llama3_tokenizer("[PAD]")
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=4, tie_word_embeddings=False, **_GROUPED), tokenizer


def _open_assistant_deberta() -> tuple[Any, Any]:
    """reward-model-deberta-v3-large-v2: a text pair of question and answer, no template."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    backend = _byte_level(special)
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    config = DebertaV2Config(
        vocab_size=len(tokenizer), pooler_hidden_size=32, type_vocab_size=0, pad_token_id=0, **_SMALL
    )
    return config, tokenizer


FOREIGN: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Skywork-Reward-Llama-3.1": _skywork_llama,
    "Skywork-Reward-Gemma-2": _skywork_gemma,
    "Skywork-Reward-V2-Qwen3": _skywork_qwen3,
    "FsfairX-LLaMA3-RM": _fsfairx,
    "RM-Mistral-7B": _rm_mistral,
    "GRM-Llama3-rewardmodel-ft": _grm,
    "allenai-RB2": _allenai_rb2,
    "OpenAssistant-DeBERTa": _open_assistant_deberta,
}


def foreign_model(name: str, folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """Save a random model in the layout of a public one, as stock transformers saves it: no `problem_type`."""
    config, tokenizer = FOREIGN[name]()
    config.num_labels = labels
    torch.manual_seed(seed)
    model: Any = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stock_rewards(folder: Path, conversations: list[tuple[str, str]]) -> list[float]:
    """What the models' own cards do: the stock class, one text at a time, one BOS."""
    from transformers import AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rewards = []
    for prompt, response in conversations:
        if tokenizer.chat_template is None:
            inputs = tokenizer(prompt, response, return_tensors="pt")
        else:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            rewards.append(float(model(**inputs).logits[0, 0]))
    return rewards
