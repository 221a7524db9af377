"""Faults planted in the prefix tree, the attention and the collator: the comparison with padded rows finds each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import randomize_head
from test_packing import TINY, make_related_rows, weighted_sum
from transformers import AutoModelForSequenceClassification, LlamaConfig

from hf_reward import DataCollatorForPreference, compute_rewards
from hf_reward.modeling import cascade_attention, packed_attention
from hf_reward.modeling.attention_kernels import FlashCPU
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.reward_head import as_reward_model
from hf_reward.preprocessing import model_inputs, prefix_tree
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.packed_layout import PackedLayout, Segment
from hf_reward.preprocessing.prefix_tree import PackedTokens

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**TINY, num_labels=1, pad_token_id=0, initializer_range=0.3)
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config))
    randomize_head(model)
    return model


def rewards_and_gradients(model: Any, collator: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rewards, and the gradient of all parameters as one vector."""
    model.zero_grad()
    with packed_model(model):
        rewards = compute_rewards(model, collator(make_related_rows()))
        weighted_sum(rewards).backward()
    return rewards.detach(), torch.cat([each.grad.ravel() for each in model.parameters()])


def difference(model: Any) -> float:
    """Return the largest relative difference of rewards and gradients, packed versus padded; infinite on an error."""
    padded = rewards_and_gradients(model, DataCollatorForPreference(0))
    try:
        packed = rewards_and_gradients(model, DataCollatorForPackedPreference())
    except (IndexError, RuntimeError, ValueError):
        return float("inf")
    return max(float((one - other).norm() / one.norm()) for one, other in zip(padded, packed, strict=True))


@pytest.mark.parametrize("cascade", [True, False])
def test_without_a_fault_there_is_no_difference(model: Any, cascade: bool, monkeypatch: Patch) -> None:
    force(monkeypatch, cascade)
    assert difference(model) < 1e-5


def force(monkeypatch: Patch, cascade: bool) -> None:
    costs = packed_attention.LayoutCosts(longest=1000, repeats_much=cascade)
    monkeypatch.setattr(packed_attention, "layout_costs", lambda layout: costs)


# --- the tree --------------------------------------------------------------------------------------------------------


def moved(packed: PackedTokens, change: Callable[[list[Segment]], None]) -> PackedTokens:
    segments = list(packed.layout.segments)
    change(segments)
    return packed._replace(layout=PackedLayout(tuple(segments)))


def deepest(packed: PackedTokens) -> int:
    """Return the index of a segment with at least two ancestors."""
    return max(range(len(packed.layout.segments)), key=lambda place: len(packed.layout.ancestors[place]))


def reparented(packed: PackedTokens, choose: Callable[[PackedTokens, int], int]) -> PackedTokens:
    place = deepest(packed)
    parent = choose(packed, place)

    def change(segments: list[Segment]) -> None:
        segments[place] = segments[place]._replace(parent=parent)

    return moved(packed, change)


def shifted_border(packed: PackedTokens) -> PackedTokens:
    """The last token of a shared segment becomes the first of its first child."""

    def change(segments: list[Segment]) -> None:
        child = next(place for place, each in enumerate(segments) if each.parent == place - 1 >= 0)
        segments[child - 1] = segments[child - 1]._replace(end=segments[child - 1].end - 1)
        segments[child] = segments[child]._replace(start=segments[child].start - 1)

    return moved(packed, change)


def subtree(packed: PackedTokens, end: Callable[[list[Segment], Segment], int]) -> PackedTokens:
    def change(segments: list[Segment]) -> None:
        for place, each in enumerate(segments):
            if each.subtree_end > each.end:
                segments[place] = each._replace(subtree_end=end(segments, each))

    return moved(packed, change)


def restarted(packed: PackedTokens) -> PackedTokens:
    positions = [place - each.start for each in packed.layout.segments for place in range(each.start, each.end)]
    return packed._replace(position_ids=positions)


def exchanged(packed: PackedTokens, token: int) -> PackedTokens:
    ids = list(packed.input_ids)
    ids[token] += 1
    return packed._replace(input_ids=ids)


TREE: dict[str, Callable[[PackedTokens], PackedTokens]] = {
    "positions restart in each segment": restarted,
    "positions count the tokens of the row": lambda p: p._replace(position_ids=list(range(len(p.input_ids)))),
    "positions are shifted in one segment": lambda p: p._replace(
        position_ids=[place + (at >= p.layout.segments[-1].start) for at, place in enumerate(p.position_ids)]
    ),
    "rewards are read one token early": lambda p: p._replace(last=[max(0, place - 1) for place in p.last]),
    "two responses are exchanged": lambda p: p._replace(last=[p.last[1], p.last[0], *p.last[2:]]),
    "a repeated response is read elsewhere": lambda p: p._replace(
        last=[p.last[0] + 1 if place == p.last[0] and at else place for at, place in enumerate(p.last)]
    ),
    "a sequence that ends in a segment is read at its end": lambda p: p._replace(
        last=[next(each.end for each in p.layout.segments if each.start <= place < each.end) - 1 for place in p.last]
    ),
    "a segment has lost its parent": lambda p: reparented(p, lambda packed, place: -1),
    "a segment continues its grandparent": lambda p: reparented(
        p, lambda packed, place: packed.layout.segments[packed.layout.segments[place].parent].parent
    ),
    "a segment continues its sibling": lambda p: reparented(
        p,
        lambda packed, place: next(
            other
            for other, each in enumerate(packed.layout.segments)
            if other != place and each.parent == packed.layout.segments[place].parent
        ),
    ),
    "a segment continues another tree": lambda p: reparented(
        p, lambda packed, place: 0 if 0 not in packed.layout.ancestors[place] else len(packed.layout.segments) - 1
    ),
    "a token changes its segment": shifted_border,
    "descendants end too early": lambda p: subtree(p, lambda segments, each: each.subtree_end - 1),
    "descendants include the next tree": lambda p: subtree(
        p, lambda segments, each: min(each.subtree_end + 5, segments[-1].end)
    ),
    "a shared token is that of another sequence": lambda p: exchanged(p, p.layout.segments[1].start),
}


