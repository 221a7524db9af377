"""Packed batches give the rewards and gradients of padded ones."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig

from hf_reward import AutoModelForRewardScoring, DataCollatorForPreference, compute_rewards
from hf_reward.packed_attention import PackedLayout
from hf_reward.packing import DataCollatorForPackedPreference, packed_model, why_not_packed
from hf_reward.packing_check import packing_error, packing_problem
from hf_reward.reward_head import as_reward_model
from tests.conftest import DECODERS, randomize_head

SHAPES = ((20, (7, 5)), (3, (11, 2, 4)), (0, (4, 9)), (15, (1, 1)), (1, (3, 6, 2, 2, 5)))
"""Prefix length and own tokens of each response: empty prefix, all but one token shared, K of 2, 3 and 5."""


def make_rows(shapes: Any = SHAPES, vocabulary: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows = []
    for number, (shared, owns) in enumerate(shapes):
        prefix = draw(shared)
        ids = [prefix + draw(own) for own in owns]
        common = {"group": number, "row": number, "source": "a", "weight": 1.0, "margin": None, "probability": None}
        rows.append({"input_ids": ids, "ranks": list(range(len(ids))), "prefix_length": shared, **common})
    return rows


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted_sum(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards * torch.arange(1, rewards.numel() + 1).view_as(rewards)).sum()


@pytest.fixture
def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config))
    randomize_head(model)
    return model


@pytest.mark.parametrize("arch", [arch for arch in DECODERS if arch != "gemma2"])
def test_packed_equals_padded_in_rewards_and_gradients(arch: str, make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder(arch))
    randomize_head(model)
    rows = make_rows(vocabulary=model.config.vocab_size)
    padded = compute_rewards(model, DataCollatorForPreference(model.config.pad_token_id)(rows))
    weighted_sum(padded).backward()
    expected = gradients(model)
    model.zero_grad()
    with packed_model(model):
        packed = compute_rewards(model, DataCollatorForPackedPreference()(rows))
        weighted_sum(packed).backward()
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # An absolute floor: OPT's key biases have a true gradient of zero.
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5 * largest, name


@pytest.mark.parametrize("arch", [arch for arch in DECODERS if arch != "gemma2"])
def test_in_bfloat16_the_two_paths_differ_by_rounding_alone(arch: str, make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder(arch), dtype="bfloat16")
    rows = make_rows(vocabulary=model.config.vocab_size)
    padded = DataCollatorForPreference(model.config.pad_token_id)(rows)
    assert packing_problem(model, padded, DataCollatorForPackedPreference()(rows)) is None


def test_gemma2_says_why_it_stays_padded(make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("gemma2"))
    assert "caps attention scores" in str(why_not_packed(model))


def test_an_encoder_says_why_it_stays_padded(make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("bert"))
    assert "encoder" in str(why_not_packed(model))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_any_layout_gives_the_padded_rewards(shapes: list, seed: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config)).eval()
    randomize_head(model)
    rows = make_rows(shapes, vocabulary=50, seed=seed)
    with torch.no_grad(), packed_model(model):
        padded = compute_rewards(model, DataCollatorForPreference(0)(rows))
        packed = compute_rewards(model, DataCollatorForPackedPreference()(rows))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was_and_padded_batches_stay_right_meanwhile(llama: Any) -> None:
    batch = DataCollatorForPreference(0)(make_rows())
    before, implementation = compute_rewards(llama, batch), llama.config._attn_implementation
    with packed_model(llama):
        during = compute_rewards(llama, batch)
    assert torch.equal(before, during)
    assert llama.config._attn_implementation == implementation
    assert torch.equal(before, compute_rewards(llama, batch))


def test_a_row_holds_each_prefix_once_and_no_padding() -> None:
    batch = DataCollatorForPackedPreference()(make_rows(((5, (2, 3)), (0, (1, 4)))))
    assert batch["input_ids"].shape == (1, 5 + 2 + 3 + 1 + 4)
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 0, 1, 2, 3]
    assert batch["reward_positions"].tolist() == [6, 9, 10, 14]


# --- the check that guards the path: each planted fault must be seen -------------------------------------------------


def error_after(llama: Any, change: Any) -> float:
    rows = make_rows()
    packed = DataCollatorForPackedPreference()(rows)
    change(packed)
    with packed_model(llama):
        return packing_error(llama, DataCollatorForPreference(0)(rows), packed)


def test_the_check_passes_on_an_unchanged_batch(llama: Any) -> None:
    assert error_after(llama, lambda packed: None) < 1e-5


def test_the_check_sees_wrong_position_ids(llama: Any) -> None:
    def shift(packed: dict[str, Any]) -> None:
        packed["position_ids"] = torch.arange(packed["input_ids"].shape[1])[None]

    assert error_after(llama, shift) > 1e-3


def test_the_check_sees_a_leak_between_groups(llama: Any) -> None:
    rows = make_rows(((6, (3, 4)), (6, (2, 5))))
    packed = DataCollatorForPackedPreference()(rows)
    first, second = packed["packed_layout"].groups
    # The second group's responses see the first group's prefix, which is as long as their own.
    packed["packed_layout"] = PackedLayout((first, dataclasses.replace(second, prefix=first.prefix)))
    with packed_model(llama):
        assert packing_error(llama, DataCollatorForPreference(0)(rows), packed) > 1e-3


def test_the_check_sees_a_response_that_misses_its_prefix(llama: Any) -> None:
    def forget(packed: dict[str, Any]) -> None:
        first, *rest = packed["packed_layout"].groups
        split = dataclasses.replace(
            first, prefix=(first.prefix[0], first.prefix[0]), responses=(first.prefix, *first.responses)
        )
        packed["packed_layout"] = PackedLayout((split, *rest))

    assert error_after(llama, forget) > 1e-3


def test_a_zero_head_does_not_hide_a_fault(llama: Any) -> None:
    torch.nn.init.zeros_(llama.score.weight)

    def shift(packed: dict[str, Any]) -> None:
        packed["position_ids"] = torch.zeros_like(packed["position_ids"])

    assert error_after(llama, shift) > 1e-3
