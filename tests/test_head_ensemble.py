"""Several reward heads: the layer, its file, and how a run with it trains, resumes and is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_reward.checkpoint_record import CheckpointRecord
from hf_reward.head_ensemble import (
    every_head,
    number_of_heads,
    with_saved_heads,
)
from tests.training_runs import load, make_trainer


def heads_of(model: Any) -> torch.Tensor:
    (layer,) = [m for n, m in model.named_modules() if hasattr(m, "head_weight") and "original_module" not in n]
    return layer.head_weight.detach().clone()


@pytest.mark.parametrize("arch", ["llama", "bert", "roberta"])
def test_saved_mean_is_a_stock_model_and_the_heads_come_back(
    arch: str, make_model_folder: Any, text_pairs: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(
        make_model_folder(arch), text_pairs, tmp_path / "out", num_reward_heads=4, learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model = trainer.model.eval()
    with torch.no_grad():
        mean = model(input_ids=ids).logits
        with every_head(model):
            each = model(input_ids=ids).logits
    assert mean.shape == (1, 1) and each.shape == (1, 4)
    assert each.std() > 1e-3
    torch.testing.assert_close(each.mean(1, keepdim=True), mean)
    stock, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(input_ids=ids).logits, mean)
    again = load(tmp_path / "out")
    assert number_of_heads(again) == 1
    with_saved_heads(again)
    assert torch.equal(heads_of(again), heads_of(model))
    assert CheckpointRecord.load(tmp_path / "out").reward_heads == 4
