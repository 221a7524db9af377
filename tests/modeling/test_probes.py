"""Probes are formatted like training rows and by stock tokenizers, and scoring them does not change the model."""

import copy
import json
import math

import pytest
import torch
from conftest import CHAT_TEMPLATE, ENCODERS, randomize_head
from saved_models import reward_model, tokenizer_of
from tokenizers import processors

from hf_reward import FormatRule
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.modeling.position_limits import position_limit
from hf_reward.modeling.probes import (
    LONGEST,
    LONGEST_PROBE,
    PROBES,
    differing,
    format_probes,
    probe_record,
    probe_rewards,
    read_probes,
    relative_differences,
    weight_dtype,
)
from hf_reward.preprocessing.tokenization import tokenize_rows
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.stock_scoring import as_inputs, as_text

TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
TEMPLATES = {
    "refuses_system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + CHAT_TEMPLATE,
    "refuses_many_turns": "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHAT_TEMPLATE,
    "strips": CHAT_TEMPLATE.replace("message['content']", "message['content'].strip()"),
    "starts_with_bos": "{{ bos_token }}" + CHAT_TEMPLATE,
    "drops_system": "{% for message in messages if message['role'] != 'system' %}" + TURN + "{% endfor %}",
    "plain": CHAT_TEMPLATE,
}


def stock_ids(probes, tokenizer) -> list[list[int]]:
    texts = [as_text(probe.to_dict(), tokenizer) for probe in probes]
    return [list(as_inputs([text], tokenizer, special)["input_ids"][0]) for text, special in texts]


