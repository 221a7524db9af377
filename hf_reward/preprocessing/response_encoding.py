"""Requests -> token ids, each formatted as the model's own texts were in training, each on its own."""

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
"""The two kinds of rows that a model can have been trained on."""
_REPEATS = (
    "the response begins with its whole prompt, which the model would read twice; cut the prompt off, or, if the "
    "response does quote it, give both as `messages`, a user turn and an assistant turn"
)


@dataclass(frozen=True, kw_only=True)
class EncodedResponse:
    """The token ids of one request, or why there are none."""

    input_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] | None = None
    cut_tokens: int = 0
    """Prompt tokens cut away to fit the model; without those of a very long prompt that were never made."""
    characters: int | None = None
    """Length of the response's text, None where that is not known."""
    problem: str = ""
    """Why it cannot be scored, or empty."""
    is_too_large: bool = False
    """Whether that is a size at which it is not even tokenised."""
    public_problem: str = ""
    """The same without any of the text, for answers to other people."""

    def __post_init__(self) -> None:
        if not self.public_problem:
            object.__setattr__(self, "public_problem", self.problem)


@dataclass(frozen=True, kw_only=True)
class ResponseEncoder:
    """How one model's texts become token ids."""

    tokenizer: PreTrainedTokenizerBase
    rule: FormatRule
    rows: str
    """`CONVERSATIONS`: text prompts and responses are turns of the chat template. `TEXT`: they stand one after the
    other, or are a text pair."""
    max_tokens: int = UNLIMITED_TOKENS
    """Longer sequences are refused, and not cut, where the rule has no `max_length`."""
    ignored_end_token: int | None = None
    """A token that stock classifiers pass over at the end of a sequence: the pad token of a foreign model."""
    _said: set[str] = field(default_factory=set, repr=False, compare=False)
    """Remarks that were logged."""

    def encode(self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False) -> list[EncodedResponse]:
        """Tokenise requests. One that cannot be scored says why and stops no other.

        Args:
            requests: What to score.
            allow_empty: Whether a response may be empty.

        Returns:
            Token ids for each request, in order.
        """
        found: list[EncodedResponse | None] = [None] * len(requests)
        for place, request in enumerate(requests):
            if not allow_empty and request.is_empty():
                what = "text" if request.formatted else "response"
                problem = f"the {what} is empty; `allow_empty` (`--allow-empty`) scores it all the same"
                found[place] = EncodedResponse(problem=problem)
            elif problem := self._bounds.problem(request):
                found[place] = EncodedResponse(problem=problem, is_too_large=True)
            elif request.repeats_prompt:
                found[place] = EncodedResponse(problem=_REPEATS)
            elif self._bounds.is_long(request):
                found[place] = replace(self._encode_long(request), characters=request.characters)
        for formatted, encode in ((False, self._encode_rows), (True, self._encode_formatted)):
            places = [place for place, each in enumerate(found) if each is None]
            places = [place for place in places if requests[place].formatted == formatted]
            encoded = self._one_by_one_if_need_be(encode, [requests[place] for place in places])
            self._warn_of([tokens for tokens in encoded if isinstance(tokens, TokenizedRow)])
            for place, tokens in zip(places, encoded, strict=True):
                found[place] = replace(self._finish(tokens), characters=requests[place].characters)
        self._warn_of_cuts([each for each in found if each is not None])
        return [each for each in found if each is not None]

    def _warn_of(self, rows: Sequence[TokenizedRow]) -> None:
        """Say once what is changed or lost in texts, with the count of the first call in which that happens."""
        counts = Counter(remark for row in rows for remark in row.remarks if remark not in self._said)
        self._said.update(counts)
        for clause in remark_clauses(counts):
            logger.warning("Of %s texts to be scored, %s. This is said once.", len(rows), clause)

    def _warn_of_cuts(self, encoded: Sequence[EncodedResponse]) -> None:
        cut = sum(each.cut_tokens > 0 for each in encoded)
        if not cut or "cut" in self._said:
            return
        self._said.add("cut")
        logger.warning(
            "%s of %s texts are longer than the %s tokens that this model reads, so the oldest part of their prompts "
            "is left out, and their rewards are not those of the whole texts. Later ones are counted "
            "(`ScoreResult.cut`), but not warned of again.",
            cut,
            len(encoded),
            self.rule.max_length,
        )

    def _one_by_one_if_need_be(self, encode: Any, requests: list[ScoreRequest]) -> list[TokenizedRow | EncodedResponse]:
        """Encode all in one call; if a text stops it, find out which."""
        if not requests:
            return []
        try:
            return encode(requests)
        except Exception as error:  # tokenizers and templates raise what they like at texts that they cannot take
            if len(requests) == 1:
                return [_refused(error, requests[0])]
        middle = len(requests) // 2  # halves, so that a few bad texts among many cost little
        return [
            tokens
            for part in (requests[:middle], requests[middle:])
            for tokens in self._one_by_one_if_need_be(encode, part)
        ]

    def _encode_rows(self, requests: list[ScoreRequest]) -> list[TokenizedRow]:
        return tokenize_responses([self._row(request) for request in requests], *self._settings)

    def _row(self, request: ScoreRequest) -> PreferenceRow:
        row = request.as_row(conversational=self.rows == CONVERSATIONS)
        return _as_text(row) if self.tokenizer.chat_template is None else row

    def _encode_long(self, request: ScoreRequest) -> EncodedResponse:
        """A prompt that is far too long: only what can be kept of it is tokenised, with the ids of the whole."""
        try:
            row = self._row(request)
            keep = CHARACTERS_PER_TOKEN * (self.rule.max_length or 0)
            while (short := self._bounds.shortened(row, keep)) is not None:
                if characters_of(short.prompt) > self._bounds.whole:
                    break
                (tokens,) = tokenize_responses([short], *self._settings)
                if tokens.problem:
                    limit = self.rule.max_length
                    return EncodedResponse(problem=f"too long: its prompt cannot be cut to fit max_length={limit}")
                if tokens.cut_tokens:
                    self._warn_of([tokens])
                    return self._finish(tokens)
                keep *= 4
            size = characters_of(row.prompt)
            if size > self._bounds.whole:
                return EncodedResponse(problem=too_large("prompt", size, self._bounds.whole), is_too_large=True)
            (tokens,) = tokenize_responses([row], *self._settings)
            self._warn_of([tokens])
            return self._finish(tokens)
        except Exception as error:  # as above
            return _refused(error, request)

    @cached_property
    def _bounds(self) -> TextLimits:
        return TextLimits(tokenizer=self.tokenizer, rule=self.rule, max_tokens=self.max_tokens)

    def copy(self) -> "ResponseEncoder":
        """The same with a tokenizer of its own: tokenizers have a state, which two threads must not share."""
        return replace(self, tokenizer=deepcopy(self.tokenizer))

    def _encode_formatted(self, requests: list[ScoreRequest]) -> list[TokenizedRow]:
        """Whole texts: no special token is added but the BOS with which this model's texts begin.

        Rows of text whose tokenizer adds no BOS begin with one where the text writes it, as in training.
        """
        if uses_text_pairs(self.tokenizer):  # no template was applied; special tokens are the tokenizer's
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
        """The BOS tokens with which this model's texts begin: one or none, but for templates that write more."""
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
        if self.rule.max_length is None and len(ids) > self.max_tokens:
            return EncodedResponse(problem=too_many_tokens(len(ids), self.max_tokens), is_too_large=True)
        return EncodedResponse(input_ids=ids, token_type_ids=types, cut_tokens=tokens.cut_tokens)


