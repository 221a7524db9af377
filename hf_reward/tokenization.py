"""Canonical rows -> token ids per response, and the length of the prefix that they share.

The tokenizer sees whole columns, not rows. Conversations go through the chat template and are tokenised without further
special tokens; text is prompt + response + EOS with the tokenizer's own special tokens; encoders without a template get
(prompt, response) as a text pair. Nothing here changes the caller's tokenizer: `prepare_tokenizer` returns a copy.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward.preference_row import Message, PreferenceFormatError, PreferenceRow, common_prefix
from hf_reward.text_encoding import encode_texts

NEW_PAD_TOKEN = "<|pad|>"
OVER_LENGTH_POLICIES = ("truncate_prompt", "drop", "error")


@dataclass(frozen=True, kw_only=True)
class FormatRule:
    """How rows become tokens. Saved with the model, so that a text gets the same ids wherever it is scored."""

    max_length: int | None = 1024
    """Longest sequence, in tokens; None for no limit."""
    over_length: str = "truncate_prompt"
    """One of `OVER_LENGTH_POLICIES`."""
    separator: str = ""
    """Text between prompt and response of text rows."""

    def __post_init__(self) -> None:
        if self.over_length not in OVER_LENGTH_POLICIES:
            raise ValueError(f"`over_length` must be one of {OVER_LENGTH_POLICIES}, but is {self.over_length!r}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length={self.max_length}` must be at least 2 tokens, or None for no limit.")

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return asdict(self)


@dataclass(kw_only=True)
class TokenizedRow:
    """Token ids of a row's responses, each with its prompt in front."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    ranks: list[int]
    prefix_length: int
    """Tokens that all sequences share; every sequence has at least one token of its own."""
    cut_tokens: int = 0
    """Prompt tokens cut away to fit `max_length`."""
    merged: int = 0
    """Responses that equalled another of the row and were merged with it."""
    problem: str = ""
    """Why the row cannot be used, or empty."""


@dataclass
class _Encoded:
    """Sequences of one row while they are being made to fit."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None = None
    cut_tokens: int = field(default=0)

    def longest(self) -> int:
        return max(map(len, self.input_ids))


def tokenize_rows(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> list[TokenizedRow]:
    """Tokenise canonical rows, in one call of the tokenizer for each kind of row.

    Args:
        rows: Canonical rows.
        tokenizer: The model's tokenizer.
        rule: Length limit and what to do with rows beyond it.

    Returns:
        One tokenised row for each row, in order; unusable ones say why in `problem`.

    Raises:
        PreferenceFormatError: If a conversation meets a tokenizer without chat template, or a row is too long
            and the rule says `error`.
    """
    encoded = _encode(rows, tokenizer, rule)
    return [_finish(row, sequences, tokenizer, rule) for row, sequences in zip(rows, encoded, strict=True)]


def uses_text_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text rows are given as (prompt, response) pairs: encoders, that is, without chat template."""
    return tokenizer.chat_template is None and bool(tokenizer.cls_token and tokenizer.sep_token)


