"""Texts have one BOS and turns have one end token, and text that a template omits is reported."""

import logging
from typing import Any

import pytest
from foreign_models import bos_adding_tokenizer
from reward_parity import tiny_tokenizer

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_remarks import DOUBLED_BOS, DOUBLED_END, LOST_TEXT, RemarkTally, remark_clauses
from hf_reward.data.score_request import read_request, request_from_messages, request_from_text
from hf_reward.evaluation.data_check import check_data
from hf_reward.preprocessing.preparation import prepare_preferences
from hf_reward.preprocessing.rendered_turns import TurnEnds, loses_text, with_one_end
from hf_reward.preprocessing.response_encoding import TEXT, ResponseEncoder
from hf_reward.preprocessing.row_encoding import encode_rows, one_bos
from hf_reward.preprocessing.tokenization import FormatRule

UNLIMITED = FormatRule(max_length=None)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "adds it": CHATML,
    "adds it after trimming": CHATML.replace("m.content", "m.content | trim"),
    "adds it to answers alone": "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}",
    "adds it but at the end": "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}",
    "adds nothing": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "strips it and adds it": CHATML.replace("m.content", "m.content.replace('<|im_end|>', '')"),
    "adds another": CHATML.replace("<|im_end|>", "</s>"),
    "takes one question": "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + CHATML,
}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text_of(tokenizer: Any, question: str, answer: str) -> str:
    row = PreferenceRow(prompt=[user(question)], responses=[[assistant(answer)]], ranks=[0])
    (encoded,) = encode_rows([row], tokenizer, "")
    return str(tokenizer.decode(encoded.input_ids[0]))


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("written", ["<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>", "<|im_end|> <|im_end|> "])
def test_a_turn_has_one_end_token_with_or_without_one_in_its_content(kind: str, written: str):
    tokenizer = tiny_tokenizer(template=TEMPLATES[kind], eos="<|im_end|>")
    clean, found = text_of(tokenizer, "Why?", "So."), text_of(tokenizer, "Why?", "So." + written)
    if kind in ("adds it but at the end", "adds nothing"):  # the token is part of the content
        assert found == clean.replace("So.", "So.<|im_end|>")
    elif kind == "adds another":  # the tokenizer's EOS before the template's own end is one end too many
        assert found == clean
    else:
        assert (found, found.count("So.<|im_end|>")) == (clean, 1)


def test_ends_of_other_turns_and_other_tokens():
    tokenizer = tiny_tokenizer(template=CHATML, eos="<|im_end|>")
    assert text_of(tokenizer, "Why?<|im_end|>", "So.") == text_of(tokenizer, "Why?", "So.")
    for kept in ("</s>", "a <|im_end|> b", "<b>", "x|>"):  # a different token, a token inside the text, or none
        assert kept in text_of(tokenizer, "Why?", "So." + kept)
    given = [user("Why?"), assistant("So.<|im_end|>")]
    cleaned, was_doubled = TurnEnds(tokenizer).single(given)
    assert (cleaned[1], was_doubled, given[1]["content"]) == (assistant("So."), True, "So.<|im_end|>")


def test_text_has_one_end():
    assert with_one_end("a", "</s>") == with_one_end("a</s>", "</s>") == with_one_end("a</s> </s>\n", "</s>") == "a</s>"
    assert with_one_end("a ", "") == "a "


def test_one_bos():
    assert one_bos([1, 1, 1, 2, 1, 1], 1) == [1, 2, 1, 1]
    assert one_bos([2, 1], 1) == [2, 1]
    assert one_bos([1, 1], None) == [1, 1]
    assert one_bos([1], 1) == [1]


