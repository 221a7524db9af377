"""Tokenise canonical rows within the length limit, and find the common prefix of their responses."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.data.preference_row import Message, PreferenceFormatError, PreferenceRow, common_prefix
from hf_reward.data.row_remarks import remarks_of
from hf_reward.data.row_text import response_characters, response_words
from hf_reward.preprocessing.row_encoding import EncodedRow, encode_rows, text_before
from hf_reward.preprocessing.tokenizer import uses_text_pairs

OVER_LENGTH_POLICIES = ("truncate_prompt", "drop", "error")


@dataclass(frozen=True, kw_only=True)
class FormatRule:
    """Settings of tokenisation, saved with the model so that a text always has the same ids."""

    max_length: int | None = 1024
    """Longest sequence, in tokens; None for no limit."""
    over_length: str = "truncate_prompt"
    """One of `OVER_LENGTH_POLICIES`."""
    separator: str = ""
    """Text between prompt and response of text rows."""

    def __post_init__(self) -> None:
        if self.over_length not in OVER_LENGTH_POLICIES:
            raise ValueError(
                f"`{setting('over_length')}` must be one of {', '.join(OVER_LENGTH_POLICIES)}, but is "
                f"{self.over_length!r}."
            )
        if not isinstance(self.separator, str):
            raise TypeError(f"`{setting('separator')}` must be text, but is {self.separator!r}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"`{setting('max_length')}` must be at least 2 tokens, or None for no limit, but is {self.max_length}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return asdict(self)


@dataclass(kw_only=True)
class TokenizedRow:
    """Token ids of a row's responses, each with the prompt."""

    input_ids: list[list[int]] = field(default_factory=list)
    """Empty if the row cannot be used."""
    token_type_ids: list[list[int]] | None = None
    ranks: list[int] = field(default_factory=list)
    prefix_length: int = 0
    """Number of common leading tokens, less than the length of the shortest sequence."""
    cut_tokens: int = 0
    """Prompt tokens removed to fit `max_length`; for a row that is too long, its tokens above `max_length`."""
    merged: int = 0
    """Responses that were merged with an equal response of the row."""
    images: list[Any] = field(default_factory=list)
    """The `ExpandedImage` of each image of the prompt, in the order of its tokens."""
    words: list[int] = field(default_factory=list)
    """Words of each response; empty for rows of token ids."""
    characters: list[int] = field(default_factory=list)
    """Characters of each response; empty for rows of token ids."""
    problem: str = ""
    """Reason why the row cannot be used, or empty."""
    remarks: list[str] = field(default_factory=list)
    """Remarks on a usable row; see `row_remarks`."""


