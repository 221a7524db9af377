"""Tokenised rows -> one row without padding that holds each shared prefix once, and the attention that reads it.

A pair shares its prompt, so encoding both sides computes the prompt twice, and padding computes tokens that do not
exist. Here a batch of G groups is one row of T tokens: for each group the shared prefix, then each response's own
tokens, with position ids that go on from the prefix. A response attends to its prefix and itself, causally; groups do
not see each other. The rewards are those of the padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_reward.data_collator import group_columns
from hf_reward.reward_head import ReadsLastToken


@dataclass(frozen=True)
class GroupSegments:
    """Where the tokens of one group stand in the packed row, as (start, end) places."""

    prefix: tuple[int, int]
    responses: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PackedLayout:
    """The segments of every group of a packed row.

    A class and not a tuple, so that transformers and accelerate hand it on as it is.
    """

    groups: tuple[GroupSegments, ...]


_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Set while a packed batch runs through the backbone: the mask, which would be T x T, is then not made.
_packed_batch: ContextVar[bool] = ContextVar("packed_batch", default=False)


@dataclass
class DataCollatorForPackedPreference:
    """Packs a batch of groups into one row; each shared prefix is there once, and there is no padding."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows as `prepare_preferences` makes them.

        Returns:
            What `group_columns` returns, and `input_ids` and `position_ids` `(1, T)`, `reward_positions` `(N,)` and
            `packed_layout`, the segments of each group.
        """
        batch: dict[str, Any] = dict(group_columns(rows))
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        layout: list[GroupSegments] = []
        for row in rows:
            shared = row["prefix_length"]
            start = len(ids)
            ids += row["input_ids"][0][:shared]
            positions += range(shared)
            segments = []
            for sequence in row["input_ids"]:
                segments.append((len(ids), len(ids) + len(sequence) - shared))
                ids += sequence[shared:]
                positions += range(shared, len(sequence))
                last.append(len(ids) - 1)
            layout.append(GroupSegments((start, start + shared), tuple(segments)))
        batch["input_ids"] = torch.tensor([ids])
        batch["position_ids"] = torch.tensor([positions])
        batch["reward_positions"] = torch.tensor(last)
        batch["packed_layout"] = PackedLayout(tuple(layout))
        return batch


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
    """Attention within a packed row.

    Args:
        query: Queries, shape `(1, heads, T, head size)`.
        key: Keys, shape `(1, key heads, T, head size)`.
        value: Values, shaped like the keys.
        layout: Segments of each group.
        scaling: Scale of the products; 1 / sqrt(head size) when absent.
        dropout: Attention dropout.
        sliding_window: A token sees only so many tokens, itself included.

    Returns:
        Shape `(1, T, heads, head size)`.
    """
    attend = partial(_attend, query, key, value, scaling=scaling, dropout=dropout, sliding_window=sliding_window)
    outputs = []
    for group in layout.groups:
        prefix = group.prefix
        if prefix[1] > prefix[0]:
            outputs.append(attend(prefix, (prefix[0], prefix[0])))
        outputs += [attend(response, prefix) for response in group.responses]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own: tuple[int, int],
    before: tuple[int, int],
    *,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """Tokens of the segment `own` attend to the segment `before` and, causally, to themselves."""
    keys, values = key[:, :, slice(*own)], value[:, :, slice(*own)]
    offset = before[1] - before[0]
    if offset:
        keys = torch.cat([key[:, :, slice(*before)], keys], dim=2)
        values = torch.cat([value[:, :, slice(*before)], values], dim=2)
    total = keys.shape[2]
    window = total if sliding_window is None else sliding_window
    mask = None
    if offset or window < total:
        places = torch.arange(total, device=query.device)
        mine = places[offset:, None]  # place of each query among the keys: causality is aligned at the last token
        mask = places <= mine
        if window < total:
            mask &= places > mine - window
    return scaled_dot_product_attention(
        query[:, :, slice(*own)],
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


# --- switching a model over ------------------------------------------------------------------------------------------


def why_not_packed(model: nn.Module) -> str | None:
    """Why a model cannot take packed batches, or None if it can.

    Args:
        model: The bare reward model, without PEFT's wrapper.

    Returns:
        The reason, in a few words.
    """
    if not isinstance(model, ReadsLastToken) or not isinstance(model, PreTrainedModel):
        return "it is an encoder, whose tokens see those after them"
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps attention scores"
    if any("sink" in name for name, _ in model.named_parameters()):
        return "it has attention sinks"
    other = set(getattr(config, "layer_types", None) or []) - _KNOWN_LAYERS
    if other:
        return f"it has layers of the kind {', '.join(sorted(other))}"
    if not getattr(model.base_model, "_supports_attention_backend", False):
        return "transformers does not let its attention be replaced"
    return None


@contextmanager
def packed_model(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take packed batches, and padded ones as before; on leaving it is as it was.

    Args:
        model: The bare reward model, without PEFT's wrapper.
    """
    before = str(model.config._attn_implementation)
    if before.startswith("hf_reward_"):  # already inside
        yield
        return
    model.set_attn_implementation(_register(before if before in ALL_ATTENTION_FUNCTIONS else "sdpa"))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def require_packed_model(model: PreTrainedModel) -> None:
    """Stop before a model reads a packed row as one long text, which would give wrong rewards in silence.

    Args:
        model: The bare reward model, without PEFT's wrapper.

    Raises:
        ValueError: If it is not inside `packed_model`.
    """
    if not str(model.config._attn_implementation).startswith("hf_reward_"):
        raise ValueError("A packed batch needs its model inside `packed_model(model)`. Enter it, or collate padded.")


