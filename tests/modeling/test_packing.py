"""Packed batches give the rewards and gradients of padded ones."""

import copy
import random
from argparse import Namespace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import DECODERS, randomize_head
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from training_runs import largest_difference, make_trainer, weights
from transformers import (
    AttentionInterface,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    MiniMaxConfig,
    Qwen2MoeConfig,
    Qwen3NextConfig,
)

from hf_reward import AutoModelForRewardScoring, DataCollatorForPreference, RewardConfig, compute_rewards
from hf_reward.modeling import packed_attention
from hf_reward.modeling.adapters import add_adapter
from hf_reward.modeling.dropout import disable_dropout
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.packing_check import ROUNDING_TOLERANCE, kernel_error, packing_error, packing_problem
from hf_reward.modeling.reward_head import as_reward_model, unwrap_model
from hf_reward.preprocessing import prefix_tree
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of
from hf_reward.training.collators import choose_collator

SHAPES = ((20, (7, 5)), (3, (11, 2, 4)), (0, (4, 9)), (15, (1, 1)), (1, (3, 6, 2, 2, 5)))
"""Prefix length and own tokens of each response: empty prefix, all but one token shared, K of 2, 3 and 5."""

TINY: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


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


def make_related_rows(vocabulary: int = 300) -> list[dict[str, Any]]:
    """Rows that share prompts, turns and responses: a tree of several levels."""
    rows = make_rows(vocabulary=vocabulary)
    first, *_, last = rows
    prompt, (one, two) = first["input_ids"][0][:20], first["input_ids"]
    turn = [*one, *last["input_ids"][1]]  # continues the conversation after the first response
    related = [
        (first, [two, one], 20),
        (first, [one, [*prompt, 5, 6], [*prompt, 7]], 20),
        (first, [[*turn, *prompt[:9], 8], [*turn, *prompt[:9], 9], [*turn, 8]], len(turn)),
        (first, [one[:12], [*one[:11], 3, 4]], 11),  # ends within a segment of the others
    ]
    for row, ids, shared in related:
        rows.append({**row, "input_ids": ids, "prefix_length": shared, "ranks": [0] * len(ids), "row": len(rows)})
    return rows


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # An absolute floor: OPT's key biases have a true gradient of zero.
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5 * largest, name


def assert_packed_equals_padded(model: Any) -> None:
    """The same rewards, and the same gradient of every parameter."""
    bare = unwrap_model(model)
    rows = make_related_rows(vocabulary=bare.config.vocab_size)
    padded = compute_rewards(model, DataCollatorForPreference(bare.config.pad_token_id)(rows))
    weighted_sum(padded).backward()
    expected = gradients(model)
    model.zero_grad()
    with packed_model(bare):
        packed = compute_rewards(model, DataCollatorForPackedPreference()(rows))
        weighted_sum(packed).backward()
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model), expected)


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
    assert_packed_equals_padded(model)


@pytest.mark.parametrize("arch", [arch for arch in DECODERS if arch != "gemma2"])
def test_in_bfloat16_packing_rounds_no_more_than_padding(arch: str, make_model_folder: Any) -> None:
    half = AutoModelForRewardScoring.from_pretrained(make_model_folder(arch), dtype="bfloat16")
    randomize_head(half)
    exact = copy.deepcopy(half).float()
    draw = random.Random(1)
    shapes = [(draw.randint(0, 30), [draw.randint(1, 20) for _ in range(draw.randint(2, 4))]) for _ in range(24)]
    rows = make_rows(shapes, vocabulary=half.config.vocab_size)
    padded, packed = DataCollatorForPreference(half.config.pad_token_id)(rows), DataCollatorForPackedPreference()(rows)
    with torch.no_grad(), packed_model(half):
        right = compute_rewards(exact, padded)
        of_padded, of_packed = (
            (compute_rewards(half, batch) - right).square().mean().sqrt() for batch in (padded, packed)
        )
    assert 0 < of_packed <= 1.5 * of_padded
    assert packing_problem(half, padded, packed) is None


def test_gemma2_packs_once_its_scores_are_not_capped() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        **TINY, sliding_window=8, attn_logit_softcapping=None, num_labels=1, pad_token_id=0, initializer_range=0.2,
        attn_implementation="eager",
    )  # fmt: skip
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config)).eval()
    randomize_head(model)
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}
    with packed_model(model):
        packed = compute_rewards(model, DataCollatorForPackedPreference()(make_rows()))
    torch.testing.assert_close(packed, compute_rewards(model, DataCollatorForPreference(0)(make_rows())))


