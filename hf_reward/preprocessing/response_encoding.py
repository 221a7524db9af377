"""Encode scoring requests as token ids, formatted as in training and independent of the other requests."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.row_remarks import remark_clauses
from hf_reward.data.score_request import ScoreRequest
from hf_reward.preprocessing.text_limits import (
    CHARACTERS_PER_TOKEN,
    UNLIMITED_TOKENS,
    TextLimits,
    characters_of,
    too_large,
)
from hf_reward.preprocessing.tokenization import FormatRule, TokenizedRow, tokenize_responses
from hf_reward.preprocessing.tokenizer import uses_text_pairs

logger = logging.getLogger(__name__)

CONVERSATIONS, TEXT = "conversations", "text"
"""The two kinds of training rows."""
_ALLOW_EMPTY = "`allow_empty=True` (`--allow-empty` on the command line)"
"""Both forms: a client of a server passes a field of the request, although the server is a command."""
_REPEATS = (
    "the response starts with its complete prompt, which would be encoded twice; remove the prompt from the response, "
    "or, if it is a quotation, pass both as `messages` with a user turn and an assistant turn"
)


@dataclass(frozen=True, kw_only=True)
class EncodedResponse:
    """The token ids of one request, or the reason why it cannot be scored."""

    input_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] | None = None
    images: list[Any] = field(default_factory=list)
    """The `ExpandedImage` of each image of the prompt."""
    cut_tokens: int = 0
    """Prompt tokens removed to fit the model, without the part of a very long prompt that was never tokenised."""
    characters: int | None = None
    """Length of the response's text; None if unknown."""
    problem: str = ""
    """Reason why the request cannot be scored, or empty."""
    is_too_large: bool = False
    """Whether the text is so long that it was not tokenised."""
    public_problem: str = ""
    """The reason without any of the text, for responses to other users."""

    def __post_init__(self) -> None:
        if not self.public_problem:
            object.__setattr__(self, "public_problem", self.problem)


