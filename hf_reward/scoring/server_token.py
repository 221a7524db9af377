"""Bearer token of server and clients, from a file or the environment, never from the command line."""

import os
from pathlib import Path

from hf_reward.data.path_safety import warn_if_others_can_read

TOKEN_VARIABLE = "HF_REWARD_SERVER_TOKEN"


def read_token(file: str | Path | None = None) -> str | None:
    """Read the token. It is never a command-line argument, because other users of a machine can see those.

    Args:
        file: A file that contains only the token; a warning is logged if other users can read it.

    Returns:
        The token, or None if there is neither a file nor the variable HF_REWARD_SERVER_TOKEN.

    Raises:
        ValueError: If both are given, or the token is empty or contains characters that are invalid in a header.
        OSError: If the file cannot be read.
    """
    found = os.environ.get(TOKEN_VARIABLE)
    if file is None and found is None:
        return None
    if file is not None and found is not None:
        raise ValueError(f"There are two tokens, one in {file} and one in {TOKEN_VARIABLE}. Set only one.")
    place = TOKEN_VARIABLE if file is None else str(file)
    token = (found or "") if file is None else Path(file).read_text(encoding="utf-8")
    if not is_usable_token(token.strip()):
        raise ValueError(f"The token in {place} must be printable ASCII without spaces, and not empty.")
    if file is not None:
        warn_if_others_can_read(file)
    return token.strip()


def is_usable_token(token: str) -> bool:
    """Whether a token is valid in an HTTP header."""
    return bool(token) and all("!" <= letter <= "~" for letter in token)
