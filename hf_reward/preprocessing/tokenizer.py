"""Prepare tokenizers for reward models: a safe pad token, padding on the right, and a fixed date in the template."""

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.preprocessing.template_clock import freeze_clock

logger = logging.getLogger(__name__)

NEW_PAD_TOKEN = "<|pad|>"

_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_RESERVED = re.compile(r"pad|reserved|unused|filler|extra", re.IGNORECASE)


def uses_text_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether text rows are encoded as (prompt, response) pairs, as for encoders without chat template."""
    return tokenizer.chat_template is None and bool(tokenizer.cls_token and tokenizer.sep_token)


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has more than special tokens.

    From a folder without tokenizer files, transformers creates a tokenizer without a vocabulary for nearly ninety
    architectures. It encodes every word as the same unknown token, or as no token.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        False if all texts would have the same token ids.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return bool(tokenizer.get_vocab().keys() - added - {*tokenizer.all_special_tokens, "\u2581"})


def adds_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer adds special tokens, such as BOS, to a text by default."""
    return tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]


def without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that adds no special tokens to a text, because the chat template writes all of them.

    Programs that tokenise a formatted conversation with the default options, such as transformers' pipelines, would
    otherwise add a second BOS and get another reward.

    Args:
        tokenizer: A tokenizer with a chat template; it is not changed.

    Returns:
        A copy, or the tokenizer itself if it adds no tokens.
    """
    if not adds_special_tokens(tokenizer):
        return tokenizer
    result: Any = copy.deepcopy(tokenizer)
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(result, name):
            setattr(result, name, False)  # replaces the post-processor of fast tokenizers
    before = getattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor", None)
    if before is not None:
        result.backend_tokenizer.post_processor = _without_tokens(json.loads(before.__getstate__()))
    if adds_special_tokens(result):
        logger.warning(
            "%s adds special tokens to texts, and this cannot be switched off. Programs that tokenise formatted "
            "conversations with it must set `add_special_tokens=False`, or rewards differ.",
            type(tokenizer).__name__,
        )
    return result


def _without_tokens(state: dict[str, Any]) -> Any:
    """Return a post-processor without special tokens; a `ByteLevel` part, which trims offsets, stays."""
    steps: list[Any] = [processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])]
    for step in state.get("processors", [state]):
        if step["type"] == "ByteLevel":
            kept = processors.ByteLevel()
            kept.__setstate__(json.dumps(step).encode())
            steps.insert(0, kept)
    return processors.Sequence(steps) if len(steps) > 1 else steps[0]


def token_id(value: Any) -> int:
    """Return a special token's id as an int; the annotations of transformers also allow lists and text."""
    return int(value)


