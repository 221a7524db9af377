"""Every accepted layout becomes the canonical row; errors name the row, the field and the remedy."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from raw_rows import CHAT, HH, PAIR, RANKED, RATED, TOKENS, VOTES, assistant, user

from hf_reward.data.preference_row import (
    PreferenceFormatError,
    PreferencePair,
    PreferenceRow,
)
from hf_reward.data.preferences import detect_layout, parse_hh_transcript, to_preference_row

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


def shape(row: PreferenceRow) -> tuple[Any, list[Any], list[int]]:
    return row.prompt, row.responses, row.ranks


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_a_text_pair_keeps_its_texts():
    row = to_preference_row(PAIR)
    assert shape(row) == ("Why?", ["Because.", "No."], [0, 1])
    assert not row.is_conversational()
    assert not row.prompts_differed


def test_a_text_pair_without_a_prompt_keeps_both_texts():
    assert shape(to_preference_row({"chosen": "Q: x A: y", "rejected": "Q: x A: z"})) == (
        "",
        ["Q: x A: y", "Q: x A: z"],
        [0, 1],
    )


@pytest.mark.parametrize(
    "raw",
    [
        CHAT,
        {"chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No.")]},
        {**CHAT, "prompt": "Why?"},
        {**CHAT, "chosen": "Because.", "rejected": "No."},
        # UltraFeedback's layout: the prompt as text, and again at the start of each side.
        {
            "prompt": "Why?",
            "chosen": [user("Why?"), assistant("Because.")],
            "rejected": [user("Why?"), assistant("No.")],
        },
    ],
    ids=["explicit", "implicit", "text prompt", "text responses", "prompt repeated"],
)
def test_every_way_to_write_one_conversation_is_one_row(raw: dict[str, Any]):
    row = to_preference_row(raw)
    assert shape(row) == ([user("Why?")], [[assistant("Because.")], [assistant("No.")]], [0, 1])
    assert row.is_conversational()
    assert row.group == to_preference_row(CHAT).group


def test_a_null_prompt_is_an_implicit_one():
    raw = {
        "prompt": None,
        "chosen": [*CHAT["prompt"], *CHAT["chosen"]],
        "rejected": [*CHAT["prompt"], *CHAT["rejected"]],
    }
    assert to_preference_row(raw).prompt == [user("Why?")]


def test_fields_of_messages_that_arrow_filled_with_none_are_left_out():
    raw = {**CHAT, "prompt": [{"role": "user", "content": "Why?", "name": None, "tool_calls": None}]}
    assert to_preference_row(raw).prompt == [user("Why?")]


def test_sides_with_different_prompts_keep_their_common_turns_and_are_marked():
    raw = {
        "chosen": [user("Hi"), assistant("Hello."), user("Why?"), assistant("Because.")],
        "rejected": [user("Hi"), assistant("Go away."), user("Why?"), assistant("No.")],
    }
    row = to_preference_row(raw)
    assert row.prompt == [user("Hi")]
    assert row.responses == [raw["chosen"][1:], raw["rejected"][1:]]
    assert row.prompts_differed


def test_sides_of_different_length_keep_one_response_each():
    """All turns of the shorter side are common, but its last turn must remain its response."""
    shorter = [user("Hi"), assistant("Hello.")]
    raw = {"chosen": [*shorter, user("So?"), assistant("Yes.")], "rejected": shorter}
    row = to_preference_row(raw)
    assert row.prompt == [user("Hi")]
    assert row.responses == [raw["chosen"][1:], [assistant("Hello.")]]
    assert row.prompts_differed


def test_an_hh_transcript_is_parsed_only_with_the_layout_hh():
    row = to_preference_row(HH, layout="hh")
    assert shape(row) == (
        [user("Hi"), assistant("Hello."), user("Why?")],
        [[assistant("Because.")], [assistant("No.")]],
        [0, 1],
    )
    assert to_preference_row(HH).responses == [HH["chosen"], HH["rejected"]]


def test_hh_turns_of_one_role_in_a_row_stay_turns():
    turns = parse_hh_transcript("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nnot a turn: d")
    assert turns == [user("a"), user("b"), assistant("c\n\nnot a turn: d")]


def test_a_ranked_list_keeps_order_and_dense_ranks():
    assert shape(to_preference_row(RANKED)) == ("Why?", ["a", "b", "c"], [2, 0, 1])
    assert to_preference_row({**RANKED, "ranks": [7, 3, 7]}).ranks == [1, 0, 1]


def test_scores_rank_the_highest_first_and_equal_ones_tie():
    raw = {"prompt": "Why?", "responses": ["a", "b", "c", "d"], "scores": [0.5, 3, -1.0, 3.0]}
    assert to_preference_row(raw).ranks == [1, 0, 2, 0]


def test_a_ranked_list_of_messages_may_have_a_text_prompt():
    raw = {"prompt": "Why?", "responses": [[assistant("a")], [assistant("b")]], "ranks": [1, 0]}
    assert shape(to_preference_row(raw)) == ([user("Why?")], [[assistant("a")], [assistant("b")]], [1, 0])


@pytest.mark.parametrize(
    ("verdict", "ranks", "probability"),
    [
        *[({"winner": value}, [0, 1], None) for value in ("a", "A", "model_a", "response_a", "1", 1, 1.0, "first")],
        *[({"winner": value}, [1, 0], None) for value in ("b", "B", "model_b", "response_b", "2", 2, "second")],
        *[({"winner": value}, [0, 0], None) for value in ("tie", "both", "tie (bothbad)", 0, "equal")],
        ({"score": 0.25}, [0, 1], None),
        ({"score": -2}, [1, 0], None),
        ({"score": 0}, [0, 0], None),
        ({"probability": 0.75}, [0, 1], 0.75),
        ({"probability": 0.0}, [1, 0], 0.0),
        ({"probability": 0.5}, [0, 0], 0.5),
        ({"votes_a": 3, "votes_b": 1}, [0, 1], None),
        ({"votes_a": 0, "votes_b": 4}, [1, 0], None),
        ({"votes_a": 2, "votes_b": 2}, [0, 0], None),
        ({"annotators": ["a", "tie", 1]}, [0, 1], None),
        ({"annotators": [2, 2, 1]}, [1, 0], None),
        ({"annotators": [1, 2, 0]}, [0, 0], None),
        ({"winner": None, "score": 1}, [0, 1], None),
    ],
    ids=str,
)
def test_every_verdict_of_a_vote_ranks_the_two_sides(verdict: dict, ranks: list[int], probability: float | None):
    row = to_preference_row({**VOTES, **verdict})
    assert shape(row) == ("Why?", ["a", "b"], ranks)
    assert row.probability == probability


def test_votes_may_be_conversations():
    raw = {"prompt": "Why?", "response_a": [assistant("a")], "response_b": [assistant("b")], "winner": "b"}
    assert shape(to_preference_row(raw)) == ([user("Why?")], [[assistant("a")], [assistant("b")]], [1, 0])


@pytest.mark.parametrize("suffix", ["ids", "input_ids"])
def test_token_ids_come_through_under_the_present_and_the_legacy_name(suffix: str):
    row = to_preference_row({f"chosen_{suffix}": [1, 2, 3], f"rejected_{suffix}": [1, 2, 4, 5]})
    assert row.token_ids == [[1, 2, 3], [1, 2, 4, 5]]
    assert row.ranks == [0, 1]


def test_a_preference_pair_is_a_row():
    pair = PreferencePair(
        prompt="Why?", chosen="Because.", rejected="No.", margin=2, probability=0.9, group="g", source="s"
    )
    row = to_preference_row(pair)
    assert shape(row) == shape(to_preference_row(PAIR))
    assert (row.margin, row.probability, row.weight, row.group, row.source) == (2.0, 0.9, 1.0, "g", "s")
    assert row.meta == {}


def test_columns_map_fields_to_columns_and_may_swap_sides():
    theirs = {"question": "Why?", "good": "Because.", "bad": "No.", "topic": 7}
    row = to_preference_row(
        theirs, columns={"prompt": "question", "chosen": "good", "rejected": "bad", "group": "topic"}
    )
    assert shape(row) == shape(to_preference_row(PAIR))
    assert (row.group, row.meta) == ("7", {})
    swapped = to_preference_row(PAIR, columns={"chosen": "rejected", "rejected": "chosen"})
    assert swapped.responses == ["No.", "Because."]


def test_a_mapped_column_takes_the_name_from_one_that_has_it():
    row = to_preference_row({**PAIR, "chosen": "old", "best": "Because."}, columns={"chosen": "best"})
    assert row.responses == ["Because.", "No."]


def test_optional_fields_are_read_and_every_other_column_is_meta():
    extra = {"margin": 1, "probability": 0.8, "weight": 2, "id": 5, "source": "web", "language": "en", "votes": [1, 2]}
    row = to_preference_row(PAIR | extra, row_index=3)
    assert (row.margin, row.probability, row.weight, row.id, row.source) == (1.0, 0.8, 2.0, "5", "web")
    assert row.meta == {"language": "en", "votes": [1, 2]}


def test_missing_fields_have_their_defaults():
    row = to_preference_row(PAIR | {"margin": None, "weight": None, "group": None, "id": None}, row_index=3)
    assert (row.margin, row.probability, row.weight, row.id, row.source) == (None, None, 1.0, "3", None)
    assert row.group == to_preference_row(PAIR).group
    assert to_preference_row(PAIR).id is None


@pytest.mark.parametrize("as_text", [False, True], ids=["values", "JSON"])
def test_tools_and_template_settings_reach_the_chat_template(as_text: bool):
    tools, kwargs = [{"type": "function", "function": {"name": "add"}}], {"enable_thinking": False}
    write = json.dumps if as_text else copy.deepcopy
    row = to_preference_row(CHAT | {"tools": write(tools), "chat_template_kwargs": write(kwargs)})
    assert row.template == {"tools": tools, "enable_thinking": False}
    assert row.meta == {}


def test_a_response_may_consist_of_tool_calls():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    row = to_preference_row({**CHAT, "chosen": [call]})
    assert row.responses[0] == [call], "no text: some templates print tool calls only then"
    del call["content"]
    assert row == to_preference_row({**CHAT, "chosen": [call]})


@pytest.mark.parametrize(
    ("raw", "layout"),
    [
        (PAIR, "auto"), (CHAT, "auto"), (RANKED, "auto"), (VOTES | {"winner": "a"}, "auto"), (HH, "hh"),
        (TOKENS, "auto"),
        ({"chosen": [*CHAT["prompt"], *CHAT["chosen"]], "rejected": [*CHAT["prompt"], *CHAT["rejected"]]}, "auto"),
    ],
)  # fmt: skip
def test_the_input_is_never_mutated_nor_shared_with_the_result(raw: dict[str, Any], layout: str):
    raw = copy.deepcopy({**raw, "tools": [{"name": "t"}], "chat_template_kwargs": {"a": 1}, "extra": [1]})
    before = copy.deepcopy(raw)
    row = to_preference_row(raw, layout=layout)
    row.responses.append("x")
    row.ranks.append(9)
    row.template["new"] = 1
    row.meta["new"] = 1
    for part in (row.prompt, *row.responses[:-1], *(row.token_ids or [])):
        if isinstance(part, list):
            part.append("x")
    assert raw == before


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        (PAIR, "pairs"), (RANKED, "ranked"), ({**VOTES, "score": 0}, "votes"), (TOKENS, "tokenized"),
        ({"prompt": "", "responses": [], "scores": []}, "ranked"),
        ({"chosen_input_ids": [], "rejected_input_ids": []}, "tokenized"),
        ({**PAIR, **TOKENS}, "tokenized"),
    ],
)  # fmt: skip
def test_a_layout_is_recognised_by_its_columns(columns: dict[str, Any], layout: str):
    assert detect_layout(columns) == layout


# --- refused rows ----------------------------------------------------------------------------------------------------

BAD_ROWS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": "Why?", "chosen": "Because."}, None, r"match any layout.*Found: chosen, prompt.*columns=\{'chosen'"),
    ({"prompt": "Why?", "better": "a", "worse": "b"}, None, "Found: better, prompt, worse"),
    (RATED, None, r"one rated response each.*set `min_gap=1.0` \(or use `to_pairs` in Python\)"),
    ({**PAIR, "chosen": True}, "chosen", "must be text, but is bool True. Correct or drop"),
    ({**PAIR, "rejected": None}, "rejected", "must be text, but is missing or null"),
    ({**PAIR, "rejected": math.nan}, "rejected", "must be text, but is float nan"),
    ({**PAIR, "rejected": ""}, "rejected", "`rejected` is empty. Correct or drop"),
    ({**PAIR, "chosen": " \n"}, "chosen", "`chosen` is empty"),
    ({"chosen": "", "rejected": "b"}, "chosen", "`chosen` is empty"),
    ({"chosen": "a", "rejected": False}, "chosen", "must be text or a non-empty list of messages"),
    ({**PAIR, "prompt": 3}, "prompt", "must be text or a non-empty list of messages, but is int 3"),
    ({**CHAT, "prompt": ["Why?"]}, "prompt", "must be messages with `role` and .*, but has 'Why"),
    ({**CHAT, "chosen": [{"from": "gpt", "value": "x"}]}, "chosen", "must be messages with `role` and `content`"),
    ({**CHAT, "chosen": []}, "chosen", "non-empty list of messages"),
    ({**CHAT, "chosen": [assistant("")]}, "chosen", "`chosen` is empty"),
    ({**CHAT, "rejected": [assistant("ok"), {"role": "assistant", "content": None}]}, "rejected", "`content` as text"),
    ({"chosen": [user("a"), assistant("")], "rejected": [user("a"), assistant("b")]}, "chosen", "`chosen` is empty"),
    ({**RANKED, "ranks": [0, 1]}, "ranks", r"`ranks` .*0 = best, equal = tie.* but has 2 for 3"),
    ({**RANKED, "ranks": [0, 1, None]}, "ranks", "must be a finite number, but is None"),
    ({**RANKED, "ranks": [0, 1, True]}, "ranks", "must be a finite number, but is True"),
    ({**RANKED, "ranks": "012"}, "ranks", "must be a list"),
    ({**RANKED, "ranks": None}, "scores", "`scores` must be a list, but is None"),
    ({**RANKED, "ranks": None, "scores": [1, 2]}, "scores", "`scores` must have one entry .* has 2 for 3"),
    ({**RANKED, "ranks": None, "scores": [1, 2, math.nan]}, "scores", "must be a finite number, but is nan"),
    ({**RANKED, "responses": ["a", "b", ""]}, "responses", "is empty"),
    ({**RANKED, "responses": ["a", "b", False]}, "responses", "must be text, but is bool False"),
    ({**RANKED, "responses": ["a"], "ranks": [0]}, "responses", "must have two or more entries, but has 1"),
    ({"responses": ["a", "b"], "ranks": [0, 1]}, "prompt", r"`prompt` is missing.*map it with `columns="),
    ({**VOTES, "winner": "C"}, "winner", "must be 'a', 'b' or 'tie' .* but is 'C'"),
    ({**VOTES, "winner": True}, "winner", "but is True"),
    ({**VOTES, "winner": math.nan}, "winner", "but is nan"),
    ({**VOTES, "winner": 1.5}, "winner", "but is 1.5"),
    ({**VOTES, "winner": None}, "winner", "One of .* must have a value"),
    ({**VOTES, "votes_a": 3}, "winner", "One of .* must have a value"),
    ({**VOTES, "votes_a": 3, "votes_b": "one"}, "votes_b", "must be a finite number, but is 'one'"),
    ({**VOTES, "score": math.inf}, "score", "must be a finite number, but is inf"),
    ({**VOTES, "annotators": "aab"}, "annotators", "must be a list"),
    ({**VOTES, "annotators": ["a", "x"]}, "winner", "but is 'x'"),
    ({**VOTES, "winner": "a", "response_b": ""}, "response_b", "`response_b` is empty"),
    ({**PAIR, "probability": 1.2}, "probability", r"must be in \[0, 1\], but is 1.2"),
    ({**PAIR, "probability": math.nan}, "probability", "must be a finite number"),
    ({**RANKED, "probability": 0.5}, "probability", "requires exactly two responses, but the row has 3"),
    ({**PAIR, "margin": "big"}, "margin", "must be a finite number, but is 'big'"),
    ({**PAIR, "weight": -1}, "weight", "must be 0 or more, but is -1.0"),
    ({**PAIR, "weight": math.nan}, "weight", "must be a finite number"),
    ({**CHAT, "tools": "[not json"}, "tools", "must be a list, or JSON text of one"),
    ({**CHAT, "tools": {"name": "x"}}, "tools", "must be a list, or JSON text of one"),
    ({**CHAT, "chat_template_kwargs": "on"}, "chat_template_kwargs", "must be a dict, or JSON text of one"),
    ({**TOKENS, "chosen_ids": []}, "chosen_ids", "must be a nonempty list of token ids"),
    ({**TOKENS, "rejected_ids": [1, 2.5]}, "rejected_ids", "must be a nonempty list of token ids"),
    ({**TOKENS, "rejected_ids": None}, "rejected_ids", "must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "field", "message"), BAD_ROWS)
def test_a_bad_row_is_refused_with_its_index_its_field_and_a_remedy(
    raw: dict[str, Any], field: str | None, message: str
):
    before = copy.deepcopy(raw)
    with pytest.raises(PreferenceFormatError, match=f"(?s)^Row 41: .*{message}") as caught:
        to_preference_row(raw, row_index=41)
    assert (caught.value.row_index, caught.value.field) == (41, field)
    assert str(raw) == str(before)  # as text, because NaN differs from itself


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"chosen": "Hi", "rejected": "Ho"},
            r"`chosen` must be a transcript .*set `layout='pairs'`",
        ),
        ({**HH, "rejected": "Human: Hi\n\nAssistant: Ho"}, "`rejected` must be a transcript"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nAssistant:  "}, "`rejected` must end with a nonempty Assistant turn"),
        (
            {**HH, "chosen": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So?"},
            "`chosen` must end with a nonempty Assistant",
        ),
        ({**HH, "chosen": ""}, "`chosen` is empty"),
        ({"chosen": HH["chosen"]}, "`rejected` must be text, but is missing or null"),
    ],
)
def test_text_that_is_not_a_transcript_is_refused(raw: dict[str, Any], message: str):
    with pytest.raises(PreferenceFormatError, match=message) as caught:
        to_preference_row(raw, layout="hh", row_index=0)
    assert caught.value.row_index == 0
    assert caught.value.field in {"chosen", "rejected"}


def test_a_missing_mapped_column_is_refused_with_the_mapping():
    with pytest.raises(
        PreferenceFormatError, match=r"Row 2: `columns` names 'good', which the data lacks. Columns found: prompt"
    ):
        to_preference_row(PAIR, columns={"chosen": "good"}, row_index=2)
    with pytest.raises(PreferenceFormatError, match=r"`rejected` is missing.*columns=\{'rejected': 'your_column'\}"):
        to_preference_row({"chosen": "a", "bad": "b"}, layout="pairs")


def test_an_unknown_layout_and_an_invalid_row_are_refused():
    with pytest.raises(PreferenceFormatError, match="must be 'auto' or one of pairs, hh, ranked, votes, tokenized"):
        to_preference_row(PAIR, layout="trl")
    with pytest.raises(PreferenceFormatError, match="Row 1: A row must be a dict or a `PreferencePair`, but is a list"):
        to_preference_row(["a", "b"], row_index=1)


# --- real data -------------------------------------------------------------------------------------------------------


def read_jsonl(name: str, count: int | None = None) -> list[dict[str, Any]]:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count or 10**9), strict=False)]


def test_pandalm_rows_with_booleans_or_empty_sides_are_refused_and_no_others():
    names = {"prompt": "instruction", "response_a": "response1", "response_b": "response2", "annotators": "votes"}
    refused, unusable = set(), set()
    sides = {"response1": "response_a", "response2": "response_b"}
    for index, raw in enumerate(read_jsonl("pandalm_test/testset-v1.jsonl")):
        raw["votes"] = [raw[f"annotator{number}"] for number in (1, 2, 3)]
        bad = [ours for side, ours in sides.items() if not isinstance(raw[side], str) or not raw[side].strip()]
        unusable |= {(index, name) for name in bad[:1]}
        try:
            row = to_preference_row(raw, columns=names, row_index=index)
        except PreferenceFormatError as error:
            refused.add((error.row_index, error.field))
            continue
        lead = sum({0: 0, 1: 1, 2: -1}[vote] for vote in raw["votes"])
        assert row.ranks == ([0, 0] if lead == 0 else [0, 1] if lead > 0 else [1, 0])
    assert refused == unusable
    assert {(157, "response_a"), (161, "response_b")} <= refused  # JSON booleans


def test_finegrained_questions_rank_four_answers_and_their_pairs_read():
    pairs = [
        to_preference_row(raw, row_index=i) for i, raw in enumerate(read_jsonl("finegrained_rlhf_qa/pairs.jsonl", 60))
    ]
    assert all(row.group.startswith("fg") and "chosen_idx" in row.meta for row in pairs)
    for raw in read_jsonl("finegrained_rlhf_qa/dev_feedback.jsonl", 20):
        responses = [raw[f"prediction {number}"] for number in (1, 2, 3, 4)]
        wins = [0.0] * 4
        order = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        for (i, j), label in zip(order, raw["preference"], strict=True):
            wins[i] += {0: 0.5, 1: 1, 2: 0}[label]
            wins[j] += {0: 0.5, 1: 0, 2: 1}[label]
        row = to_preference_row({"prompt": raw["question"], "responses": responses, "scores": wins})
        assert row.ranks == [len({other for other in wins if other > won}) for won in wins]


def test_hh_transcripts_become_conversations():
    transcripts = [
        raw
        for raw in read_jsonl("hh/harmless_test.jsonl", 200)
        if all(text.rpartition("\n\nAssistant:")[2].strip() for text in raw.values())
    ]
    assert len(transcripts) > 150
    for raw in transcripts:
        row = to_preference_row(raw, layout="hh")
        assert row.prompt[0]["role"] == "user"
        assert all(response[-1]["role"] == "assistant" for response in row.responses)