def shared_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all sequences share, at most one less than the shortest has.

    Args:
        sequences: Token ids of the responses of one row.

    Returns:
        The length, 0 or more.
    """
    return min(len(common_prefix(sequences)), min(map(len, sequences)) - 1)


# --- encoding --------------------------------------------------------------------------------------------------------


def _encode(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> list[_Encoded]:
    """Encode every response of every row; one tokenizer call for the conversations and one for the texts."""
    results: list[_Encoded | None] = [None] * len(rows)
    chat = [place for place, row in enumerate(rows) if row.is_conversational()]
    plain = [place for place, row in enumerate(rows) if not row.is_conversational() and row.token_ids is None]
    for places, encode in ((chat, _encode_conversations), (plain, _encode_texts)):
        if places:
            encoded = encode([rows[place] for place in places], tokenizer, rule)
            for place, sequences in zip(places, encoded, strict=True):
                results[place] = sequences
    return [
        _Encoded([list(ids) for ids in row.token_ids or []]) if result is None else result
        for row, result in zip(rows, results, strict=True)
    ]


def _encode_conversations(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> list[_Encoded]:
    if tokenizer.chat_template is None:
        raise PreferenceFormatError(
            "The tokenizer has no chat template, but the rows hold messages. Set `tokenizer.chat_template` (or "
            "`chat_template_path` in `RewardConfig`), or pass text columns.",
            field="prompt",
        )
    texts = [_render(row, response, tokenizer) for row in rows for response in row.responses]
    return [_Encoded(ids) for ids in _split(encode_texts(texts, tokenizer, add_special_tokens=False), rows)]


def _render(row: PreferenceRow, response: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        messages: Any = [*row.prompt, *response]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **row.template))
    except TemplateError as error:  # templates refuse roles or an order of turns that the model never saw
        raise PreferenceFormatError(
            f"the chat template cannot render the conversation: {error}. Correct or drop the row."
        ) from error


def _encode_texts(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> list[_Encoded]:
    if uses_text_pairs(tokenizer):
        return _encode_text_pairs(rows, tokenizer)
    eos = str(tokenizer.eos_token or "")
    texts = []
    for row in rows:
        start = f"{row.prompt}{rule.separator}" if row.prompt else ""
        for response in row.responses:
            texts.append(f"{start}{response}" if eos and str(response).endswith(eos) else f"{start}{response}{eos}")
    ids = encode_texts(texts, tokenizer, add_special_tokens=True)
    if eos and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:  # it appends EOS by itself
        ids = [sequence[:-1] for sequence in ids]
    return [_Encoded(part) for part in _split(ids, rows)]


def _encode_text_pairs(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase) -> list[_Encoded]:
    prompts: Any = [row.prompt for row in rows for _ in row.responses]
    responses: Any = [response for row in rows for response in row.responses]
    if all(prompts):
        batch = tokenizer(prompts, responses, return_attention_mask=False, verbose=False)
    elif not any(prompts):
        batch = tokenizer(responses, return_attention_mask=False, verbose=False)
    else:
        return [_encode_text_pairs([row], tokenizer)[0] for row in rows]
    ids = _split(batch["input_ids"], rows)
    types = _split(batch["token_type_ids"], rows) if "token_type_ids" in batch else [None] * len(rows)
    return [_Encoded(a, b) for a, b in zip(ids, types, strict=True)]


def _split(flat: Sequence[Any], rows: Sequence[PreferenceRow]) -> list[list[Any]]:
    """Give a flat list over all responses back its rows."""
    parts, start = [], 0
    for row in rows:
        parts.append(list(flat[start : start + len(row.responses)]))
        start += len(row.responses)
    return parts


# --- length ----------------------------------------------------------------------------------------------------------


def _finish(
    row: PreferenceRow, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> TokenizedRow:
    """Make a row fit `max_length`, merge its equal responses and measure its shared prefix."""
    fitted = _fit(row, encoded, tokenizer, rule)
    if fitted is None:
        return TokenizedRow(input_ids=[], token_type_ids=None, ranks=[], prefix_length=0, problem="too long")
    keep = _first_of_equals(fitted.input_ids, row.ranks)
    ids = [fitted.input_ids[place] for place in keep]
    types = None if fitted.token_type_ids is None else [fitted.token_type_ids[place] for place in keep]
    result = TokenizedRow(
        input_ids=ids,
        token_type_ids=types,
        ranks=[row.ranks[place] for place in keep],
        prefix_length=shared_prefix_length(ids),
        cut_tokens=fitted.cut_tokens,
        merged=len(fitted.input_ids) - len(keep),
    )
    if len(keep) < 2:
        result.problem = "identical responses"
    return result


def _first_of_equals(sequences: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[int]:
    """Places to keep so that no two sequences are equal; of equals the best-ranked one stays."""
    best: dict[tuple[int, ...], int] = {}
    for place, sequence in enumerate(sequences):
        other = best.setdefault(tuple(sequence), place)
        if ranks[place] < ranks[other]:
            best[tuple(sequence)] = place
    return sorted(best.values())


def _fit(
    row: PreferenceRow, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> _Encoded | None:
    if rule.max_length is None or encoded.longest() <= rule.max_length:
        return encoded
    if rule.over_length == "error":
        raise PreferenceFormatError(
            f"the longest sequence has {encoded.longest()} tokens, above max_length={rule.max_length}. Raise "
            "`max_length`, or set `over_length` to 'truncate_prompt' or 'drop'."
        )
    if rule.over_length == "drop":
        return None
    if row.is_conversational():
        return _fit_conversation(row, encoded, tokenizer, rule)
    return _fit_tokens(row, encoded, tokenizer, rule)


def _fit_tokens(
    row: PreferenceRow, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> _Encoded | None:
    """Cut the oldest prompt tokens of a text row, the same for all its responses; BOS or CLS stays."""
    assert rule.max_length is not None
    cut = encoded.longest() - rule.max_length
    first = encoded.input_ids[0][0]
    lead = 1 if first in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    shared = shared_prefix_length(encoded.input_ids)
    if row.prompt:
        prompt = str(row.prompt) if uses_text_pairs(tokenizer) else f"{row.prompt}{rule.separator}"
        prompt_ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        # Where the prompt's end and the response's start make one token, that token belongs to the response.
        shared = min(shared, lead + len(common_prefix([prompt_ids, encoded.input_ids[0][lead:]])))
    if lead + cut > shared:
        return None
    return _Encoded(
        [ids[:lead] + ids[lead + cut :] for ids in encoded.input_ids],
        encoded.token_type_ids and [types[:lead] + types[lead + cut :] for types in encoded.token_type_ids],
        cut_tokens=cut,
    )


def _fit_conversation(
    row: PreferenceRow, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> _Encoded | None:
    """Drop whole oldest turns, then the oldest tokens of the first turn that is left; the system turn stays."""
    assert rule.max_length is not None
    before = encoded.longest()
    assert isinstance(row.prompt, list)
    system, turns = _split_system(row.prompt)
    current: _Encoded | None = encoded
    while current is not None and current.longest() > rule.max_length:
        later = [place for place in range(1, len(turns)) if turns[place]["role"] == "user"]
        if not later:
            current = _cut_first_turn(row, system, turns, current.longest() - rule.max_length, tokenizer, rule)
            break
        turns = turns[later[0] :]
        current = _reencode(row, [*system, *turns], tokenizer, rule)
    if current is not None:
        current.cut_tokens = before - current.longest()
    return current


def _cut_first_turn(
    row: PreferenceRow,
    system: list[Message],
    turns: list[Message],
    excess: int,
    tokenizer: PreTrainedTokenizerBase,
    rule: FormatRule,
) -> _Encoded | None:
    content = turns[0].get("content") if turns else None
    if not isinstance(content, str):
        return None
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    # A cut can make neighbouring text merge into other tokens, so a few more may have to go.
    for cut in range(excess, min(excess + 9, len(ids))):
        shorter = {**turns[0], "content": str(tokenizer.decode(ids[cut:])).lstrip("\ufffd")}
        attempt = _reencode(row, [*system, shorter, *turns[1:]], tokenizer, rule)
        if attempt.longest() <= (rule.max_length or 0):
            return attempt
    return None


def _reencode(
    row: PreferenceRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase, rule: FormatRule
) -> _Encoded:
    shortened = PreferenceRow(prompt=prompt, responses=row.responses, ranks=row.ranks, template=row.template)
    return _encode_conversations([shortened], tokenizer, rule)[0]


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    count = 0
    while count < len(messages) and messages[count]["role"] in ("system", "developer"):
        count += 1
    return messages[:count], messages[count:]


# --- the tokenizer itself --------------------------------------------------------------------------------------------

_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_RESERVED = re.compile(r"pad|reserved|unused|filler|extra", re.IGNORECASE)


def token_id(value: Any) -> int:
    """A special token's id; the annotations of transformers also allow lists and text there."""
    return int(value)