def test_gemma2_is_padded_with_a_reason(make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("gemma2"))
    assert "caps attention scores" in str(why_not_packed(model))


def test_an_encoder_is_padded_with_a_reason(make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("bert"))
    assert "encoder" in str(why_not_packed(model))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)),
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


def test_related_rows_are_a_tree_in_which_each_token_is_computed_once() -> None:
    rows = make_related_rows()
    batch = DataCollatorForPackedPreference()(rows)
    assert max(map(len, batch["packed_layout"].ancestors)) >= 3
    distinct = {tuple(ids[:end]) for row in rows for ids in row["input_ids"] for end in range(1, len(ids) + 1)}
    assert len(distinct) <= batch["input_ids"].numel() < len(distinct) + 20  # a few tokens are not worth a segment
    assert batch["ranks"].shape[0] == len(rows)


# --- the check that guards the path: each planted fault must be seen -------------------------------------------------


def error_after(llama: Any, change: Any) -> float:
    rows = make_rows()
    packed = DataCollatorForPackedPreference()(rows)
    change(packed)
    with packed_model(llama):
        return packing_error(llama, DataCollatorForPreference(0)(rows), packed)


def moved(layout: PackedLayout, place: int, parent: int) -> PackedLayout:
    """Return a layout in which a segment continues another one, wrongly."""
    segments = list(layout.segments)
    segments[place] = segments[place]._replace(parent=parent)
    return PackedLayout(tuple(segments))


def test_the_check_passes_on_an_unchanged_batch(llama: Any) -> None:
    assert error_after(llama, lambda packed: None) < 1e-5


def test_the_check_sees_wrong_position_ids(llama: Any) -> None:
    def shift(packed: dict[str, Any]) -> None:
        packed["position_ids"] = torch.arange(packed["input_ids"].shape[1])[None]

    assert error_after(llama, shift) > ROUNDING_TOLERANCE


def test_the_check_sees_a_leak_between_groups(llama: Any) -> None:
    rows = make_rows(((9, (3, 4)), (9, (2, 5))))
    packed = DataCollatorForPackedPreference()(rows)
    first, second = (place for place, each in enumerate(packed["packed_layout"].segments) if each.parent < 0)
    assert second == first + 3
    # A response of the second group sees the first group's prefix, which is as long as its own.
    packed["packed_layout"] = moved(packed["packed_layout"], second + 1, first)
    with packed_model(llama):
        assert packing_error(llama, DataCollatorForPreference(0)(rows), packed) > ROUNDING_TOLERANCE


def test_the_check_sees_a_response_that_misses_its_prefix(llama: Any) -> None:
    def forget(packed: dict[str, Any]) -> None:
        segments = packed["packed_layout"].segments
        packed["packed_layout"] = moved(
            packed["packed_layout"], next(place for place, each in enumerate(segments) if each.parent >= 0), -1
        )

    assert error_after(llama, forget) > ROUNDING_TOLERANCE


def test_a_zero_head_does_not_hide_a_fault(llama: Any) -> None:
    torch.nn.init.zeros_(llama.score.weight)

    def shift(packed: dict[str, Any]) -> None:
        packed["position_ids"] = torch.zeros_like(packed["position_ids"])

    assert error_after(llama, shift) > ROUNDING_TOLERANCE


# --- which models are left out, and why ------------------------------------------------------------------------------

