"""A prompt that the sides repeat is removed from them; ambiguous rows are refused."""

from typing import Any

import pytest

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.ratings import to_pairs
from hf_reward.data.repeated_prompts import read_sides, text_after_prompt
from hf_reward.data.score_request import read_request, requests_of_row


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, GOOD, BAD = user("What is 2 + 2?"), assistant("4."), assistant("5.")
EARLIER = [user("Hi"), assistant("Hello.")]

COMPLETE = [
    # prompt, turns before the response in each side, resulting prompt
    ([ASKED], [ASKED], [ASKED]),
    ([ASKED], [SYSTEM, ASKED], [SYSTEM, ASKED]),
    ("What is 2 + 2?", [SYSTEM, ASKED], [SYSTEM, ASKED]),
    ([SYSTEM, ASKED], [ASKED], [SYSTEM, ASKED]),
    ([user(" What is\n2 + 2?")], [ASKED], [user(" What is\n2 + 2?")]),
    ([ASKED], [*EARLIER, ASKED], [*EARLIER, ASKED]),
    ("What is 2 + 2?\n", [SYSTEM, *EARLIER, ASKED], [SYSTEM, *EARLIER, user("What is 2 + 2?\n")]),
    ([*EARLIER, ASKED], [ASKED], [*EARLIER, ASKED]),
    ([assistant("Welcome."), ASKED], [assistant("Welcome."), ASKED], [assistant("Welcome."), ASKED]),
]


@pytest.mark.parametrize(("prompt", "before", "read"), COMPLETE)
def test_a_conversation_that_contains_the_prompt_is_recognised_by_its_turns(prompt: Any, before: Any, read: Any):
    row = to_preference_row({"prompt": prompt, "chosen": [*before, GOOD], "rejected": [*before, BAD]})
    assert (row.prompt, row.responses) == (read, [[GOOD], [BAD]])
    assert row.repeated_prompt
    assert not row.prompts_differed
    request = read_request(prompt, [*before, GOOD])
    assert (request.prompt, request.response) == (read, [GOOD])
    ranked = {"prompt": prompt, "responses": [[*before, GOOD], [*before, BAD]], "ranks": [0, 1]}
    assert to_preference_row(ranked).prompt == read
    rated = [{"prompt": prompt, "response": [*before, each], "score": score} for each, score in ((GOOD, 2), (BAD, 1))]
    (made,) = to_pairs(rated)
    assert (made["prompt"], made["chosen"]) == (read, [GOOD])


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ([ASKED], [GOOD], [BAD]),
        ([SYSTEM], [ASKED, GOOD], [ASKED, BAD]),  # the prompt is a system turn, the sides are question and answer
        (EARLIER, [ASKED, GOOD], [ASKED, BAD]),
        ([ASKED], [GOOD, ASKED, GOOD], [BAD, ASKED, GOOD]),  # the response continues with the same question
        ([ASKED, assistant("It is")], [assistant("It is")], [assistant("It is 5")]),
    ],
)
def test_responses_that_only_resemble_the_prompt_are_not_cut(prompt: Any, chosen: Any, rejected: Any):
    row = to_preference_row({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert (row.prompt, row.responses) == (prompt, [chosen, rejected])
    assert not row.repeated_prompt


@pytest.mark.parametrize(
    ("prompt", "side", "message"),
    [
        ([ASKED], [user("What is 3 + 3?"), GOOD], "starts with a user turn"),
        ("Human: What is 2 + 2?", [ASKED, GOOD], "starts with a user turn"),
        ([{"role": "system", "content": "Be rude."}, ASKED], [SYSTEM, ASKED, GOOD], "starts with a system turn"),
        ([ASKED], [ASKED], "starts with a user turn"),
    ],
)
def test_a_conversation_with_a_different_prompt_is_refused_with_its_row(prompt: Any, side: Any, message: str):
    with pytest.raises(PreferenceFormatError, match=f"Row 7: .*`chosen` {message}"):
        to_preference_row({"prompt": prompt, "chosen": side, "rejected": side}, row_index=7)
    with pytest.raises(PreferenceFormatError, match=f"`response` {message}"):
        requests_of_row({"prompt": prompt, "response": side})


def test_turns_before_the_prompt_that_differ_are_counted_as_different_prompts():
    others = [user("Hi"), assistant("Go away.")]
    row = to_preference_row({"prompt": [ASKED], "chosen": [*EARLIER, ASKED, GOOD], "rejected": [*others, ASKED, BAD]})
    assert row.prompt == [user("Hi")]
    assert row.responses == [[EARLIER[1], ASKED, GOOD], [others[1], ASKED, BAD]]
    assert row.prompts_differed
    with pytest.raises(PreferenceFormatError, match="`rejected` has only the response"):
        to_preference_row({"prompt": [ASKED], "chosen": [SYSTEM, ASKED, GOOD], "rejected": [BAD]})


def test_complete_conversations_with_a_blank_prompt_are_accepted():
    for blank in ("", " \n", []):
        row = to_preference_row({"prompt": blank, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]})
        assert (row.prompt, row.responses) == ([ASKED], [[GOOD], [BAD]])
        assert row.blank_prompt
        assert not row.repeated_prompt
        assert read_request(blank, [ASKED, GOOD]).prompt == [ASKED]
    assert not to_preference_row({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}).blank_prompt
    assert not to_preference_row({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}).blank_prompt


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text", "rest"),
    [
        ("What is 2 + 2?", "What is 2 + 2? 4.", " 4."),
        ("What is 2 + 2?", "What  is\n2 + 2?4.", "4."),
        ("What is 2 + 2? ", "What is 2 + 2? 4.", "4."),
        ("Q: why\n\nA:", "Q: why\n\nA: so", " so"),
        ("Why?", "Why? Because.", " Because."),
        ([SYSTEM, ASKED], "What is 2 + 2? 4.", " 4."),
        ("What is 2 + 2?", "What is 2 + 2?", None),  # without text after it
        ("What is 2", "What is 20?", None),
        ("What is 2", "What is2 x", None),
        ("Hello", "Hello there.", None),
        ("?", "? x", None),
        ("", "x", None),
        (EARLIER, "Hi there", None),
        ("What is 2 + 2?", "You ask: What is 2 + 2? 4.", None),
    ],
)
def test_the_text_after_the_prompt(prompt: Any, text: str, rest: str | None):
    assert text_after_prompt(prompt, text) == rest