def last_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids with which a formatted sequence of this tokenizer can end: of text, of a text pair, of its chat template."""
    ends = set()
    if tokenizer.eos_token_id is not None:
        ends.add(token_id(tokenizer.eos_token_id))
    if uses_text_pairs(tokenizer):
        ends.add(int(tokenizer("a", "b")["input_ids"][-1]))
    if tokenizer.chat_template is not None:
        ends.add(_template_ids(tokenizer)[-1])
    return ends


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a short conversation; a template that cannot render it is of no use for scoring either."""
    text = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def find_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose the pad token: never one with which a formatted sequence ends.

    Stock sequence classifiers read the reward at the last token that is not the pad token. With pad == eos they
    would read one token early, and differently on every server, so the tokenizer's own pad token is kept
    only when it is safe; else a reserved token that the template does not emit is reused; else `<|pad|>` is new.

    Args:
        tokenizer: Any tokenizer; not changed.

    Returns:
        The token; `NEW_PAD_TOKEN` may still have to be added to the vocabulary.
    """
    ends = last_token_ids(tokenizer)
    if tokenizer.pad_token_id is not None and token_id(tokenizer.pad_token_id) not in ends:
        return str(tokenizer.pad_token)
    emitted = set(ends)
    if tokenizer.chat_template is not None:
        emitted |= set(_template_ids(tokenizer))
    named: Any = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id)
    free = {
        place: token.content
        for place, token in tokenizer.added_tokens_decoder.items()
        if token.special and place not in emitted
    }
    reserved = [token for place, token in sorted(free.items()) if _RESERVED.search(token) and place not in named]
    # GPT-style vocabularies end documents with <|endoftext|>; once a chat template uses another end, it is free.
    documents = [token for token in free.values() if token == "<|endoftext|>"]
    return next(iter([*reserved, *documents]), NEW_PAD_TOKEN)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_token: str | None = None,
    eos_token: str | None = None,
    chat_template_path: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Copy a tokenizer and give the copy what a reward model needs: a safe pad token on the right.

    Args:
        tokenizer: Any tokenizer; not changed.
        pad_token: Use this pad token instead of choosing one.
        eos_token: Use this end-of-sequence token.
        chat_template_path: A Jinja file, or a tokenizer (folder or Hub id) whose template to use.
        trust_remote_code: Whether that tokenizer may bring code.

    Returns:
        The copy.

    Raises:
        ValueError: If a token is not in the vocabulary, or the pad token is one that formatted sequences end with.
    """
    result = copy.deepcopy(tokenizer)
    if eos_token is not None:
        _require_in_vocabulary(result, "eos_token", eos_token)
        result.eos_token = eos_token
    if chat_template_path is not None:
        result.chat_template = read_chat_template(chat_template_path, result, trust_remote_code)
    if pad_token is not None:
        _require_in_vocabulary(result, "pad_token", pad_token)
    token = pad_token or find_pad_token(result)
    if token != result.pad_token:
        result.add_special_tokens({"pad_token": token})
    if token_id(result.pad_token_id) in last_token_ids(result):
        raise ValueError(
            f"The pad token {token!r} is also the last token of a formatted sequence, so stock models would read the "
            "reward one token early. Leave `pad_token` unset to have a safe one chosen."
        )
    result.padding_side = "right"
    return result