@dataclass(frozen=True, kw_only=True)
class ResponseEncoder:
    """Encoder of one model's texts."""

    tokenizer: PreTrainedTokenizerBase
    rule: FormatRule
    rows: str
    """`CONVERSATIONS`: text prompts and responses become turns of the chat template. `TEXT`: they are concatenated, or
    encoded as a text pair."""
    max_tokens: int = UNLIMITED_TOKENS
    """If the rule has no `max_length`, longer sequences are refused instead of cut."""
    ignored_end_token: int | None = None
    """A token that unmodified classifiers skip at the end of a sequence: the pad token of an imported model."""
    images: Any = None
    """`ImageProcessing` of a vision-language model."""
    _logged: set[str] = field(default_factory=set, repr=False, compare=False)
    """Remarks that have been logged."""

    def encode(self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False) -> list[EncodedResponse]:
        """Tokenise requests. A request that cannot be scored has a reason and does not affect the others.

        Args:
            requests: The requests.
            allow_empty: Whether a response may be empty.

        Returns:
            Token ids or a reason for each request, in order.
        """
        found: list[EncodedResponse | None] = [None] * len(requests)
        for place, request in enumerate(requests):
            if not allow_empty and request.is_empty():
                what = "text" if request.formatted else "response"
                problem = f"the {what} is empty; to score it anyway, set {_ALLOW_EMPTY}"
                found[place] = EncodedResponse(problem=problem)
            elif problem := self._limits.problem(request):
                found[place] = EncodedResponse(problem=problem, is_too_large=True)
            elif request.repeats_prompt:
                found[place] = EncodedResponse(problem=_REPEATS)
            elif self._limits.is_long(request):
                found[place] = replace(self._encode_long(request), characters=request.characters)
        for formatted, encode in ((False, self._encode_rows), (True, self._encode_formatted)):
            places = [place for place, each in enumerate(found) if each is None]
            places = [place for place in places if requests[place].formatted == formatted]
            encoded = self._encode_or_bisect(encode, [requests[place] for place in places])
            self._log_remarks([tokens for tokens in encoded if isinstance(tokens, TokenizedRow)])
            for place, tokens in zip(places, encoded, strict=True):
                found[place] = replace(self._finish(tokens), characters=requests[place].characters)
        self._log_cuts([each for each in found if each is not None])
        return [each for each in found if each is not None]

    def _log_remarks(self, rows: Sequence[TokenizedRow]) -> None:
        """Log each remark once, with its count in the first call in which it occurs."""
        counts = Counter(remark for row in rows for remark in row.remarks if remark not in self._logged)
        self._logged.update(counts)
        for clause in remark_clauses(counts):
            logger.warning("Of %s texts to be scored, %s. This warning is logged once.", len(rows), clause)

    def _log_cuts(self, encoded: Sequence[EncodedResponse]) -> None:
        cut = sum(each.cut_tokens > 0 for each in encoded)
        if not cut or "cut" in self._logged:
            return
        self._logged.add("cut")
        logger.warning(
            "%s of %s texts are longer than the model's limit of %s tokens. The oldest part of their prompts is left "
            "out, so their rewards may differ from those of the full texts. This warning is logged once; the number of "
            "cut texts is in `ScoreResult.cut`.",
            cut,
            len(encoded),
            self.rule.max_length,
        )

    def _encode_or_bisect(self, encode: Any, requests: list[ScoreRequest]) -> list[TokenizedRow | EncodedResponse]:
        """Encode all requests in one call; if it fails, bisect them to find the failing requests."""
        if not requests:
            return []
        try:
            return encode(requests)
        except Exception as error:  # tokenizers and templates may raise any exception
            if len(requests) == 1:
                return [_refused(error, requests[0])]
        middle = len(requests) // 2  # bisection keeps the cost of a few bad texts low
        return [
            tokens for part in (requests[:middle], requests[middle:]) for tokens in self._encode_or_bisect(encode, part)
        ]

    def _encode_rows(self, requests: list[ScoreRequest]) -> list[TokenizedRow]:
        return tokenize_responses([self._row(request) for request in requests], *self._settings)

    def _row(self, request: ScoreRequest) -> PreferenceRow:
        row = request.as_row(conversational=self.rows == CONVERSATIONS)
        row = row if self.images is None else self.images.expanded(row)
        return _as_text(row) if self.tokenizer.chat_template is None else row

    def _encode_long(self, request: ScoreRequest) -> EncodedResponse:
        """Encode a very long prompt: only its kept part is tokenised, with the same ids as in the full text."""
        try:
            row = self._row(request)
            keep = CHARACTERS_PER_TOKEN * (self.rule.max_length or 0)
            while (short := self._limits.shortened(row, keep)) is not None:
                if characters_of(short.prompt) > self._limits.full_prompt:
                    break
                (tokens,) = tokenize_responses([short], *self._settings)
                if tokens.problem:
                    limit = self.rule.max_length
                    return EncodedResponse(problem=f"too long: its prompt cannot be cut to fit max_length={limit}")
                if tokens.cut_tokens:
                    self._log_remarks([tokens])
                    return self._finish(tokens)
                keep *= 4
            size = characters_of(row.prompt)
            if size > self._limits.full_prompt:
                return EncodedResponse(problem=too_large("prompt", size, self._limits.full_prompt), is_too_large=True)
            (tokens,) = tokenize_responses([row], *self._settings)
            self._log_remarks([tokens])
            return self._finish(tokens)
        except Exception as error:  # tokenizers and templates may raise any exception
            return _refused(error, request)

    @cached_property
    def _limits(self) -> TextLimits:
        return TextLimits(tokenizer=self.tokenizer, rule=self.rule, max_tokens=self.max_tokens)

    def copy(self) -> "ResponseEncoder":
        """Return a copy with its own tokenizer, because two threads must not share a tokenizer's state."""
        return replace(self, tokenizer=deepcopy(self.tokenizer), images=deepcopy(self.images))

    def _encode_formatted(self, requests: list[ScoreRequest]) -> list[TokenizedRow]:
        """Encode formatted texts. The only added special token is the BOS with which the model's texts start.

        As in training, a text row whose tokenizer adds no BOS keeps a BOS that is part of the text.
        """
        if uses_text_pairs(self.tokenizer):  # there is no template, so the tokenizer adds its special tokens
            return tokenize_responses([request.as_row(conversational=False) for request in requests], *self._settings)
        bos = str(self.tokenizer.bos_token or "")
        texts = [str(request.response) for request in requests]
        writes_bos = [bool(bos) and text.startswith(bos) for text in texts]
        while bos and any(text.startswith(bos) for text in texts):
            texts = [text.removeprefix(bos) for text in texts]
        lead = self._leading_bos()
        batch = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        written = [self.tokenizer.bos_token_id] if self.rows == TEXT and not lead else lead
        ids = [
            [*(written if writes else lead), *dropwhile(lambda token: token == self.tokenizer.bos_token_id, each)]
            for each, writes in zip(_ids(batch), writes_bos, strict=True)
        ]
        rows = [PreferenceRow(prompt="", responses=[""], ranks=[0], token_ids=[each]) for each in ids]
        return tokenize_responses(rows, *self._settings)

    @property
    def _settings(self) -> tuple[PreTrainedTokenizerBase, FormatRule]:
        return self.tokenizer, self.rule

    def _leading_bos(self) -> list[int]:
        """Return the BOS tokens with which the model's texts start: one or none, unless the template prints more."""
        sample = ScoreRequest(prompt="a", response="b").as_row(conversational=self.rows == CONVERSATIONS)
        ids = tokenize_responses([sample], *self._settings)[0].input_ids[0]
        return list(takewhile(lambda token: token == self.tokenizer.bos_token_id, ids))

    def _finish(self, tokens: TokenizedRow | EncodedResponse) -> EncodedResponse:
        if isinstance(tokens, EncodedResponse):
            return tokens
        if tokens.problem:
            return EncodedResponse(problem=tokens.problem)
        ids = list(tokens.input_ids[0])
        types = list(tokens.token_type_ids[0]) if tokens.token_type_ids else None
        if types is None:
            while len(ids) > 1 and ids[-1] == self.ignored_end_token:
                ids.pop()
        if not ids:
            return EncodedResponse(problem="the text has no tokens")
        if self.images is not None and (problem := self.images.token_problem([ids], tokens.images)):
            return EncodedResponse(problem=problem)
        if self.rule.max_length is None and len(ids) > self.max_tokens:
            return EncodedResponse(problem=too_many_tokens(len(ids), self.max_tokens), is_too_large=True)
        return EncodedResponse(input_ids=ids, token_type_ids=types, images=tokens.images, cut_tokens=tokens.cut_tokens)


