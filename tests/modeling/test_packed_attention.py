"""Packed attention equals dense attention with a mask, whichever way it is computed."""

import logging
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hf_reward.modeling import attention_kernels, cascade_attention, packed_attention
from hf_reward.modeling.attention_kernels import QKV, Call, FlashCPU, FlashVarlen
from hf_reward.modeling.packing_check import kernel_error
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

CPU = torch.device("cpu")
REAL_FORWARD, REAL_BACKWARD = torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward
GROUPS = [(20, -1), (13, 0), (7, 0), (0, -1), (11, 3), (4, 3), (9, -1)]
"""A group with a prefix, a group without one, and a sequence of its own."""
CONVERSATION = [(9, -1), (5, 0), (3, 1), (6, 2), (1, 2), (4, 1), (7, 0), (12, -1), (2, 7), (3, 7)]
MANY = [(64, -1), *[(2, 0)] * 8]
"""So many repeated keys that the cascade is chosen."""

Spans = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """Let each test check the kernels again."""
    cascade_attention._passes.cache_clear()
    yield
    cascade_attention._passes.cache_clear()


def draw(
    layout: PackedLayout, heads: int = 4, key_heads: int = 2, size: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw queries, keys and values in the memory order of a model's projections."""
    generator = torch.Generator().manual_seed(0)
    total = layout.segments[-1].end
    query, key, value = (
        torch.randn(1, total, count, size, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for count in (heads, key_heads, key_heads)
    )
    return query, key, value


def mask_of(spans: Spans, window: int | None = None) -> Tensor:
    """Which tokens a token attends to, token by token."""
    owners = [place for place, (length, _) in enumerate(spans) for _ in range(length)]
    mask = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for query, owner in enumerate(owners):
        line = {owner}
        while spans[owner][1] >= 0:
            owner = spans[owner][1]
            line.add(owner)
        seen = [key for key in range(query + 1) if owners[key] in line]
        mask[query, seen[-window:] if window else seen] = True
    return mask


def dense(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float | None = None, window: int | None = None
) -> Tensor:
    mask = mask_of(spans, window)
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2)


def emulated_forward(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int,
    is_causal: bool, scale: float, window_size: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `torch_attn::_varlen_attn` computes, sequence by sequence, on any device."""
    check_varlen(query, key, value, starts, key_starts, longest, longest_key, is_causal, window_size)
    output, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for mine, theirs in sequences(starts, key_starts):
        scores, _, v = scores_of(query[mine], key[theirs], value[theirs], is_causal, scale)
        output[mine] = (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype)
        lse[:, mine] = scores.logsumexp(-1)
    return output, lse, torch.zeros(2, dtype=torch.uint64)


def emulated_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, starts: Tensor,
    key_starts: Tensor, longest: int, longest_key: int, is_causal: bool, rng_state: Tensor, scale: float,
    window_size: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `torch_attn::_varlen_attn_backward` computes."""
    check_varlen(query, key, value, starts, key_starts, longest, longest_key, is_causal, window_size)
    assert gradient.is_contiguous()
    assert output.is_contiguous()
    assert lse.is_contiguous()
    assert lse.shape == (query.shape[1], query.shape[0])
    assert rng_state.dtype == torch.uint64
    results = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    repeats = query.shape[1] // key.shape[1]
    for mine, theirs in sequences(starts, key_starts):
        scores, k, v = scores_of(query[mine], key[theirs], value[theirs], is_causal, scale)
        over, out, q = (tensor[mine].float().transpose(0, 1) for tensor in (gradient, output, query))
        weights = (scores - lse[:, mine, None]).exp()
        over_scores = weights * (over @ v.mT - (over * out).sum(-1, keepdim=True)) * scale
        shared = [part.unflatten(0, (-1, repeats)).sum(1) for part in (over_scores.mT @ q, weights.mT @ over)]
        for total, rows, part in zip(results, (mine, theirs, theirs), (over_scores @ k, *shared), strict=True):
            total[rows] = part.transpose(0, 1).to(total.dtype)
    return results


def check_varlen(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int,
    is_causal: bool, window_size: list[int],
) -> None:  # fmt: skip
    assert all(tensor.is_contiguous() for tensor in (query, key, value))
    assert starts.dtype == key_starts.dtype == torch.int32
    assert (starts[-1], key_starts[-1]) == (query.shape[0], key.shape[0])
    assert (longest, longest_key) == (starts.diff().max(), key_starts.diff().max())
    assert window_size == ([-1, 0] if is_causal else [-1, -1])
    assert starts.diff().min() > 0
    assert key_starts.diff().min() > 0


def sequences(starts: Tensor, key_starts: Tensor) -> Iterator[tuple[slice, slice]]:
    for mine, theirs in zip(pairwise(starts.tolist()), pairwise(key_starts.tolist()), strict=True):
        yield slice(*mine), slice(*theirs)


def scores_of(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, ...]:
    q, k, v = (tensor.float().transpose(0, 1) for tensor in (query, key, value))
    k, v = (tensor.repeat_interleave(len(q) // len(k), dim=0) for tensor in (k, v))
    scores = q @ k.mT * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -math.inf)
    return scores, k, v


def emulated_varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int,
    *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` computes: causality is aligned at the last query and key."""
    assert (longest, longest_key) == (starts.diff().max(), key_starts.diff().max())
    outputs = []
    for mine, theirs in sequences(starts, key_starts):
        q, k, v = (part.transpose(0, 1)[None] for part in (query[mine], key[theirs], value[theirs]))
        last = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        places = torch.arange(k.shape[2])
        mask = places <= last
        if window_size[0] >= 0:
            mask &= places >= last - window_size[0]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture(scope="module", autouse=True)
def _emulated_varlen() -> Iterator[None]:
    """The operators of torch have no CPU kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.torch_attn, "_varlen_attn", emulated_forward)
        patch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", emulated_backward)
        patch.setattr(packed_attention, "varlen_attn", emulated_varlen_attn)
        yield


def cascade_with(kernel: Any) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, **options: Any) -> Tensor:
        return cascade_attention.cascade_attention(query, key, value, layout, kernel, **options)

    return attend


WAYS: dict[str, Callable[..., Tensor]] = {
    "segments": packed_attention.segment_attention,
    "varlen": packed_attention.varlen_attention,
    "cascade": cascade_with(FlashCPU()),
    "cascade, varlen": cascade_with(FlashVarlen()),
    "chosen": packed_attention.packed_attention,
}


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).double().norm() / expected.double().norm().clamp(min=1e-6)).detach())


def assert_equal_to_dense(way: str, spans: Spans, heads: tuple[int, int] = (4, 2), **options: Any) -> None:
    layout = layout_of(spans)
    inputs = draw(layout, *heads)
    expected = dense(*inputs, spans, options.get("scaling"), options.get("sliding_window"))
    found = WAYS[way](*inputs, layout, **options)
    assert found.shape == (1, layout.segments[-1].end, heads[0], 8)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(*(torch.autograd.grad(output, inputs, gradient) for output in (found, expected)), strict=True)
    # A sequence of one token has no gradient of the queries and keys, apart from rounding.
    assert all((one - other).norm() <= 1e-5 * other.norm() + 1e-6 * gradient.norm() for one, other in pairs)


@st.composite
def forests(draw_: st.DrawFn) -> Spans:
    """Segments in depth-first order, up to four levels, some of them empty, with at least one token."""
    spans: Spans = []

    def add(parent: int, depth: int) -> None:
        spans.append((draw_(st.one_of(st.just(1), st.integers(0, 12))), parent))
        place = len(spans) - 1
        for _ in range(draw_(st.integers(0, 3 if depth < 3 else 0)) if len(spans) < 25 else 0):
            add(place, depth + 1)

    for _ in range(draw_(st.integers(1, 4))):
        add(-1, 0)
    if not any(length for length, _ in spans):
        spans.append((1, -1))
    return spans


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30)
@given(spans=forests(), heads=st.sampled_from([(4, 2), (3, 3), (3, 1)]))
def test_any_forest_gives_dense_attention(way: str, spans: Spans, heads: tuple[int, int]) -> None:
    assert_equal_to_dense(way, spans, heads)


@pytest.mark.parametrize("way", ["segments", "varlen", "chosen"])
@settings(max_examples=30)
@given(spans=forests(), window=st.integers(1, 20))
def test_a_sliding_window_counts_positions_in_the_sequence(way: str, spans: Spans, window: int) -> None:
    assert_equal_to_dense(way, spans, sliding_window=window)


@pytest.mark.parametrize("way", WAYS)
def test_the_scale_is_used(way: str) -> None:
    assert_equal_to_dense(way, CONVERSATION, scaling=0.7)


@pytest.mark.parametrize("way", ["segments", "cascade", "cascade, varlen"])
def test_tokens_longer_than_the_blocks_of_the_kernel(way: str) -> None:
    assert_equal_to_dense(way, [(600, -1), (40, 0), (300, 1), (7, 1), (33, 0), (1, -1)], (3, 1))


@pytest.mark.parametrize("kernel", [FlashCPU(), FlashVarlen()])
def test_bfloat16_is_as_exact_as_sdpa(kernel: Any) -> None:
    layout = layout_of(CONVERSATION)
    half = draw(layout, 9, 3, 64, torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    gradient = torch.randn(1, layout.segments[-1].end, 9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()

    def run(output: Tensor, inputs: Any) -> list[Tensor]:
        return [output, *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]

    expected = run(dense(*exact, CONVERSATION), exact)
    found = run(cascade_with(kernel)(*half, layout), half)
    plain = run(dense(*half, CONVERSATION), half)
    assert found[0].dtype == torch.bfloat16
    for one, other, right in zip(found, plain, expected, strict=True):
        # Partial outputs are rounded before they are merged, which adds at most as much as rounding the result.
        assert relative(one.double(), right) <= 1.5 * relative(other.double(), right)


def test_gradients_in_float64_agree_with_finite_differences() -> None:
    layout = layout_of([(3, -1), (2, 0), (1, 1), (2, 1), (0, -1), (1, 4)])
    inputs = draw(layout, 2, 1, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: cascade_with(FlashCPU())(*tensors, layout), inputs)


def test_the_order_of_siblings_changes_nothing() -> None:
    spans = [(6, -1), (4, 0), (5, 0)]
    query, key, value = draw(layout_of(spans))
    order = [*range(6), *range(10, 15), *range(6, 10)]
    swapped = [tensor[:, :, order] for tensor in (query, key, value)]
    for way in WAYS.values():
        one = way(query, key, value, layout_of(spans))
        other = way(*swapped, layout_of([(6, -1), (5, 0), (4, 0)]))
        torch.testing.assert_close(other, one[:, order])


def test_memory_order_of_the_inputs_changes_nothing() -> None:
    layout = layout_of(CONVERSATION)
    inputs = draw(layout)
    sizes_first = [tensor.mT.contiguous().mT for tensor in inputs]
    assert sizes_first[0].stride(-1) != 1
    for way in WAYS.values():
        torch.testing.assert_close(way(*sizes_first, layout), way(*inputs, layout))


def test_a_layout_of_another_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must describe the 64 tokens of the row, but it ends at token 65"):
        packed_attention.packed_attention(*draw(layout_of(GROUPS)), layout_of([*GROUPS, (1, -1)]))


# --- the plans of the kernels ----------------------------------------------------------------------------------------


def test_each_kernel_repeats_no_key() -> None:
    spans = [(5, -1), (2, 0), (3, 1), (1, 1), (4, 0), (0, -1), (6, 5), (7, -1), (1, 7)]
    layout = layout_of(spans)
    nodes = [(call.queries, call.keys) for call in FlashCPU().plan(layout, CPU) if not call.own]
    assert nodes == [(slice(5, 15), slice(0, 5)), (slice(7, 11), slice(5, 7)), (slice(28, 29), slice(21, 28))]
    own, first, second = FlashVarlen().plan(layout, CPU)
    assert (own.queries, own.keys, own.own) == (slice(0, 29), slice(0, 29), True)
    assert own.bounds is not None
    assert own.bounds.query_starts.tolist() == [0, 5, 7, 10, 11, 15, 21, 28, 29]
    assert first.queries.tolist() == [*range(5, 15), 28]  # type: ignore[union-attr]
    assert first.keys.tolist() == [*range(5), *range(21, 28)]  # type: ignore[union-attr]
    assert first.bounds is not None
    assert first.bounds.query_starts.tolist() == [0, 10, 11]
    assert first.bounds.key_starts.tolist() == [0, 5, 12]
    assert (second.queries, second.keys) == (slice(7, 11), slice(5, 7))  # adjacent: nothing is copied


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_the_operators_of_torch_accept_the_calls(heads: tuple[int, int]) -> None:
    """On the meta device, torch checks the signature and returns shapes; the emulated operators are not used."""
    query, key, gradient = (torch.empty(12, count, 8, device="meta") for count in (*heads, heads[0]))
    (call, *_) = FlashVarlen().plan(layout_of([(12, -1)]), torch.device("meta"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.torch_attn, "_varlen_attn", REAL_FORWARD)
        patch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", REAL_BACKWARD)
        qkv = QKV(query, key, key)
        output, lse = FlashVarlen().forward(qkv, call, 0.3)
        found = FlashVarlen().backward(gradient, qkv, output, lse, call, 0.3)
    assert (output.shape, lse.shape) == (query.shape, (heads[0], 12))
    assert [tensor.shape for tensor in found] == [query.shape, key.shape, key.shape]


# --- autograd --------------------------------------------------------------------------------------------------------


def test_only_inputs_output_and_log_sum_exp_are_kept() -> None:
    layout = layout_of(MANY)
    query, key, value = draw(layout)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = packed_attention.packed_attention(query, key, value, layout)
        assert sorted(tensor.numel() for tensor in kept) == sorted(
            [query.numel(), key.numel(), value.numel(), output.numel(), 4 * 80]
        )
        kept.clear()
        with torch.no_grad():
            plain = packed_attention.packed_attention(query, key, value, layout)
    assert not kept
    assert plain.grad_fn is None
    assert torch.equal(plain, output)


@pytest.mark.parametrize("kernel", [FlashCPU(), FlashVarlen()])
def test_a_layout_first_used_in_inference_mode_can_be_trained(kernel: Any) -> None:
    layout = layout_of(CONVERSATION)
    inputs = draw(layout)
    for way in (cascade_with(kernel), packed_attention.varlen_attention):
        with torch.inference_mode():
            plain = way(*(tensor.detach() for tensor in inputs), layout)
        output = way(*inputs, layout)
        torch.testing.assert_close(output, plain.clone())
        output.sum().backward()  # the gradient of a sum is expanded, without memory of its own


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """The kernel is checked during the first forward pass, and not again when it is repeated."""
    layout = layout_of(MANY)
    inputs = draw(layout)
    expected = torch.autograd.grad(dense(*inputs, MANY).square().sum(), inputs)
    for tensor in inputs:
        tensor.retain_grad()
    attend = packed_attention.packed_attention
    output: Any = checkpoint(attend, *inputs, layout, use_reentrant=reentrant)
    output.square().sum().backward()
    for tensor, right in zip(inputs, expected, strict=True):
        assert relative(tensor.grad, right) < 1e-5  # type: ignore[arg-type]


def test_autocast_gives_the_half_precision_of_sdpa() -> None:
    """Models that normalise queries and keys pass them in float32, and values in half precision."""
    layout = layout_of(MANY)
    query, key, value = draw(layout, size=64)
    mixed = query, key, value.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = packed_attention.packed_attention(*mixed, layout)
        plain = dense(*mixed, MANY)
        assert plain.dtype == found.dtype == torch.bfloat16
        gradients = torch.autograd.grad(found.float().square().sum(), (query, key, value))
    assert relative(found.float(), plain.float()) < 0.01
    assert {tensor.dtype for tensor in gradients} == {torch.float32}


def test_second_derivatives_are_refused() -> None:
    layout = layout_of(MANY)
    inputs = draw(layout)
    output = packed_attention.packed_attention(*inputs, layout)
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- choice ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cascades(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Record the calls of cascade attention."""
    calls: list[torch.dtype] = []

    def spy(query: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(query.dtype)
        return cascade_attention.cascade_attention(query, *args, **options)

    monkeypatch.setattr(packed_attention, "cascade_attention", spy)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_cascade_is_chosen_if_many_keys_would_be_repeated(cascades: list[Any], dtype: torch.dtype) -> None:
    for spans in (MANY, GROUPS):
        layout = layout_of(spans)
        packed_attention.packed_attention(*draw(layout, dtype=dtype), layout)
    assert cascades == [dtype]


@pytest.mark.parametrize(
    ("spans", "longest", "chosen"),
    [
        ([(128, -1), (48, 0), (48, 0)], 176, False),  # 256 repeated keys for 96 merged outputs
        ([(512, -1), *[(64, 0)] * 4], 576, True),  # 2,048 for 256
        ([(16, -1), (2, 0), (2, 0)], 18, False),  # 32 for 4, but too few for a call
        ([(100, -1), (100, 0), (100, 1), (100, 1)], 300, False),  # 500 for 500
        ([(512, -1), (128, 0), (32, 1), (32, 1), (128, 0), (32, 4)], 672, True),  # 2,944 for 448
        ([(0, -1), (30, 0), (30, 0)], 30, False),
        ([(30, -1), (9, -1)], 30, False),
        ([(600, -1), *[(0, 0)] * 9], 600, False),  # empty responses have no queries
    ],
)
def test_the_choice_weighs_repeated_keys_against_merged_outputs(spans: Spans, longest: int, chosen: bool) -> None:
    costs = packed_attention.layout_costs(layout_of(spans))
    assert (costs.longest, costs.repeats_much) == (longest, chosen)


@pytest.mark.parametrize(("window", "used"), [(66, True), (100, True), (65, False), (1, False)])
def test_a_window_that_contains_all_sequences_does_not_prevent_the_cascade(
    cascades: list[Any], window: int, used: bool
) -> None:
    assert_equal_to_dense("chosen", MANY, sliding_window=window)
    assert len(cascades) == used


def test_values_of_another_size_are_computed_per_segment(cascades: list[Any]) -> None:
    layout = layout_of(MANY)
    query, key, value = draw(layout)
    value = value[..., :5]
    found = packed_attention.packed_attention(query, key, value, layout)
    torch.testing.assert_close(found, dense(query, key, value, MANY))
    assert not cascades


def test_flash_attention_that_the_user_turned_off_is_not_called(cascades: list[Any]) -> None:
    layout = layout_of(MANY)
    inputs = draw(layout)
    with sdpa_kernel(SDPBackend.MATH):
        found = packed_attention.packed_attention(*inputs, layout)
    assert not cascades
    torch.testing.assert_close(found, packed_attention.packed_attention(*inputs, layout))
    assert cascades


def test_dropout_is_applied_per_segment(cascades: list[Any]) -> None:
    """A value of one everywhere shows the sum of the kept weights: one on average, with the variance of the dropout."""
    layout = layout_of(MANY)
    query, key, value = draw(layout, heads=64, key_heads=64)
    torch.manual_seed(0)
    with torch.no_grad():
        sums = packed_attention.packed_attention(query, key, torch.ones_like(value), layout, dropout=0.25)[0, :, :, 0]
        weights = (query @ key.mT / 8**0.5).masked_fill(~mask_of(MANY), -math.inf).softmax(-1)
    deviation = (weights[0].square().sum(-1) * 0.25 / 0.75).sqrt().T  # Bernoulli, divided by the probability to keep
    assert abs(float(((sums - 1) / deviation).mean())) < 5 / sums.numel() ** 0.5
    assert 0.9 < float(((sums - 1) / deviation).std()) < 1.1
    assert not cascades


# --- check of the kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(9, 3, 64), (2, 2, 128), (4, 1, 8), (14, 2, 64)])
def test_the_kernel_of_this_torch_passes_the_check(dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    sizes = dict(zip(("heads", "key_heads", "head_size"), heads, strict=True))
    assert cascade_attention.kernel_fault(FlashCPU(), CPU, dtype, **sizes) is None
    if dtype != torch.float64:  # the emulated kernel computes in float32
        assert cascade_attention.kernel_fault(FlashVarlen(), CPU, dtype, **sizes) is None


class Faulty(FlashCPU):
    """A kernel with one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def plan(self, layout: PackedLayout, device: torch.device) -> Any:
        calls = list(super().plan(layout, device))
        return calls[:-1] if self.fault == "a node is left out" else calls

    def forward(self, qkv: QKV, call: Call, scaling: float) -> tuple[Tensor, Tensor]:
        output, lse = super().forward(qkv, call, scaling)
        if self.fault == "base 2":
            lse = lse / math.log(2)
        if self.fault == "lse of descendants" and not call.own:
            lse = lse + 0.3
        if self.fault == "NaN" and not call.own:
            output = output * math.nan
        return output, lse

    def backward(self, gradient: Tensor, qkv: QKV, output: Tensor, lse: Tensor, call: Call, scaling: float) -> Any:
        if self.fault == "own output" and not call.own:
            output, lse = super().forward(qkv, call, scaling)
        found = super().backward(gradient, qkv, output, lse, call, scaling)
        if self.fault == "key heads":
            return found[0], found[1].flip(1), found[2]
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fault", ["a node is left out", "base 2", "lse of descendants", "NaN", "own output", "key heads"]
)
def test_the_check_finds_a_planted_fault(fault: str, dtype: torch.dtype) -> None:
    found = cascade_attention.kernel_fault(Faulty(fault), CPU, dtype, heads=4, key_heads=2, head_size=32)
    assert found is not None
    assert "differs from the formula" in found
    assert cascade_attention.kernel_fault(Faulty(""), CPU, dtype, heads=4, key_heads=2, head_size=32) is None


def missing(*args: Any, **options: Any) -> Any:
    raise AttributeError("'_OpNamespace' 'aten' object has no attribute '_scaled_dot_product_flash_attention_for_cpu'")


def other_signature(query: Tensor, key: Tensor, value: Tensor, *, softmax_scale: float) -> Any:
    raise AssertionError


def fails(*args: Any, **options: Any) -> Any:
    raise NotImplementedError("no kernel for this device\nlong explanation")


def one_result(query: Tensor, *args: Any, **options: Any) -> Any:
    return query


def wrong(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    return torch.zeros_like(query), torch.zeros(query.shape[:3])


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (missing, "AttributeError: '_OpNamespace' 'aten' object has no attribute"),
        (other_signature, "TypeError: "),
        (fails, "NotImplementedError: no kernel for this device. "),
        (one_result, "ValueError: "),
        (wrong, "the kernel differs from the formula by "),
    ],
)
def test_a_broken_operator_is_reported_once_and_not_used(
    operator: Any, reason: str, cascades: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", operator)
    with caplog.at_level(logging.INFO, logger="hf_reward"):
        for _ in range(2):
            assert_equal_to_dense("chosen", MANY)
    assert not cascades
    (message,) = caplog.messages
    assert message.startswith("Cascade attention is off for torch.float32 on cpu")
    assert reason in message


def test_the_check_leaves_the_random_state_and_works_in_any_context(cascades: list[Any]) -> None:
    layout = layout_of(MANY)
    inputs = draw(layout)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        packed_attention.packed_attention(*inputs, layout)
    assert cascades == [torch.bfloat16]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_comparison_of_back_ends_includes_the_cascade(cascades: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        return kernel_error(CPU, torch.bfloat16, heads=4, key_heads=2, head_size=16)

    assert 1e-4 < error() < 0.05  # bfloat16 rounds
    assert cascades == [torch.float32, torch.bfloat16]

    def shifted(self: Any, qkv: QKV, call: Call, scaling: float) -> tuple[Tensor, Tensor]:
        output, lse = right(self, qkv, call, scaling)
        return output, lse + (qkv.query.dtype == torch.bfloat16 and not call.own)

    right = attention_kernels.FlashCPU.forward
    monkeypatch.setattr(attention_kernels.FlashCPU, "forward", shifted)  # passed the check before
    assert error() > 0.1
