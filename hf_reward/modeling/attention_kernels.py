"""Flash-attention kernels that also return log-sum-exp, for `cascade_attention`.

This is the only module that calls private operators of torch. `cascade_attention.kernel_fault` compares them with the
formula before they are used, so a torch version that changes them makes packed attention slower, not wrong.

`FlashCPU` was run on a CPU. `FlashVarlen` was not run on a GPU; its positions are tested with an emulated operator.

Shapes: T packed tokens, T_q and T_k tokens of the queries and keys of one call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import varlen  # noqa: F401  (registers the operators torch_attn::_varlen_attn*)

from hf_reward.preprocessing.packed_layout import PackedLayout

Rows = slice | Tensor
"""Tokens of a row: a range or, if they are not adjacent, their positions."""


class QKV(NamedTuple):
    """Queries, keys and values without a batch dimension."""

    query: Tensor  # (tokens, heads, head size)
    key: Tensor  # (tokens, key heads, head size)
    value: Tensor  # (tokens, key heads, head size)


@dataclass(frozen=True)
class Bounds:
    """The sequences in the queries and keys of a call of the variable-length kernel."""

    query_starts: Tensor  # (sequences + 1,), int32
    key_starts: Tensor  # (sequences + 1,), int32
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a kernel: these tokens attend to those."""

    queries: Rows
    keys: Rows
    own: bool
    """Whether each segment attends to itself, causally. Otherwise descendants attend to all tokens of an ancestor."""
    bounds: Bounds | None = None


class Kernel(Protocol):
    """A flash-attention kernel.

    The calls of `plan` with `own` come first. They cover each token once, as a query and as a key.
    """

    def plan(self, layout: PackedLayout, device: torch.device) -> Sequence[Call]:
        """Return the calls that compute a layout together."""
        ...

    def forward(self, qkv: QKV, call: Call, scaling: float) -> tuple[Tensor, Tensor]:
        """Return the output `(T_q, heads, size)` and its log-sum-exp `(heads, T_q)`, float32 or wider."""
        ...

    def backward(
        self, gradient: Tensor, qkv: QKV, output: Tensor, lse: Tensor, call: Call, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value. Output and log-sum-exp may include other keys."""
        ...


class FlashCPU:
    """The kernel of `scaled_dot_product_attention` on the CPU: one call for each segment and each ancestor."""

    def plan(self, layout: PackedLayout, device: torch.device) -> Sequence[Call]:
        """Return one call for each segment, and one for each segment that others continue."""
        return _node_plan(layout)

    def forward(self, qkv: QKV, call: Call, scaling: float) -> tuple[Tensor, Tensor]:
        """Compute `Kernel.forward`."""
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_heads_first(*qkv), 0.0, call.own, scale=scaling
        )
        return output[0].transpose(0, 1), lse[0]

    def backward(
        self, gradient: Tensor, qkv: QKV, output: Tensor, lse: Tensor, call: Call, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `Kernel.backward`."""
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_heads_first(gradient, *qkv, output), lse.unsqueeze(0), 0.0, call.own, scale=scaling
        )
        over_query, over_key, over_value = (tensor[0].transpose(0, 1) for tensor in found)
        return over_query, over_key, over_value


