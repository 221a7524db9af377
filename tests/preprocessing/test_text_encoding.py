"""Texts are cut between two words only if this changes no ids."""

import random

import pytest
from conftest import _byte_level
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_reward.preprocessing.text_encoding import can_be_cut, encode_texts

LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def bpe(pre_tokenizer: str) -> PreTrainedTokenizerFast:
    backend = _byte_level(["<|end|>"])
    if pre_tokenizer == "llama":
        words = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        backend.normalizer = normalizers.NFC()
    return wrap(backend)


TOKENIZERS = {name: bpe(name) for name in ("gpt2", "llama")}
PIECES = st.sampled_from(
    [*" abZ\n\t.,'5é", "e\u0301", "  ", " a", "b c", "'s", " 're", "<|end|>", "中", "\n\n", "🙂", "Human: what is it"]
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(st.lists(PIECES, max_size=16).map("".join), min_size=1, max_size=4))
def test_ids_equal_those_of_full_texts(name, texts):
    tokenizer = TOKENIZERS[name]
    full = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encode_texts(texts * 32, tokenizer, add_special_tokens=False) == full * 32  # fewer are not cut


def test_long_and_many_texts_keep_their_ids(chat_tokenizer):
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdeABC", k=pick.randint(1, 9))) + pick.choice(["", ",", "."]) for _ in range(999)]
    texts = [" ".join(pick.choices(words, k=200)) for _ in range(50)]
    assert encode_texts(texts, chat_tokenizer, add_special_tokens=True) == chat_tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("name", ["pair", "chat", "text"])
def test_special_tokens_surround_the_full_text(name, request):
    tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    texts = ["the capital of France is near", "Rome", ""] * 20
    assert can_be_cut(tokenizer)
    assert encode_texts(texts, tokenizer, add_special_tokens=True) == tokenizer(texts)["input_ids"]


def added(content: str) -> PreTrainedTokenizerFast:
    tokenizer = bpe("gpt2")
    tokenizer.add_tokens([AddedToken(content)])
    return tokenizer


def unlike_gpt2(change: str) -> PreTrainedTokenizerFast:
    backend = _byte_level(["<|end|>"])
    if change == "lower case":
        backend.normalizer = normalizers.Lowercase()
    elif change == "no words":
        backend.pre_tokenizer = None
    elif change == "dropout":
        backend.model.dropout = 0.1
    elif change == "several words":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    elif change == "unigram":
        backend = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], 0, False))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrap(backend)


@pytest.mark.parametrize("change", ["lower case", "no words", "dropout", "several words", "unigram"])
def test_other_kinds_of_tokenizers_are_not_cut(change):
    assert not can_be_cut(unlike_gpt2(change))


@pytest.mark.parametrize(
    ("content", "cut"), [("New York", False), ("word", False), (" b", False), ("    ", True), ("[/INST]", True)]
)
def test_added_tokens_that_could_lie_at_a_cut_forbid_it(content, cut):
    assert can_be_cut(added(content)) == cut


def test_pieces_with_different_ids_are_detected_and_not_used(monkeypatch, caplog):
    tokenizer = TOKENIZERS["gpt2"]
    texts = [f"the capital of France is number {number} in the list" for number in range(40)]
    full = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    monkeypatch.setattr("hf_reward.preprocessing.text_encoding._ids_of_pieces", lambda pieces, _: [[0] for _ in pieces])
    assert encode_texts(texts, tokenizer, add_special_tokens=False) == full
    assert "tokenised in one piece" in caplog.text
