"""Canonical rows -> token ids of each response, whatever their length.

The tokenizer sees whole columns, not rows. Conversations go through the chat template and are tokenised without further
special tokens; text is prompt + response + EOS with the tokenizer's own special tokens; encoders without a template get
(prompt, response) as a text pair. However a text is written, it has one BOS where there is any, and each turn one end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.row_remarks import DOUBLED_BOS, DOUBLED_END, LOST_TEXT
from hf_reward.preprocessing.rendered_turns import TurnEnds, loses_text, with_one_end, without_end
from hf_reward.preprocessing.text_encoding import encode_texts
from hf_reward.preprocessing.tokenizer import render_chat, uses_text_pairs


@dataclass
class EncodedRow:
    """Sequences of one row, before and while they are made to fit."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None = None
    cut_tokens: int = field(default=0)
    remarks: set[str] = field(default_factory=set)

    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.input_ids))


def encode_rows(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, separator: str) -> list[EncodedRow]:
    """Encode every response of every row; one tokenizer call for the conversations and one for the texts.

    Args:
        rows: Canonical rows.
        tokenizer: The model's tokenizer.
        separator: Text between prompt and response of text rows.

    Returns:
        The token ids of each row, of any length; those that a row came with stay as they are.

    Raises:
        PreferenceFormatError: If a conversation meets a tokenizer without chat template or that cannot render it.
    """
    results: list[EncodedRow | None] = [None] * len(rows)
    chat = [place for place, row in enumerate(rows) if row.is_conversational()]
    plain = [place for place, row in enumerate(rows) if not row.is_conversational() and row.token_ids is None]
    for places, encode in ((chat, _encode_conversations), (plain, _encode_texts)):
        if places:
            encoded = encode([rows[place] for place in places], tokenizer, separator)
            for place, sequences in zip(places, encoded, strict=True):
                results[place] = sequences
    return [
        EncodedRow([list(ids) for ids in row.token_ids or []]) if result is None else result
        for row, result in zip(rows, results, strict=True)
    ]


def _encode_conversations(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, separator: str
) -> list[EncodedRow]:
    if tokenizer.chat_template is None:
        raise PreferenceFormatError(
            "The tokenizer has no chat template, but the rows hold messages. Set `tokenizer.chat_template` (or "
            "`chat_template_path` in `RewardConfig`), or pass text columns.",
            field="prompt",
        )
    ends = TurnEnds(tokenizer)
    texts, remarks = [], []
    for row in rows:
        said: set[str] = set()
        texts += [render_response(row, response, tokenizer, ends, said) for response in row.responses]
        remarks.append(said)
    ids = encode_texts(texts, tokenizer, add_special_tokens=False)
    # A template may begin with BOS and a turn that opens with the same token: only a written BOS is one too many.
    bos = tokenizer.bos_token
    written = [tokenizer.bos_token_id if bos and _opening(row).startswith(str(bos)) else None for row in rows]
    return _with_one_bos(_split(ids, rows), remarks, written)


def _opening(row: PreferenceRow) -> str:
    first: Any = [*row.prompt, *row.responses[0]][0]
    return str(first.get("content") or "").lstrip()


def render_response(
    row: PreferenceRow, response: Any, tokenizer: PreTrainedTokenizerBase, ends: TurnEnds, said: set[str]
) -> str:
    """Format the prompt of a row and one of its responses with the chat template.

    Args:
        row: A row of messages.
        response: The messages that follow the prompt.
        tokenizer: A tokenizer with a chat template.
        ends: What ends its turns.
        said: Takes up the remarks on the text.

    Returns:
        The text.

    Raises:
        PreferenceFormatError: If the template cannot format it.
    """
    try:
        whole: Any = [*row.prompt, *response]
        messages, had_end = ends.single(whole)
        text = render_chat(tokenizer, messages, **row.template)
    except ValueError as error:  # templates refuse roles or an order of turns that the model never saw
        reason = str(error.__cause__)
        # What stands in the template is its author's; anything else could hold some of the row.
        own = isinstance(tokenizer.chat_template, str) and reason in tokenizer.chat_template
        repeats = "" if own else f": {reason}"
        raise PreferenceFormatError(f"{error}. Correct or drop the row.", repeats=repeats) from error
    said |= {DOUBLED_END} if had_end else set()
    said |= {LOST_TEXT} if loses_text(text, messages, row.template.get("tools")) else set()
    return text


