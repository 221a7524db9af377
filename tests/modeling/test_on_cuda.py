"""Packed attention, training steps and scoring on a GPU, in half precision; `make gpu` runs these tests."""

from typing import Any

import pytest
import torch
from conftest import randomize_head
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from training_runs import make_trainer, weights
from transformers import AutoModelForSequenceClassification, LlamaConfig

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.modeling.cascade_attention import cascade_attention, checked_kernel
from hf_reward.modeling.packed_attention import layout_costs, packed_attention, varlen_attention
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

pytestmark = pytest.mark.cuda

CONVERSATIONS = layout_of([(90, -1), (50, 0), (30, 1), (60, 2), (10, 2), (40, 1), (70, 0), (120, -1), (20, 7), (30, 7)])
LONG_PROMPT = layout_of([(512, -1), *[(16, 0)] * 8])
LAYOUTS = pytest.mark.parametrize("layout", [CONVERSATIONS, LONG_PROMPT], ids=["conversations", "long prompt"])
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
HEADS = pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
SIZES = pytest.mark.parametrize("size", [64, 128, 256])


def draw(layout: PackedLayout, heads: tuple[int, int], size: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    query_heads, key_heads = heads
    shapes = [(1, count, layout.segments[-1].end, size) for count in (query_heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_() for shape in shapes]


def dense(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, window: int | None = None) -> Tensor:
    """Attention with a mask, in float32, without any code of packed attention."""
    total = layout.segments[-1].end
    mask = torch.zeros(total, total, dtype=torch.bool)
    for segment, ancestors in zip(layout.segments, layout.ancestors, strict=True):
        line = [*(layout.segments[place] for place in ancestors), segment]
        seen = [token for each in line for token in range(each.start, each.end)]
        for token in range(segment.start, segment.end):
            before = [other for other in seen if other <= token]
            mask[token, before[-window:] if window else before] = True
    q, k, v = (tensor.float() for tensor in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask.to("cuda"), enable_gqa=True).transpose(1, 2)


def assert_close(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare output and gradients: |difference| / |value| is at most 5e-3 by rounding, and 0.1 or more by a fault."""
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).cuda()
    right = [expected, *torch.autograd.grad(expected, inputs, gradient)]
    mine = [found, *torch.autograd.grad(found, inputs, gradient.to(found.dtype))]
    for one, other in zip(right, mine, strict=True):
        assert float((one.float() - other.float()).norm() / one.float().norm()) < 0.02


@LAYOUTS
@HALF
@HEADS
@SIZES
@pytest.mark.parametrize("window", [None, 24])
def test_varlen_attention_is_dense_attention(
    layout: PackedLayout, dtype: torch.dtype, heads: tuple[int, int], size: int, window: int | None
) -> None:
    inputs = draw(layout, heads, size, dtype)
    found = varlen_attention(*inputs, layout, sliding_window=window)
    assert found.dtype == dtype
    assert_close(found, dense(*inputs, layout, window), inputs)


@LAYOUTS
@HALF
@HEADS
@SIZES
def test_cascade_attention_is_dense_attention(
    layout: PackedLayout, dtype: torch.dtype, heads: tuple[int, int], size: int
) -> None:
    inputs = draw(layout, heads, size, dtype)
    kernel = checked_kernel(*inputs, half=True)
    assert kernel is not None, "the operators of this torch failed the check, so that the cascade is off"
    found = cascade_attention(*inputs, layout, kernel)
    assert found.dtype == dtype
    assert_close(found, dense(*inputs, layout), inputs)


@LAYOUTS
def test_the_chosen_way_is_dense_attention_under_autocast(layout: PackedLayout) -> None:
    assert layout_costs(layout).repeats_much is (layout is LONG_PROMPT)
    inputs = draw(layout, (8, 2), 64, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        found = packed_attention(*inputs, layout)
    assert found.dtype == torch.bfloat16
    assert_close(found, dense(*inputs, layout), inputs)


@pytest.fixture
def folder(tmp_path: Any, chat_tokenizer: Any) -> Any:
    """A model with heads of a size that is in use."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_labels=1, pad_token_id=chat_tokenizer.pad_token_id,
        initializer_range=0.1,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    randomize_head(model)
    model.save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_packed_training_step_in_bfloat16_is_a_padded_one(folder: Any, chat_pairs: Any, tmp_path: Any) -> None:
    """The update of a step without momentum is the gradient times the learning rate."""
    before = weights(AutoModelForRewardScoring.from_pretrained(folder))

    def update(**changes: Any) -> dict[str, Tensor]:
        options = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "use_cpu": False}
        model = AutoModelForRewardScoring.from_pretrained(folder)
        trainer = make_trainer(model, chat_pairs, tmp_path / "run", **options, lr_scheduler_type="constant", **changes)
        trainer.train()
        packed = isinstance(trainer.data_collator, DataCollatorForPackedPreference)
        assert packed is (changes["packing"] is True)
        after = {name: tensor.cpu() for name, tensor in weights(model).items()}
        return {name: after[name] - tensor for name, tensor in before.items()}

    exact = update(packing=False, bf16=False)
    largest = max(float(each.norm()) for each in exact.values())
    for packing in (True, False):
        found = update(packing=packing, bf16=True)
        errors = {name: float((found[name] - each).norm()) for name, each in exact.items()}
        assert 0 < max(errors.values()) < 0.05 * largest


def test_scores_in_bfloat16_are_those_of_float32(folder: Any) -> None:
    prompts = [f"Name {count} cities of Italy." for count in range(4)]
    answers = [[f"Rome, and {'Paris ' * count}" for count in range(1, 9)] for _ in prompts]
    exact, half = (
        RewardScorer.from_pretrained(folder, device=device, dtype=dtype).best_of_n(prompts, answers)
        for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16"))
    )
    right, found = (torch.tensor([list(each.rewards) for each in rewards]) for rewards in (exact, half))
    assert float((right - found).norm()) < 0.03 * float(right.norm())
    assert float(right.std()) > 0.01
