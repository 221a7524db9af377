"""Rewards of prepared rows equal those of each row alone, in the order of the data."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from training_runs import load

from hf_reward import FormatRule, PreparationRule, prepare_preferences, prepare_tokenizer, score_rows
from hf_reward.modeling.packing import why_not_packed


def lists(count: int) -> list[dict[str, Any]]:
    """Ranked lists of two to four responses; prompts and responses of many lengths."""
    return [
        {
            "prompt": [{"role": "user", "content": "word " * (number * 7 % 11) + f"number {number}?"}],
            "responses": [
                [{"role": "assistant", "content": f"answer {place} " * (1 + (number + 3 * place) % 5)}]
                for place in range(2 + number % 3)
            ],
            "ranks": list(range(2 + number % 3)),
        }
        for number in range(count)
    ]


@pytest.fixture
def model_and_rows(make_model_folder: Any, chat_tokenizer: Any) -> Any:
    def make(arch: str) -> tuple[Any, Any]:
        model = load(make_model_folder(arch))
        randomize_head(model)
        tokenizer = prepare_tokenizer(chat_tokenizer)
        rule = PreparationRule(format=FormatRule(max_length=None))
        return model, prepare_preferences(lists(23), tokenizer, rule)[0]

    return make


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mistral", "gemma2"])
def test_all_settings_give_the_reward_of_the_row_alone(arch: str, model_and_rows: Any) -> None:
    model, rows = model_and_rows(arch)
    expected = np.full((23, 4), np.nan, dtype=np.float32)
    with torch.no_grad():
        for place, row in enumerate(rows):
            alone = [float(model.eval()(torch.tensor([ids])).logits) for ids in row["input_ids"]]
            expected[place, : len(alone)] = alone
    for packing, limits in product(["auto", False], [{}, {"batch_size": 1}, {"max_tokens_per_batch": 150}]):
        found = score_rows(model, rows, packing=packing, **limits)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=f"{packing}, {limits}")


def test_packing_computes_each_token_once_within_the_budget(model_and_rows: Any) -> None:
    model, rows = model_and_rows("llama")
    seen: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    score_rows(model, rows, max_tokens_per_batch=200)
    of_check, of_rows = seen[:2], seen[2:]
    distinct = [sum(map(len, row["input_ids"])) - (len(row["ranks"]) - 1) * row["prefix_length"] for row in rows]
    assert len(of_check) == 2
    assert 0 < sum(of_rows) < sum(distinct)  # rows share tokens too
    assert max(of_rows) <= max(200, *distinct)


def test_required_packing_of_an_unsupported_model_is_an_error(model_and_rows: Any) -> None:
    model, rows = model_and_rows("gemma2")
    with pytest.raises(ValueError, match="caps attention scores"):
        score_rows(model, rows, packing=True)
    with pytest.raises(ValueError, match="'auto', True or False"):
        score_rows(model, rows, packing="yes")


def test_the_model_is_unchanged_after_scoring(model_and_rows: Any) -> None:
    model, rows = model_and_rows("llama")
    assert why_not_packed(model) is None
    model.train()
    implementation = model.config._attn_implementation
    score_rows(model, rows)
    assert model.training
    assert model.config._attn_implementation == implementation
