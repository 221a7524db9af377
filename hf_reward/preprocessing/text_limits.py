"""Texts of any length -> refused, or shortened before they are tokenised to what gives the ids of the whole.

A tokenizer takes minutes and gigabytes for texts of which a model reads a few pages. What cannot be cut (the response,
the system turn, tools) and is longer than `max_length` of the longest tokens could not fit, and is refused by its
characters. Of a longer prompt the middle is taken out, between two places at which the tokenizer ends a word whatever
stands beside it. Its ids are then those of the whole text without those of the middle, which truncation removes anyway.
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
"""More than any prose has; where it is too few, more of a prompt is kept."""
UNLIMITED_TOKENS = 131_072
"""The longest sequence that is scored where a model has no `max_length`: attention over more takes hours."""
_WHOLE = 2**20
_WINDOW = 2**16


def characters_of(value: Any) -> int:
    """Count the characters of all texts in a value.

    Args:
        value: Text, or lists and dicts of them; anything else has none.

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
    """Count the characters of all that is tokenised for a request.

    Args:
        request: The request.

    Returns:
        The number.
    """
    return characters_of(request.prompt) + characters_of(request.response) + characters_of(request.template)


def without_middle(text: str, keep: int) -> str:
    """Take the middle out of a text, between two spaces that are cuts (`text_encoding.CUT`).

    Args:
        text: The text.
        keep: Characters of its end that stay, at least.

    Returns:
        Its beginning up to the first cut, and its end from a cut on; the text itself where there are no two cuts.
    """
    first = CUT.search(text, 0, max(0, len(text) - keep))
    if first is None:
        return text
    stop = len(text) - keep
    while stop > first.end():
        start = max(first.start() + 1, stop - _WINDOW)
        # A cut is known by the characters beside it, which have to be in the window.
        last = max((match.start() for match in CUT.finditer(text, start, stop + 2)), default=None)
        if last is not None:
            return text[: first.start()] + text[last:]
        stop = start
    return text


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """How long the texts of one model may be before they are tokenised."""

    tokenizer: PreTrainedTokenizerBase
    rule: FormatRule
    max_tokens: int = UNLIMITED_TOKENS
    """In place of `max_length` where the rule has none."""

    @cached_property
    def characters(self) -> int:
        """The most characters that can fit: `max_length` times those of the longest token, 16 at least.

        Only a tokenizer that drops characters, or makes one token of any number of them, could fit more.
        """
        longest = max(map(len, self.tokenizer.get_vocab()), default=0)
        return (self.rule.max_length or self.max_tokens) * max(longest, CHARACTERS_PER_TOKEN)

    @property
    def whole(self) -> int:
        """Characters of a prompt that may be tokenised whole where it cannot be shortened with certainty."""
        return max(_WHOLE, 4 * CHARACTERS_PER_TOKEN * (self.rule.max_length or 0))

    @cached_property
    def _can_shorten(self) -> bool:
        return self._cuts_prompts and cuts_keep_ids(self.tokenizer)

    @property
    def _cuts_prompts(self) -> bool:
        return self.rule.max_length is not None and self.rule.over_length == "truncate_prompt"

    def problem(self, request: ScoreRequest) -> str:
        """Say whether what cannot be cut of a request is too long to fit.

        Args:
            request: The request.

        Returns:
            A clause, or "".
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
        """Whether a prompt is so long that it is shortened before it is tokenised.

        Args:
            request: The request.

        Returns:
            Whether it has far more characters than can be kept.
        """
        if not self._cuts_prompts:
            return False
        return characters_of(request.prompt) > 2 * CHARACTERS_PER_TOKEN * (self.rule.max_length or 0)

    def shortened(self, row: PreferenceRow, keep: int) -> PreferenceRow | None:
        """Take out of a prompt what truncation removes anyway.

        Args:
            row: A row of one response.
            keep: Characters of the prompt that stay, at least.

        Returns:
            A row that has the ids of the whole row after truncation, provided that it is still too long; None where
            that is not certain.
        """
        if not self._can_shorten:
            return None
        if isinstance(row.prompt, str):
            short = without_middle(row.prompt, keep)
            return replace(row, prompt=short) if len(short) < len(row.prompt) else None
        system, turns = split_system(row.prompt)
        kept = [self._short_turn(turn, keep) for turn in turns[_first_turn(turns, keep) :]]
        short = replace(row, prompt=[*system, *kept])
        if characters_of(short.prompt) >= characters_of(row.prompt) or not self._renders_alike(row, short):
            return None
        changed = [turn["content"] for turn, whole in zip(kept, turns[len(turns) - len(kept) :], strict=True)
                   if turn is not whole]  # fmt: skip
        return short if all(self._fills_the_model(content) for content in changed) else None

    def _short_turn(self, turn: Message, keep: int) -> Message:
        content = turn.get("content")
        if not isinstance(content, str) or len(short := without_middle(content, keep)) == len(content):
            return turn
        return {**turn, "content": short}

    def _fills_the_model(self, content: str) -> bool:
        """Whether no conversation with this turn fits: the whole turn is dropped or cut just as the shortened one."""
        ids = self.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids) > (self.rule.max_length or 0)

    def _renders_alike(self, row: PreferenceRow, short: PreferenceRow) -> bool:
        """Whether the template writes contents as they are, and later turns as it does after those that are left out.

        If it refuses the whole conversation, that is raised here as it would be without shortening.
        """
        ends = TurnEnds(self.tokenizer)
        whole, part = (render_response(each, each.responses[0], self.tokenizer, ends, set()) for each in (row, short))
        offset = len(row.prompt) - len(short.prompt)
        system = len(split_system(row.prompt)[0])  # type: ignore[arg-type]
        for place, turn in enumerate(short.prompt[system:], start=system):
            before: Any = row.prompt[place + offset]
            if before is not turn:
                whole = whole.replace(_middle(before["content"], turn["content"]), "", 1)  # type: ignore[index]
        shared = len(common_prefix([part, whole]))
        return whole.endswith(part[shared:]) and (offset > 0 or whole == part)


def too_large(name: str, characters: int, limit: int) -> str:
    """Say that a text is too long to be tokenised.

    Args:
        name: What it is.
        characters: What it has.
        limit: The most it may have.

    Returns:
        A clause.
    """
    return f"too large: the {name} has {characters:,} characters, and no more than {limit:,} are tokenised; shorten it"


def _first_turn(turns: list[Message], keep: int) -> int:
    """The first turn of the end that stays: a user's, as truncation leaves them, or that of the whole."""
    held = 0
    for place in reversed(range(len(turns))):
        held += characters_of(turns[place].get("content"))
        if held >= keep and turns[place]["role"] == "user":
            return place
    return 0


def _middle(whole: str, short: str) -> str:
    """What `without_middle` took out."""
    head = CUT.search(whole)
    assert head is not None
    return whole[head.start() : head.start() + len(whole) - len(short)]
