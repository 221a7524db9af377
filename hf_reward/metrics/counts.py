"""Counts with their nouns, for messages and reports."""


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun in the right form: `0 rows`, `1 row`, `2,000 rows`.

    Args:
        number: The count.
        noun: The singular.
        plural: The plural; by default the noun plus "s".

    Returns:
        The text.
    """
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"