def test_text_rows_that_begin_with_bos_have_one_in_training_and_scoring(caplog):
    tokenizer = bos_adding_tokenizer(["<s>", "</s>", "<|pad|>"], "", bos="<s>", eos="</s>", pad="<|pad|>")
    tokenizer.chat_template = None
    rows = [
        {"prompt": "<s>Why so? ", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why so? ", "chosen": "So.", "rejected": "Not."},
        {"chosen": "<s><s>Why? So.", "rejected": "<s>Why? No."},
    ]
    with caplog.at_level(logging.WARNING):
        data, summary = prepare_preferences(rows, tokenizer)
    for row in data["input_ids"][:]:
        assert [ids.count(tokenizer.bos_token_id) for ids in row] == [1, 1]
        assert all(ids[0] == tokenizer.bos_token_id for ids in row)
    assert (summary.remarks, summary.remark_rows) == ({DOUBLED_BOS: 2}, {DOUBLED_BOS: [0, 2]})
    assert [record.message for record in caplog.records if "BOS" in record.message] == [
        "Of 3 rows of data, 2 contain the BOS token that the tokenizer also adds; only one is kept (rows 0, 2)."
    ]
    encoder = ResponseEncoder(tokenizer=tokenizer, rule=UNLIMITED, rows=TEXT)
    caplog.clear()
    requests = [read_request("<s>Why so? ", "So."), read_request("", "<s><s>Why? So.")]
    with caplog.at_level(logging.WARNING):
        scored = [each.input_ids for _ in range(2) for each in encoder.encode(requests)]
    assert scored == [data["input_ids"][0][0], data["input_ids"][2][0]] * 2
    assert len([record for record in caplog.records if "BOS" in record.message]) == 1


def test_text_pairs_of_encoders_have_one_cls_and_one_sep(pair_tokenizer):
    row = {"prompt": "[CLS]Water boils", "chosen": "at one hundred[SEP]", "rejected": "at zero"}
    clean = {"prompt": "Water boils", "chosen": "at one hundred", "rejected": "at zero"}
    found, meant = (encode_rows([to_preference_row(each)], pair_tokenizer, "")[0] for each in (row, clean))
    assert (found.input_ids, found.token_type_ids) == (meant.input_ids, meant.token_type_ids)
    assert found.remarks == {DOUBLED_BOS, DOUBLED_END}


# --- text that a template omits --------------------------------------------------------------------------------------

NO_THINKING = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
NO_SYSTEM = CHATML.replace("%}<|im_start|>", "%}{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>")


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        (CHATML, [user("Why?"), assistant("<think>x</think> So.")], False),
        (NO_THINKING, [user("Why?"), assistant("<think>x</think> So.")], True),
        (NO_THINKING, [user("Why?"), assistant("So.")], False),
        (NO_SYSTEM, [{"role": "system", "content": "Be brief."}, user("Why?"), assistant("So.")], True),
        (CHATML.replace("m.content", "m.content | trim"), [user(" Why?\n"), assistant("So.")], False),
        (CHATML.replace("m.content", "m.content | tojson"), [user('a\n"b" \u00e9'), assistant("So.")], False),
        (CHATML, [user("Why?"), {**assistant("So."), "reasoning_content": "Hm, why."}], True),
        (CHATML, [user("So."), assistant("So.")], False),
        (NO_SYSTEM, [{"role": "system", "content": "So."}, user("So."), assistant("So.")], True),
        (CHATML, [user("Why?"), {**assistant(""), "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}], True),
    ],
)  # fmt: skip
def test_text_that_a_template_leaves_out_is_noticed(template: str, messages: Any, lost: bool):
    tokenizer = tiny_tokenizer(template=template, eos="<|im_end|>")
    row = PreferenceRow(prompt=messages[:-1], responses=[messages[-1:]], ranks=[0])
    assert (LOST_TEXT in encode_rows([row], tokenizer, "")[0].remarks) == lost


def test_names_and_texts_of_tool_calls_count_as_text():
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "x y"}'}}],
    }
    assert not loses_text('f {"a": "x y"}', [called])
    assert loses_text("f", [called])
    assert loses_text('f {"a": "x y"}', [called], [{"function": {"name": "other"}}])


