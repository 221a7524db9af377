"""Refuse or shorten very long texts before tokenisation, without changing the resulting token ids.

A tokenizer needs minutes and gigabytes for such texts, although the model uses only a few pages of them. Text that
cannot be cut (the response, the system turn, tools) is refused if it has more characters than `max_length` tokens of
the maximum token length can hold. Long prompts are shortened by removing their middle between two safe cut positions,
where a word always ends. The ids of the remaining text are unchanged, and truncation would remove the ids of the middle
anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import Message, PreferenceRow, common_prefix
from hf_reward.data.score_request import ScoreRequest
from hf_reward.preprocessing.rendered_turns import TurnEnds
from hf_reward.preprocessing.row_encoding import render_response
from hf_reward.preprocessing.text_encoding import CUT, cuts_keep_ids
from hf_reward.preprocessing.tokenization import FormatRule, split_system

CHARACTERS_PER_TOKEN = 16
"""More than in any prose. If it is still too small for a text, a longer part of the prompt is kept."""
UNLIMITED_TOKENS = 131_072
"""Longest sequence that is scored without a `max_length`: attention over more tokens takes hours."""
_FULL_PROMPT = 2**20
_WINDOW = 2**16


def characters_of(value: Any) -> int:
    """Count the characters of all texts in a value.

    Args:
        value: Text, or lists and dicts of texts; any other value counts as 0.

    Returns:
        The number.
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + characters_of(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return sum(characters_of(each) for each in value)
    return 0


def request_characters(request: ScoreRequest) -> int:
    """Count the characters of a request: prompt, response and template options.

    Args:
        request: The request.

    Returns:
        The number.
    """
    return characters_of(request.prompt) + characters_of(request.response) + characters_of(request.template)


def without_middle(text: str, keep: int) -> str:
    """Remove the middle of a text between two safe cut positions (`text_encoding.CUT`).

    Args:
        text: The text.
        keep: Smallest number of characters to keep at the end.

    Returns:
        The start up to the first cut position, and the end from a later one on; the text itself without two positions.
    """
    first = CUT.search(text, 0, max(0, len(text) - keep))
    if first is None:
        return text
    stop = len(text) - keep
    while stop > first.end():
        start = max(first.start() + 1, stop - _WINDOW)
        # The characters on both sides of a cut position must be in the window.
        last = max((match.start() for match in CUT.finditer(text, start, stop + 2)), default=None)
        if last is not None:
            return text[: first.start()] + text[last:]
        stop = start
    return text


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """Limits on the length of one model's texts before tokenisation."""

    tokenizer: PreTrainedTokenizerBase
    rule: FormatRule
    max_tokens: int = UNLIMITED_TOKENS
    """Limit if the rule has no `max_length`."""

    @cached_property
    def characters(self) -> int:
        """Most characters that can fit: `max_length` times the characters of the longest token (at least 16).

        More could fit only with a tokenizer that drops characters or encodes any number of them as one token.
        """
        longest = max(map(len, self.tokenizer.get_vocab()), default=0)
        return (self.rule.max_length or self.max_tokens) * max(longest, CHARACTERS_PER_TOKEN)

    @property
    def full_prompt(self) -> int:
        """Most characters of a prompt that is tokenised completely because it cannot be shortened safely."""
        return max(_FULL_PROMPT, 4 * CHARACTERS_PER_TOKEN * (self.rule.max_length or 0))

    @cached_property
    def _can_shorten(self) -> bool:
        return self._cuts_prompts and cuts_keep_ids(self.tokenizer)

    @property
    def _cuts_prompts(self) -> bool:
        return self.rule.max_length is not None and self.rule.over_length == "truncate_prompt"

    def problem(self, request: ScoreRequest) -> str:
        """Describe why the part of a request that cannot be cut is too long to fit.

        Args:
            request: The request.

        Returns:
            A clause; empty if the request can fit.
        """
        parts = {"response": request.response, "template option": request.template}
        if not self._cuts_prompts:
            parts["prompt"] = request.prompt
        elif not isinstance(request.prompt, str):
            parts["system turn"] = split_system(request.prompt)[0]
        sizes = {name: characters_of(value) for name, value in parts.items()}
        if sum(sizes.values()) <= self.characters:
            return ""
        name = max(sizes, key=lambda each: sizes[each])
        return too_large("text" if request.formatted else name, sizes[name], self.characters)

    def is_long(self, request: ScoreRequest) -> bool:
        """Return whether a prompt is so long that it is shortened before tokenisation.

        Args:
            request: The request.

        Returns:
            Whether the prompt has far more characters than can be kept.
        """
        if not self._cuts_prompts:
            return False
        return characters_of(request.prompt) > 2 * CHARACTERS_PER_TOKEN * (self.rule.max_length or 0)

    def shortened(self, row: PreferenceRow, keep: int) -> PreferenceRow | None:
        """Remove a part of a prompt that truncation would remove anyway.

        Args:
            row: A row with one response.
            keep: Smallest number of characters of the prompt to keep.

        Returns:
            A row that has the same ids as the full row after truncation, provided that it is still too long; None if
            this is not certain.
        """
        if not self._can_shorten:
            return None
        if isinstance(row.prompt, str):
            short = without_middle(row.prompt, keep)
            return replace(row, prompt=short) if len(short) < len(row.prompt) else None
        system, turns = split_system(row.prompt)
        kept = [self._short_turn(turn, keep) for turn in turns[_first_turn(turns, keep) :]]
        short = replace(row, prompt=[*system, *kept])
        if characters_of(short.prompt) >= characters_of(row.prompt) or not self._renders_equally(row, short):
            return None
        changed = [turn["content"] for turn, full in zip(kept, turns[len(turns) - len(kept) :], strict=True)
                   if turn is not full]  # fmt: skip
        return short if all(self._fills_the_model(content) for content in changed) else None

    def _short_turn(self, turn: Message, keep: int) -> Message:
        content = turn.get("content")
        if not isinstance(content, str) or len(short := without_middle(content, keep)) == len(content):
            return turn
        return {**turn, "content": short}

    def _fills_the_model(self, content: str) -> bool:
        """Return whether a turn alone exceeds the limit, so that truncation treats full and short turn equally."""
        ids = self.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids) > (self.rule.max_length or 0)

    def _renders_equally(self, row: PreferenceRow, short: PreferenceRow) -> bool:
        """Return whether the template renders the kept contents and turns exactly as in the full conversation.

        If the template refuses the full conversation, its error is raised, as it would be without shortening.
        """
        ends = TurnEnds(self.tokenizer)
        full, part = (render_response(each, each.responses[0], self.tokenizer, ends, set()) for each in (row, short))
        offset = len(row.prompt) - len(short.prompt)
        system = len(split_system(row.prompt)[0])  # type: ignore[arg-type]
        for place, turn in enumerate(short.prompt[system:], start=system):
            before: Any = row.prompt[place + offset]
            if before is not turn:
                full = full.replace(_middle(before["content"], turn["content"]), "", 1)  # type: ignore[index]
        shared = len(common_prefix([part, full]))
        return full.endswith(part[shared:]) and (offset > 0 or full == part)


def too_large(name: str, characters: int, limit: int) -> str:
    """Return the message for a text that is too long to be tokenised.

    Args:
        name: Name of the text, such as `response`.
        characters: Number of its characters.
        limit: Largest number of characters.

    Returns:
        A clause.
    """
    return f"too large: the {name} has {characters:,} characters, above the limit of {limit:,}; shorten it"


def _first_turn(turns: list[Message], keep: int) -> int:
    """Return the first kept turn: a user turn, as in truncation, or the first turn of all."""
    held = 0
    for place in reversed(range(len(turns))):
        held += characters_of(turns[place].get("content"))
        if held >= keep and turns[place]["role"] == "user":
            return place
    return 0


def _middle(full: str, short: str) -> str:
    """Return the part that `without_middle` removed."""
    head = CUT.search(full)
    assert head is not None
    return full[head.start() : head.start() + len(full) - len(short)]
