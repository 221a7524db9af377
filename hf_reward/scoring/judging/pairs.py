"""The question for a judge: a prompt and two responses, in either order, and their texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_reward.data.preference_row import Prompt, Response, prompt_hash

QUESTION = (
    "Which of the two responses is better for the person who wrote the last message: more correct, more helpful and "
    "more honest? Their order, length and format must not influence the choice."
)
"""Default criterion; `JudgeSettings.question` replaces it."""
_PARTS = (("Conversation", "conversation"), ("Response A", "response A"), ("Response B", "response B"))
"""Marks at the start and the end of each part of `pair_text`."""
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


@dataclass(frozen=True, eq=False)
class JudgedPair:
    """A prompt and two responses. The judge sees `first` as response A and `second` as response B."""

    prompt: Prompt
    first: Response
    second: Response
    cluster: str = ""
    """Prompt group, for intervals; by default the hash of the prompt."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template, for judges that are reward models."""

    @property
    def group(self) -> str:
        """The prompt group."""
        return self.cluster or prompt_hash(self.prompt)

    def swapped(self) -> "JudgedPair":
        """Return the pair in the other order."""
        return replace(self, first=self.second, second=self.first)


def pair_text(pair: JudgedPair) -> str:
    """Return a pair as one text with marked parts, for judges that read text."""
    texts = pair_state(pair).values()
    parts = zip(_PARTS, texts, strict=True)
    return "\n\n".join(f"[{start}]\n{text}\n[End of {end}]" for (start, end), text in parts)


def pair_state(pair: JudgedPair) -> dict[str, str]:
    """Return a pair as fields, for judges that read structured data.

    A single user message or assistant message becomes its text; longer conversations get names of speakers.
    """
    return {
        "conversation": _text(pair.prompt, "user"),
        "response_a": _text(pair.first, "assistant"),
        "response_b": _text(pair.second, "assistant"),
    }


_TEXT = re.compile(r"\n\n".join(rf"\[{start}\]\n(.*)\n\[End of {end}\]" for start, end in _PARTS), re.DOTALL)
_SEVERAL_TURNS = re.compile(rf"(?:{'|'.join(_SPEAKERS.values())}): ")


def read_pair(value: Any) -> JudgedPair | None:
    """Return the pair that `pair_text` or `pair_state` describes.

    Args:
        value: Text or fields.

    Returns:
        The pair, with a text as prompt. None for other values, and if the conversation may have several turns or a
        mark occurs in a text, because the parts are then uncertain.
    """
    texts: list[Any] = []
    if isinstance(value, str):
        marks = [mark for start, end in _PARTS for mark in (f"[{start}]", f"[End of {end}]")]
        found = _TEXT.fullmatch(value) if all(value.count(mark) == 1 for mark in marks) else None
        texts = [] if found is None else list(found.groups())
    elif isinstance(value, dict) and list(value) == ["conversation", "response_a", "response_b"]:
        texts = list(value.values())
    if not texts or any(not isinstance(text, str) or _SEVERAL_TURNS.match(text) for text in texts):
        return None
    return JudgedPair(*texts)


def _text(value: Prompt | Response, role: str) -> str:
    if isinstance(value, str):
        return value
    if len(value) == 1 and value[0].get("role") == role and not value[0].get("tool_calls"):
        return _content(value[0])
    return "\n\n".join(f"{_SPEAKERS.get(each['role'], each['role'])}: {_content(each)}" for each in value)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    calls = message.get("tool_calls")
    return "\n".join(filter(None, [content or "", f"Tool calls: {calls}" if calls else ""]))
