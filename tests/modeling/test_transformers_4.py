"""Saved folders have the fields of transformers 4, and transformers 5 reads the same model from them."""

import json

import pytest
from conftest import DECODERS
from transformers import AutoConfig, AutoTokenizer

from hf_reward.modeling.transformers_4 import add_transformers_4_fields

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def changed(folder, **parameters):
    """Save a configuration with RoPE parameters; return it as saved, and as loaded with the added fields."""
    arch = parameters.pop("arch", "llama")
    config = DECODERS[arch](64)
    config.rope_parameters = {**config.rope_parameters, **parameters}
    config.save_pretrained(folder)
    saved = AutoConfig.from_pretrained(folder).to_dict()
    add_transformers_4_fields(folder)
    return saved, json.loads((folder / "config.json").read_text()), AutoConfig.from_pretrained(folder).to_dict()


def test_the_rope_base_is_added(tmp_path):
    saved, written, loaded = changed(tmp_path, rope_theta=5e5)
    assert written["rope_theta"] == 5e5
    assert "rope_scaling" not in written
    assert loaded["rope_parameters"] == saved["rope_parameters"]


def test_rope_scaling_is_added(tmp_path):
    saved, written, loaded = changed(tmp_path, **LLAMA_3)
    scaling = {name: value for name, value in LLAMA_3.items() if name != "rope_theta"}
    assert (written["rope_theta"], written["rope_scaling"]) == (5e5, scaling)
    assert loaded["rope_parameters"] == saved["rope_parameters"] == LLAMA_3


def test_gpt_neox_has_its_own_names(tmp_path):
    saved, written, loaded = changed(tmp_path, arch="gpt_neox", rope_theta=5e5, partial_rotary_factor=0.5)
    assert (written["rotary_emb_base"], written["rotary_pct"]) == (5e5, 0.5)
    assert loaded["rope_parameters"] == saved["rope_parameters"]


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_models_without_one_rope_base_are_not_changed(arch, tmp_path):
    DECODERS[arch](64).save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    add_transformers_4_fields(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_the_tokenizer_gets_the_names_of_transformers_4(tmp_path, chat_tokenizer):
    chat_tokenizer.save_pretrained(tmp_path)
    add_transformers_4_fields(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["model_input_names"] == chat_tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert "extra_special_tokens" not in written
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nHello, World!<|im_end|>\n"
    assert loaded(text)["input_ids"] == chat_tokenizer(text)["input_ids"]
    assert loaded.all_special_tokens == chat_tokenizer.all_special_tokens
    assert loaded.chat_template == chat_tokenizer.chat_template


def test_the_inputs_of_a_pair_tokenizer_are_kept(tmp_path, pair_tokenizer):
    pair_tokenizer.save_pretrained(tmp_path)
    add_transformers_4_fields(tmp_path)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a", "b")


def test_an_empty_folder_stays_empty(tmp_path):
    add_transformers_4_fields(tmp_path)
    assert list(tmp_path.iterdir()) == []
