"""Cascade attention: packed attention that repeats no key.

Each segment attends causally to itself. For each segment that others continue, all tokens of those segments attend to
its tokens, in one call without a mask. The partial outputs of a token are merged by their log-sum-exp, which is exact.
Source: Juravsky et al., Hydragen (https://arxiv.org/abs/2402.05099), and Dao et al., FlashAttention
(https://arxiv.org/abs/2205.14135), for the backward pass: P = exp(S - lse) and dS = P * (dP - rowsum(dO * O)) hold for
any part of the keys, if O and lse are those of all keys. So each kernel is called again with the merged output and
log-sum-exp, as in ring attention (https://arxiv.org/abs/2310.01889), and only inputs, output and log-sum-exp are kept.

Shapes: T packed tokens.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_reward.modeling.attention_kernels import QKV, Call, Kernel, Rows, kernel_of, take
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

logger = logging.getLogger(__name__)

# Norm of a difference over the norm. A missing call, or a log-sum-exp shifted by 0.3, gives 0.1 or more; rounding gives
# at most 7e-16 in float64, 4e-7 in float32 and 5e-3 in half precision.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.03


def cascade_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, kernel: Kernel, *, scaling: float | None = None
) -> Tensor:
    """Compute `packed_attention` without repeated keys. The tensors have the same dtype.

    Args:
        query: Queries, shape `(1, heads, T, head size)`.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shaped like the keys.
        layout: Segments of the row.
        kernel: The kernel, which `checked_kernel` returned.
        scaling: Scale of the products; the default is 1 / sqrt(head size).

    Returns:
        Shape `(1, T, heads, head size)`.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    qkv = QKV(*(tensor[0].transpose(0, 1) for tensor in (query, key, value)))
    calls = kernel.plan(layout, query.device)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in qkv):
        output: Any = _Cascade.apply(*qkv, calls, kernel, scale)
    else:
        output, _ = cascade_forward(qkv, calls, kernel, scale)
    return output.unsqueeze(0)


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Sequence[Call], kernel: Kernel, scaling: float
    ) -> Tensor:
        output, lse = cascade_forward(QKV(query, key, value), calls, kernel, scaling)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.calls, ctx.kernel, ctx.scaling = calls, kernel, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, lse = ctx.saved_tensors
        qkv = QKV(query, key, value)
        over_inputs = cascade_backward(gradient, qkv, output, lse, ctx.calls, ctx.kernel, ctx.scaling)
        return *over_inputs, None, None, None


def cascade_forward(qkv: QKV, calls: Sequence[Call], kernel: Kernel, scaling: float) -> tuple[Tensor, Tensor]:
    """Compute the output and its log-sum-exp.

    Args:
        qkv: Queries, keys and values of the T tokens.
        calls: The plan of the kernel.
        kernel: The kernel.
        scaling: Scale of the products.

    Returns:
        The output, shaped like the queries and in their dtype, and the log-sum-exp, shape `(heads, T)`, float32 or
        wider.
    """
    query, device = qkv.query, qkv.query.device
    wide = _wide(query)
    output = torch.empty(query.shape, dtype=wide, device=device)
    lse = torch.empty(query.shape[1], query.shape[0], dtype=wide, device=device)
    with torch.autocast(device.type, enabled=False):
        for call in calls:
            found, found_lse = kernel.forward(_part(qkv, call), call, scaling)
            if call.own:
                _put(output, call.queries, found)
                _put(lse, call.queries, found_lse, dim=1)
            else:
                _merge(output, lse, call.queries, found, found_lse)
    return output.to(query.dtype), lse


def cascade_backward(
    gradient: Tensor,
    qkv: QKV,
    output: Tensor,
    lse: Tensor,
    calls: Sequence[Call],
    kernel: Kernel,
    scaling: float,
) -> list[Tensor]:
    """Compute the gradients of query, key and value.

    Args:
        gradient: Gradient of the output.
        qkv: Queries, keys and values of the T tokens.
        output: Output of `cascade_forward`.
        lse: Log-sum-exp of `cascade_forward`.
        calls: The plan of the kernel.
        kernel: The kernel.
        scaling: Scale of the products.

    Returns:
        The gradients, shaped like the inputs and in their dtype. They are added up in float32 or wider.
    """
    device = gradient.device
    totals = [torch.empty(tensor.shape, dtype=_wide(tensor), device=device) for tensor in qkv]
    gradient = gradient.contiguous()  # the gradient of a sum is an expanded scalar
    with torch.autocast(device.type, enabled=False):
        for call in calls:
            over_output, merged = (take(tensor, call.queries) for tensor in (gradient, output))
            merged_lse = take(lse, call.queries, dim=1)
            parts = kernel.backward(over_output, _part(qkv, call), merged, merged_lse, call, scaling)
            for total, rows, part in zip(totals, (call.queries, call.keys, call.keys), parts, strict=True):
                _put(total, rows, part) if call.own else _add(total, rows, part)
    return [total.to(tensor.dtype) for total, tensor in zip(totals, qkv, strict=True)]


def _part(qkv: QKV, call: Call) -> QKV:
    return QKV(take(qkv.query, call.queries), take(qkv.key, call.keys), take(qkv.value, call.keys))


