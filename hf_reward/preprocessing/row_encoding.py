"""Encode the responses of canonical rows as token ids, without a length limit.

Rows are tokenised in batches. Conversations are rendered with the chat template and tokenised without further special
tokens. Text is prompt + response + EOS with the tokenizer's own special tokens. Encoders without a template get
(prompt, response) as a text pair. BOS and end-of-turn tokens that the text already contains are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import IMAGE_SOURCES, Message, PreferenceFormatError, PreferenceRow, has_images
from hf_reward.data.row_remarks import DOUBLED_BOS, DOUBLED_END, LOST_TEXT
from hf_reward.preprocessing.rendered_turns import TurnEnds, loses_text, with_one_end, without_end
from hf_reward.preprocessing.text_encoding import encode_texts
from hf_reward.preprocessing.tokenizer import render_chat, uses_text_pairs


@dataclass
class EncodedRow:
    """Token sequences of one row, before or after truncation."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None = None
    cut_tokens: int = field(default=0)
    images: list[Any] = field(default_factory=list)
    """The `ExpandedImage` of each image of the prompt."""
    remarks: set[str] = field(default_factory=set)

    def longest(self) -> int:
        """Return the number of tokens of the longest sequence."""
        return max(map(len, self.input_ids))


def encode_rows(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, separator: str) -> list[EncodedRow]:
    """Encode every response of every row, with one tokenizer call for conversations and one for texts.

    Args:
        rows: Canonical rows.
        tokenizer: The model's tokenizer.
        separator: Text between prompt and response of text rows.

    Returns:
        The token ids of each row, of any length. Token ids of tokenised rows are unchanged.

    Raises:
        PreferenceFormatError: If the tokenizer has no chat template for a conversation, or cannot render it.
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
            "The tokenizer has no chat template, which rows of messages require. Set "
            "`chat_template_path` for training, or set `tokenizer.chat_template` and save the tokenizer, or pass text "
            "columns.",
            field="prompt",
        )
    ends = TurnEnds(tokenizer)
    texts, remarks = [], []
    for row in rows:
        row_remarks: set[str] = set()
        texts += [render_response(row, response, tokenizer, ends, row_remarks) for response in row.responses]
        remarks.append(row_remarks)
    ids = encode_texts(texts, tokenizer, add_special_tokens=False)
    # A template may print BOS and start a turn with the same token, so only a BOS in the text is removed.
    bos = tokenizer.bos_token
    written = [tokenizer.bos_token_id if bos and _start(row).startswith(str(bos)) else None for row in rows]
    encoded = _with_one_bos(_split(ids, rows), remarks, written)
    for each, row in zip(encoded, rows, strict=True):
        if has_images(row.prompt):
            messages: Any = row.prompt
            each.images = [image for message in messages for image in message.get(IMAGE_SOURCES, ())]
    return encoded


def _start(row: PreferenceRow) -> str:
    first: Any = [*row.prompt, *row.responses[0]][0]
    return str(first.get("content") or "").lstrip()


def render_response(
    row: PreferenceRow, response: Any, tokenizer: PreTrainedTokenizerBase, ends: TurnEnds, remarks: set[str]
) -> str:
    """Format the prompt of a row and one of its responses with the chat template.

    Args:
        row: A row of messages.
        response: The messages that follow the prompt.
        tokenizer: A tokenizer with a chat template.
        ends: The end-of-turn tokens of the template.
        remarks: Set to which remarks on the text are added.

    Returns:
        The text.

    Raises:
        PreferenceFormatError: If the template cannot format the conversation.
    """
    try:
        conversation: Any = [*row.prompt, *response]
        messages, had_end = ends.single(conversation)
        if has_images(row.prompt):
            messages, text = _render_with_images(messages, tokenizer, row.template)
        else:
            text = render_chat(tokenizer, messages, **row.template)
    except PreferenceFormatError:
        raise
    except ValueError as error:  # templates refuse roles and orders of turns that the model was not trained on
        reason = str(error.__cause__)
        # A message that is part of the template is safe to show; any other message could quote the row.
        own = isinstance(tokenizer.chat_template, str) and reason in tokenizer.chat_template
        repeats = "" if own else f": {reason}"
        raise PreferenceFormatError(f"{error}. Correct or drop the row.", repeats=repeats) from error
    remarks |= {DOUBLED_END} if had_end else set()
    remarks |= {LOST_TEXT} if loses_text(text, messages, row.template.get("tools")) else set()
    return text


def _render_with_images(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> tuple[list[Message], str]:
    """Format a conversation with images; return it with its images as parts, and the text."""
    from hf_reward.preprocessing.image_inputs import parts_and_images, with_expansions  # noqa: PLC0415 - not for texts

    parts, images = parts_and_images(messages)
    return parts, with_expansions(render_chat(tokenizer, parts, **options), images)


def one_bos(ids: list[int], bos: Any) -> list[int]:
    """Remove repetitions of a token at the start of a sequence.

    Args:
        ids: Token ids.
        bos: The token; None to change nothing.

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
    """Apply `one_bos` to all rows, with the token of each row in `repeated`, and add the remark."""
    result = []
    for row, row_remarks, token in zip(sequences, remarks, repeated, strict=True):
        single = [one_bos(ids, token) for ids in row]
        row_remarks |= {DOUBLED_BOS} if single != row else set()
        result.append(EncodedRow(single, remarks=row_remarks))
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
    if eos and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:  # the tokenizer appends a second EOS
        ids = [sequence[:-1] for sequence in ids]
    return _with_one_bos(_split(ids, rows), remarks, [tokenizer.bos_token_id] * len(rows))


def text_before(row: PreferenceRow, separator: str) -> str:
    """Return the text before the response of a text row.

    Args:
        row: A text row.
        separator: Text between prompt and response.

    Returns:
        The prompt and the separator; empty without a prompt.
    """
    return f"{row.prompt}{separator}" if row.prompt else ""


def _texts_of(row: PreferenceRow, separator: str) -> list[str]:
    """Return the responses as text. If they repeated the prompt, the separator replaces their leading white space."""
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
    """Group a flat list over all responses by row."""
    parts, start = [], 0
    for row in rows:
        parts.append(list(flat[start : start + len(row.responses)]))
        start += len(row.responses)
    return parts
