"""The training stage of a mitigation: ties are learned, the model keeps its form, an interrupted run continues."""

import pytest
from datasets import Dataset
from saved_models import saved_model

from hf_reward import CheckpointRecord, RewardScorer
from hf_reward.data.sources import Source
from hf_reward.evaluation.mitigation.builders import row
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.training import mitigation_training
from hf_reward.training.mitigation_training import MitigationRule, train_on
from hf_reward.training.trainer import RewardTrainer

PADDED = " Hopefully these lines were of some use."


def ties(count=24):
    pairs = [(f"Question {n}?", f"The answer is {n}.", f"The answer is {n}.{PADDED}") for n in range(count)]
    return Source(data=Dataset.from_list([row(*pair, 0.5) for pair in pairs]), layout="votes", name="ties")


def padding_effect(folder):
    prompts = [f"Question {n}?" for n in range(30, 40)]
    plain = RewardScorer.from_pretrained(folder).score(prompts, [f"The answer is {n}." for n in range(30, 40)])
    padded = RewardScorer.from_pretrained(folder).score(prompts, [f"The answer is {n}.{PADDED}" for n in range(30, 40)])
    return abs(float((padded - plain).mean()))


RULE = MitigationRule(learning_rate=1e-2, epochs=8)


@pytest.mark.parametrize("use_lora", [True, False])
def test_ties_remove_the_effect_of_padding(saved_llama, tmp_path, use_lora):
    rule = MitigationRule(use_lora=use_lora, learning_rate=1e-2, epochs=8)
    train_on(str(saved_llama), [ties()], tmp_path / "out", tmp_path / "work", rule, FormatRule(max_length=64), {})
    assert padding_effect(tmp_path / "out") < 0.5 * padding_effect(saved_llama)
    assert (tmp_path / "out" / "adapter").is_dir() == use_lora
    record = CheckpointRecord.load(tmp_path / "out")
    assert record.format["max_length"] == 64
    assert record.training["settings"]["learning_rate"] == 1e-2
    assert not (tmp_path / "work").exists()


def test_an_adapter_is_trained_further_and_merged(make_model_folder, tmp_path):
    adapter = saved_model(make_model_folder("llama"), tmp_path / "adapter", lora=True)
    train_on(str(adapter), [ties()], tmp_path / "out", tmp_path / "work", RULE, FormatRule(), {})
    assert padding_effect(tmp_path / "out") < 0.5 * padding_effect(adapter)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_interrupted_training_continues_from_its_checkpoint(saved_llama, tmp_path, monkeypatch, capsys):
    def stop(*args, **options):
        raise ValueError("the machine stopped")

    arguments = (str(saved_llama), [ties(8)], tmp_path / "out", tmp_path / "work", RULE, FormatRule(), {})
    with monkeypatch.context() as patch:
        patch.setattr(mitigation_training, "save_merged", stop)
        with pytest.raises(ValueError, match="stopped"):
            train_on(*arguments)
    monkeypatch.setattr(RewardTrainer, "training_step", stop)  # all steps are in the checkpoint
    train_on(*arguments)
    assert CheckpointRecord.load(tmp_path / "out").training["steps"] == 8
    assert capsys.readouterr().out == ""


def test_the_default_rate_depends_on_the_weights_that_are_trained():
    assert MitigationRule().peak_rate == 5e-4
    assert MitigationRule(use_lora=False).peak_rate == 2e-5
    with pytest.raises(ValueError, match="`batch_size` must be above 0"):
        MitigationRule(batch_size=0)
