"""Tiny models and tokenizers that are created in the process, so that tests need no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import copy
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import enable_progress_bars
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)

# No deadline, because the machine may be busy; derandomised, so that results are reproducible. Use
# `--hypothesis-profile default` to search for new cases.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
torch.set_num_threads(1)  # two threads on tiny matrices wait for each other ten times longer than they compute

CORPUS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees; ice melts at zero.",
    "I would rather not help with that, but here is a safer way.",
    "def reverse(items): return items[::-1]",
    "Human: hello\n\nAssistant: hello, how can I help you today?",
    "Three short answers are better than one long answer.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # rewards that differ clearly between texts
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}

DECODERS: dict[str, Callable[[int], PretrainedConfig]] = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **_GROUPED),
    "qwen2": lambda v: Qwen2Config(vocab_size=v, **{k: x for k, x in _GROUPED.items() if k != "head_dim"}),
    "qwen3": lambda v: Qwen3Config(vocab_size=v, **_GROUPED),
    "mistral": lambda v: MistralConfig(vocab_size=v, sliding_window=8, **_GROUPED),
    "gemma2": lambda v: Gemma2Config(vocab_size=v, sliding_window=8, attn_implementation="eager", **_GROUPED),
    "gemma3": lambda v: Gemma3TextConfig(vocab_size=v, sliding_window=8, **_GROUPED),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2),
    "gpt_neox": lambda v: GPTNeoXConfig(vocab_size=v, **_SMALL),
    "opt": lambda v: OPTConfig(
        vocab_size=v,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
        init_std=0.2,
        dropout=0.0,
    ),
    "phi3": lambda v: Phi3Config(
        vocab_size=v, pad_token_id=0, **{k: x for k, x in _GROUPED.items() if k != "head_dim"}
    ),
    "olmo2": lambda v: Olmo2Config(vocab_size=v, **{k: x for k, x in _GROUPED.items() if k != "head_dim"}),
    "smollm3": lambda v: SmolLM3Config(
        vocab_size=v, pad_token_id=0, **{k: x for k, x in _GROUPED.items() if k != "head_dim"}
    ),
    "granite": lambda v: GraniteConfig(vocab_size=v, **{k: x for k, x in _GROUPED.items() if k != "head_dim"}),
}
ENCODERS: dict[str, Callable[[int], PretrainedConfig]] = {
    "bert": lambda v: BertConfig(vocab_size=v, **_SMALL),
    "roberta": lambda v: RobertaConfig(vocab_size=v, pad_token_id=0, **_SMALL),
    "deberta_v2": lambda v: DebertaV2Config(vocab_size=v, pooler_hidden_size=32, type_vocab_size=0, **_SMALL),
    "modernbert": lambda v: ModernBertConfig(
        vocab_size=v, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, **_SMALL
    ),
    "distilbert": lambda v: DistilBertConfig(
        vocab_size=v, dim=32, hidden_dim=48, n_layers=2, n_heads=4, initializer_range=0.2
    ),
}


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests with the marker `cuda` on machines without a GPU."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def own_stock_process() -> None:
    """Fixture for tests that verify in a new process, as users do."""


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    """Commands that run in this process switch the progress bars off for all later tests."""
    yield
    enable_progress_bars()


@pytest.fixture(autouse=True)
def _verify_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program of the verification in this process: a new process takes seconds to import transformers."""
    if "own_stock_process" not in request.fixturenames:
        from stock_in_process import score_in_process

        monkeypatch.setattr("hf_reward.publishing.verify.run_stock_scoring", score_in_process)


@pytest.fixture(scope="session")
def _chat_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # as in SmolLM2's GGUF; not usable as pad token
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=special,
    )


@pytest.fixture
def chat_tokenizer(_chat_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a ChatML template whose pad token equals its EOS."""
    return copy.deepcopy(_chat_tokenizer)


@pytest.fixture
def text_tokenizer() -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer: one special token, no pad token, no chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"]), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture
def pair_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like tokenizer: [CLS] a [SEP] b [SEP] with token types, no chat template."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _byte_level(special)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def write_language_model(folder: Path, arch: str, tokenizer: Any, seed: int = 0) -> Path:
    """Write a tiny language model (no reward head yet) with its tokenizer into a folder."""
    torch.manual_seed(seed)
    if arch in DECODERS:
        model = AutoModelForCausalLM.from_config(DECODERS[arch](len(tokenizer)))
    else:
        model = AutoModelForMaskedLM.from_config(ENCODERS[arch](len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_model_folder(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, pair_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Write a tiny language model (no reward head yet) with its tokenizer into a folder, by architecture."""

    def make(arch: str, name: str | None = None, tokenizer: Any = None, seed: int = 0) -> Path:
        tokenizer = tokenizer or (chat_tokenizer if arch in DECODERS else pair_tokenizer)
        return write_language_model(tmp_path / (name or arch), arch, tokenizer, seed)

    return make


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory, _chat_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved tiny reward model with a random head, made once; tests that change files copy the folder."""
    from saved_models import saved_model

    place = tmp_path_factory.mktemp("saved")
    source = write_language_model(place / "llama", "llama", copy.deepcopy(_chat_tokenizer))
    return saved_model(source, place / "saved")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `hf-reward` in this process: words -> exit code, stdout, stderr."""
    from hf_reward.cli import app as cli

    def run(*words: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-reward", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
            if isinstance(code, str):
                sys.stderr.write(f"{code}\n")
                code = 1
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def chat_pairs() -> list[dict[str, Any]]:
    """Sixteen conversational pairs with an explicit prompt; the polite side is preferred."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Question number {number}: what is {number} plus one?"}],
            "chosen": [{"role": "assistant", "content": f"Of course, the answer is {number + 1}."}],
            "rejected": [{"role": "assistant", "content": f"No idea, perhaps {number - 1}"[: 18 + number % 5]}],
        }
        for number in range(16)
    ]


@pytest.fixture
def text_pairs(chat_pairs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The same pairs as plain text."""
    return [
        {
            "prompt": row["prompt"][0]["content"] + " ",
            "chosen": row["chosen"][0]["content"],
            "rejected": row["rejected"][0]["content"],
        }
        for row in chat_pairs
    ]


def randomize_head(model: torch.nn.Module, seed: int = 1) -> None:
    """Give the head random weights, because every comparison of rewards would pass with a zero head."""
    from hf_reward.modeling.reward_head import head_modules

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    generator = torch.Generator().manual_seed(seed)
    heads = set(head_modules(model))
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            if any(name.startswith(f"{head}.") for head in heads):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
