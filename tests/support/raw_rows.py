"""Raw rows in every layout, shared by tests."""

from typing import Any


def user(content: str) -> dict[str, Any]:
    """A turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    """A turn of the assistant."""
    return {"role": "assistant", "content": content}


PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
CHAT = {"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}
RANKED = {"prompt": "Why?", "responses": ["a", "b", "c"], "ranks": [2, 0, 1]}
VOTES = {"prompt": "Why?", "response_a": "a", "response_b": "b"}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: No.",
}
TOKENS = {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5]}
RATED = {"prompt": "Why?", "response": "a", "score": 1.0}