LEFT_OUT: dict[str, tuple[Any, str]] = {
    "soft-capping": (lambda: Gemma2Config(**TINY), "caps attention scores"),
    "sinks": (lambda: GptOssConfig(**TINY, num_local_experts=2, num_experts_per_tok=1), "attention sinks"),
    "linear attention": (
        lambda: Qwen3NextConfig(**TINY, num_experts=2, layer_types=["linear_attention", "full_attention"]),
        "recurrent state",
    ),
    "state space": (
        lambda: JambaConfig(**TINY, num_experts=2, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1),
        "recurrent state",
    ),
    "unknown layers": (
        lambda: MiniMaxConfig(**TINY, num_local_experts=2, layer_types=["linear_attention", "full_attention"]),
        "layers of type linear_attention",
    ),
    "alibi": (lambda: BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4), "cannot replace its attention"),
    "encoder": (lambda: BertConfig(**{**TINY, "num_key_value_heads": 4}), "an encoder"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_models_that_cannot_share_a_prefix_say_why(name: str, tmp_path: Any) -> None:
    make, reason = LEFT_OUT[name]
    config = make()
    config.num_labels, config.pad_token_id = 1, 0
    with torch.device("meta"):
        model = as_reward_model(AutoModelForSequenceClassification.from_config(config))
    assert reason in str(why_not_packed(model))
    tokenizer: Any = Namespace(pad_token_id=0)
    auto = RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    assert isinstance(choose_collator(model, auto, tokenizer), DataCollatorForPreference)
    with pytest.raises(ValueError, match=reason):
        choose_collator(model, RewardConfig(output_dir=str(tmp_path), use_cpu=True, packing=True), tokenizer)  # type: ignore[arg-type]


def test_a_window_that_stands_in_the_mask_alone_is_kept() -> None:
    """Qwen2-MoE does not hand its window to the attention function; rows shorter than it would hide that."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        **TINY, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=2, num_experts_per_tok=1,
        use_sliding_window=True, sliding_window=8, max_window_layers=1, num_labels=1, pad_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    assert "sliding_attention" in config.layer_types
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config)).eval()
    randomize_head(model)
    with packed_model(model):
        packed = compute_rewards(model, DataCollatorForPackedPreference()(make_rows()))
    torch.testing.assert_close(packed, compute_rewards(model, DataCollatorForPreference(0)(make_rows())))


def test_flash_attention_packs_as_well(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded batches then go to SDPA meanwhile: flash attention looks its own name up in the configuration."""
    monkeypatch.setattr(llama.config, "_attn_implementation_internal", "flash_attention_2")
    restored: list[str] = []
    stock = type(llama).set_attn_implementation

    def switch(model: Any, name: str) -> None:
        # The package is not installed here, so going back to it is only noted down.
        restored.append(name) if name.startswith("flash") else stock(model, name)

    monkeypatch.setattr(type(llama), "set_attn_implementation", switch)
    padded, packed = DataCollatorForPreference(0)(make_rows()), DataCollatorForPackedPreference()(make_rows())
    assert packing_problem(llama, padded, packed) is None
    assert restored == ["flash_attention_2"]


def test_an_attention_function_of_ones_own_is_not_replaced(llama: Any) -> None:
    AttentionInterface.register("mine", lambda *args, **kwargs: None)
    llama.config._attn_implementation_internal = "mine"
    assert "a custom attention, 'mine'" in str(why_not_packed(llama))


def test_neftune_is_a_reason_to_pad(llama: Any, tmp_path: Any) -> None:
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, neftune_noise_alpha=5.0)
    tokenizer: Any = Namespace(pad_token_id=0)
    assert isinstance(choose_collator(llama, args, tokenizer), DataCollatorForPreference)


def test_packing_with_a_custom_collator_is_refused(llama: Any, tmp_path: Any) -> None:
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, packing=True)  # type: ignore[arg-type]
    tokenizer: Any = Namespace(pad_token_id=0)
    with pytest.raises(ValueError, match="with a custom `data_collator`"):
        choose_collator(llama, args, tokenizer, DataCollatorForPreference(0))
    own = DataCollatorForPackedPreference()
    assert choose_collator(llama, args, tokenizer, own) is own


# --- the variable-length kernel --------------------------------------------------------------------------------------


