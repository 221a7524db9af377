"""Responses to other prompts: never from a linked prompt, deterministic, and readable as training rows."""

from typing import Any

import pytest

from hf_reward.data.off_prompt import off_prompt_rows
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.sources import Source
from hf_reward.preprocessing.preparation import prepare_preferences

LONG = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun until the evening comes again "


def rows_of(prompts: list[str]) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "chosen": f"chosen of {number}", "rejected": f"rejected of {number}"}
        for number, prompt in enumerate(prompts)
    ]


def owner(text: str) -> int:
    return int(text.rsplit(" ", 1)[1])


def test_rejected_rows_prefer_an_own_response_to_one_of_another_prompt():
    rows = rows_of([f"question {number}" for number in range(20)])
    made = off_prompt_rows(rows, rejected_share=1.5, tie_share=0)
    assert len(made) == 30
    for row in made:
        assert row["prompt"] == f"question {owner(row['chosen'])}"
        assert owner(row["rejected"]) != owner(row["chosen"])
        assert row["probability"] is None
    assert sorted(owner(row["chosen"]) for row in made[:20]) == list(range(20))


def test_ties_have_two_responses_of_other_prompts():
    made = off_prompt_rows(rows_of([f"question {number}" for number in range(20)]), rejected_share=0, tie_share=1)
    assert len(made) == 20
    for row in made:
        own = int(row["prompt"].rsplit(" ", 1)[1])
        assert own not in (owner(row["chosen"]), owner(row["rejected"]))
        assert row["probability"] == 0.5
        assert row["chosen"] != row["rejected"]
        assert to_preference_row(row).ranks == [0, 0]


def test_linked_prompts_never_exchange_responses():
    """Equal prompts, near-duplicate prompts and one `group` are linked."""
    prompts = ["same", "same", LONG, LONG + "once", "alone"]
    rows = rows_of(prompts)
    linked = [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4}]
    for seed in range(20):
        for row in off_prompt_rows(rows, rejected_share=2, tie_share=0, seed=seed):
            assert owner(row["rejected"]) not in linked[owner(row["chosen"])]


def test_every_other_row_is_drawn_about_equally_often():
    rows = rows_of(["a", "a", "b", "c"])
    counts = [0] * 4
    for row in off_prompt_rows(rows, rejected_share=900, tie_share=0):
        if row["prompt"] == "a":
            counts[owner(row["rejected"])] += 1
    assert counts[:2] == [0, 0]
    assert abs(counts[2] / sum(counts) - 0.5) < 0.05


def test_the_same_seed_gives_the_same_rows_and_nothing_is_changed():
    rows = rows_of([f"question {number}" for number in range(10)])
    before = repr(rows)
    assert off_prompt_rows(rows, seed=1) == off_prompt_rows(rows, seed=1)
    assert off_prompt_rows(rows, seed=1) != off_prompt_rows(rows, seed=2)
    assert repr(rows) == before


def test_rows_that_cannot_be_exchanged_are_refused():
    rows = rows_of(["a", "a"])
    with pytest.raises(ValueError, match="Add rows with other prompts"):
        off_prompt_rows(rows)
    with pytest.raises(ValueError, match="0 or more"):
        off_prompt_rows(rows, tie_share=-1)
    tokens = {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    with pytest.raises(ValueError, match="token ids"):
        off_prompt_rows([tokens])
    with pytest.raises(ValueError, match="both kinds"):
        off_prompt_rows([*rows_of(["a"]), chat("q")])


def chat(question: str, **columns: Any) -> dict[str, Any]:
    sides = {side: [{"role": "assistant", "content": f"{side} of {question}"}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": question}], **sides, **columns}


def test_conversations_keep_their_tools_and_template_options():
    tools = [{"type": "function", "function": {"name": "look"}}]
    rows = [chat("p", tools=tools, chat_template_kwargs={"thinking": False}), chat("q")]
    first, second = off_prompt_rows(rows, rejected_share=1, tie_share=0)
    assert (first["tools"], first["chat_template_kwargs"]) == (tools, {"thinking": False})
    assert not {"tools", "chat_template_kwargs"} & second.keys()
    assert first["rejected"][0]["content"] in ("chosen of q", "rejected of q")
    assert to_preference_row(first).template == {"tools": tools, "thinking": False}


def test_ranked_rows_with_their_own_column_names():
    rows = [{"question": f"p{n}", "answers": [f"a {n}", f"b {n}", f"c {n}"], "ranks": [0, 1, 2]} for n in range(4)]
    made = off_prompt_rows(rows, columns={"prompt": "question", "responses": "answers"}, rejected_share=1, tie_share=1)
    assert [row["prompt"] for row in made] == ["p0", "p1", "p2", "p3"] * 2


def test_training_keeps_the_new_rows_next_to_the_given_ones(text_tokenizer):
    rows = rows_of([f"question {number}" for number in range(8)])
    more = off_prompt_rows(rows, rejected_share=0.5, tie_share=0.25)
    data = [Source(data=rows, name="mine"), Source(data=more, name="off-prompt")]
    prepared: Any = prepare_preferences(data, text_tokenizer)[0]
    assert len(prepared) == 8 + 4 + 2
    assert sorted(each for each in prepared["probability"] if each == each and each is not None) == [0.5, 0.5]
