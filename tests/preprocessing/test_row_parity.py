"""Common variants of a row give the same rewards as its plain form, in all four ways to score."""

from typing import Any

import pytest
from conftest import DECODERS
from foreign_models import bos_adding_tokenizer
from reward_parity import assert_same_rewards, tiny_reward_model, tiny_tokenizer

TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls %}{{ call.function.name + ' ' + call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def call(city: str, **more: str) -> dict[str, Any]:
    arguments = {"city": city, **more}
    return {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = tiny_tokenizer(template=TOOLS, eos="<|im_end|>")
    target = tmp_path_factory.mktemp("parity") / "model"
    return tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, target)


SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, user("What is 2 + 2?")
EARLIER = [user("Hi"), assistant("Hello.")]
GOOD, BAD = assistant("4."), assistant("5, I think.")


def pair(prompt: Any, before: list[Any], *, good: Any = GOOD, bad: Any = BAD) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": [*before, good], "rejected": [*before, bad]}


CASES = {
    "a system turn in front": (pair([ASKED], [SYSTEM, ASKED]), pair([SYSTEM, ASKED], [])),
    "a system turn in the prompt alone": (pair([SYSTEM, ASKED], [ASKED]), pair([SYSTEM, ASKED], [])),
    "other white space": (pair([user("What is\n2 + 2? ")], [ASKED]), pair([user("What is\n2 + 2? ")], [])),
    "the last user turn as text": (pair("What is 2 + 2?", [*EARLIER, ASKED]), pair([*EARLIER, ASKED], [])),
    "the last user turn as a message": (pair([ASKED], [SYSTEM, *EARLIER, ASKED]), pair([SYSTEM, *EARLIER, ASKED], [])),
    "nulls of other rows": (pair([ASKED], [], good=call("Paris"), bad=call("Rome", x="1")), None),
    "content parts": (
        pair([user(parts("What is ", "2 + 2?"))], [], good=assistant(parts("4.")), bad=BAD),
        pair([ASKED], []),
    ),
    "a blank prompt before complete conversations": (pair("  ", [SYSTEM, ASKED]), pair([SYSTEM, ASKED], [])),
    "an end of turn in the content": (
        pair([ASKED], [], good=assistant("4.<|im_end|>"), bad=assistant("5, I think.<|im_end|>\n")),
        pair([ASKED], []),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_stock_trainer_scorer_and_server_agree(folder: Any, name: str):
    row, meant = CASES[name]
    if meant is None:  # a user of the card gives every message a content, as the template requires
        meant = {side: [{**turn, "content": turn.get("content", "")} for turn in row[side]] for side in row}
    # The second row adds Arrow fields that the first row lacks.
    other = pair([ASKED], [], good=call("Oslo", y="2"), bad=call("Bern", z="3"))
    plain = {side: [{**turn, "content": turn.get("content", "")} for turn in other[side]] for side in other}
    assert_same_rewards(folder, [row, other], stock_rows=[meant, plain])


def test_text_that_begins_with_bos_or_ends_in_eos(tmp_path):
    special = ["<s>", "</s>", "<|pad|>"]
    tokenizer = bos_adding_tokenizer(special, "", bos="<s>", eos="</s>", pad="<|pad|>")
    tokenizer.chat_template = None
    folder = tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, tmp_path / "text")
    bos, eos = str(tokenizer.bos_token), str(tokenizer.eos_token)
    clean = {"prompt": "What is 2 + 2? ", "chosen": "4.", "rejected": "5, I think."}
    written = {**clean, "prompt": bos + clean["prompt"], "chosen": clean["chosen"] + eos + eos}
    assert_same_rewards(folder, [written], stock_rows=[clean])
