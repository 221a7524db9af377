"""Models whose rewards depend on the batch are refused before a run."""

import pytest
import torch
from conftest import DECODERS, ENCODERS, randomize_head
from saved_models import reward_model, saved_model, tokenizer_of
from transformers import FNetConfig, XLNetConfig, pipeline

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardScorer, RewardTrainer
from hf_reward.modeling.probes import format_probes, probe_rewards
from hf_reward.modeling.row_check import batch_problem
from hf_reward.scoring import pipeline as reward_pipeline

WRONG = {
    "xlnet": lambda v: XLNetConfig(vocab_size=v, d_model=32, n_layer=1, n_head=2, d_inner=32),
    "fnet": lambda v: FNetConfig(vocab_size=v, hidden_size=32, num_hidden_layers=1, intermediate_size=32),
}


@pytest.fixture
def wrong_folder(tmp_path, pair_tokenizer, request):
    """A reward model that reads a fixed position (XLNet the last, padding or not) or mixes padding in (FNet)."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = WRONG[request.param](len(pair_tokenizer))
    config.num_labels, config.pad_token_id = 1, pair_tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config)
    randomize_head(model)
    model.save_pretrained(tmp_path / "wrong")
    pair_tokenizer.save_pretrained(tmp_path / "wrong")
    return tmp_path / "wrong"


def sequences_of(folder):
    return [(probe.input_ids, probe.token_type_ids) for probe in format_probes(tokenizer_of(folder), limit=400)]


@pytest.mark.parametrize("wrong_folder", WRONG, indirect=True)
def test_training_and_scoring_refuse_a_model_that_attends_to_padding(wrong_folder, tmp_path, text_pairs):
    model = AutoModelForRewardScoring.from_pretrained(wrong_folder)
    probes = format_probes(tokenizer_of(wrong_folder), limit=400)[:8]
    differences = torch.tensor(probe_rewards(model, probes)) - torch.tensor(probe_rewards(model, probes, left=False))
    assert differences.abs().max() > 0.01, "the fault is there"
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = RewardTrainer(model, args, train_dataset=text_pairs, processing_class=tokenizer_of(wrong_folder))
    with pytest.raises(ValueError, match=r"scores a row of .* differently in a batch with a row of"):
        trainer.train()
    with pytest.raises(ValueError, match="must not depend on the batch"):
        RewardScorer.from_pretrained(wrong_folder)
    with pytest.raises(ValueError, match="must not depend on the batch"):
        pipeline(reward_pipeline.TASK, model=str(wrong_folder))


def test_the_head_of_an_adapter_is_looked_at_too(make_model_folder):
    folder = make_model_folder("llama")
    assert batch_problem(reward_model(folder, lora=True), sequences_of(folder)) is None


@pytest.mark.parametrize("arch", [*DECODERS, *ENCODERS])
def test_sound_models_pass_with_a_zero_head_too(arch, make_model_folder):
    folder = make_model_folder(arch)
    model = AutoModelForRewardScoring.from_pretrained(folder)
    model.train()
    state = torch.get_rng_state()
    assert batch_problem(model, sequences_of(folder)) is None
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_zero_head_hides_no_fault(make_model_folder):
    folder = make_model_folder("llama")
    model = AutoModelForRewardScoring.from_pretrained(folder)
    assert not model.score.weight.any()
    sequences = sequences_of(folder)
    forward = model.model.forward
    model.model.forward = lambda attention_mask=None, **inputs: forward(**_moved(inputs))
    assert "LlamaForSequenceClassification scores a row of" in str(batch_problem(model, sequences))


def _moved(inputs):
    """A backbone that adds what stands at the last place, padding or not."""
    return {**inputs, "input_ids": (inputs["input_ids"] + inputs["input_ids"][:, -1:]) % 300}


def test_half_precision_may_round(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("qwen2"), tmp_path / "saved")
    scorer = RewardScorer.from_pretrained(folder, dtype="bfloat16")
    assert torch.isfinite(torch.from_numpy(scorer.score(["a"], ["b"]))).all()
    assert batch_problem(reward_model(make_model_folder("bert"), dtype="bfloat16"), [([2, 5, 3], None)]) is None
