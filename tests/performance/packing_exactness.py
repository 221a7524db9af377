"""Measure the differences between packed and padded batches, by architecture.

    python tests/performance/packing_exactness.py

For tiny models with random weights and heads, compares rewards and the gradients of every parameter in float32, and the
root mean square errors of both in bfloat16. Half of the rows continue the prompt or a response of an earlier one, or
compare its responses with others, so the packed batch is a tree of several levels. Each number is the larger one of
attention with repeated keys and of cascade attention, which sliding windows exclude. Lists the models that cannot be
packed with the reasons. Runs offline on a CPU in a few seconds.
"""

import copy
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from accelerate.utils import send_to_device
from parity import GROUPED, MLP, SMALL, with_random_head
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hf_reward import DataCollatorForPreference, compute_rewards
from hf_reward.modeling import packed_attention
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.reward_head import as_reward_model
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.packed_layout import PackedLayout

VOCABULARY = 300
WINDOW = {"sliding_window": 8}
PLAIN = {**MLP, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen3"), GROUPED),
    **dict.fromkeys(("qwen2", "phi3", "olmo2", "smollm3"), PLAIN),
    "mistral": {**GROUPED, **WINDOW},
    "gemma2": {**GROUPED, **WINDOW, "attn_logit_softcapping": None},
    "gemma3_text": {**GROUPED, **WINDOW},
    "gpt2": {},
    "gpt_neox": MLP,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "gemma2": GROUPED,
    "gpt_oss": {**PLAIN, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_next": {**PLAIN, "num_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {**PLAIN, "num_experts": 2, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "minimax": {**PLAIN, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
    "bloom": {},
    "bert": MLP,
    "modernbert": MLP,
}


def main() -> None:
    """Print both tables."""
    table = Table(title="packed and padded batches", caption=describe(make_rows()))
    for heading in ("architecture", "rewards, relative", "gradients, relative", "bfloat16 error, packed / padded"):
        table.add_column(heading, justify="left" if heading == "architecture" else "right")
    for arch, settings in ARCHITECTURES.items():
        ways = [differences_of_way(cascade, make_model(arch, settings)) for cascade in (False, True)]
        rewards, gradients, ratio = (max(values) for values in zip(*ways, strict=True))
        table.add_row(arch, f"{rewards:.0e}", f"{gradients:.0e}", f"{ratio:.2f}")
    reasons = Table(title="models that are padded, with reasons")
    for heading in ("architecture", "reason"):
        reasons.add_column(heading)
    for arch, settings in LEFT_OUT.items():
        with torch.device("meta"):
            reasons.add_row(arch, str(why_not_packed(make_model(arch, settings))))
    Console(width=120).print(table, reasons)


def make_model(arch: str, settings: dict[str, Any]) -> PreTrainedModel:
    """Make a tiny reward model without dropout, with random weights and a random head."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, vocab_size=VOCABULARY, num_labels=1, pad_token_id=0, **{**SMALL, **settings})
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config)).eval()
    with_random_head(model)
    return model


def make_rows(count: int = 64) -> list[dict[str, Any]]:
    """Make rows of random ids with two to four responses to a prompt, half of them related to an earlier row."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prefix = draw.choices(range(3, VOCABULARY), k=draw.randint(0, 30))
        earlier: list[list[int]] = []
        if number % 2:
            other = draw.choice(rows)
            turn = draw.choice(other["input_ids"])
            if len(turn) < 80 and draw.random() < 0.5:
                prefix = turn + prefix  # a later turn of the conversation
            else:
                prefix, earlier = turn[: other["prefix_length"]], other["input_ids"][:1]
        fresh = range(draw.randint(2 - len(earlier), 4 - len(earlier)))
        responses = [*earlier, *(prefix + draw.choices(range(3, VOCABULARY), k=draw.randint(1, 20)) for _ in fresh)]
        row = {"input_ids": responses, "prefix_length": len(prefix)}
        row |= {"ranks": list(range(len(responses))), "group": number, "row": number, "source": "random"}
        rows.append({**row, "weight": 1.0, "margin": None, "probability": None})
    return rows


def describe(rows: list[dict[str, Any]]) -> str:
    """Return a description of the tree of some rows."""
    layout = DataCollatorForPackedPreference()(rows)["packed_layout"]
    given = sum(len(ids) for row in rows for ids in row["input_ids"])
    levels = 1 + max(map(len, layout.ancestors))
    return f"{len(rows)} rows, {given} tokens, {layout.segments[-1].end} computed in a tree of {levels} levels"


@contextmanager
def way_of_attention(cascade: bool) -> Iterator[None]:
    """Use cascade attention or repeated keys for every batch, whatever the costs are."""
    right = packed_attention.layout_costs

    def costs(layout: PackedLayout) -> packed_attention.LayoutCosts:
        return replace(right(layout), repeats_much=cascade)

    packed_attention.layout_costs = costs
    try:
        yield
    finally:
        packed_attention.layout_costs = right


def differences_of_way(cascade: bool, model: PreTrainedModel) -> tuple[float, float, float]:
    """Return `differences` with or without cascade attention."""
    with way_of_attention(cascade):
        return differences(model, make_rows())


def rounding_errors(
    cascade: bool, model: PreTrainedModel, rows: list[dict[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Compare packed and padded batches in bfloat16 with padded ones in float32, on the model's device.

    Args:
        cascade: Whether packed batches use cascade attention.
        model: A model in float32.
        rows: Tokenised rows.

    Returns:
        For `rewards` and `gradients`, the norm of the error relative to the norm, packed and padded.
    """
    half = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(half).float()
    padded, packed = (
        dict(send_to_device(collator(rows), model.device))
        for collator in (DataCollatorForPreference(0), DataCollatorForPackedPreference())
    )
    right = rewards_and_gradients(exact, padded)
    with way_of_attention(cascade), packed_model(half):
        found = [rewards_and_gradients(half, batch) for batch in (packed, padded)]

    def error(gradients: dict[str, Tensor]) -> float:
        distance = torch.stack([(gradients[name].float() - each).norm() for name, each in right[1].items()]).norm()
        return float(distance / torch.stack([each.norm() for each in right[1].values()]).norm())

    rewards = [float((rewards - right[0]).norm() / right[0].norm()) for rewards, _ in found]
    packed_error, padded_error = (error(gradients) for _, gradients in found)
    return {"rewards": (rewards[0], rewards[1]), "gradients": (packed_error, padded_error)}


def differences(model: PreTrainedModel, rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Measure the differences between packed and padded batches.

    Args:
        model: A model in float32.
        rows: Tokenised rows.

    Returns:
        Largest difference of rewards r over max(1, |r|); largest norm of a difference of gradients, relative to the
        larger of the gradient's norm and 1% of the largest norm; ratio of the bfloat16 errors of packed and padded
        rewards.
    """
    padded, packed = DataCollatorForPreference(0)(rows), DataCollatorForPackedPreference()(rows)
    with packed_model(model):
        expected, found = (rewards_and_gradients(model, batch) for batch in (padded, packed))
    floor = torch.stack([gradient.norm() for gradient in expected[1].values()]).max() / 100
    gradients = [
        (found[1][name] - gradient).norm() / torch.maximum(gradient.norm(), floor)
        for name, gradient in expected[1].items()
    ]
    half = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(half).float()
    with torch.no_grad(), packed_model(half):
        right = compute_rewards(exact, padded)
        errors = [(compute_rewards(half, batch) - right).square().mean().sqrt() for batch in (packed, padded)]
    rewards = (found[0] - expected[0]).abs() / expected[0].abs().clamp(min=1)
    return float(rewards.max()), float(torch.stack(gradients).max()), float(errors[0] / errors[1])


def rewards_and_gradients(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return rewards, and the gradients of their sum with distinct weights."""
    model.zero_grad()
    rewards = compute_rewards(model, batch)
    (rewards * torch.linspace(0, 1, rewards.numel(), device=rewards.device).view_as(rewards)).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return rewards.detach(), gradients


if __name__ == "__main__":
    main()