def used_by(fault: str) -> list[bool]:
    """Whether cascade attention is used. It reads where the descendants end, the other way reads the parents."""
    return (
        [True]
        if "descendants" in fault
        else [False]
        if "segment continues" in fault or "lost" in fault
        else [True, False]
    )


@pytest.mark.parametrize(("fault", "cascade"), [(fault, cascade) for fault in TREE for cascade in used_by(fault)])
def test_a_fault_of_the_tree_is_found(model: Any, fault: str, cascade: bool, monkeypatch: Patch) -> None:
    force(monkeypatch, cascade)
    monkeypatch.setattr(model_inputs, "pack_sequences", lambda ids: TREE[fault](prefix_tree.pack_sequences(ids)))
    assert difference(model) > 1e-3


@pytest.mark.parametrize("added", [1, 2])
def test_sequences_that_share_too_many_tokens_are_found(model: Any, added: int, monkeypatch: Patch) -> None:
    right = prefix_tree.shared_with_previous
    monkeypatch.setattr(
        prefix_tree, "shared_with_previous", lambda ids: [count + added * (count > 8) for count in right(ids)]
    )
    assert difference(model) > 1e-3


# --- the attention ---------------------------------------------------------------------------------------------------

right_merge, right_add = cascade_attention._merge, cascade_attention._add


def merge_by_the_mean(output: Any, lse: Any, rows: Any, found: Any, found_lse: Any) -> None:
    before = lse[:, rows].clone()
    right_merge(output, lse, rows, found, before)
    lse[:, rows] = torch.logaddexp(before, found_lse)


def merge_and_keep_lse(output: Any, lse: Any, rows: Any, found: Any, found_lse: Any) -> None:
    before = lse.clone()
    right_merge(output, lse, rows, found, found_lse)
    lse.copy_(before)


def replace_gradients(total: Any, rows: Any, part: Any) -> None:
    total[rows] = part


class OwnOutput(FlashCPU):
    """The backward of a call uses its own output and log-sum-exp instead of the merged ones."""

    def backward(self, gradient: Any, qkv: Any, output: Any, lse: Any, call: Any, scaling: float) -> Any:
        return super().backward(gradient, qkv, *super().forward(qkv, call, scaling), call, scaling)


class OwnScale(FlashCPU):
    """Descendants attend with another scale."""

    def forward(self, qkv: Any, call: Any, scaling: float) -> Any:
        return super().forward(qkv, call, scaling if call.own else 1.0)


class OtherHeads(FlashCPU):
    """Query heads read the keys of another group."""

    def forward(self, qkv: Any, call: Any, scaling: float) -> Any:
        query, key, value = qkv
        return super().forward((query, key.flip(1), value.flip(1)), call, scaling)


class OnlyParents(FlashCPU):
    """Segments attend to their first ancestor only."""

    def plan(self, layout: PackedLayout, device: torch.device) -> Any:
        roots = {each.start for each in layout.segments if each.parent < 0}
        return [call for call in super().plan(layout, device) if call.own or call.keys.start in roots]


ATTENTION: dict[str, Any] = {
    "partial outputs are averaged": ("_merge", merge_by_the_mean),
    "the log-sum-exp stays that of the segment": ("_merge", merge_and_keep_lse),
    "gradients of keys are replaced": ("_add", replace_gradients),
    "the backward uses partial outputs": OwnOutput(),
    "the scale of descendants differs": OwnScale(),
    "key heads are exchanged": OtherHeads(),
    "only the first ancestor is attended to": OnlyParents(),
}


@pytest.mark.parametrize("fault", ATTENTION)
def test_a_fault_of_the_attention_is_found(model: Any, fault: str, monkeypatch: Patch) -> None:
    force(monkeypatch, cascade=True)
    planted = ATTENTION[fault]
    if isinstance(planted, tuple):
        monkeypatch.setattr(cascade_attention, *planted)
    kernel = planted if isinstance(planted, FlashCPU) else FlashCPU()
    monkeypatch.setattr(packed_attention, "checked_kernel", lambda *args, **options: kernel)
    assert difference(model) > 1e-3


# --- the collator ----------------------------------------------------------------------------------------------------


def test_a_collator_that_drops_repeated_rows_is_found(model: Any, monkeypatch: Patch) -> None:
    right = DataCollatorForPackedPreference.__call__

    def without_repetitions(self: Any, rows: Any) -> Any:
        kept = {tuple(map(tuple, sorted(row["input_ids"]))): row for row in rows}
        return right(self, list(kept.values()))

    monkeypatch.setattr(DataCollatorForPackedPreference, "__call__", without_repetitions)
    rows = DataCollatorForPreference(0)(make_related_rows())
    packed = DataCollatorForPackedPreference()(make_related_rows())
    assert packed["ranks"].shape[0] < rows["ranks"].shape[0]
    with pytest.raises(RuntimeError, match="size"):
        difference(model)