def one_bos(ids: list[int], bos: Any) -> list[int]:
    """Leave one of several equal tokens at the start.

    Args:
        ids: Token ids.
        bos: The token that must not be repeated, None for none.

    Returns:
        The ids without the repetitions.
    """
    count = 0
    while bos is not None and count + 1 < len(ids) and ids[count] == ids[count + 1] == bos:
        count += 1
    return ids[count:]


def _with_one_bos(
    sequences: list[list[list[int]]], remarks: list[set[str]], repeated: Sequence[Any]
) -> list[EncodedRow]:
    """Leave one of the tokens `repeated`, one for each row, at its start; None leaves a row as it is."""
    result = []
    for row, said, token in zip(sequences, remarks, repeated, strict=True):
        single = [one_bos(ids, token) for ids in row]
        said |= {DOUBLED_BOS} if single != row else set()
        result.append(EncodedRow(single, remarks=said))
    return result


def _encode_texts(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, separator: str
) -> list[EncodedRow]:
    if uses_text_pairs(tokenizer):
        return _encode_text_pairs(rows, tokenizer)
    eos = str(tokenizer.eos_token or "")
    texts, remarks = [], []
    for row in rows:
        start = text_before(row, separator)
        given = _texts_of(row, separator)
        ended = [with_one_end(response, eos) for response in given]
        had_two = any(len(new) < len(old) for new, old in zip(ended, given, strict=True))
        texts += [f"{start}{response}" for response in ended]
        remarks.append({DOUBLED_END} if had_two else set())
    ids = encode_texts(texts, tokenizer, add_special_tokens=True)
    if eos and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:  # it appends EOS by itself
        ids = [sequence[:-1] for sequence in ids]
    return _with_one_bos(_split(ids, rows), remarks, [tokenizer.bos_token_id] * len(rows))


def text_before(row: PreferenceRow, separator: str) -> str:
    """What stands before the response of a text row.

    Args:
        row: A text row.
        separator: Text between prompt and response.

    Returns:
        The prompt and the separator, or nothing without a prompt.
    """
    return f"{row.prompt}{separator}" if row.prompt else ""


def _texts_of(row: PreferenceRow, separator: str) -> list[str]:
    """Responses as text; where they stood behind the prompt already, the separator replaces their own white space."""
    texts = [str(response) for response in row.responses]
    return [text.lstrip() for text in texts] if row.repeated_prompt and separator else texts


def _encode_text_pairs(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    ends = {str(tokenizer.sep_token)}
    given = [[str(each).lstrip() if row.repeated_prompt else str(each) for each in row.responses] for row in rows]
    ended = [[without_end(text, ends) for text in texts] for texts in given]
    prompts: Any = [row.prompt for row in rows for _ in row.responses]
    responses: Any = [text for texts in ended for text in texts]
    if all(prompts):
        batch = tokenizer(prompts, responses, return_attention_mask=False, verbose=False)
    elif not any(prompts):
        batch = tokenizer(responses, return_attention_mask=False, verbose=False)
    else:
        return [_encode_text_pairs([row], tokenizer)[0] for row in rows]
    remarks: list[set[str]] = [{DOUBLED_END} if a != b else set() for a, b in zip(given, ended, strict=True)]
    encoded = _with_one_bos(_split(batch["input_ids"], rows), remarks, [tokenizer.cls_token_id] * len(rows))
    if "token_type_ids" in batch:
        for each, types in zip(encoded, _split(batch["token_type_ids"], rows), strict=True):
            each.token_type_ids = [t[len(t) - len(ids) :] for t, ids in zip(types, each.input_ids, strict=True)]
    return encoded


def _split(flat: Sequence[Any], rows: Sequence[PreferenceRow]) -> list[list[Any]]:
    """Give a flat list over all responses back its rows."""
    parts, start = [], 0
    for row in rows:
        parts.append(list(flat[start : start + len(row.responses)]))
        start += len(row.responses)
    return parts
