"""Tokenise texts faster by tokenising repeated words only once.

The two sides of a preference share their prompt, and texts repeat words. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM,
...) encodes one word at a time, and no word extends across the single space between a letter (or one of ,.?!) and a
letter. A text can therefore be cut at such a space: its pieces, tokenised separately, have the same ids. If this is not
certain (SentencePiece, WordPiece, unusual added tokens), every text is tokenised in one piece.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CUT = re.compile(r" (?<=[A-Za-z,.?!] )(?=[A-Za-z])")
"""Safe cut position of a text: before the space between two words; the second word then starts with this space."""
_ENDS_AT_CUT = re.compile(r"[A-Za-z,.?!]\Z")
# Added tokens are matched before words. Tokens of this form could extend across a cut or touch it.
_ADDED_AT_CUT = re.compile(r"[A-Za-z,.?!] [A-Za-z]|^ ?[A-Za-z]|[A-Za-z,.?!] ?$")
_PROBES = ("Ab cd", "x. ab cd, ef's GH ij\n\nkl 2 mn op-qr St", " this IS a TEST of it's Words! no? Yes, it is.")
_FEW = 32
"""For fewer texts, checking whether cuts are safe takes longer than it saves."""
_CHECKED = 8
"""Texts per batch that are tokenised both ways as a check."""
_JOINED = 2000
"""Length in characters of the strings in which pieces are tokenised together."""


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> list[list[int]]:
    """Tokenise texts.

    Args:
        texts: Any texts.
        tokenizer: Any tokenizer.
        add_special_tokens: As in a tokenizer call.

    Returns:
        The ids of each text, equal to those of `tokenizer(text)`.
    """
    if len(texts) < _FEW or not can_be_cut(tokenizer):
        return _ids(texts, tokenizer, add_special_tokens)
    pieces = [CUT.split(text) for text in texts]
    starts = list({piece[0] for piece in pieces})
    rest = list(set(chain.from_iterable(piece[1:] for piece in pieces)))
    start_ids = dict(zip(starts, _ids(starts, tokenizer), strict=True))
    rest_ids = dict(zip(rest, _ids_of_pieces([f" {piece}" for piece in rest], tokenizer), strict=True))
    lead, trail = _special_ids(tokenizer) if add_special_tokens else ([], [])
    encoded = [
        [*lead, *start_ids[piece[0]], *chain.from_iterable(map(rest_ids.__getitem__, piece[1:])), *trail]
        for piece in pieces
    ]
    # Wrong ids would silently change the model, so some texts of each batch are also tokenised in one piece.
    sample = range(0, len(texts), max(1, len(texts) // _CHECKED))
    if _ids([texts[place] for place in sample], tokenizer, add_special_tokens) == [encoded[place] for place in sample]:
        return encoded
    logger.warning(
        "With this tokenizer, texts that are tokenised in pieces have different token ids. All texts are tokenised in "
        "one piece instead, which is slower."
    )
    return _ids(texts, tokenizer, add_special_tokens)


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether texts can be tokenised in pieces that are cut before a space between two words.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        True if this is certain: byte-pair encoding of single words, with at most a normalizer of single letters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(getattr(backend, "model", None), models.BPE) or not cuts_keep_ids(tokenizer):
        return False
    if not isinstance(getattr(backend, "normalizer", None), (type(None), normalizers.NFC)):
        return False
    # Pieces are tokenised in one string and separated at the spaces with which their first tokens start.
    return all({start for start, _ in _words(probe, tokenizer)} >= set(_cuts(probe)) for probe in _PROBES)


def cuts_keep_ids(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a text and its pieces have the same ids, wherever it is cut.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        True if this is certain: the model encodes single words, no word extends across a cut, and the normalizer treats
        each letter and space independently of its neighbours.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None or getattr(backend.model, "dropout", None):
        return False
    if not isinstance(backend.model, models.BPE | models.WordPiece | models.Unigram | models.WordLevel):
        return False
    if backend.normalizer is not None and not _is_local(json.loads(backend.normalizer.__getstate__())):
        return False
    return _is_free_of_added_tokens(tokenizer) and _pieces_keep_ids(tokenizer)


_LOCAL = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt", "Precompiled", "ByteLevel"),
    *("Strip", "Prepend"),  # these change only the ends of a text, which are not cut
}
_AT_CUT = re.compile(r"[A-Za-z ,.?!]")


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    kind = normalizer["type"]
    if kind == "Sequence":
        return all(_is_local(each) for each in normalizer["normalizers"])
    if kind == "Replace":
        text, regex = normalizer["pattern"].get("String"), normalizer["pattern"].get("Regex")
        return regex == " {2,}" if text is None else len(text) == 1 or not _AT_CUT.search(text)
    return kind in _LOCAL


def _is_free_of_added_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether no added token can extend across a cut or touch it."""
    return not any(_ADDED_AT_CUT.search(token.content) for token in tokenizer.added_tokens_decoder.values())


def _pieces_keep_ids(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether, in a few test texts, no word extends across a cut and the pieces have the same ids."""
    for probe in _PROBES:
        cuts = _cuts(probe)
        if any(start < place < end for start, end in _words(probe, tokenizer) for place in cuts):
            return False
        pieces = [probe[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
        full, *parts = _ids([probe, *pieces], tokenizer)
        if full != list(chain.from_iterable(parts)):
            return False
    return True


def _cuts(text: str) -> list[int]:
    return [match.start() for match in CUT.finditer(text)]


def _words(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Return the start and end of each word of a text."""
    backend: Any = tokenizer
    return [place for _, place in backend.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _ids_of_pieces(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the ids of pieces that start with a space and a letter; pieces that end at a safe cut are joined."""
    together = [_ENDS_AT_CUT.search(piece) is not None for piece in pieces]
    joined = _ids_of_joined([piece for piece, joins in zip(pieces, together, strict=True) if joins], tokenizer)
    alone = iter(_ids([piece for piece, joins in zip(pieces, together, strict=True) if not joins], tokenizer))
    return (next(joined if joins else alone) for joins in together)


def _ids_of_joined(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the ids of pieces that can be concatenated: one string of many pieces costs little more than one piece."""
    if not pieces:
        return
    ends = np.cumsum([len(piece) for piece in pieces])
    strings = np.split(np.arange(len(pieces)), np.flatnonzero(np.diff(ends // _JOINED)) + 1)
    texts = ["".join(pieces[places[0] : places[-1] + 1]) for places in strings]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for places, text, tokens, offsets in zip(strings, texts, batch["input_ids"], batch["offset_mapping"], strict=True):
        piece_ends = ends[places] - ends[places[-1]] + len(text)
        # Each token ends inside its piece; the next piece's first token contains at least the space after it.
        stops = np.searchsorted([end for _, end in offsets], piece_ends, side="right").tolist()
        yield from (tokens[start:stop] for start, stop in pairwise([0, *stops]))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after a text."""
    (plain,), (full,) = (_ids(["a"], tokenizer, add) for add in (False, True))
    start = next(place for place in range(len(full)) if full[place : place + len(plain)] == plain)
    return full[:start], full[start + len(plain) :]


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool = False) -> list[list[int]]:
    if not texts:
        return []
    batch = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return batch["input_ids"]