def training_ids(probe, tokenizer, separator="") -> list[int]:
    """Ids of the probe as the better side of a training row."""
    if probe.messages:
        prompt, response = probe.messages[:-1], [probe.messages[-1]]
        other = [{"role": "assistant", "content": "Something else."}]
    else:
        response = PROBES[probe.name][-1]["content"]
        other = "Something else."
        turns = [turn["content"] for turn in PROBES[probe.name][:-1]]
        prompt = "\n\n".join(turns)
    row = PreferenceRow(prompt=prompt, responses=[response, other], ranks=[0, 1])
    return tokenize_rows([row], tokenizer, FormatRule(max_length=None, separator=separator))[0].input_ids[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_probes_have_the_ids_of_training_and_of_stock_tokenizers(template, chat_tokenizer):
    chat_tokenizer.chat_template = TEMPLATES[template]
    tokenizer = prepare_tokenizer(chat_tokenizer)
    probes = format_probes(tokenizer)
    expected = set(PROBES) - ({"multi_turn", "system"} if template == "refuses_many_turns" else set())
    if template == "refuses_many_turns":  # a system turn moves into the user's, which leaves two
        expected.add("system")
    assert {probe.name for probe in probes} == expected
    assert stock_ids(probes, tokenizer) == [probe.input_ids for probe in probes]
    for probe in probes:
        assert probe.input_ids == training_ids(probe, tokenizer), probe.name
        assert probe.text is None
        assert probe.input_ids[-1] != tokenizer.pad_token_id
    assert all(tokenizer.bos_token_id in probe.input_ids for probe in probes)


def test_a_system_turn_that_the_template_refuses_opens_the_first_user_turn(chat_tokenizer):
    chat_tokenizer.chat_template = TEMPLATES["refuses_system"]
    probe = next(probe for probe in format_probes(prepare_tokenizer(chat_tokenizer)) if probe.name == "system")
    original = PROBES["system"]
    assert [turn["role"] for turn in probe.messages] == ["user", "assistant"]
    assert probe.messages[0]["content"] == f"{original[0]['content']}\n\n{original[1]['content']}"


@pytest.mark.parametrize("separator", ["", "\n\nAnswer: "])
@pytest.mark.parametrize("kind", ["eos_in_text", "eos_by_itself", "bos_and_eos", "no_eos"])
def test_text_probes_have_the_ids_of_training_and_of_stock_tokenizers(kind, separator, text_tokenizer):
    end = text_tokenizer.eos_token_id
    if kind == "eos_by_itself":
        text_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    if kind == "bos_and_eos":
        text_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    tokenizer = prepare_tokenizer(text_tokenizer)
    if kind == "no_eos":
        tokenizer.eos_token = None
    probes = format_probes(tokenizer, separator=separator)
    assert [probe.name for probe in probes] == list(PROBES)
    assert stock_ids(probes, tokenizer) == [probe.input_ids for probe in probes]
    for probe in probes:
        assert probe.input_ids == training_ids(probe, tokenizer, separator), probe.name
        assert (probe.messages, probe.text_pair) == (None, None)
        assert (probe.input_ids[-1] == end) == (kind != "no_eos")
        assert probe.input_ids[-2] != end, "EOS once"
        assert (probe.input_ids[0] == end) == (kind == "bos_and_eos")
        assert separator in probe.text


def test_pair_probes_have_the_ids_and_types_of_stock_tokenizers(pair_tokenizer):
    tokenizer = prepare_tokenizer(pair_tokenizer)
    probes = format_probes(tokenizer)
    assert [probe.name for probe in probes] == list(PROBES)
    for probe in probes:
        stock = tokenizer([probe.text], [probe.text_pair])
        assert probe.input_ids == stock["input_ids"][0] == training_ids(probe, tokenizer)
        assert probe.token_type_ids == stock["token_type_ids"][0]
        assert probe.input_ids.count(tokenizer.sep_token_id) == 2
    assert next(probe for probe in probes if probe.name == "empty").text_pair == ""


@pytest.mark.parametrize("limit", [60, 24, 12, 2])
@pytest.mark.parametrize("kind", ["chat", "text", "pair"])
def test_probes_fit_the_positions_that_a_model_has(kind, limit, request):
    tokenizer = prepare_tokenizer(request.getfixturevalue(f"{kind}_tokenizer"))
    probes = format_probes(tokenizer, limit=limit, separator="|")
    assert all(len(probe.input_ids) <= limit for probe in probes)
    assert stock_ids(probes, tokenizer) == [probe.input_ids for probe in probes]
    assert len(probes) == (0 if limit == 2 else len(probes))
    assert limit < 60 or len(probes) >= 6
    for probe in probes:
        given = [turn["content"] for turn in (probe.messages or [])[:-1]] or [probe.text]
        assert all(given), "no turn of a prompt is cut to nothing"


@pytest.mark.parametrize("limit", [24, 100, 512])
@pytest.mark.parametrize("kind", ["chat", "text", "pair"])
def test_one_probe_has_the_maximum_length_of_training(kind, limit, request):
    tokenizer = prepare_tokenizer(request.getfixturevalue(f"{kind}_tokenizer"))
    probes = format_probes(tokenizer, limit=limit)
    assert probes[-1].name == LONGEST
    assert len(probes[-1].input_ids) == limit
    assert all(probe.name != LONGEST for probe in format_probes(tokenizer, limit=LONGEST_PROBE + 1))


@pytest.mark.parametrize("kind", ["chat", "text", "pair"])
def test_probes_are_read_back_from_the_record(kind, request):
    tokenizer = prepare_tokenizer(request.getfixturevalue(f"{kind}_tokenizer"))
    probes = format_probes(tokenizer, limit=200, separator="|")
    assert read_probes([probe.to_dict() for probe in probes], tokenizer) == probes


def test_the_record_is_json_and_holds_every_compute_precision(make_model_folder):
    folder = make_model_folder("llama")
    model, tokenizer = reward_model(folder), tokenizer_of(folder)
    record = probe_record(model, tokenizer, half=torch.bfloat16)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["rewards"]) == {"float32", "bfloat16"}
    assert record["device"] == "cpu"
    assert [probe["name"] for probe in record["conversations"]] == list(PROBES)
    for probe in record["conversations"]:  # rotary positions have no end, so none is shortened
        assert probe["messages"] == PROBES[probe["name"]]
    first = torch.tensor([[int(word) for word in record["conversations"][0]["input_ids"].split()]])
    with torch.no_grad():
        assert record["rewards"]["float32"][0] == model(first).logits.item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert record["rewards"]["bfloat16"][0] == model(first).logits.item()
    differences = relative_differences(*record["rewards"].values())
    assert 0 < max(differences) < 2**-4
    assert len(set(record["rewards"]["float32"])) == 8