def last_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the token ids that can end a formatted sequence: text, text pair or chat template."""
    ends = set()
    if tokenizer.eos_token_id is not None:
        ends.add(token_id(tokenizer.eos_token_id))
    if uses_text_pairs(tokenizer):
        ends.add(int(tokenizer("a", "b")["input_ids"][-1]))
    if tokenizer.chat_template is not None:
        ends.add(_template_ids(tokenizer)[-1])
    return ends


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Format a conversation with the tokenizer's chat template, which is a program and may be untrusted.

    transformers runs it in Jinja's sandbox: without files, access to Python internals and long ranges.

    A null content is omitted, as in transformers: DeepSeek's templates print tool calls only without any content, even
    an empty one. Templates that fail without a content get an empty one.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        **options: Further arguments for the template.

    Returns:
        The text.

    Raises:
        ValueError: If the template cannot format the conversation, for any reason.
    """
    conversation: Any = [{name: value for name, value in turn.items() if value is not None} for turn in messages]
    lacks = [place for place, turn in enumerate(conversation) if "content" not in turn]
    try:
        try:
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
        except Exception:  # a template may raise any exception
            if not lacks:
                raise
            for place in lacks:
                conversation[place] = {**conversation[place], "content": ""}
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the chat template cannot render the conversation: {reason}") from error


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a short conversation. A template that cannot render it is useless for scoring too."""
    text = render_chat(tokenizer, _PROBE)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(
            "the chat template cannot render the conversation: for a user and an assistant turn it prints no tokens"
        )
    return ids


def find_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose a pad token that never ends a formatted sequence.

    Sequence classifiers of transformers read the reward at the last token that is not the pad token. With pad == eos
    they would read it one token early, and servers would differ. The tokenizer's own pad token is therefore kept only
    if it is safe. Otherwise a reserved token that the template does not print is used, or the new token `<|pad|>`.

    Args:
        tokenizer: Any tokenizer; it is not changed.

    Returns:
        The token. `NEW_PAD_TOKEN` may not be in the vocabulary yet.
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
    # GPT-style vocabularies end documents with <|endoftext|>, which is free if the chat template ends differently.
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
    """Return a copy of a tokenizer for a reward model: with a safe pad token, right padding and a fixed date.

    Args:
        tokenizer: Any tokenizer; it is not changed.
        pad_token: Pad token; by default one is chosen.
        eos_token: End-of-sequence token; by default the tokenizer's own.
        chat_template_path: A Jinja file, or a tokenizer (folder or Hub id) whose template is used.
        trust_remote_code: Whether to run custom code of this other tokenizer.

    Returns:
        The copy.

    Raises:
        ValueError: If the tokenizer has no vocabulary, a token is not in it, the pad token can end a formatted
            sequence, or the date in the chat template cannot be fixed.
    """
    if not has_vocabulary(tokenizer):
        where = f" in {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
        raise ValueError(
            "The tokenizer has no vocabulary, so all texts would have the same token ids: its files are missing"
            f"{where}. Save the model's tokenizer in the model's folder (`tokenizer.save_pretrained(...)`)."
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
            f"The pad token must never end a sequence, but {token!r} does, so transformers' classifiers would read the "
            f"reward one token early. Leave `{setting('pad_token')}` unset, and a safe token is chosen."
        )
    result.padding_side = "right"
    return result


def read_chat_template(
    path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False, *, add_missing: bool = False
) -> str:
    """Read a chat template from a Jinja file or from a second tokenizer.

    Args:
        path: A `.jinja` or `.j2` file, or the folder or Hub id of a tokenizer.
        tokenizer: The tokenizer that will use the template.
        trust_remote_code: Whether to run custom code of the second tokenizer.
        add_missing: Add special tokens of the template that `tokenizer` lacks, in place. The model then needs new
            embeddings, which must be trained.

    Returns:
        The template's text.

    Raises:
        ValueError: If the second tokenizer has no template, or its template uses special tokens that `tokenizer` lacks.
    """
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    other = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not isinstance(other.chat_template, str):
        raise ValueError(
            f"`{setting('chat_template_path')}` must be a template file or a tokenizer with a chat template, but "
            f"{path} is a tokenizer without one. Name a different one."
        )
    known = tokenizer.get_vocab()
    missing = [
        token
        for token in other.added_tokens_decoder.values()
        if token.content in other.chat_template and token.content not in known
    ]
    names = [token.content for token in missing]
    if missing and add_missing:
        tokenizer.add_tokens(missing)  # pyright: ignore[reportArgumentType] - keeps their flag `special`
        logger.warning(
            "The chat template of %r uses tokens that the tokenizer lacked: %s. They were added with random "
            "embeddings, which training must learn.",
            path,
            ", ".join(names),
        )
    elif missing:
        raise ValueError(
            f"The chat template of {path!r} uses tokens that this tokenizer lacks: {', '.join(names)}. Add them to "
            "the tokenizer and resize the model's embeddings, or use a template that was made for this model."
        )
    return other.chat_template


def _require_in_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ValueError(
            f"`{name}={token!r}` is not in the vocabulary of {type(tokenizer).__name__}. "
            "Use a token of the vocabulary, or add this one and resize the model's embeddings."
        )


def require_same_template(name: str, tokenizer: PreTrainedTokenizerBase, chat_template_path: str | None) -> None:
    """Require that training uses the chat template with which the SFT model was tuned.

    Args:
        name: The SFT model, whose folder has its tokenizer.
        tokenizer: The tokenizer for training.
        chat_template_path: The template from the settings, if any.

    Raises:
        ValueError: If the model has no template, or training would use a different one.
    """
    own = AutoTokenizer.from_pretrained(name).chat_template
    if own is None:
        raise ValueError(
            f"{name} has no chat template to compare with the template for training. Save the SFT tokenizer with its "
            f"template in this folder, or set `{setting('require_chat_template', False)}`."
        )
    used = read_chat_template(chat_template_path, tokenizer) if chat_template_path else tokenizer.chat_template
    if used != own:
        raise ValueError(
            f"The chat template for training differs from the template of {name}, so the model would see an unfamiliar "
            f"format. Remove `{setting('chat_template_path')}`, or set `{setting('require_chat_template', False)}` if "
            "the change is intended."
        )
