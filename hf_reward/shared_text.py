"""Texts of one prompt -> token ids, with what the texts share tokenised once.

Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, ...) looks at one word at a time, and a word never reaches across a single
space between two letters. A text may therefore be cut there and its parts tokenised alone, with the ids of the whole.
Where that is not certain (SentencePiece, WordPiece, unusual added tokens), every text is tokenised whole.
"""

import re
from collections.abc import Sequence

from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerBase

from hf_reward.preference_row import common_prefix

_CUT = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
_PROBES = ("Ab cd", "x. ab cd, ef's GH ij\n\nkl 2 mn op-qr St", " this IS a TEST of it's Words")
# An added token is looked for in the text before its words are; one like these could lie across or beside a cut.
_ADDED_AT_CUT = re.compile(r"[A-Za-z] [A-Za-z]|^ ?[A-Za-z]|[A-Za-z] ?$")
_FEW = 8
"""So few groups take less time than asking the tokenizer where it may be cut."""


def encode_groups(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> list[list[list[int]]]:
    """Tokenise groups of texts in one call of the tokenizer.

    Args:
        groups: The texts of each row, which begin alike: its prompt and one response.
        tokenizer: Any tokenizer.
        add_special_tokens: As in the call of a tokenizer.

    Returns:
        For each text the ids that `tokenizer(text)` has, grouped as the texts are.
    """
    if len(groups) < _FEW or not can_be_cut(tokenizer):
        ids = iter(_ids([text for group in groups for text in group], tokenizer, add_special_tokens))
        return [[next(ids) for _ in group] for group in groups]
    cuts = [last_cut(group) for group in groups]
    parts = []
    for group, cut in zip(groups, cuts, strict=True):
        parts += [group[0][:cut]] if cut else []
        parts += [text[cut:] for text in group]
    ids = iter(_ids(parts, tokenizer, add_special_tokens=False))
    lead, trail = _special_ids(tokenizer) if add_special_tokens else ([], [])
    joined = []
    for group, cut in zip(groups, cuts, strict=True):
        shared = lead + next(ids) if cut else lead
        joined.append([shared + next(ids) + trail for _ in group])
    return joined


def last_cut(texts: Sequence[str]) -> int:
    """Last place in what texts share where a space lies between two letters; 0 if there is none."""
    shared = common_prefix(texts)
    assert isinstance(shared, str)
    place = shared.rfind(" ")
    while place > 0 and not _CUT.match(shared, place):
        place = shared.rfind(" ", 0, place)
    return max(place, 0)


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the ids of a text are those of its parts, when cut at a space between two ASCII letters.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        True where it is certain: byte-pair encoding of single words, without a normalizer that sees more than a letter.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        return False
    if not isinstance(backend.model, models.BPE) or backend.model.dropout:
        return False
    if not isinstance(backend.normalizer, (type(None), normalizers.NFC)):
        return False
    if any(_ADDED_AT_CUT.search(token.content) for token in tokenizer.added_tokens_decoder.values()):
        return False
    return all(_keeps_ids(probe, tokenizer) for probe in _PROBES)


def _keeps_ids(probe: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each cut of a text is the start of a word and changes no id."""
    places = [match.start() for match in _CUT.finditer(probe)]
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(probe)  # type: ignore[attr-defined]
    parts = [probe[start:end] for start, end in zip([0, *places], [*places, None], strict=True)]
    whole, *cut = _ids([probe, *parts], tokenizer, add_special_tokens=False)
    return {start for _, (start, _) in words} >= set(places) and whole == [token for ids in cut for token in ids]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    (plain,), (whole,) = (_ids(["a"], tokenizer, add) for add in (False, True))
    start = next(place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    batch = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return batch["input_ids"]