def documented_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    *, scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` says it computes, on any device: causality ends bottom right."""
    assert window_size[1] == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert enable_gqa == (query.shape[1] != key.shape[1])
    outputs = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        mine = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        places = torch.arange(k1 - k0)
        mask = places <= mine
        if window_size[0] >= 0:
            mask &= places >= mine - window_size[0]
        q, k, v = (part.transpose(0, 1) for part in (query[q0:q1], key[k0:k1], value[k0:k1]))
        attended = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("arch", [arch for arch in DECODERS if arch != "gemma2"])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_varlen_back_end_asks_the_kernel_for_the_padded_result(
    arch: str, grouped: bool, make_model_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs.get("enable_gqa"))
        return documented_varlen(*args, **kwargs)

    monkeypatch.setattr(packed_attention, "varlen_attn", kernel)
    monkeypatch.setattr(packed_attention, "_flash_dtype", lambda query, value: query.dtype)
    monkeypatch.setattr(packed_attention, "_GROUPED_VARLEN", grouped)  # False: torch 2.11, keys are repeated instead
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder(arch))
    randomize_head(model)
    assert_packed_equals_padded(model)
    assert len(calls) == 2  # one call for each of the two layers, whatever the number of segments


@pytest.mark.cuda
@pytest.mark.parametrize("window", [None, 8])
def test_on_cuda_the_kernel_agrees_with_the_other_back_end(window: int | None) -> None:
    layout = DataCollatorForPackedPreference()(make_rows())["packed_layout"]
    total = layout.segments[-1].end
    query, key, value = (torch.randn(1, heads, total, 64, device="cuda") for heads in (8, 4, 4))
    exact = packed_attention.packed_attention(query, key, value, layout, sliding_window=window)
    half = [tensor.bfloat16().requires_grad_() for tensor in (query, key, value)]
    assert packed_attention._flash_dtype(half[0], half[2]) is torch.bfloat16
    found = packed_attention.packed_attention(*half, layout, sliding_window=window)
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    assert kernel_error(torch.device("cuda"), torch.bfloat16, heads=8, key_heads=4, head_size=64) < 0.05


def test_the_kernel_of_a_device_is_compared_with_the_other_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        return kernel_error(torch.device("cpu"), torch.bfloat16, heads=4, key_heads=2, head_size=16)

    monkeypatch.setattr(packed_attention, "_flash_dtype", lambda q, v: q.dtype if q.dtype == torch.bfloat16 else None)
    monkeypatch.setattr(packed_attention, "varlen_attn", documented_varlen)
    assert 1e-4 < error() < 0.05  # bfloat16 rounds

    def top_left(query: Any, key: Any, value: Any, starts: Any, key_starts: Any, *rest: Any, **options: Any) -> Any:
        """Causality aligned at the first key: every response loses the end of its prefix."""
        kept = [
            range(k, k + q1 - q) for (q, q1), k in zip(pairwise(starts.tolist()), key_starts.tolist(), strict=False)
        ]
        places = torch.tensor([place for part in kept for place in part])
        longest = int(starts.diff().max())
        return documented_varlen(query, key[places], value[places], starts, starts, longest, longest, **options)

    monkeypatch.setattr(packed_attention, "varlen_attn", top_left)
    assert error() > 0.3


# --- beside what else a run may use ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_compile_does_not_recompile_for_each_layout(llama: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(llama, backend="eager")
    draw = random.Random(0)

    def rewards(model: Any, number: int) -> torch.Tensor:
        shapes = [(draw.randint(0, 9), (draw.randint(1, 5), draw.randint(1, 5))) for _ in range(3)]
        with packed_model(llama):
            return compute_rewards(model, DataCollatorForPackedPreference()(make_rows(shapes, seed=number)))

    for number in range(2):  # once with the first lengths, once with lengths left open
        rewards(compiled, number)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for number in range(2, 7):
        state = draw.getstate()
        found = rewards(compiled, number)
        draw.setstate(state)
        torch.testing.assert_close(found, rewards(llama, number))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.parametrize("extra", ["lora", "checkpointing", "both"])
def test_lora_and_activation_checkpointing_change_nothing(extra: str, make_model_folder: Any) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("llama"))
    if extra != "checkpointing":
        model = add_adapter(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if extra != "lora":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    randomize_head(model)
    model.train()
    disable_dropout(model)
    assert_packed_equals_padded(model)


def test_under_autocast_packed_rewards_stay_within_rounding(llama: Any) -> None:
    rows = make_rows()
    exact = compute_rewards(llama, DataCollatorForPreference(0)(rows))
    with torch.autocast("cpu", torch.bfloat16), packed_model(llama):
        padded = compute_rewards(llama, DataCollatorForPreference(0)(rows))
        packed = compute_rewards(llama, DataCollatorForPackedPreference()(rows))
    assert packed.dtype == torch.float32
    assert (packed - exact).square().mean() < 1.5**2 * (padded - exact).square().mean()
    assert not torch.equal(packed, exact)  # autocast was at work


def test_a_response_that_begins_another_is_not_taken_for_its_prefix(llama: Any) -> None:
    """Both begin at the same place when the shared prefix is empty, which once fooled a draft."""
    rows = make_rows(((0, (3, 8)), (4, (2, 6))))
    for row in rows:
        shared, first = row["prefix_length"], row["input_ids"][0]
        row["input_ids"][1][: len(first)] = first
        row["prefix_length"] = shared  # the preparation would share more; less must be right as well
    with packed_model(llama):
        packed = compute_rewards(llama, DataCollatorForPackedPreference()(rows))
    torch.testing.assert_close(packed, compute_rewards(llama, DataCollatorForPreference(0)(rows)), rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_the_prefix_from_every_response(llama: Any) -> None:
    rows = make_rows(((6, (3, 4, 2)),))
    embeddings = llama.get_input_embeddings()
    rows[0]["input_ids"] = [[*range(10, 16), *sequence[6:]] for sequence in rows[0]["input_ids"]]

    def prefix_gradient(response: int) -> torch.Tensor:
        llama.zero_grad()
        with packed_model(llama):
            compute_rewards(llama, DataCollatorForPackedPreference()(rows))[0, response].backward()
        return embeddings.weight.grad[10:16].clone()

    each = [prefix_gradient(response) for response in range(3)]
    assert all(gradient.abs().sum(1).min() > 0 for gradient in each)
    llama.zero_grad()
    with packed_model(llama):
        compute_rewards(llama, DataCollatorForPackedPreference()(rows)).sum().backward()
    torch.testing.assert_close(embeddings.weight.grad[10:16], sum(each), rtol=1e-4, atol=1e-6)


def test_the_check_leaves_mode_and_random_state(llama: Any) -> None:
    llama.train()
    before = torch.random.get_rng_state()
    padded, packed = (
        collator(make_rows()) for collator in (DataCollatorForPreference(0), DataCollatorForPackedPreference())
    )
    assert packing_problem(llama, padded, packed) is None
    assert llama.training
    assert torch.equal(before, torch.random.get_rng_state())


# --- what a run does when the two ways differ ------------------------------------------------------------------------


def lose_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault: no response sees its prefix."""
    monkeypatch.setattr(prefix_tree, "layout_of", lambda spans: layout_of([(length, -1) for length, _ in spans]))


def test_a_run_that_finds_a_difference_pads_with_a_warning(
    make_model_folder: Any, chat_pairs: Any, tmp_path: Any, monkeypatch: Any, caplog: Any
) -> None:
    lose_the_prefix(monkeypatch)
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path, max_steps=1)
    assert isinstance(trainer.data_collator, DataCollatorForPackedPreference)
    with caplog.at_level("WARNING", "hf_reward"):
        trainer.train()
        trainer.evaluate(chat_pairs)
    assert isinstance(trainer.data_collator, DataCollatorForPreference)
    assert caplog.text.count("Batches are padded, not packed: hidden states differ by") == 1


def test_a_run_that_must_pack_stops_at_a_difference(
    make_model_folder: Any, chat_pairs: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    lose_the_prefix(monkeypatch)
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path, max_steps=1, packing=True)
    with pytest.raises(ValueError, match="would change the rewards: hidden states differ"):
        trainer.train()


def test_a_run_leaves_its_model_with_the_attention_it_came_with(
    make_model_folder: Any, chat_pairs: Any, tmp_path: Any
) -> None:
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("llama"))
    implementation = model.config._attn_implementation
    trainer = make_trainer(model, chat_pairs, tmp_path, max_steps=1, processing_class=None, evaluation=chat_pairs)
    trainer.train()
    trainer.evaluate()
    assert model.config._attn_implementation == model.base_model.config._attn_implementation == implementation


def test_a_packed_batch_is_refused_by_a_model_that_would_read_it_as_one_text(llama: Any) -> None:
    with pytest.raises(ValueError, match="packed_model"):
        compute_rewards(llama, DataCollatorForPackedPreference()(make_rows()))


def test_torch_compile_trains_as_without_it(make_model_folder: Any, chat_pairs: Any, tmp_path: Any) -> None:
    def trained(**changes: Any) -> Any:
        trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path, max_steps=2, seed=3, **changes)
        trainer.train()
        assert isinstance(trainer.data_collator, DataCollatorForPackedPreference)
        return weights(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))

    compiled = trained(torch_compile=True, torch_compile_backend="eager")
    assert largest_difference(compiled, trained()) < 1e-6