def test_lost_text_and_blank_prompts_are_counted_with_their_rows(caplog):
    tokenizer = tiny_tokenizer(template=NO_THINKING, eos="<|im_end|>")
    rows = [
        {"prompt": [user("Why?")], "chosen": "So.", "rejected": "No."},
        {"prompt": [user("Why?")], "chosen": "<think>Hm.</think>So.", "rejected": "No."},
        {"prompt": [user(" ")], "chosen": "So.", "rejected": "No."},
        {"prompt": [user("Why?")], "chosen": [user("Why?"), assistant("So.")], "rejected": "Never."},
    ]
    with caplog.at_level(logging.WARNING):
        _, summary = prepare_preferences(rows, tokenizer)
    assert summary.remark_rows == {"lost_text": [1], "blank_prompt": [2], "repeated_prompt": [3]}
    assert "1 have a blank prompt, which counts as no prompt (row 2)" in str(summary)
    assert "1 have text that the chat template omits" in caplog.text
    report = check_data(rows, tokenizer=tokenizer)
    assert report.data.remark_rows == {"blank_prompt": [2], "repeated_prompt": [3]}
    assert report.tokens is not None
    assert report.tokens.remark_rows == {"lost_text": [1]}
    assert {"blank prompts", "lost text"} <= {fix.finding for fix in report.fix_first}
    encoder = ResponseEncoder(tokenizer=tokenizer, rule=UNLIMITED, rows="conversations")
    caplog.clear()
    encoder.encode([request_from_messages([user("Why?"), assistant("<think>Hm.</think>So.")])])
    assert "Of 1 texts to be scored, 1 have text that the chat template omits" in caplog.text


def test_a_blank_prompt_of_a_ranked_row_is_counted(text_tokenizer):
    rows = [{"prompt": prompt, "responses": ["a", "b"], "ranks": [0, 1]} for prompt in ("Why?", "", "  ")]
    assert prepare_preferences(rows, text_tokenizer)[1].remark_rows == {"blank_prompt": [1, 2]}
    counts = check_data(rows).data
    assert (counts.remarks, counts.remark_rows) == ({"blank_prompt": 2}, {"blank_prompt": [1, 2]})


def test_only_the_first_of_many_rows_are_listed():
    tally = RemarkTally()
    for row in range(2000):
        tally.add(row, [LOST_TEXT])
    tally.add_places(lambda row: f"row {row}")
    (clause,) = remark_clauses(tally.counts, tally.places)
    assert clause.startswith("2,000 have text")
    assert clause.endswith("(rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)")


def test_repeated_prompts_are_encoded_once_for_any_separator(text_tokenizer):
    row = to_preference_row({"prompt": "Q: why so?", "chosen": "Q: why so? So.", "rejected": "Q: why so? No."})
    for separator, full in (("", "Q: why so? So."), ("\n", "Q: why so?\nSo.")):
        (found,) = encode_rows([row], text_tokenizer, separator)
        assert text_tokenizer.decode(found.input_ids[0]) == f"{full}<|endoftext|>"


def test_a_single_text_that_starts_with_its_prompt_is_not_scored(text_tokenizer):
    encoder = ResponseEncoder(tokenizer=text_tokenizer, rule=UNLIMITED, rows=TEXT)
    full, quoted = encoder.encode([
        read_request("Why so, then?", "Why so, then? So."),
        request_from_messages([user("Why so, then?"), assistant("Why so, then? So.")]),
    ])  # fmt: skip
    assert "starts with its complete prompt" in full.problem
    assert text_tokenizer.decode(quoted.input_ids) == "Why so, then?Why so, then? So.<|endoftext|>"


def test_a_conversation_has_the_bos_of_its_template_once():
    tokenizer = tiny_tokenizer(template="{{ bos_token }}" + "{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    assert text_of(tokenizer, "<s>Why?", "So.") == text_of(tokenizer, "Why?", "So.") == "<s>Why?</s>So.</s>"
    # A BOS that also starts each turn occurs twice, as in transformers.
    opening = tiny_tokenizer(template="{{ bos_token }}" + CHATML, bos="<|im_start|>", eos="<|im_end|>")
    full = text_of(opening, "Why?", "So.")
    assert full.startswith("<|im_start|><|im_start|>user")
    encoder = ResponseEncoder(tokenizer=opening, rule=UNLIMITED, rows="conversations")
    (formatted,) = encoder.encode([request_from_text(full)])
    assert opening.decode(formatted.input_ids) == full


def test_a_formatted_text_keeps_its_bos_if_text_rows_get_none(chat_tokenizer):
    full = "<|im_start|>user\nWhy?<|im_end|>\n"
    ids = chat_tokenizer(full, add_special_tokens=False)["input_ids"]
    assert ids[0] == chat_tokenizer.bos_token_id
    encoder = ResponseEncoder(tokenizer=chat_tokenizer, rule=UNLIMITED, rows=TEXT)
    found = encoder.encode([request_from_text(full), request_from_text(full.removeprefix("<|im_start|>"))])
    assert [each.input_ids for each in found] == [ids, ids[1:]]