def test_text_sides_that_all_start_with_the_prompt_repeat_it():
    prompt = "What is 2 + 2?"
    row = to_preference_row({"prompt": prompt, "chosen": f"{prompt} 4.", "rejected": f"{prompt} 5."})
    assert (row.prompt, row.responses, row.repeated_prompt) == (prompt, [" 4.", " 5."], True)
    row = to_preference_row({"prompt": [ASKED], "chosen": f"{prompt} 4.", "rejected": f"{prompt} 5."})
    assert (row.prompt, row.responses, row.repeated_prompt) == ([ASKED], [[GOOD], [BAD]], True)


def test_a_side_that_quotes_the_prompt_is_unchanged():
    prompt = "What is 2 + 2?"
    row = to_preference_row({"prompt": prompt, "chosen": f"{prompt} 4.", "rejected": "5."})
    assert (row.responses, row.repeated_prompt) == ([f"{prompt} 4.", "5."], False)


def test_a_single_text_that_starts_with_its_prompt_is_marked_unless_response_only():
    asked = ("What is 2 + 2?", "What is 2 + 2? 4.")
    assert read_request(*asked).repeats_prompt
    assert not read_request(*asked, response_only=True).repeats_prompt
    assert not read_request(asked[0], [assistant(asked[1])]).repeats_prompt  # an assistant turn quotes it
    assert requests_of_row({"prompt": asked[0], "responses": list(asked[1:])})[0].repeats_prompt
    assert read_sides(*(asked[0], [asked[1]], ["response"])).responses == [asked[1]]
