"""Replace the current date in chat templates with a fixed date.

transformers passes the function `strftime_now` to templates. Llama 3.2, Mistral Small, Granite, SmolLM3 and others
print the date in their system turn, so the tokens and the reward of a text would change every day. A macro of the same
name at the start of the template overrides the function in every program that renders the template.
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
"""Date for templates without a default date: the default date of Llama 3's templates."""

_CLOCK = "strftime_now"
_OTHER_DATE = datetime(2001, 12, 9, 23, 58, 7)
_DIRECTIVES = [*(f"%{letter}" for letter in "aAbBcdDeFGHIjmMpRSTuUVwWxXyY"), *(f"%-{letter}" for letter in "dHIjmMSy")]
_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_TRIED = (_TURNS, [{"role": "system", "content": "c"}, *_TURNS])

Clock = Callable[[str], str] | Undefined


def uses_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a chat template of a tokenizer uses the current time in any branch.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        False without a template, and for the output of `freeze_clock`.
    """
    return any(map(_uses_time, _templates(tokenizer).values()))


def freeze_clock(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Fix the date in the chat templates of a tokenizer, in place, and log the date.

    The date is the template's default without a clock, else `FIXED_DATE`. It is never the current date, so that runs on
    different days and resumed runs have the same tokens.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The same tokenizer.

    Raises:
        ValueError: If the output of a template would still depend on the date.
    """
    templates = _templates(tokenizer)
    dated = {name: source for name, source in templates.items() if _uses_time(source)}
    if not dated:
        return tokenizer
    dates = {name: _own_date(tokenizer, source) or FIXED_DATE for name, source in dated.items()}
    frozen = {name: _frozen(tokenizer, source, dates[name]) for name, source in dated.items()}
    is_one = not isinstance(tokenizer.chat_template, Mapping)
    tokenizer.chat_template = frozen["default"] if is_one else {**templates, **frozen}  # type: ignore[assignment]
    logger.warning(
        "The chat template prints today's date, so the reward of a text would change every day. In this run and in all "
        "saved files, the template now always prints %s. Programs that use the original template give different "
        "rewards.",
        " and ".join(sorted({f"{date:%d %B %Y}" for date in dates.values()})),
    )
    return tokenizer


def without_clock(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or a copy with a fixed date if its template uses the clock.

    Args:
        tokenizer: The caller's tokenizer; it is not changed.

    Returns:
        A tokenizer whose formatting does not depend on the date.
    """
    return freeze_clock(copy.deepcopy(tokenizer)) if uses_clock(tokenizer) else tokenizer


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the templates by name; a single template is named `default`."""
    found: Any = tokenizer.chat_template
    if found is None:
        return {}
    return dict(found) if isinstance(found, Mapping) else {"default": str(found)}


def _uses_time(source: str) -> bool:
    if _CLOCK not in source:
        return False
    tree = _compile_jinja_template(source).environment.parse(source)
    is_replaced = any(macro.name == _CLOCK for macro in tree.find_all(nodes.Macro))
    return not is_replaced and any(name.name == _CLOCK for name in tree.find_all(nodes.Name))


def _frozen(tokenizer: PreTrainedTokenizerBase, source: str, date: datetime) -> str:
    """Prepend the macro to a template, and check that the output is always that of the template on the given date."""
    values = {directive: date.strftime(directive) for directive in _DIRECTIVES}
    # %% is protected first and restored last, so that the character after it is not a directive.
    pairs = [["%%", "\0"], *[list(pair) for pair in values.items() if not pair[1].startswith("%")], ["\0", "%"]]
    replaced = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in pairs)
    macro = f"{{%- macro {_CLOCK}(format) -%}}{{{{- format{replaced} -}}}}{{%- endmacro %}}\n"
    result = macro + source  # the line break after a block is not printed
    for turns in _TRIED:
        expected = _rendered(tokenizer, source, turns, date.strftime)
        found = [_rendered(tokenizer, result, turns, clock) for clock in (date.strftime, _OTHER_DATE.strftime)]
        if found != [expected, expected]:
            raise ValueError(
                "The chat template prints today's date in a way that cannot be fixed, so the reward of a text would "
                f"change every day. Replace `{_CLOCK}` in the template with a date: in a file for "
                "`chat_template_path` in training, or in `tokenizer.chat_template`, and save the tokenizer."
            )
    return result


def _own_date(tokenizer: PreTrainedTokenizerBase, source: str) -> datetime | None:
    """Return the date that a template prints without a clock, as Llama 3.2's does; None if it has none."""
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
    """Render a conversation with a given clock; None if the template refuses the conversation."""
    try:
        # Not with the tokenizer, which does not accept functions as arguments of a template.
        values = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": False}
        return _compile_jinja_template(source).render(messages=turns, **values, **{_CLOCK: clock})
    except Exception:  # a template may raise any exception
        return None
