"""Tokenizers that add no special tokens to those of the chat template."""

import pytest
from foreign_models import LLAMA3_TEMPLATE, bos_adding_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer, LlamaTokenizer

from hf_reward.modeling.encoder import tokenizer_to_save
from hf_reward.preprocessing.tokenizer import adds_special_tokens, without_added_tokens

SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[PAD]"]
BOS, EOS = SPECIAL[:2]
TEXT, PAIR = "The capital of France", ("Which?", "Paris.")
BEFORE_AND_AFTER = processors.TemplateProcessing(
    single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B {EOS}", special_tokens=[(BOS, 0), (EOS, 1)]
)
ADDING = {
    "template": BEFORE_AND_AFTER,
    "byte level and template": processors.Sequence([processors.ByteLevel(trim_offsets=True), BEFORE_AND_AFTER]),
    "bert": processors.BertProcessing((EOS, 1), (BOS, 0)),
    "roberta": processors.RobertaProcessing((EOS, 1), (BOS, 0)),
}


def adding(processor=None):
    tokenizer = bos_adding_tokenizer(SPECIAL, LLAMA3_TEMPLATE, bos=BOS, eos=EOS, pad="[PAD]")
    if processor is not None:
        tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


@pytest.mark.parametrize("kind", ADDING)
def test_no_tokens_are_added_also_after_a_round_trip(kind, tmp_path):
    tokenizer = adding(ADDING[kind])
    before = tokenizer(TEXT)["input_ids"]
    found = without_added_tokens(tokenizer)
    assert tokenizer(TEXT)["input_ids"] == before  # the argument is unchanged
    assert len(before) == len(found(TEXT)["input_ids"]) + 2
    found.save_pretrained(tmp_path)
    for each in (found, AutoTokenizer.from_pretrained(tmp_path)):
        for given in ((TEXT,), PAIR):
            assert each(*given)["input_ids"] == tokenizer(*given, add_special_tokens=False)["input_ids"]
        assert each.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith(BOS)


def test_offsets_stay_trimmed():
    tokenizer = adding(ADDING["byte level and template"])
    found = without_added_tokens(tokenizer)("a b", return_offsets_mapping=True)["offset_mapping"]
    assert found == tokenizer("a b", return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert found[-1] == (2, 3)  # without the space before the word


def test_a_class_that_rebuilds_its_processor_when_it_is_loaded(tmp_path):
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "\u2581": 4, "\u2581a": 5}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[("\u2581", "a")], add_bos_token=True, add_eos_token=True)
    assert llama("a")["input_ids"] == [1, 5, 2]
    without_added_tokens(llama).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is LlamaTokenizer
    assert loaded("a")["input_ids"] == [5]


def test_only_models_that_score_conversations_get_such_a_tokenizer(chat_tokenizer):
    tokenizer = adding()
    assert not adds_special_tokens(tokenizer_to_save(tokenizer, "conversations"))
    assert not adds_special_tokens(tokenizer_to_save(tokenizer, None))
    assert tokenizer_to_save(tokenizer, "text") is tokenizer
    tokenizer.chat_template = None
    assert tokenizer_to_save(tokenizer, None) is tokenizer
    assert tokenizer_to_save(chat_tokenizer, "conversations") is chat_tokenizer  # adds none
