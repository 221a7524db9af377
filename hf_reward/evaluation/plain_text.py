"""Text from data or models -> text that is safe to show."""

import unicodedata

_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def plain_line(text: str) -> str:
    """Return the text on one line, without control characters.

    Args:
        text: Any text.

    Returns:
        The text with single spaces. Terminal control codes, characters that change the writing direction and characters
        that XML cannot hold are replaced.
    """
    return " ".join(without_controls(text).split())


def without_controls(text: str) -> str:
    """Return the text with the same lines, without control characters.

    Args:
        text: Any text, or a page that shows it.

    Returns:
        The text with the same characters replaced as by `plain_line`.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(sign) else sign for sign in text)


def _is_control(sign: str) -> bool:
    return sign not in "\t\n\r" and (sign in _BIDI or unicodedata.category(sign) in ("Cc", "Cs", "Cn"))
