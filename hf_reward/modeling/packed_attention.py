"""Attention within a packed row: a response attends to its shared prefix and itself, not to other groups.

There are two back ends. On CUDA in half precision, one variable-length flash-attention call computes all segments.
Otherwise `scaled_dot_product_attention` computes one segment after the other.

Shapes: G groups, N sequences, T packed tokens, T_k keys with each prefix repeated for its responses.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from hf_reward.preprocessing.packed_layout import PackedLayout

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_HEAD_SIZE = 256
_GROUPED_VARLEN = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not yet in torch 2.11


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """Compute attention within a packed row.

    Args:
        query: Queries, shape `(1, heads, T, head size)`.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shape `(1, key heads, T, value head size)`.
        layout: Segments of each group.
        scaling: Scale of the products; the default is 1 / sqrt(head size).
        dropout: Attention dropout.
        sliding_window: Number of tokens that a token attends to, including itself.

    Returns:
        Shape `(1, T, heads, value head size)`.
    """
    if dropout == 0 and _flash_dtype(query, value) is not None:
        return varlen_attention(query, key, value, layout, scaling=scaling, sliding_window=sliding_window)
    attend = partial(_attend, scaling=scaling, dropout=dropout, sliding_window=sliding_window)
    # One split instead of slices: the backward pass of each slice would allocate a gradient for the complete row.
    lengths = [end - start for (start, end), _ in layout.segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    seen = {own: (keys[place], values[place]) for place, (own, _) in enumerate(layout.segments)}
    outputs = [
        attend(queries[place], *seen[own], seen.get(before)) for place, (own, before) in enumerate(layout.segments)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


# --- all devices: one call per segment -------------------------------------------------------------------------------


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: tuple[Tensor, Tensor] | None,
    *,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """Let the tokens of a segment attend to the segment before it and, causally, to themselves."""
    offset = 0
    if before is not None:
        offset = before[0].shape[2]
        key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
    total = key.shape[2]
    window = total if sliding_window is None else sliding_window
    mask = None
    if offset or window < total:
        places = torch.arange(total, device=query.device)
        mine = places[offset:, None]  # position of each query in the keys, aligned at the last token
        mask = places <= mine
        if window < total:
            mask &= places > mine - window
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


# --- CUDA in half precision: one call for all ------------------------------------------------------------------------


@dataclass(frozen=True)
class _VarlenPlan:
    """A layout in the format of the variable-length kernel, on the device."""

    query_starts: Tensor  # (segments + 1,), int32
    key_starts: Tensor  # (segments + 1,), int32
    keys: Tensor  # (T_k,): positions of the keys; each prefix is repeated for its responses
    longest_query: int
    longest_key: int


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Compute `packed_attention` with one call of `torch.nn.attention.varlen.varlen_attn`.

    Queries are `[prefix | response 1 | response 2 ...]` and keys `[prefix | prefix + response 1 | ...]`. The kernel
    aligns causality at the last query and the last key of a segment, so a response attends to its complete prefix.

    Args:
        query: Queries, shape `(1, heads, T, head size)`, CUDA.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shaped like the keys.
        layout: Segments of each group.
        scaling: Scale of the products; the default is 1 / sqrt(head size).
        sliding_window: Number of tokens that a token attends to, including itself.

    Returns:
        Shape `(1, T, heads, head size)`, in the half precision of the kernel.
    """
    plan = _varlen_plan(layout, query.device)
    dtype = _flash_dtype(query, value) or query.dtype
    # (1, heads, T, head size) -> (T, heads, head size); under autocast, normalised queries and keys are float32
    query, key, value = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"enable_gqa": grouped} if _GROUPED_VARLEN else {}
    if grouped and not _GROUPED_VARLEN:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    attended = varlen_attn(
        query.contiguous(),
        key[plan.keys],
        value[plan.keys],
        plan.query_starts,
        plan.key_starts,
        plan.longest_query,
        plan.longest_key,
        scale=scaling,
        # (tokens to the left, tokens to the right); the window of transformers counts the token itself
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **options,
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


@lru_cache(maxsize=8)  # all layers of a forward and backward pass share it
def _varlen_plan(layout: PackedLayout, device: torch.device) -> _VarlenPlan:
    queries = [end - start for (start, end), _ in layout.segments]
    places = [torch.arange(*span) for own, before in layout.segments for span in (before, own)]
    keys = [own[1] - own[0] + before[1] - before[0] for own, before in layout.segments]

    def starts(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    return _VarlenPlan(starts(queries), starts(keys), torch.cat(places).to(device), max(queries), max(keys))


def _flash_dtype(query: Tensor, value: Tensor) -> torch.dtype | None:
    """Return the half precision for flash attention on these tensors, or None if it is not possible."""
    # ROCm also reports "cuda", but the causal alignment of its kernel is untested.
    if (
        query.device.type != "cuda"
        or torch.version.hip is not None
        or torch.cuda.get_device_capability(query.device) < (8, 0)
    ):
        return None
    size = query.shape[-1]
    if size > _FLASH_HEAD_SIZE or size % 8 or value.shape[-1] != size:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return dtype if dtype in _FLASH_DTYPES else None
