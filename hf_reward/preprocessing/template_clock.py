"""Chat templates that print today's date -> the same template with one date for ever.

transformers offers the clock to templates as `strftime_now`, and Llama 3.2, Mistral Small, Granite, SmolLM3 and others
print it in their system turn: the same text has other tokens, and another reward, every day. A macro of that name in
front of the template answers instead of the clock, in every program that renders the template.
"""

import copy
import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Undefined, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

logger = logging.getLogger(__name__)

FIXED_DATE = datetime(2024, 7, 26)
"""The date of templates without a date of their own: the one that Llama 3's print where there is no clock."""

_CLOCK = "strftime_now"
_OTHER_DATE = datetime(2001, 12, 9, 23, 58, 7)
_DIRECTIVES = [*(f"%{letter}" for letter in "aAbBcdDeFGHIjmMpRSTuUVwWxXyY"), *(f"%-{letter}" for letter in "dHIjmMSy")]
_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_TRIED = (_TURNS, [{"role": "system", "content": "c"}, *_TURNS])

Clock = Callable[[str], str] | Undefined


def uses_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template of a tokenizer asks for the time, in whichever branch.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        False without a template, and for those that `freeze_clock` made.
    """
    return any(map(_asks_for_time, _templates(tokenizer).values()))


def freeze_clock(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Let the chat templates of a tokenizer print one date always, in place, and say which.

    It is the date that the template itself prints where there is no clock, else `FIXED_DATE`; never today's, so that
    two runs on different days, and a run that is resumed, read the same tokens.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The same tokenizer.

    Raises:
        ValueError: If a template still prints another text on another day.
    """
    templates = _templates(tokenizer)
    dated = {name: source for name, source in templates.items() if _asks_for_time(source)}
    if not dated:
        return tokenizer
    dates = {name: _own_date(tokenizer, source) or FIXED_DATE for name, source in dated.items()}
    frozen = {name: _frozen(tokenizer, source, dates[name]) for name, source in dated.items()}
    is_one = not isinstance(tokenizer.chat_template, Mapping)
    tokenizer.chat_template = frozen["default"] if is_one else {**templates, **frozen}  # type: ignore[assignment]
    logger.warning(
        "The chat template prints today's date, so the same text would get another reward every day. It now prints %s "
        "always, here and in everything that is saved. Programs that use the original template give other rewards.",
        " and ".join(sorted({f"{date:%d %B %Y}" for date in dates.values()})),
    )
    return tokenizer


def without_clock(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy with a fixed date if its template reads the clock.

    Args:
        tokenizer: The caller's tokenizer; not changed.

    Returns:
        A tokenizer that formats a text the same way every day.
    """
    return freeze_clock(copy.deepcopy(tokenizer)) if uses_clock(tokenizer) else tokenizer


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The templates by name; `default` where there is one alone."""
    found: Any = tokenizer.chat_template
    if found is None:
        return {}
    return dict(found) if isinstance(found, Mapping) else {"default": str(found)}


def _asks_for_time(source: str) -> bool:
    if _CLOCK not in source:
        return False
    tree = _compile_jinja_template(source).environment.parse(source)
    is_replaced = any(macro.name == _CLOCK for macro in tree.find_all(nodes.Macro))
    return not is_replaced and any(name.name == _CLOCK for name in tree.find_all(nodes.Name))


def _frozen(tokenizer: PreTrainedTokenizerBase, source: str, date: datetime) -> str:
    """The template with a macro in front, checked: it always prints what the template prints on that date."""
    values = {directive: date.strftime(directive) for directive in _DIRECTIVES}
    # %% last and first, so that what stands behind it is no directive.
    pairs = [["%%", "\0"], *[list(pair) for pair in values.items() if not pair[1].startswith("%")], ["\0", "%"]]
    replaced = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in pairs)
    macro = f"{{%- macro {_CLOCK}(format) -%}}{{{{- format{replaced} -}}}}{{%- endmacro %}}\n"
    result = macro + source  # the line break after a block is not printed
    for turns in _TRIED:
        expected = _rendered(tokenizer, source, turns, date.strftime)
        found = [_rendered(tokenizer, result, turns, clock) for clock in (date.strftime, _OTHER_DATE.strftime)]
        if found != [expected, expected]:
            raise ValueError(
                "The chat template prints today's date in a way that cannot be fixed, so the same text would get "
                f"another reward every day. Replace `{_CLOCK}` in it by a date, and pass it as `chat_template_path`."
            )
    return result


def _own_date(tokenizer: PreTrainedTokenizerBase, source: str) -> datetime | None:
    """The date that a template prints where there is no clock, as Llama 3.2's does."""
    for turns in _TRIED:
        marked = _rendered(tokenizer, source, turns, lambda form: f"\0{form}\0")
        plain = _rendered(tokenizer, source, turns, Undefined(name=_CLOCK))
        if marked is None or plain is None or "\0" not in marked:
            continue
        parts = marked.split("\0")  # text, format, text, format, ..., text
        pattern = "(.+?)".join(re.escape(part) for part in parts[::2])
        dates = re.fullmatch(pattern, plain, re.DOTALL)
        for form, text in zip(parts[1::2], dates.groups() if dates else (), strict=False):
            try:
                return datetime.strptime(text, form)
            except ValueError:
                continue
    return None


def _rendered(tokenizer: Any, source: str, turns: list[dict[str, str]], clock: Clock) -> str | None:
    """A conversation by another clock, None where the template refuses it."""
    try:
        # Not through the tokenizer, which takes no functions as arguments of a template.
        values = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": False}
        return _compile_jinja_template(source).render(messages=turns, **values, **{_CLOCK: clock})
    except Exception:  # a template can raise whatever Python can
        return None
