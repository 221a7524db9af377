"""Memory plan: its arithmetic against values computed by hand, and its counts against real tensors."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen2_5_VLConfig

sys.path.append(str(Path(__file__).parents[2] / "recipes"))

from memory_plan import (
    Counts,
    Kept,
    activation_bytes,
    count_activations,
    count_parameters,
    flops_per_token,
    kept_bytes,
    main,
    make_model,
    state_bytes,
)

from hf_reward.training.memory import bytes_of, optimizer_bytes

CONFIG = LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, num_labels=1,
)  # fmt: skip
COUNTS = Counts(backbone=1000, layer=100, embeddings=200, adapter=10)


def test_parameters_match_the_architecture():
    counts = count_parameters(CONFIG, lora_r=4)
    real = AutoModelForSequenceClassification.from_config(CONFIG)
    assert counts.backbone == sum(parameter.numel() for parameter in real.model.parameters())
    assert counts.embeddings == 3200
    # q, o: 32 to 32; k, v: 32 to 16; gate, up: 32 to 48; down: 48 to 32; the head has 32
    assert counts.adapter == 32 + 3 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
    assert counts.layer == 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32


def test_the_vision_tower_has_no_adapter_and_no_cost_for_each_token():
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**CONFIG.to_dict(), "model_type": "qwen2_5_vl_text", "rope_parameters": rope, "layer_types": None}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, num_labels=1)
    counts, alone = count_parameters(config, lora_r=4), count_parameters(CONFIG, lora_r=4)
    biases = 3 * (32 + 16 + 16)  # of q, k and v in each layer
    assert counts.adapter == alone.adapter
    assert counts.layer == alone.layer + biases / 3
    assert counts.backbone == alone.backbone + biases + counts.vision
    model = make_model(config)
    assert counts.vision == sum(each.numel() for each in model.base_model.visual.parameters())
    assert count_activations(config).boundary == count_activations(CONFIG).boundary == 64


@pytest.mark.parametrize(
    ("method", "sharding", "expected"),
    [
        ("full", "ddp", [4000, 4000, 8000, 6000, 0]),
        ("full", "zero2", [2000, 500, 3000, 0, 0]),
        ("full", "fsdp2", [1000, 1000, 2000, 0, 400]),
        ("full", "zero3", [500, 500, 3000, 0, 400]),
        ("lora", "ddp", [2040, 40, 80, 60, 0]),
        ("lora", "fsdp2", [510, 10, 20, 0, 400]),
        ("qlora", "ddp", [0.516 * 800 + 400 + 40, 40, 80, 60, 0]),
    ],
)
def test_bytes_of_weights_gradients_and_states(method, sharding, expected):
    assert list(state_bytes(COUNTS, method, sharding, 4).values()) == pytest.approx(expected)


def test_the_plan_of_a_model_equals_the_estimate_of_a_dry_run():
    model = AutoModelForSequenceClassification.from_config(CONFIG).float()
    plan = state_bytes(count_parameters(CONFIG, lora_r=4), "full", "fsdp2", 1)
    head = 4 * sum(weight.numel() for weight in model.score.parameters())
    assert plan["weights"] == plan["gradients"] == bytes_of(model.parameters()) - head
    assert plan["optimizer"] == optimizer_bytes("adamw_torch", model) - 2 * head


def test_quantised_shards_are_refused():
    with pytest.raises(ValueError, match="4-bit"):
        state_bytes(COUNTS, "qlora", "fsdp2", 4)


def test_activations_with_and_without_checkpointing():
    kept = Kept(layer=1000, boundary=64)
    assert activation_bytes(kept, 10, 5, checkpointing=False) == 50_000
    assert activation_bytes(kept, 10, 5, checkpointing=True) == 5 * (640 + 1000)


def test_operations_of_a_token():
    assert flops_per_token(100, "full", False, 0, 0, 0) == 600
    assert flops_per_token(100, "full", True, 0, 0, 0) == 800
    assert flops_per_token(100, "lora", False, 0, 0, 0) == 400
    assert flops_per_token(100, "lora", True, 0, 0, 0) == 600
    assert flops_per_token(0, "full", False, 2, 8, 16) == 3 * 2 * 2 * 8 * 16


def test_kept_activations_equal_the_size_of_the_tensors():
    kept = count_activations(CONFIG)
    assert kept.boundary == 2 * 32
    assert count_activations(CONFIG, tokens=128).layer == pytest.approx(kept.layer)
    # at least: queries, keys, values and result of attention, the MLP's gate, up, activation and product, in bfloat16
    least = 2 * (2 * 32 + 2 * 16 + 4 * 48)
    assert least < kept.layer < 4 * least

    # the same hooks on real tensors; torch's own attention keeps other tensors, so both use the replacement
    short = LlamaConfig.from_dict({**CONFIG.to_dict(), "num_hidden_layers": 1})
    short._attn_implementation = "plan"
    real = AutoModelForSequenceClassification.from_config(short, dtype=torch.bfloat16)
    own = {parameter.untyped_storage()._cdata for parameter in real.parameters()}
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: seen.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor
    ):
        ids = torch.zeros(1, 64, dtype=torch.long)
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        output = real.model(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
        expected = sum(tensor.untyped_storage().nbytes() for key, tensor in seen.items() if key not in own)
    assert output.last_hidden_state.requires_grad
    assert sum(kept_bytes(make_model(short), 64)) == pytest.approx(expected, rel=0.02)


def test_the_table_has_a_row_for_each_combination(capsys, tmp_path):
    CONFIG.save_pretrained(tmp_path)
    main(["--model-config", str(tmp_path), "--gpus", "2", "--tokens", "100"])
    output = capsys.readouterr().out
    assert output.count("│ full") == output.count("│ lora") == 8
    assert output.count("│ qlora") == 2
