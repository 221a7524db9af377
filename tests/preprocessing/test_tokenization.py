"""Canonical rows become the right tokens and fit the limit without losing a response; pad tokens are safe."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_models import saved_model
from tokenizers import processors
from training_runs import make_trainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward import RewardScorer
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.modeling.model_tokenizer import load_tokenizer
from hf_reward.preprocessing.tokenization import FormatRule, TokenizedRow, shared_prefix_length, tokenize_rows
from hf_reward.preprocessing.tokenizer import (
    NEW_PAD_TOKEN,
    find_pad_token,
    has_vocabulary,
    prepare_tokenizer,
    require_same_template,
    uses_text_pairs,
)

UNLIMITED = FormatRule(max_length=None)
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools ' + tools[0]['function']['name'] + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ ' /think' if thinking is defined and thinking else '' }}{{ '<|im_end|>\n' }}{% endfor %}"
)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def chat_row(prompt: list[dict[str, str]], *responses: str, ranks: list[int] | None = None) -> PreferenceRow:
    answers = [[assistant(response)] for response in responses]
    return PreferenceRow(prompt=prompt, responses=answers, ranks=ranks or list(range(len(responses))))


def text_row(prompt: str, *responses: str, ranks: list[int] | None = None) -> PreferenceRow:
    return PreferenceRow(prompt=prompt, responses=list(responses), ranks=ranks or list(range(len(responses))))


def one(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule = UNLIMITED) -> TokenizedRow:
    return tokenize_rows([row], tokenizer, rule)[0]


def texts(result: TokenizedRow, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(ids) for ids in result.input_ids]


def add_bos_and_eos(tokenizer: PreTrainedTokenizerBase, *, eos: bool) -> None:
    """Make a tokenizer add BOS (and EOS) by itself, as Llama's and T5's do."""
    bos, end = (tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)
    single = f"{bos[0]} $A {end[0]}" if eos else f"{bos[0]} $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[bos, end])


def state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    return (
        len(tokenizer),
        dict(tokenizer.special_tokens_map),
        tokenizer.padding_side,
        tokenizer.chat_template,
        sorted(tokenizer.added_tokens_decoder),
        tokenizer.backend_tokenizer.to_str(),
    )


# --- conversations ---------------------------------------------------------------------------------------------------


def test_every_chat_row_has_the_tokens_of_its_rendered_template(chat_pairs, chat_tokenizer):
    rows = [to_preference_row(raw) for raw in chat_pairs]
    for raw, result in zip(chat_pairs, tokenize_rows(rows, chat_tokenizer, UNLIMITED), strict=True):
        rendered = [
            chat_tokenizer.apply_chat_template([*raw["prompt"], *raw[side]], tokenize=False)
            for side in ("chosen", "rejected")
        ]
        expected = [chat_tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
        assert result.input_ids == expected
        assert result.problem == ""
        assert (result.ranks, result.token_type_ids, result.cut_tokens) == ([0, 1], None, 0)


def test_a_tokenizer_that_adds_its_own_bos_does_not_double_the_template_s(chat_tokenizer):
    add_bos_and_eos(chat_tokenizer, eos=False)
    bos = chat_tokenizer.bos_token_id
    assert chat_tokenizer("a")["input_ids"][0] == bos  # the tokenizer would add a second BOS
    result = one(chat_row([user("hello")], "one", "two"), chat_tokenizer)
    for ids in result.input_ids:
        assert ids[0] == bos
        assert ids[1] != bos


def test_chat_rows_among_text_rows_keep_their_order(chat_tokenizer):
    mixed = [text_row("hello ", "one", "two"), chat_row([user("hello")], "one", "two"), text_row("more ", "yes", "no")]
    alone = [one(row, chat_tokenizer) for row in mixed]
    assert tokenize_rows(mixed, chat_tokenizer, UNLIMITED) == alone
    assert alone[0].input_ids != alone[1].input_ids


def test_tools_and_template_arguments_reach_the_template(chat_tokenizer):
    chat_tokenizer.chat_template = TOOL_TEMPLATE
    raw = {"prompt": [user("hello")], "chosen": [assistant("one")], "rejected": [assistant("two")]}
    tool = {"type": "function", "function": {"name": "reverse", "description": "", "parameters": {}}}
    plain, with_tool, thinking = (
        texts(one(to_preference_row(raw | extra), chat_tokenizer), chat_tokenizer)[0]
        for extra in ({}, {"tools": [tool]}, {"chat_template_kwargs": {"thinking": True}})
    )
    assert "<|im_start|>tools reverse" in with_tool
    assert "/think" in thinking
    assert "tools" not in plain
    assert "/think" not in plain


def test_messages_without_a_chat_template_are_refused_with_the_remedy(text_tokenizer):
    with pytest.raises(PreferenceFormatError, match=r"no chat template.*`chat_template_path` for training.*save"):
        one(chat_row([user("hello")], "one", "two"), text_tokenizer)


def test_a_template_that_refuses_a_conversation_is_reported_as_a_bad_row(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + chat_tokenizer.chat_template
    )
    row = chat_row([{"role": "system", "content": "Be kind."}, user("hello")], "one", "two")
    with pytest.raises(PreferenceFormatError, match="System role not supported"):
        one(row, chat_tokenizer)


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_row_is_prompt_separator_response_and_eos(text_tokenizer):
    result = one(text_row("hello", "one", "two"), text_tokenizer, FormatRule(max_length=None, separator="\n\n"))
    assert texts(result, text_tokenizer) == ["hello\n\none<|endoftext|>", "hello\n\ntwo<|endoftext|>"]


def test_a_text_row_without_prompt_has_no_separator(text_tokenizer):
    result = one(text_row("", "one", "two"), text_tokenizer, FormatRule(max_length=None, separator="\n\n"))
    assert texts(result, text_tokenizer) == ["one<|endoftext|>", "two<|endoftext|>"]


def test_an_eos_that_the_text_brings_is_not_doubled(text_tokenizer):
    result = one(text_row("hello ", "one<|endoftext|>", "two"), text_tokenizer)
    assert [ids.count(text_tokenizer.eos_token_id) for ids in result.input_ids] == [1, 1]


@pytest.mark.parametrize("first", ["one", "one<|im_end|>", "one<|im_end|><|im_end|>"])
def test_an_eos_that_the_tokenizer_appends_is_never_doubled(chat_tokenizer, first):
    add_bos_and_eos(chat_tokenizer, eos=True)
    first_row, second = tokenize_rows(
        [text_row("", first, "other"), text_row("hello ", "one", "two")], chat_tokenizer, UNLIMITED
    )
    assert chat_tokenizer.decode(first_row.input_ids[0]) == "<|im_start|>one<|im_end|>"
    for ids in second.input_ids:
        assert ids.count(chat_tokenizer.eos_token_id) == 1
        assert ids.count(chat_tokenizer.bos_token_id) == 1


def test_a_text_with_two_eos_does_not_affect_other_texts(text_tokenizer):
    rows = [text_row("", "a<|endoftext|><|endoftext|>", "b"), text_row("", "one", "two")]
    assert tokenize_rows(rows, text_tokenizer, UNLIMITED)[1] == one(rows[1], text_tokenizer)


def test_encoders_without_template_get_text_pairs_with_token_types(pair_tokenizer):
    assert uses_text_pairs(pair_tokenizer)
    row = text_row("hello", "one", "two more")
    result = one(row, pair_tokenizer)
    for ids, types, response in zip(result.input_ids, result.token_type_ids, row.responses, strict=True):
        expected = pair_tokenizer("hello", response)
        assert ids == expected["input_ids"]
        assert types == expected["token_type_ids"]
        assert set(types) == {0, 1}
        assert pair_tokenizer.decode(ids) == f"[CLS]hello[SEP]{response}[SEP]"


def test_text_pairs_with_and_without_prompt_are_the_same_in_one_batch_as_alone(pair_tokenizer):
    rows = [text_row("hello", "one", "two"), text_row("", "three", "four")]
    alone = [one(row, pair_tokenizer) for row in rows]
    assert tokenize_rows(rows, pair_tokenizer, UNLIMITED) == alone
    assert texts(alone[1], pair_tokenizer) == ["[CLS]three[SEP]", "[CLS]four[SEP]"]


def test_an_encoder_with_a_chat_template_uses_it_rather_than_pairs(pair_tokenizer):
    pair_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '[SEP]' }}{% endfor %}"
    result = one(chat_row([user("hello")], "one", "two"), pair_tokenizer)
    assert texts(result, pair_tokenizer)[0] == "user: hello[SEP]assistant: one[SEP]"


# --- common prefix of the responses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequences", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [4, 2, 3]], 0),
        ([[1, 2], [1, 2, 3, 4]], 1),  # one is a prefix of the other: it keeps one token
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[5], [5, 6]], 0),
        ([[1, 2, 3, 4], [1, 2, 3], [1, 2, 9]], 2),
    ],
)
def test_the_shared_prefix_is_measured_and_leaves_every_sequence_a_token(sequences, shared):
    assert shared_prefix_length(sequences) == shared


def test_the_prefix_includes_the_common_start_of_the_responses(chat_tokenizer):
    result = one(chat_row([user("hello")], "Paris is", "Paris was"), chat_tokenizer)
    a, b = result.input_ids
    assert a[: result.prefix_length] == b[: result.prefix_length]
    assert a[result.prefix_length] != b[result.prefix_length]
    assert "Paris" in chat_tokenizer.decode(a[: result.prefix_length])


def test_equal_responses_are_merged_and_the_best_rank_is_kept(text_tokenizer):
    result = one(text_row("hello ", "same", "other", "same", ranks=[2, 1, 0]), text_tokenizer)
    assert texts(result, text_tokenizer) == ["hello other<|endoftext|>", "hello same<|endoftext|>"]
    assert result.ranks == [1, 0]
    assert result.merged == 1
    assert result.problem == ""


def test_a_row_with_identical_responses_is_unusable(text_tokenizer):
    assert one(text_row("hello ", "same", "same"), text_tokenizer).problem == "identical responses"


# --- too long --------------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be kind."}
LONG_CHAT = [
    SYSTEM,
    user("The capital of France is Paris, and the capital of Italy is Rome."),
    assistant("Three short answers are better than one long answer."),
    user("Water boils at one hundred degrees; ice melts at zero."),
]


def lengths(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> int:
    return max(map(len, one(row, tokenizer).input_ids))


def test_rows_at_the_limit_are_left_alone(chat_tokenizer):
    row = chat_row(LONG_CHAT, "one", "two three")
    limit = lengths(row, chat_tokenizer)
    assert one(row, chat_tokenizer, FormatRule(max_length=limit)) == one(row, chat_tokenizer)


def test_truncation_first_drops_the_oldest_turns(chat_tokenizer):
    row = chat_row(LONG_CHAT, "one", "two three")
    limit = lengths(row, chat_tokenizer) - 1
    result = one(row, chat_tokenizer, FormatRule(max_length=limit))
    without_oldest = one(chat_row([SYSTEM, LONG_CHAT[-1]], "one", "two three"), chat_tokenizer)
    assert result.input_ids == without_oldest.input_ids
    assert result.cut_tokens == limit + 1 - max(map(len, without_oldest.input_ids))


def test_truncation_then_cuts_the_oldest_tokens_of_the_turn_that_is_left(chat_tokenizer):
    row = chat_row(LONG_CHAT, "one", "two three")
    limit = lengths(chat_row([SYSTEM, LONG_CHAT[-1]], "one", "two three"), chat_tokenizer) - 5
    result = one(row, chat_tokenizer, FormatRule(max_length=limit))
    assert limit - 8 <= max(map(len, result.input_ids)) <= limit
    for text, response in zip(texts(result, chat_tokenizer), ("one", "two three"), strict=True):
        head, rest = text.split("<|im_start|>user\n")
        content, end = rest.split("<|im_end|>\n", 1)
        assert head == "<|im_start|>system\nBe kind.<|im_end|>\n"
        assert LONG_CHAT[-1]["content"].endswith(content)
        assert 0 < len(content) < len(LONG_CHAT[-1]["content"])
        assert end == f"<|im_start|>assistant\n{response}<|im_end|>\n"
    assert result.cut_tokens == lengths(row, chat_tokenizer) - max(map(len, result.input_ids))


def test_a_conversation_whose_responses_alone_do_not_fit_is_dropped(chat_tokenizer):
    row = chat_row([SYSTEM, user("hi")], "one", "The capital of France is Paris, and the capital of Italy is Rome.")
    result = one(row, chat_tokenizer, FormatRule(max_length=20))
    assert result.problem == "too long"
    assert result.input_ids == []


def test_a_conversation_without_prompt_that_is_too_long_is_dropped(chat_tokenizer):
    row = chat_row([], "one", "The capital of France is Paris")
    assert one(row, chat_tokenizer, FormatRule(max_length=10)).problem == "too long"


def test_text_loses_its_oldest_prompt_tokens_the_same_for_all_responses(text_tokenizer):
    row = text_row("Water boils at one hundred degrees: ", "yes", "no, it does not")
    full = one(row, text_tokenizer)
    limit = max(map(len, full.input_ids)) - 3
    result = one(row, text_tokenizer, FormatRule(max_length=limit))
    assert result.input_ids == [ids[3:] for ids in full.input_ids]
    assert (result.cut_tokens, result.prefix_length) == (3, full.prefix_length - 3)


def test_text_keeps_its_bos_when_the_prompt_is_cut(chat_tokenizer):
    add_bos_and_eos(chat_tokenizer, eos=False)
    row = text_row("Water boils at one hundred degrees: ", "yes", "no")
    full = one(row, chat_tokenizer)
    result = one(row, chat_tokenizer, FormatRule(max_length=max(map(len, full.input_ids)) - 3))
    assert result.input_ids == [[ids[0], *ids[4:]] for ids in full.input_ids]
    assert full.input_ids[0][0] == chat_tokenizer.bos_token_id


@pytest.mark.parametrize("separator", ["", "\n\n\n"])
def test_a_text_pair_keeps_cls_separator_and_token_types_when_the_prompt_is_cut(pair_tokenizer, separator):
    row = text_row("Water boils at one", "yes", "no")
    full = one(row, pair_tokenizer)
    prompt_length = len(pair_tokenizer("Water boils at one", add_special_tokens=False)["input_ids"])
    rule = FormatRule(max_length=max(map(len, full.input_ids)) - prompt_length, separator=separator)
    result = one(row, pair_tokenizer, rule)
    assert texts(result, pair_tokenizer) == ["[CLS][SEP]yes[SEP]", "[CLS][SEP]no[SEP]"]
    assert [ids[1 + prompt_length :] for ids in full.token_type_ids] == [ids[1:] for ids in result.token_type_ids]
    shorter = FormatRule(max_length=rule.max_length - 1, separator=separator)
    assert one(row, pair_tokenizer, shorter).problem == "too long"


def test_a_token_that_joins_prompt_and_response_is_never_cut(text_tokenizer):
    # " the" is one token: the space is part of the prompt, and the word is part of the responses.
    row = text_row("Water boils ", "the capital", "the answers")
    full = one(row, text_tokenizer)
    prompt = text_tokenizer("Water boils ")["input_ids"]
    assert full.input_ids[0][: len(prompt)] != prompt
    for limit in range(2, max(map(len, full.input_ids))):
        result = one(row, text_tokenizer, FormatRule(max_length=limit))
        for text, response in zip(texts(result, text_tokenizer), row.responses, strict=False):
            assert text.endswith(f"{response}<|endoftext|>")


def test_a_response_that_is_a_prefix_of_another_is_never_cut_to_nothing(text_tokenizer):
    row = PreferenceRow(prompt="", responses=["", ""], ranks=[0, 1], token_ids=[[7, 8, 9], [7, 8, 9, 10, 11]])
    result = one(row, text_tokenizer, FormatRule(max_length=3))
    assert (result.input_ids, result.prefix_length) == ([[9], [9, 10, 11]], 0)
    assert one(row, text_tokenizer, FormatRule(max_length=2)).problem == "too long"


def test_the_drop_policy_drops_rows_that_truncation_would_keep(chat_tokenizer):
    row = chat_row(LONG_CHAT, "one", "two three")
    limit = lengths(row, chat_tokenizer) - 1
    assert one(row, chat_tokenizer, FormatRule(max_length=limit)).problem == ""
    assert one(row, chat_tokenizer, FormatRule(max_length=limit, over_length="drop")).problem == "too long"


def test_the_error_policy_reports_the_length_of_the_row(chat_tokenizer):
    row = chat_row(LONG_CHAT, "one", "two three")
    longest = lengths(row, chat_tokenizer)
    with pytest.raises(PreferenceFormatError, match=rf"has {longest} tokens, above `max_length={longest - 1}`"):
        one(row, chat_tokenizer, FormatRule(max_length=longest - 1, over_length="error"))


@pytest.mark.parametrize("setting", [{"over_length": "cut"}, {"max_length": 1}, {"max_length": 0}])
def test_a_rule_that_makes_no_sense_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        FormatRule(**setting)


WORDS = st.text(alphabet="abc .\u00e9\u4f60", min_size=1, max_size=12).filter(str.strip)
ONCE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONCE
@given(
    turns=st.lists(WORDS, min_size=1, max_size=5),
    responses=st.lists(WORDS, min_size=2, max_size=3, unique=True),
    system=st.booleans(),
    limit=st.integers(2, 90),
)
def test_truncated_conversations_fit_keep_their_responses_and_share_their_prefix(
    chat_tokenizer, turns, responses, system, limit
):
    if len(turns) % 2 == 0:
        turns = turns[1:]
    prompt = [(assistant if place % 2 else user)(turn) for place, turn in enumerate(turns)]
    result = one(chat_row([SYSTEM] * system + prompt, *responses), chat_tokenizer, FormatRule(max_length=limit))
    if result.problem:
        assert result.problem == "too long"
        return
    check_fitted(result, limit)
    for ids, response in zip(result.input_ids, responses, strict=True):
        text = chat_tokenizer.decode(ids)
        assert text.endswith(f"<|im_start|>assistant\n{response}<|im_end|>\n")
        assert text.startswith(
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user" if system else "<|im_start|>user"
        )


@ONCE
@given(
    prompt=st.text(alphabet="the capital .\u00e9\u4f60", max_size=40),
    responses=st.lists(st.text(alphabet="the o\u00e9", min_size=1, max_size=12), min_size=2, max_size=3, unique=True),
    limit=st.integers(2, 40),
    pairs=st.booleans(),
)
def test_truncated_texts_fit_keep_their_responses_and_share_their_prefix(
    text_tokenizer, pair_tokenizer, prompt, responses, limit, pairs
):
    tokenizer = pair_tokenizer if pairs else text_tokenizer
    row = text_row(prompt, *responses)
    result = one(row, tokenizer, FormatRule(max_length=limit))
    if result.problem:
        assert result.problem == "too long"
        return
    check_fitted(result, limit)
    full = one(row, tokenizer)
    for ids, before, response in zip(result.input_ids, full.input_ids, responses, strict=True):
        kept = len(ids) - (1 if pairs else 0)  # CLS is kept before the cut
        assert ids[-kept:] == before[-kept:]
        if prompt:  # without one, the common prefix of the responses is the prompt
            assert tokenizer.decode(ids).endswith(f"{response}{'[SEP]' if pairs else '<|endoftext|>'}")


def check_fitted(result: TokenizedRow, limit: int) -> None:
    assert max(map(len, result.input_ids)) <= limit
    prefix = result.prefix_length
    assert 0 <= prefix < min(map(len, result.input_ids))
    assert len({tuple(ids[:prefix]) for ids in result.input_ids}) == 1
    assert result.cut_tokens >= 0


# --- the tokenizer itself --------------------------------------------------------------------------------------------


def test_a_pad_token_that_is_the_eos_is_replaced_by_a_free_one(chat_tokenizer):
    assert chat_tokenizer.pad_token == chat_tokenizer.eos_token
    prepared = prepare_tokenizer(chat_tokenizer)
    assert prepared.pad_token == "<|endoftext|>"
    assert len(prepared) == len(chat_tokenizer)


def test_a_gpt2_like_tokenizer_gets_a_new_pad_token(text_tokenizer):
    prepared = prepare_tokenizer(text_tokenizer)
    assert prepared.pad_token == NEW_PAD_TOKEN
    assert prepared.pad_token_id == len(text_tokenizer)
    assert prepared.eos_token_id == text_tokenizer.eos_token_id
    assert prepared.padding_side == "right"


@pytest.mark.parametrize("name", ["chat_tokenizer", "text_tokenizer", "pair_tokenizer"])
def test_preparing_and_using_a_tokenizer_leaves_the_caller_s_as_it_was(name, request):
    tokenizer = request.getfixturevalue(name)
    before = copy.deepcopy(state(tokenizer))
    prepared = prepare_tokenizer(tokenizer)
    one(text_row("hello ", "one", "two"), prepared)
    one(text_row("hello ", "one", "two"), tokenizer, FormatRule(max_length=4))
    assert state(tokenizer) == before


def test_a_good_pad_token_is_kept(pair_tokenizer):
    assert prepare_tokenizer(pair_tokenizer).pad_token == "[PAD]"
    assert len(prepare_tokenizer(pair_tokenizer)) == len(pair_tokenizer)


def test_a_pad_token_that_text_pairs_end_with_is_replaced(pair_tokenizer):
    pair_tokenizer.pad_token = "[SEP]"
    assert prepare_tokenizer(pair_tokenizer).pad_token == "[PAD]"


def test_a_token_that_the_template_emits_is_never_chosen(chat_tokenizer):
    chat_tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra_0|>", "<|extra_1|>"]})
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("<|im_start|>", "<|extra_0|><|endoftext|>")
    assert find_pad_token(chat_tokenizer) == "<|extra_1|>"
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("<|extra_0|>", "<|extra_0|><|extra_1|>")
    assert find_pad_token(chat_tokenizer) == NEW_PAD_TOKEN


def test_the_pad_token_is_never_the_last_token_of_a_formatted_text(chat_tokenizer, text_tokenizer, pair_tokenizer):
    cases = [
        (chat_tokenizer, chat_row([user("hello")], "one", "two")),
        (chat_tokenizer, text_row("hello ", "one", "two")),
        (text_tokenizer, text_row("hello ", "one", "two")),
        (pair_tokenizer, text_row("hello", "one", "two")),
    ]
    for tokenizer, row in cases:
        prepared = prepare_tokenizer(tokenizer)
        result = one(row, prepared)
        assert prepared.pad_token_id not in [ids[-1] for ids in result.input_ids]
        assert result.input_ids == one(row, tokenizer).input_ids


def test_the_eos_and_pad_settings_are_used(chat_tokenizer):
    prepared = prepare_tokenizer(chat_tokenizer, eos_token="<|endoftext|>", pad_token="<|im_start|>")
    assert (prepared.eos_token, prepared.pad_token) == ("<|endoftext|>", "<|im_start|>")
    result = one(text_row("hello ", "one", "two"), prepared)
    assert texts(result, prepared)[0] == "hello one<|endoftext|>"


@pytest.mark.parametrize("setting", ["eos_token", "pad_token"])
def test_a_token_outside_the_vocabulary_is_refused_by_name(chat_tokenizer, setting):
    with pytest.raises(ValueError, match=rf"`{setting}='<\|nowhere\|>'` is not in the vocabulary"):
        prepare_tokenizer(chat_tokenizer, **{setting: "<|nowhere|>"})


def test_a_pad_token_that_sequences_end_with_is_refused(chat_tokenizer, pair_tokenizer):
    with pytest.raises(ValueError, match="pad token must never end a sequence"):
        prepare_tokenizer(chat_tokenizer, pad_token="<|im_end|>")
    with pytest.raises(ValueError, match="pad token must never end a sequence"):
        prepare_tokenizer(pair_tokenizer, pad_token="[SEP]")


def test_a_chat_template_can_come_from_a_file_or_a_second_tokenizer(tmp_path, chat_tokenizer, text_tokenizer):
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}", encoding="utf-8")
    prepared = prepare_tokenizer(text_tokenizer, chat_template_path=str(file))
    assert texts(one(chat_row([user("a")], "b", "c"), prepared), prepared)[0] == "user: a\nassistant: b\n"
    assert text_tokenizer.chat_template is None

    chat_tokenizer.save_pretrained(tmp_path / "other")
    bare = copy.deepcopy(chat_tokenizer)
    bare.chat_template = None
    assert (
        prepare_tokenizer(bare, chat_template_path=str(tmp_path / "other")).chat_template
        == chat_tokenizer.chat_template
    )


def test_a_template_of_foreign_tokens_or_of_a_tokenizer_without_one_is_refused(
    tmp_path, chat_tokenizer, text_tokenizer
):
    chat_tokenizer.save_pretrained(tmp_path / "chat")
    text_tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"tokens that this tokenizer lacks: <\|im_start\|>, <\|im_end\|>"):
        require_same_template(str(tmp_path / "chat"), text_tokenizer, str(tmp_path / "chat"))
    with pytest.raises(ValueError, match="is a tokenizer without one"):
        prepare_tokenizer(chat_tokenizer, chat_template_path=str(tmp_path / "text"))


def test_an_sft_model_is_only_trained_with_its_own_template(tmp_path: Path, chat_tokenizer, text_tokenizer):
    chat_tokenizer.save_pretrained(tmp_path / "sft")
    text_tokenizer.save_pretrained(tmp_path / "bare")
    sft, file = str(tmp_path / "sft"), tmp_path / "template.jinja"
    require_same_template(sft, chat_tokenizer, None)
    file.write_text(chat_tokenizer.chat_template, encoding="utf-8")
    require_same_template(sft, chat_tokenizer, str(file))
    file.write_text(chat_tokenizer.chat_template + "!", encoding="utf-8")
    with pytest.raises(ValueError, match=r"differs from the template of"):
        require_same_template(sft, chat_tokenizer, str(file))
    chat_tokenizer.chat_template += "!"
    with pytest.raises(ValueError, match=r"differs from the template of"):
        require_same_template(sft, chat_tokenizer, None)
    with pytest.raises(ValueError, match="has no chat template to compare"):
        require_same_template(str(tmp_path / "bare"), chat_tokenizer, None)


# --- folders without a tokenizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "cohere", "deberta-v2", "gemma", "gpt2", "qwen2", "t5"])
def test_a_tokenizer_that_transformers_creates_without_files_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    made = AutoTokenizer.from_pretrained(tmp_path)
    assert made("Yes", add_special_tokens=False)["input_ids"] == made("No", add_special_tokens=False)["input_ids"]
    assert not has_vocabulary(made)
    assert load_tokenizer(tmp_path) is None
    with pytest.raises(ValueError, match=f"has no vocabulary, .* are missing in {tmp_path}"):
        prepare_tokenizer(made)


@pytest.mark.parametrize("name", ["canine", "perceiver"])
def test_a_tokenizer_that_needs_no_files_is_one(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    assert load_tokenizer(tmp_path) is not None


def test_a_reward_model_without_its_tokenizer_neither_scores_nor_trains(make_model_folder, tmp_path, text_pairs):
    folder = saved_model(make_model_folder("bert"), tmp_path / "saved")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "reward_config.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer, so it cannot score texts"):
        RewardScorer.from_pretrained(folder)
    with pytest.raises(ValueError, match="has no vocabulary"):
        make_trainer(folder, text_pairs, tmp_path / "run")