def test_a_half_precision_model_records_that_precision(make_model_folder):
    folder = make_model_folder("llama")
    model = reward_model(folder, dtype="bfloat16")
    assert weight_dtype(model) == torch.bfloat16, "the head is float32, the model is not"
    record = probe_record(model, tokenizer_of(folder), half=torch.bfloat16)
    assert set(record["rewards"]) == {"bfloat16"}
    assert record["left_padding"] is None
    sharded = probe_record(model, tokenizer_of(folder), half=torch.bfloat16, float32=False)
    assert set(sharded["rewards"]) == {"bfloat16"}
    assert (sharded["weights_cast"], "weights_cast" in record) == (True, False)


@pytest.mark.parametrize(
    ("arch", "holds"), [("llama", True), ("qwen3", True), ("mistral", True), ("gpt2", False), ("bert", False)]
)
def test_left_padding_is_measured(arch, holds, make_model_folder):
    folder = make_model_folder(arch)
    record = probe_record(reward_model(folder), tokenizer_of(folder))
    assert record["left_padding"] is holds


@pytest.mark.parametrize("arch", ["llama", "gpt2", *ENCODERS])
def test_alone_and_padded_rewards_agree(arch, make_model_folder):
    folder = make_model_folder(arch)
    model = reward_model(folder)
    probes = format_probes(tokenizer_of(folder), limit=position_limit(model))
    assert len(probes) == (8 if position_limit(model) is None else 9)
    alone = probe_rewards(model, probes)
    assert torch.tensor(alone).std() > 0.01
    assert not differing(alone, probe_rewards(model, probes, left=False), 1e-5)


def test_scoring_leaves_modes_random_numbers_gradients_and_tokenizer_alone(make_model_folder):
    folder = make_model_folder("gpt2")
    model, tokenizer = reward_model(folder, lora=True), tokenizer_of(folder)
    model.train()
    model.get_base_model().transformer.h[0].eval()  # as when a part is frozen
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    needs = {name: value.requires_grad for name, value in model.named_parameters()}
    vocabulary, side, template = tokenizer.get_vocab(), tokenizer.padding_side, tokenizer.chat_template
    backend = tokenizer.backend_tokenizer.to_str()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    record = probe_record(model, tokenizer, half=torch.bfloat16)
    assert torch.equal(torch.rand(4), expected), "no random number was used up"
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == needs
    assert all(value.grad is None for value in model.parameters())
    assert (tokenizer.get_vocab(), tokenizer.padding_side, tokenizer.chat_template) == (vocabulary, side, template)
    assert tokenizer.backend_tokenizer.to_str() == backend
    assert record == probe_record(model, tokenizer, half=torch.bfloat16), "dropout is off, so they are the same again"


def test_the_probes_themselves_are_never_changed(chat_tokenizer, make_model_folder):
    before = copy.deepcopy(PROBES)
    chat_tokenizer.chat_template = TEMPLATES["refuses_system"]
    format_probes(prepare_tokenizer(chat_tokenizer), limit=20)
    assert before == PROBES


def test_rewards_that_are_not_finite_are_null(make_model_folder):
    folder = make_model_folder("llama")
    model = reward_model(folder)
    with torch.no_grad():
        model.score.weight[0, 0] = math.nan
    record = probe_record(model, tokenizer_of(folder), half=torch.bfloat16)
    assert record["rewards"]["float32"] == [None] * 8 == record["rewards"]["bfloat16"]
    json.dumps(record, allow_nan=False)


def test_differences_are_relative_above_one_and_infinite_for_values_that_are_not_finite():
    inf, nan = math.inf, math.nan
    expected = [0.5, -4.0, None, 1.0, None, nan, inf, 1.0]
    found = [0.75, -5.0, nan, nan, 2.0, nan, 3.0, -inf]
    assert relative_differences(expected, found) == [0.25, 0.25, inf, inf, inf, inf, inf, inf]
    assert differing(expected, found, 0.25) == [2, 3, 4, 5, 6, 7]
    assert differing(expected, found, inf) == [2, 3, 4, 5, 6, 7], "also where differences are only reported"
    with pytest.raises(ValueError, match="zip"):
        relative_differences([1.0], [1.0, 2.0])


def test_a_random_head_gives_probes_of_different_rewards(make_model_folder):
    folder = make_model_folder("bert")
    model = reward_model(folder)
    probes = format_probes(tokenizer_of(folder), limit=position_limit(model))
    one = probe_rewards(model, probes)
    randomize_head(model, 7)
    assert len(differing(one, probe_rewards(model, probes), 1e-5)) == 9