def too_many_tokens(count: int, limit: int) -> str:
    """Say that a sequence of a model without `max_length` is too long.

    Args:
        count: Its tokens.
        limit: The most it may have.

    Returns:
        A clause.
    """
    return (
        f"too long: {count:,} tokens. The model records no `max_length`, so nothing is cut, and no more than {limit:,} "
        "are read at once; `max_length` (`--max-length`) sets a limit to which prompts are cut"
    )


def _as_text(row: PreferenceRow) -> PreferenceRow:
    """A single question and its answer as text, for models without chat template; longer talks need one."""
    if isinstance(row.prompt, str):
        return row
    response: Any = row.responses[0]
    turns = [*row.prompt, *response]
    if [turn["role"] for turn in turns] not in (["user", "assistant"], ["assistant"]):
        roles = f" ({', '.join(turn['role'] for turn in turns)[:80]})"
        raise PreferenceFormatError(
            f"the model has no chat template, so it takes one question and one answer, but the turns are others{roles}"
            ". Join the turns into one text as the model expects them.",
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
        problem = "the text holds half a surrogate pair, which is no character; decode the data as UTF-8 again"
        return EncodedResponse(problem=problem)
    if isinstance(error, PreferenceFormatError):
        return EncodedResponse(problem=_one_line(error.message), public_problem=_one_line(error.public_message))
    kind = type(error).__name__
    return EncodedResponse(
        problem=_one_line(f"{kind}: {error}"), public_problem=f"the tokenizer or the chat template failed ({kind})"
    )


def _one_line(message: str) -> str:
    return " ".join(message.split())[:500]
