"""Any tokenizer -> a copy that suits a reward model: a pad token with which no text ends, padding on the right."""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward.preprocessing.template_clock import freeze_clock

logger = logging.getLogger(__name__)

NEW_PAD_TOKEN = "<|pad|>"

_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_RESERVED = re.compile(r"pad|reserved|unused|filler|extra", re.IGNORECASE)


def uses_text_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text rows are given as (prompt, response) pairs: encoders, that is, without chat template."""
    return tokenizer.chat_template is None and bool(tokenizer.cls_token and tokenizer.sep_token)


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer knows more than its special tokens.

    From a folder without the files of a tokenizer transformers makes, for nearly ninety architectures, one that has no
    others: it gives all words the same unknown token, or none.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        False if it would give every text the same token ids.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return bool(tokenizer.get_vocab().keys() - added - {*tokenizer.all_special_tokens, "\u2581"})


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


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Format a conversation with the tokenizer's chat template, which is a program and may come from a stranger.

    transformers runs it in Jinja's sandbox: no files, no attributes that lead to Python's own, no long ranges.

    A content that is null is left out, as transformers itself does: DeepSeek's templates print tool calls only where
    there is no content, not even an empty one. Templates that fail without a content get an empty one.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        **options: Further arguments for the template.

    Returns:
        The text.

    Raises:
        ValueError: If the template cannot format it, whatever the reason.
    """
    conversation: Any = [{name: value for name, value in turn.items() if value is not None} for turn in messages]
    lacks = [place for place, turn in enumerate(conversation) if "content" not in turn]
    try:
        try:
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
        except Exception:  # a template can raise whatever Python can
            if not lacks:
                raise
            for place in lacks:
                conversation[place] = {**conversation[place], "content": ""}
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the chat template cannot render the conversation: {reason}") from error


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a short conversation; a template that cannot render it is of no use for scoring either."""
    text = render_chat(tokenizer, _PROBE)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError("the chat template cannot render the conversation: it makes no token of it")
    return ids


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
    """Copy a tokenizer and give the copy what a reward model needs: a safe pad token on the right, and no clock.

    Args:
        tokenizer: Any tokenizer; not changed.
        pad_token: Use this pad token instead of choosing one.
        eos_token: Use this end-of-sequence token.
        chat_template_path: A Jinja file, or a tokenizer (folder or Hub id) whose template to use.
        trust_remote_code: Whether that tokenizer may bring code.

    Returns:
        The copy.

    Raises:
        ValueError: If the tokenizer has no vocabulary, a token is not in it, the pad token is one that formatted
            sequences end with, or the date that the chat template prints cannot be fixed.
    """
    if not has_vocabulary(tokenizer):
        where = f" in {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
        raise ValueError(
            f"The tokenizer has no words, so all texts would have the same token ids: its files are missing{where}. "
            "Save the model's tokenizer there (`tokenizer.save_pretrained(...)`)."
        )
    result = copy.deepcopy(tokenizer)
    if eos_token is not None:
        _require_in_vocabulary(result, "eos_token", eos_token)
        result.eos_token = eos_token
    if chat_template_path is not None:
        result.chat_template = read_chat_template(chat_template_path, result, trust_remote_code, add_missing=True)
    freeze_clock(result)
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


def read_chat_template(
    path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False, *, add_missing: bool = False
) -> str:
    """Read a chat template from a Jinja file or from another tokenizer.

    Args:
        path: A `.jinja` or `.j2` file, or a tokenizer's folder or Hub id.
        tokenizer: The tokenizer that will use it.
        trust_remote_code: Whether the other tokenizer may bring code.
        add_missing: Add to the tokenizer, in place, special tokens that the template emits and that are missing there;
            the model then needs embeddings for them, which have to be trained.

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
        token
        for token in other.added_tokens_decoder.values()
        if token.content in other.chat_template and token.content not in known
    ]
    names = [token.content for token in missing]
    if missing and add_missing:
        tokenizer.add_tokens(missing)  # pyright: ignore[reportArgumentType] - as special as they are there
        logger.warning(
            "The chat template of %r uses tokens that the tokenizer lacked: %s. They were added, and their embeddings "
            "start random.",
            path,
            ", ".join(names),
        )
    elif missing:
        raise ValueError(
            f"The chat template of {path!r} uses tokens that this tokenizer lacks: {', '.join(names)}. Add them to "
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
