"""Attention within a packed row: a segment attends to its ancestors and, causally, to itself.

There are three ways to compute it:

- `cascade_attention` repeats no key. It is used where `layout_costs` expects it to be faster.
- `varlen_attention`, on CUDA in half precision: one variable-length flash-attention call for all segments. The keys of
  each segment contain those of its ancestors.
- `segment_attention`, everywhere and for every option: `scaled_dot_product_attention` for one segment after the other,
  with the same repeated keys.

Shapes: T packed tokens, T_k keys with the ancestors of each segment repeated.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from hf_reward.modeling.cascade_attention import cascade_attention, checked_kernel
from hf_reward.preprocessing.packed_layout import PackedLayout

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_HEAD_SIZE = 256
_GROUPED_VARLEN = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not yet in torch 2.11
# Cascade attention computes the same products of queries and keys. It copies no keys and gives the kernel longer blocks
# of queries, but merges one more output for each token and ancestor, and has one more call for each ancestor. So it is
# chosen if the repeated keys are at least a multiple of both together. Measured with tests/performance/attention.py in
# float32 (2 cores, no GPU, 1 thread, 9 heads, 3 of keys): time with repeated keys / time of the cascade, forward and
# backward,
#   at 0.2 to 1 repeated keys for each merged output   0.5 to 0.9  (conversations and trees of segments of one length)
#   at 1.7 to 2.7                                      0.8 to 1.0  (128 tokens, then 2 x 48)
#   at 8                                               1.0 to 1.1  (512 tokens, then 4 x 64)
#   at 16 to 64                                        1.0 to 1.2  (1,024 tokens, then 16 x 64); 9 of keys: 1.1 to 1.5
# Where it is chosen, the backward pass keeps 1.9 to 4.9 times fewer bytes. In bfloat16, the ratio is 0.9 to 1.1.
# On CUDA, nothing was measured; there, it also avoids the sorted `index_put` in the backward pass of repeated keys.
_REPEATED_PER_MERGED = 4
_REPEATED_PER_CALL = 256


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
        layout: Segments of the row.
        scaling: Scale of the products; the default is 1 / sqrt(head size).
        dropout: Attention dropout.
        sliding_window: Number of tokens of a sequence that a token attends to, including itself.

    Returns:
        Shape `(1, T, heads, value head size)`.

    Raises:
        ValueError: If the row and the layout have different lengths.
    """
    if query.shape[2] != layout.segments[-1].end:
        raise ValueError(
            f"The layout must describe the {query.shape[2]} tokens of the row, but it ends at token "
            f"{layout.segments[-1].end}. Pass the layout that the collator made for this batch."
        )
    costs = layout_costs(layout)
    if sliding_window is not None and sliding_window >= costs.longest:
        sliding_window = None
    half = dropout == 0 and _flash_dtype(query, value) is not None
    if dropout == 0 and sliding_window is None and costs.repeats_much:
        q, k, v = _autocast(query, key, value)
        kernel = checked_kernel(q, k, v, half=half)
        if kernel is not None:
            return cascade_attention(q, k, v, layout, kernel, scaling=scaling)
    if half:
        return varlen_attention(query, key, value, layout, scaling=scaling, sliding_window=sliding_window)
    return segment_attention(query, key, value, layout, scaling=scaling, dropout=dropout, sliding_window=sliding_window)


# --- choice ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayoutCosts:
    """What decides between the ways to compute a layout."""

    longest: int
    """Tokens of the longest sequence."""
    repeats_much: bool
    """Whether repeated keys are expected to cost more time than the additional calls of cascade attention."""