def read_chat_template(path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> str:
    """Read a chat template from a Jinja file or from another tokenizer.

    Args:
        path: A `.jinja` or `.j2` file, or a tokenizer's folder or Hub id.
        tokenizer: The tokenizer that will use it.
        trust_remote_code: Whether the other tokenizer may bring code.

    Returns:
        The template's text.

    Raises:
        ValueError: If the other tokenizer has no template, or its template emits special tokens that are missing here.
    """
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    other = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not isinstance(other.chat_template, str):
        raise ValueError(f"`chat_template_path={path!r}` is a tokenizer without a chat template. Give one that has it.")
    known = tokenizer.get_vocab()
    missing = [
        token.content
        for token in other.added_tokens_decoder.values()
        if token.content in other.chat_template and token.content not in known
    ]
    if missing:
        raise ValueError(
            f"The chat template of {path!r} uses tokens that this tokenizer lacks: {', '.join(missing)}. Add them to "
            "the tokenizer and resize the model's embeddings first, or use a template made for this model."
        )
    return other.chat_template


def _require_in_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ValueError(
            f"`{name}={token!r}` is not in the vocabulary of {type(tokenizer).__name__}. "
            "Use one of its tokens, or add it and resize the model's embeddings first."
        )


def require_same_template(name: str, tokenizer: PreTrainedTokenizerBase, chat_template_path: str | None) -> None:
    """Refuse to train an SFT model under a chat template other than the one it was tuned with.

    Args:
        name: The SFT model, whose folder holds its tokenizer.
        tokenizer: The tokenizer about to be used.
        chat_template_path: The template that the settings ask for, if any.

    Raises:
        ValueError: If the model came without a template, or another one is about to be used.
    """
    own = AutoTokenizer.from_pretrained(name).chat_template
    if own is None:
        raise ValueError(
            f"{name} came without a chat template, so it cannot be checked that training uses the one of its SFT. "
            "Save the SFT tokenizer with its template into that folder, or set `require_chat_template: false`."
        )
    used = read_chat_template(chat_template_path, tokenizer) if chat_template_path else tokenizer.chat_template
    if used != own:
        raise ValueError(
            f"The chat template in use is not the one that {name} was tuned with, so the model would see turns it "
            "never "
            "learned. Remove `chat_template_path`, or set `require_chat_template: false` if the change is intended."
        )