@contextmanager
def packed_batch() -> Iterator[None]:
    """Mark that the backbone is running on a packed batch."""
    token = _packed_batch.set(True)
    try:
        yield
    finally:
        _packed_batch.reset(token)


@cache
def _register(padded: str) -> str:
    """Register our attention under a name of its own; batches without a layout go to the implementation `padded`."""
    name = f"hf_reward_{padded}"
    AttentionInterface.register(name, partial(_attention, ALL_ATTENTION_FUNCTIONS[padded]))
    AttentionMaskInterface.register(name, partial(_mask, ALL_MASK_ATTENTION_FUNCTIONS[padded]))
    return name


def _attention(
    padded: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: PackedLayout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: the layout comes with the batch, through every decoder layer."""
    if packed_layout is None:
        return padded(module, query, key, value, attention_mask, **options)
    taken = {name: options.get(name) for name in ("scaling", "sliding_window")}
    return packed_attention(query, key, value, packed_layout, dropout=options.get("dropout") or 0.0, **taken), None


def _mask(padded: Any, *arguments: Any, **options: Any) -> Any:
    return None if _packed_batch.get() else padded(*arguments, **options)


# --- trust, but check ------------------------------------------------------------------------------------------------


@torch.no_grad()
def packing_error(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> float:
    """Largest relative difference of the hidden states at the read positions between the two paths.

    Hidden states and not rewards: a zero head would hide every fault.

    Args:
        model: The bare reward model, inside `packed_model`.
        padded: A padded batch.
        packed: The same rows, packed.

    Returns:
        The largest difference divided by the largest hidden value.
    """
    training, device = model.training, model.device
    model.eval()
    try:
        ids, mask = padded["input_ids"].to(device), padded["attention_mask"].to(device)
        plain = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        plain = plain[torch.arange(len(ids)), mask.sum(1) - 1].float()
        with packed_batch():
            shared = model.base_model(
                input_ids=packed["input_ids"].to(device),
                position_ids=packed["position_ids"].to(device),
                packed_layout=packed["packed_layout"],
                use_cache=False,
            ).last_hidden_state
        shared = shared[0, packed["reward_positions"].to(device)].float()
    finally:
        model.train(training)
    return float((plain - shared).abs().max() / plain.abs().max().clamp(min=1e-12))


def packing_problem(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> str | None:
    """Why packed batches must not be used with a model, or None: found by running the same rows both ways.

    Args:
        model: The bare reward model, without PEFT's wrapper.
        padded: A padded batch.
        packed: The same rows, packed.

    Returns:
        The reason, in a few words.
    """
    reason = why_not_packed(model)
    if reason is not None:
        return reason
    with packed_model(model):
        error = packing_error(model, padded, packed)
    # In bfloat16 both paths round: tiny models of ten architectures differ by up to 2% (tests/test_packing.py).
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    return None if error <= tolerance else f"they differ from padded ones by {error:.1e}, at most {tolerance} expected"
