"""The verdicts on other programs match their source code, for all tested architectures."""

import pytest
from conftest import DECODERS, ENCODERS
from saved_models import reward_model

from hf_reward.modeling.architectures import classifier_class, has_stock_class
from hf_reward.modeling.reward_head import reads_positions
from hf_reward.publishing.compatibility import (
    CANNOT,
    OTHER,
    SAME,
    SHIFTED,
    WITH_OPTION,
    can_be_served,
    compatibility_of_config,
    why_unserved,
)

# vLLM, SGLang, TEI, OpenRLHF, verl
FACTS = {
    "llama": (SAME, SAME, CANNOT, WITH_OPTION, SAME),
    "qwen2": (SAME, SHIFTED, CANNOT, WITH_OPTION, SAME),
    "qwen3": (SAME, SHIFTED, CANNOT, WITH_OPTION, SAME),
    "mistral": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "gemma2": (SAME, SAME, CANNOT, WITH_OPTION, SAME),
    "gemma3": (WITH_OPTION, CANNOT, CANNOT, WITH_OPTION, WITH_OPTION),
    "gpt2": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "gpt_neox": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "opt": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "phi3": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "olmo2": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "smollm3": (SAME, CANNOT, CANNOT, WITH_OPTION, SAME),
    "granite": (SAME, CANNOT, CANNOT, CANNOT, SAME),
    "bert": (SAME, SAME, WITH_OPTION, CANNOT, CANNOT),
    "roberta": (SAME, CANNOT, WITH_OPTION, CANNOT, CANNOT),
    "deberta_v2": (CANNOT, CANNOT, WITH_OPTION, CANNOT, CANNOT),
    "modernbert": (SAME, CANNOT, WITH_OPTION, CANNOT, CANNOT),
    "distilbert": (CANNOT, CANNOT, WITH_OPTION, CANNOT, CANNOT),
}
NAMES = ("vLLM", "SGLang", "TEI", "OpenRLHF", "verl")


def verdicts_of(arch):
    config = {**DECODERS, **ENCODERS}[arch](64)
    stock = has_stock_class(config)
    config.architectures = [classifier_class(config).__name__]
    return {each.program: each for each in compatibility_of_config(config, is_stock=stock, is_decoder=arch in DECODERS)}


@pytest.mark.parametrize("arch", FACTS)
def test_each_architecture_gets_the_verdicts_that_the_sources_imply(arch):
    found = verdicts_of(arch)
    assert tuple(found[name].outcome for name in NAMES) == FACTS[arch]
    own = WITH_OPTION if arch == "granite" else SAME
    assert found["transformers, pipeline"].outcome == own == found["TRL (reward_funcs)"].outcome
    assert can_be_served(list(found.values()))
    assert all(each.loads == (each.outcome != CANNOT) for each in found.values())


# sentence-transformers, rewardbench, infinity-emb
PYTHON_FACTS = {
    "llama": (WITH_OPTION, WITH_OPTION, OTHER),
    "bert": (SAME, WITH_OPTION, WITH_OPTION),
    "granite": (CANNOT, CANNOT, CANNOT),
}


@pytest.mark.parametrize("arch", PYTHON_FACTS)
def test_programs_that_build_pairs_give_another_reward_to_decoders(arch):
    found = verdicts_of(arch)
    names = ("sentence-transformers (CrossEncoder)", "rewardbench", "infinity-emb")
    assert tuple(found[name].outcome for name in names) == PYTHON_FACTS[arch]


def test_the_evidence_distinguishes_runs_from_sources():
    llama, qwen = verdicts_of("llama"), verdicts_of("qwen3")
    assert llama["TRL (reward_funcs)"].evidence.startswith("run (")
    assert qwen["TRL (reward_funcs)"].evidence.startswith("source read; run with Llama (")
    assert llama["SGLang"].evidence == qwen["SGLang"].evidence
    assert llama["SGLang"].evidence.startswith("source read: ")


def test_every_tested_architecture_is_covered():
    assert set(FACTS) == {*DECODERS, *ENCODERS}


def test_notes_say_what_to_do():
    assert "random constant" in verdicts_of("qwen3")["SGLang"].note
    assert '"raw_scores": true' in verdicts_of("bert")["TEI"].note
    assert '["Gemma3ForSequenceClassification"]' in verdicts_of("gemma3")["vLLM"].note
    assert "register_classifier" in verdicts_of("granite")["transformers, pipeline"].note
    assert verdicts_of("llama")["SGLang"].outcome == SAME
    assert "--reward.remote_url" in verdicts_of("llama")["OpenRLHF"].note
    assert "--dtype float32" in verdicts_of("llama")["vLLM"].note
    assert "writes BOS" in verdicts_of("llama")["verl"].note


@pytest.mark.parametrize("name", ["HeliumForSequenceClassification", "GPTNeoForSequenceClassification"])
def test_decoders_without_a_native_class_require_a_pooling_option_of_vllm(name):
    config = DECODERS["llama"](64)
    config.architectures = [name]
    verdict = next(each for each in compatibility_of_config(config) if each.program == "vLLM")
    assert verdict.outcome == WITH_OPTION
    assert '"pooling_type": "LAST"' in verdict.note


@pytest.mark.parametrize("name", ["ElectraForSequenceClassification", "AlbertForSequenceClassification"])
def test_unsupported_encoders_cannot_be_served(name):
    config = ENCODERS["bert"](64)
    config.architectures = [name]
    verdicts = compatibility_of_config(config, is_decoder=False)
    assert not can_be_served(verdicts)
    assert {each.program for each in verdicts if each.loads} == {
        *("transformers, pipeline", "TRL (reward_funcs)", "sentence-transformers (CrossEncoder)"),
        *("rewardbench", "infinity-emb"),
    }
    message = why_unserved(config, verdicts)
    assert name in message
    assert "allow_unserved=True" in message


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3", "bert", "deberta_v2", "granite"])
def test_a_model_that_was_made_from_a_language_model_is_judged_as_the_classifier_that_it_is(arch, make_model_folder):
    model = reward_model(make_model_folder(arch))
    stock = has_stock_class(model.config)
    found = compatibility_of_config(model.config, is_stock=stock, is_decoder=reads_positions(model))
    expected = list(verdicts_of(arch).values())
    assert found == expected