def too_many_tokens(count: int, limit: int) -> str:
    """Return the message for a sequence that is too long for a model without `max_length`.

    Args:
        count: Tokens of the sequence.
        limit: Largest number of tokens.

    Returns:
        A clause.
    """
    return (
        f"too long: {count:,} tokens, above the limit of {limit:,}. The model has no recorded `max_length`, so prompts "
        "are not cut; to cut them, set `max_length` (`--max-length` on the command line)"
    )


def _as_text(row: PreferenceRow) -> PreferenceRow:
    """Convert a question and an answer to text for models without chat template; longer conversations need one."""
    if isinstance(row.prompt, str):
        return row
    response: Any = row.responses[0]
    turns = [*row.prompt, *response]
    if [turn["role"] for turn in turns] not in (["user", "assistant"], ["assistant"]):
        roles = f" ({', '.join(turn['role'] for turn in turns)[:80]})"
        raise PreferenceFormatError(
            "the model has no chat template, so a row must have one user turn and one assistant turn, but has other "
            f"turns{roles}. Join the turns into one text in the model's format",
            repeats=roles,
        )
    contents = [turn["content"] or "" for turn in turns]
    return PreferenceRow(prompt="".join(contents[:-1]), responses=[contents[-1]], ranks=[0])


def _ids(batch: Any) -> list[list[int]]:
    return batch["input_ids"]


def _refused(error: Exception, request: ScoreRequest) -> EncodedResponse:
    try:
        json.dumps([request.prompt, request.response], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        problem = "the text has a lone surrogate, which is half a character; decode the data as UTF-8 again"
        return EncodedResponse(problem=problem)
    if isinstance(error, PreferenceFormatError):
        return EncodedResponse(problem=_one_line(error.message), public_problem=_one_line(error.public_message))
    kind = type(error).__name__
    return EncodedResponse(
        problem=_one_line(f"{kind}: {error}"), public_problem=f"the tokenizer or the chat template failed ({kind})"
    )


def _one_line(message: str) -> str:
    return " ".join(message.split())[:500]
