"""Every backbone with a language model in transformers gets a classifier that loads its weights."""

import pytest
import torch
from conftest import randomize_head
from training_runs import load
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_reward.modeling.architectures import classifier_class

SMALL = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_experts", "num_local_experts"), 4),
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "state_size": 8,
    "expand": 2,
    "n_groups": 1,
    "vocab_size": 64,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MADE = {
    "mamba": "backbone",
    "mamba2": "backbone",
    "gpt_neox_japanese": "gpt_neox_japanese",
    "codegen": "transformer",
    "rwkv": "rwkv",
    "granite": "model",
    "bert-generation": "bert",
    "xglm": "model",
    "bitnet": "model",
    "olmoe": "model",
}
"""Architectures without a sequence classifier of their own, and the name of the backbone in their checkpoints."""


MORE = {"mamba2": {"num_heads": 8}, "codegen": {"rotary_dim": 4}, "olmoe": {"num_experts_per_tok": 2}}


def tiny(model_type, **more):
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    settings = {name: value for name, value in SMALL.items() if hasattr(default, name)}
    if isinstance(default.to_dict().get("layer_types"), list):
        settings["layer_types"] = default.layer_types[:2]
    return cls(**{**settings, **more})


@pytest.mark.parametrize("model_type", MADE)
def test_the_backbone_is_found_under_its_own_name(model_type, tmp_path):
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(tiny(model_type, **MORE.get(model_type, {}))).eval()
    language_model.save_pretrained(tmp_path / "lm")
    model = load(tmp_path / "lm").eval()
    assert model.base_model_prefix == MADE[model_type]
    ours, theirs = model.base_model.state_dict(), language_model.base_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    randomize_head(model)
    model.config.get_text_config().pad_token_id = 0
    sequences = [torch.randint(3, 60, (1, length)) for length in (9, 5)]
    batch = torch.zeros(2, 9, dtype=torch.long)
    for row, ids in zip(batch, sequences, strict=True):
        row[: ids.shape[1]] = ids[0]
    with torch.no_grad():
        alone = torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in sequences])
        together = model(input_ids=batch, attention_mask=(batch != 0).long()).logits
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert alone.abs().max() > 1e-3
    model.save_pretrained(tmp_path / "rm")
    with torch.no_grad():
        again = load(tmp_path / "rm").eval()(input_ids=sequences[0]).logits
    torch.testing.assert_close(again, alone[:1], atol=1e-5, rtol=1e-5)


def test_a_decoder_of_an_encoder_decoder_is_refused_with_the_reason(tmp_path):
    for model_type in ("blenderbot-small", "pegasus"):
        config = tiny(model_type, encoder_attention_heads=4, decoder_attention_heads=4)
        with pytest.raises(ValueError, match=r"cannot create one: .* is the decoder of an encoder-decoder model"):
            classifier_class(config)
        assert type(config) not in AutoModelForSequenceClassification._model_mapping
