"""PEFT adapters other than plain LoRA: equal in stock, trainer, scorer and server, merged or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_head
from peft import LNTuningConfig, LoraConfig, PeftConfig, TrainableTokensConfig
from reward_parity import assert_same_rewards
from saved_models import save, tokenizer_of
from training_runs import load

from hf_reward import merge_adapter
from hf_reward.modeling.adapters import number_of_embeddings


def trained(folder: Path, config: PeftConfig) -> Any:
    """An adapter whose weights and head are random."""
    model = load(folder, peft_config=config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    randomize_head(model)
    return model


@pytest.mark.parametrize("changes", [{"target_modules": ["embed_tokens"]}, {"trainable_token_indices": [5, 6]}])
def test_adapters_of_the_embeddings(changes, make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")
    model = trained(folder, LoraConfig(r=2, **{"target_modules": ["q_proj"], **changes}))
    assert number_of_embeddings(model.get_base_model()) == len(tokenizer_of(folder))
    assert_same_rewards(save(model, tokenizer_of(folder), tmp_path / "adapter"), chat_pairs[:2])


def test_a_merged_adapter_of_norms_keeps_its_head(make_model_folder):
    model = trained(make_model_folder("llama"), LNTuningConfig())
    ids = torch.tensor([[1, 5, 9, 11]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        merged = merge_adapter(model)
        assert torch.equal(merged(input_ids=ids).logits, before)
    assert "score.weight" in merged.state_dict()


def test_an_adapter_that_cannot_save_the_head_is_refused(make_model_folder):
    with pytest.raises(ValueError, match="TrainableTokensConfig has no `modules_to_save`"):
        load(make_model_folder("llama"), peft_config=TrainableTokensConfig(token_indices=[5]))