def _merge(output: Tensor, lse: Tensor, rows: Rows, found: Tensor, found_lse: Tensor) -> None:
    """Merge the attention of some tokens to further keys into the attention to other keys, in place."""
    before = take(lse, rows, dim=1)
    # Share of the further keys in the softmax over all keys: exp(found) / (exp(before) + exp(found)).
    share = torch.sigmoid(found_lse - before).t().unsqueeze(-1)
    found = found.to(output.dtype)
    if isinstance(rows, slice):
        take(output, rows).lerp_(found, share)
    else:
        output.index_copy_(0, rows, take(output, rows).lerp_(found, share))
    _put(lse, rows, torch.logaddexp(before, found_lse), dim=1)


def _put(total: Tensor, rows: Rows, part: Tensor, dim: int = 0) -> None:
    if isinstance(rows, slice):
        take(total, rows, dim).copy_(part)
    else:
        total.index_copy_(dim, rows, part.to(total.dtype))


def _add(total: Tensor, rows: Rows, part: Tensor) -> None:
    if isinstance(rows, slice):
        take(total, rows).add_(part)
    else:
        total.index_add_(0, rows, part.to(total.dtype))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


# --- check of the kernel ---------------------------------------------------------------------------------------------


def checked_kernel(query: Tensor, key: Tensor, value: Tensor, *, half: bool) -> Kernel | None:
    """Return the kernel for these tensors if it passed the check, which runs once per process.

    Args:
        query: Queries, shape `(1, heads, T, head size)`.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shape `(1, key heads, T, value head size)`.
        half: Whether flash attention in half precision is possible on this CUDA device.

    Returns:
        The kernel, or None.
    """
    if value.shape != key.shape or not query.dtype == key.dtype == value.dtype:
        return None
    kernel = kernel_of(query.device, half=half)
    if kernel is None or not _passes(
        type(kernel), query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3]
    ):
        return None
    return kernel


@lru_cache(maxsize=64)
def _passes(
    kind: type[Kernel], device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_size: int
) -> bool:
    fault = kernel_fault(kind(), device, dtype, heads=heads, key_heads=key_heads, head_size=head_size)
    if fault is not None:
        logger.warning(
            "Cascade attention is off for %s on %s, and packed batches are slower: %s. Please report this with the "
            "version of torch, %s.", dtype, device, fault, torch.__version__,
        )  # fmt: skip
    return fault is None


def kernel_fault(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, *, heads: int, key_heads: int, head_size: int
) -> str | None:
    """Compare a kernel with the formula of attention in float64, on the CPU, for a forest of three levels.

    The formula is used instead of `scaled_dot_product_attention`, which may call the same kernel, and autograd is not
    used, because the caller may be in inference mode or in the forward pass of a checkpoint.

    Args:
        kernel: The kernel.
        device: Device of the tensors.
        dtype: Their dtype.
        heads: Number of heads of the queries.
        key_heads: Number of heads of keys and values.
        head_size: Size of a head.

    Returns:
        The fault in a few words, or None.
    """
    layout = layout_of([(20, -1), (13, 0), (7, 1), (5, 1), (4, 0), (9, -1), (0, -1), (11, 6), (3, 6), (6, -1), (2, 9)])
    generator = torch.Generator().manual_seed(0)
    total = layout.segments[-1].end

    def draw(count: int) -> Tensor:
        return torch.randn(total, count, head_size, generator=generator, device="cpu").to(dtype)

    qkv, gradient = QKV(draw(heads), draw(key_heads), draw(key_heads)), draw(heads)
    scaling = head_size**-0.5
    expected = _formula(qkv, gradient, layout, scaling)
    qkv, gradient = QKV(*(tensor.to(device) for tensor in qkv)), gradient.to(device)
    try:
        calls = kernel.plan(layout, device)
        output, lse = cascade_forward(qkv, calls, kernel, scaling)
        found = [output, *cascade_backward(gradient, qkv, output, lse, calls, kernel, scaling)]
        found = [tensor.detach().cpu().double() for tensor in found]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    pairs = zip(expected, found, strict=True)
    error = float(torch.stack([(one - other).norm() / one.norm() for one, other in pairs]).max())
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    return None if error <= tolerance else f"the kernel differs from the formula by {error:.1e}"


def _formula(qkv: QKV, gradient: Tensor, layout: PackedLayout, scaling: float) -> list[Tensor]:
    """Return output and gradients of dense attention, in float64."""
    total, heads, _ = qkv.query.shape
    repeats = heads // qkv.key.shape[1]
    mask = torch.zeros(total, total, dtype=torch.bool, device="cpu")
    for segment, ancestors in zip(layout.segments, layout.ancestors, strict=True):
        rows = slice(segment.start, segment.end)
        for ancestor in ancestors:
            mask[rows, layout.segments[ancestor].start : layout.segments[ancestor].end] = True
        mask[rows, rows] = True
    mask.tril_()
    q, k, v, g = (tensor.double().transpose(0, 1) for tensor in (*qkv, gradient))
    k, v = k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0)
    weights = (q @ k.mT * scaling).masked_fill(~mask, float("-inf")).softmax(dim=-1)
    output = weights @ v
    over_scores = weights * (g @ v.mT - (g * output).sum(-1, keepdim=True)) * scaling
    over_keys = [
        tensor.unflatten(0, (-1, repeats)).sum(dim=1) for tensor in (over_scores.mT @ q, weights.mT @ g)
    ]  # fmt: skip
    return [tensor.transpose(0, 1) for tensor in (output, over_scores @ k, *over_keys)]