def tokenize_rows(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> list[TokenizedRow]:
    """Tokenise canonical rows, with one tokenizer call per kind of row.

    Args:
        rows: Canonical rows.
        tokenizer: The model's tokenizer.
        rule: Length limit and policy for longer rows.

    Returns:
        One tokenised row per row, in order. Unusable rows have a reason in `problem`.

    Raises:
        PreferenceFormatError: If the tokenizer has no chat template for a conversation, or a row is too long with the
            policy `error`.
    """
    encoded = encode_rows(rows, tokenizer, rule.separator)
    return [_finish(row, sequences, tokenizer, rule) for row, sequences in zip(rows, encoded, strict=True)]


def tokenize_responses(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> list[TokenizedRow]:
    """Tokenise rows of one response each for scoring, so that truncation is independent of other responses.

    Args:
        rows: Rows with one response.
        tokenizer: The model's tokenizer.
        rule: Length limit. With every policy, a row that cannot be cut to the limit has a reason in `problem`.

    Returns:
        One tokenised row per row, in order.

    Raises:
        PreferenceFormatError: If the tokenizer has no chat template for a conversation, or cannot render it.
    """
    encoded = encode_rows(rows, tokenizer, rule.separator)
    return [_finish_alone(row, sequences, tokenizer, rule) for row, sequences in zip(rows, encoded, strict=True)]


def _finish_alone(
    row: PreferenceRow, encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> TokenizedRow:
    tokens, limit = encoded.longest(), rule.max_length
    fitted: EncodedRow | None = encoded
    if limit is not None and tokens > limit:
        may_cut = bool(row.prompt) and rule.over_length == "truncate_prompt"
        fitted = _fit(row, encoded, tokenizer, rule) if may_cut else None
    if fitted is None:
        problem = f"too long: {tokens} tokens, above max_length={limit}, and its prompt cannot be cut to fit"
        return TokenizedRow(problem=problem)
    return TokenizedRow(
        input_ids=fitted.input_ids,
        token_type_ids=fitted.token_type_ids,
        ranks=row.ranks,
        cut_tokens=fitted.cut_tokens,
        images=fitted.images,
        remarks=sorted(encoded.remarks),
    )


def shared_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return the number of common leading tokens, at most one less than the length of the shortest sequence.

    Args:
        sequences: Token ids of the responses of one row.

    Returns:
        The length, 0 or more.
    """
    return min(len(common_prefix(sequences)), min(map(len, sequences)) - 1)


# --- length ----------------------------------------------------------------------------------------------------------


def _finish(
    row: PreferenceRow, encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> TokenizedRow:
    """Truncate a row to `max_length`, merge equal responses and find the common prefix."""
    fitted = _fit(row, encoded, tokenizer, rule)
    if fitted is None:
        excess = encoded.longest() - (rule.max_length or 0)
        return TokenizedRow(cut_tokens=excess, problem="too long")
    keep = _first_of_equals(fitted.input_ids, row.ranks)
    ids = [fitted.input_ids[place] for place in keep]
    types = None if fitted.token_type_ids is None else [fitted.token_type_ids[place] for place in keep]
    texts = [] if row.token_ids is not None else [row.responses[place] for place in keep]
    result = TokenizedRow(
        input_ids=ids,
        token_type_ids=types,
        ranks=[row.ranks[place] for place in keep],
        prefix_length=shared_prefix_length(ids),
        cut_tokens=fitted.cut_tokens,
        images=fitted.images,
        merged=len(fitted.input_ids) - len(keep),
        words=[response_words(text) for text in texts],
        characters=[response_characters(text) for text in texts],
        remarks=sorted({*encoded.remarks, *remarks_of(row)}),
    )
    if len(keep) < 2:
        result.problem = "identical responses"
    return result


def _first_of_equals(sequences: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[int]:
    """Return the indices of distinct sequences; of equal sequences, the best-ranked one is kept."""
    best: dict[tuple[int, ...], int] = {}
    for place, sequence in enumerate(sequences):
        other = best.setdefault(tuple(sequence), place)
        if ranks[place] < ranks[other]:
            best[tuple(sequence)] = place
    return sorted(best.values())


def _fit(
    row: PreferenceRow, encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> EncodedRow | None:
    if rule.max_length is None or encoded.longest() <= rule.max_length:
        return encoded
    if rule.over_length == "error":
        raise PreferenceFormatError(
            f"the longest sequence has {encoded.longest()} tokens, above `{setting('max_length', rule.max_length)}`. "
            f"Raise `{setting('max_length')}`, or set `{setting('over_length', 'truncate_prompt')}` or "
            f"`{setting('over_length', 'drop')}`."
        )
    if rule.over_length == "drop":
        return None
    if row.is_conversational():
        return _fit_conversation(row, encoded, tokenizer, rule)
    return _fit_tokens(row, encoded, tokenizer, rule)


def _fit_tokens(
    row: PreferenceRow, encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> EncodedRow | None:
    """Remove the first prompt tokens of a text row, the same for all responses; BOS or CLS is kept."""
    assert rule.max_length is not None
    cut = encoded.longest() - rule.max_length
    first = encoded.input_ids[0][0]
    lead = 1 if first in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    shared = shared_prefix_length(encoded.input_ids)
    if row.prompt:
        prompt = str(row.prompt) if uses_text_pairs(tokenizer) else text_before(row, rule.separator)
        prompt_ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        # A token that spans the end of the prompt and the start of the response belongs to the response.
        shared = min(shared, lead + len(common_prefix([prompt_ids, encoded.input_ids[0][lead:]])))
    if lead + cut > shared:
        return None
    return EncodedRow(
        [ids[:lead] + ids[lead + cut :] for ids in encoded.input_ids],
        encoded.token_type_ids and [types[:lead] + types[lead + cut :] for types in encoded.token_type_ids],
        cut_tokens=cut,
    )


def _fit_conversation(
    row: PreferenceRow, encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> EncodedRow | None:
    """Drop the oldest turns, then the first tokens of the oldest remaining turn; the system turn is kept."""
    assert rule.max_length is not None
    before, limit = encoded.longest(), rule.max_length
    assert isinstance(row.prompt, list)
    system, turns = split_system(row.prompt)
    starts = [0, *(place for place in range(1, len(turns)) if turns[place]["role"] == "user")]
    attempts = {0: encoded}

    def fits(number: int) -> bool:
        attempts[number] = _reencode(row, [*system, *turns[starts[number] :]], tokenizer, rule)
        return attempts[number].longest() <= limit

    first = _first_that_fits(len(starts), fits)
    current: EncodedRow | None
    if first < len(starts):
        current = attempts[first]
    else:
        excess = attempts[len(starts) - 1].longest() - limit
        current = _cut_first_turn(row, system, turns[starts[-1] :], excess, tokenizer, rule)
    if current is not None:
        current.cut_tokens = before - current.longest()
    return current


def _first_that_fits(count: int, fits: Callable[[int], bool]) -> int:
    """Return the first of `count` numbers that fits, or `count` if none does. 0 does not fit, and fitting is monotone.

    The search starts at the end, where conversations are shortest: trying all numbers in order would take quadratic
    time.
    """
    bad, good, step = 0, count, 1
    while good - bad > 1:
        number = max(good - step, bad + 1) if step else (good + bad) // 2
        if fits(number):
            good, step = number, 2 * step
        else:
            bad, step = number, 0
    return good


def _cut_first_turn(
    row: PreferenceRow,
    system: list[Message],
    turns: list[Message],
    excess: int,
    tokenizer: PreTrainedTokenizerBase,
    rule: FormatRule,
) -> EncodedRow | None:
    content = turns[0].get("content") if turns else None
    if not isinstance(content, str) or "image_sources" in turns[0]:
        return None
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    # After a cut, neighbouring text may merge into different tokens, so a few more tokens may have to be removed.
    for cut in range(excess, min(excess + 9, len(ids))):
        shorter = {**turns[0], "content": str(tokenizer.decode(ids[cut:])).lstrip("\ufffd")}
        attempt = _reencode(row, [*system, shorter, *turns[1:]], tokenizer, rule)
        if attempt.longest() <= (rule.max_length or 0):
            return attempt
    return None


def _reencode(
    row: PreferenceRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> EncodedRow:
    shortened = PreferenceRow(prompt=prompt, responses=row.responses, ranks=row.ranks, template=row.template)
    return encode_rows([shortened], tokenizer, rule.separator)[0]


def split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Split a prompt into its leading system turns, which are never cut, and the other turns.

    Args:
        messages: A prompt.

    Returns:
        Both parts.
    """
    count = 0
    while count < len(messages) and messages[count]["role"] in ("system", "developer"):
        count += 1
    return messages[:count], messages[count:]