@lru_cache(maxsize=8)  # all layers of a forward and backward pass share it
def layout_costs(layout: PackedLayout) -> LayoutCosts:
    """Estimate the costs of a layout.

    Args:
        layout: Segments of the row.

    Returns:
        The costs.
    """
    lengths = [segment.end - segment.start for segment in layout.segments]
    before = [sum(lengths[place] for place in places) for places in layout.ancestors]
    repeated = sum(count for count, own in zip(before, lengths, strict=True) if own)
    later = [segment.subtree_end - segment.end for segment in layout.segments]
    merged = [count for count, own in zip(later, lengths, strict=True) if own and count]
    enough = _REPEATED_PER_MERGED * sum(merged) + _REPEATED_PER_CALL * len(merged)
    longest = max(count + own for count, own in zip(before, lengths, strict=True))
    return LayoutCosts(longest, bool(merged) and repeated >= enough)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors as autocast does for `scaled_dot_product_attention`."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors]


# --- all devices: one call per segment -------------------------------------------------------------------------------


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """Compute `packed_attention` with one call of `scaled_dot_product_attention` for each segment.

    Args:
        query: Queries, shape `(1, heads, T, head size)`.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shape `(1, key heads, T, value head size)`.
        layout: Segments of the row.
        scaling: Scale of the products; the default is 1 / sqrt(head size).
        dropout: Attention dropout.
        sliding_window: Number of tokens of a sequence that a token attends to, including itself.

    Returns:
        Shape `(1, T, heads, value head size)`.
    """
    # One split instead of slices: the backward pass of each slice would allocate a gradient for the complete row.
    lengths = [segment.end - segment.start for segment in layout.segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    continued: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values up to the end of a segment
    outputs = []
    for place, segment in enumerate(layout.segments):
        if segment.subtree_end == segment.start:
            continue  # neither the segment nor those that continue it have tokens
        seen = keys[place], values[place]
        before = continued.get(segment.parent)
        if before is not None and before[0].shape[2]:
            seen = torch.cat([before[0], seen[0]], dim=2), torch.cat([before[1], seen[1]], dim=2)
        if segment.subtree_end > segment.end:
            continued[place] = seen
        if segment.end > segment.start:
            options = {"scale": scaling, "dropout_p": dropout}
            outputs.append(_attend(queries[place], *seen, sliding_window=sliding_window, options=options))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, sliding_window: int | None, options: dict[str, Any]
) -> Tensor:
    """Let queries attend causally to keys; the last query belongs to the last key."""
    total = key.shape[2]
    offset = total - query.shape[2]
    window = total if sliding_window is None else sliding_window
    mask = None
    if offset or window < total:
        places = torch.arange(total, device=query.device)
        mine = places[offset:, None]  # position of each query in the keys
        mask = places <= mine
        if window < total:
            mask &= places > mine - window
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped, **options
    )


# --- CUDA in half precision: one call for all ------------------------------------------------------------------------


@dataclass(frozen=True)
class _VarlenPlan:
    """A layout in the format of the variable-length kernel, on the device."""

    query_starts: Tensor  # (segments + 1,), int32
    key_starts: Tensor  # (segments + 1,), int32
    keys: Tensor  # (T_k,): positions of the keys; ancestors are repeated for each segment
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

    The keys of a segment are those of its ancestors, then its own. The kernel aligns causality at the last query and
    the last key of a segment, so a segment attends to its ancestors completely.

    Args:
        query: Queries, shape `(1, heads, T, head size)`, CUDA.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shaped like the keys.
        layout: Segments of the row.
        scaling: Scale of the products; the default is 1 / sqrt(head size).
        sliding_window: Number of tokens of a sequence that a token attends to, including itself.

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


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensors may be used in a training step later
def _varlen_plan(layout: PackedLayout, device: torch.device) -> _VarlenPlan:
    filled = [place for place, segment in enumerate(layout.segments) if segment.end > segment.start]
    spans = [[layout.segments[each][:2] for each in (*layout.ancestors[place], place)] for place in filled]
    queries = [seen[-1][1] - seen[-1][0] for seen in spans]
    keys = [sum(end - start for start, end in seen) for seen in spans]
    places = [torch.arange(*span) for seen in spans for span in seen]

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
