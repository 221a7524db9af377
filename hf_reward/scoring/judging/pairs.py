"""The question for a judge: a prompt and two responses, in either order, and their texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_reward.data.preference_row import Prompt, Response, prompt_hash

QUESTION = (
    "Which of the two responses is better for the person who wrote the last message: more correct, more helpful and "
    "more honest? Their order, length and format must not influence the choice."
)
"""Default criterion; `JudgeSettings.question` replaces it."""
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
    state = pair_state(pair)
    return (
        f"[Conversation]\n{state['conversation']}\n[End of conversation]\n\n"
        f"[Response A]\n{state['response_a']}\n[End of response A]\n\n"
        f"[Response B]\n{state['response_b']}\n[End of response B]"
    )


def pair_state(pair: JudgedPair) -> dict[str, str]:
    """Return a pair as fields, for judges that read structured data.

    A single user message or assistant message becomes its text; longer conversations get names of speakers.
    """
    return {
        "conversation": _text(pair.prompt, "user"),
        "response_a": _text(pair.first, "assistant"),
        "response_b": _text(pair.second, "assistant"),
    }


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