class FlashVarlen:
    """The operator of `torch.nn.attention.varlen` on CUDA, in half precision: one call for each level of the tree.

    It is called without the Python wrapper, which has no way to pass another output and log-sum-exp to the backward.
    """

    def plan(self, layout: PackedLayout, device: torch.device) -> Sequence[Call]:
        """Return one call for all segments, and one for each level with segments that others continue."""
        return _level_plan(layout, device)

    def forward(self, qkv: QKV, call: Call, scaling: float) -> tuple[Tensor, Tensor]:
        """Compute `Kernel.forward`."""
        bounds = call.bounds
        assert bounds is not None
        output, lse, _ = torch.ops.torch_attn._varlen_attn(
            *(tensor.contiguous() for tensor in qkv),
            bounds.query_starts,
            bounds.key_starts,
            bounds.longest_query,
            bounds.longest_key,
            call.own,
            scaling,
            _window(call),
        )
        return output, lse

    def backward(
        self, gradient: Tensor, qkv: QKV, output: Tensor, lse: Tensor, call: Call, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `Kernel.backward`."""
        bounds = call.bounds
        assert bounds is not None
        return torch.ops.torch_attn._varlen_attn_backward(
            *(tensor.contiguous() for tensor in (gradient, *qkv, output, lse)),
            bounds.query_starts,
            bounds.key_starts,
            bounds.longest_query,
            bounds.longest_key,
            call.own,
            torch.zeros(2, dtype=torch.uint64, device=gradient.device),  # random state of the dropout, which is off
            scaling,
            _window(call),
        )


def kernel_of(device: torch.device, *, half: bool) -> Kernel | None:
    """Return the kernel of a device, or None.

    Args:
        device: Device of the tensors.
        half: Whether flash attention in half precision is possible on this CUDA device.

    Returns:
        The kernel, not checked yet.
    """
    if device.type == "cpu":
        # `torch.nn.attention.sdpa_kernel` also turns flash attention on the CPU off.
        return FlashCPU() if torch.backends.cuda.flash_sdp_enabled() else None
    return FlashVarlen() if device.type == "cuda" and half else None


def take(tensor: Tensor, rows: Rows, dim: int = 0) -> Tensor:
    """Select tokens: a view for a range, a copy for positions.

    Args:
        tensor: A tensor with tokens in dimension `dim`.
        rows: The tokens.
        dim: The dimension of the tokens.

    Returns:
        The selected tokens.
    """
    if isinstance(rows, slice):
        return tensor.narrow(dim, rows.start, rows.stop - rows.start)
    return tensor.index_select(dim, rows)


# --- plans -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)  # all layers of a forward and backward pass share it
def _node_plan(layout: PackedLayout) -> tuple[Call, ...]:
    spans = [slice(segment.start, segment.end) for segment in layout.segments]
    calls = [Call(span, span, own=True) for span in spans if span.stop > span.start]
    for span, segment in zip(spans, layout.segments, strict=True):
        if span.stop > span.start and segment.subtree_end > span.stop:
            calls.append(Call(slice(span.stop, segment.subtree_end), span, own=False))
    return tuple(calls)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensors may be used in a training step later
def _level_plan(layout: PackedLayout, device: torch.device) -> tuple[Call, ...]:
    own = [(segment.start, segment.end) for segment in layout.segments if segment.end > segment.start]
    calls = [_level_call(own, own, own=True, device=device)]
    levels: dict[int, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    for segment, ancestors in zip(layout.segments, layout.ancestors, strict=True):
        if segment.end > segment.start and segment.subtree_end > segment.end:
            spans = (segment.end, segment.subtree_end), (segment.start, segment.end)
            levels.setdefault(len(ancestors), []).append(spans)
    for _, level in sorted(levels.items()):
        queries, keys = zip(*level, strict=True)
        calls.append(_level_call(queries, keys, own=False, device=device))
    return tuple(calls)


def _level_call(
    queries: Sequence[tuple[int, int]], keys: Sequence[tuple[int, int]], *, own: bool, device: torch.device
) -> Call:
    lengths, key_lengths = ([end - start for start, end in spans] for spans in (queries, keys))
    starts, key_starts = (
        torch.tensor([0, *accumulate(each)], dtype=torch.int32, device=device) for each in (lengths, key_lengths)
    )
    bounds = Bounds(starts, key_starts, max(lengths), max(key_lengths))
    return Call(_rows(queries, device), _rows(keys, device), own, bounds)


def _rows(spans: Sequence[tuple[int, int]], device: torch.device) -> Rows:
    """Return the tokens of ascending ranges."""
    first, last = spans[0][0], spans[-1][1]
    if sum(end - start for start, end in spans) == last - first:
        return slice(first, last)
    return torch.cat([torch.arange(*span, device="cpu") for span in spans]).to(device)


def _heads_first(*tensors: Tensor) -> Iterable[Tensor]:
    """Convert `(T, heads, size)` to `(1, heads, T, size)`; the kernel requires adjacent elements of a head."""
    for tensor in tensors:
        tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        yield tensor.transpose(0, 1).unsqueeze(0)


def _window(call: Call) -> list[int]:
    # The same as `varlen_attn` passes: (-1, 0) is causal.
    return [-1, 0 if call.own else -1]
