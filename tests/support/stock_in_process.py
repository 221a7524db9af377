"""The stock scoring program in this process, because a new process needs seconds to import transformers."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from hf_reward.publishing import stock_scoring


def score_in_process(
    folder: Path,
    dtypes: list[str],
    ways: list[str],
    *,
    base_model: str | None = None,
    with_hf_reward: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """What `run_stock_scoring` gives, from this process: a process of its own imports transformers for seconds."""
    words = [str(folder), "--dtypes", *dtypes, "--ways", *ways]
    words += ["--base", base_model] if base_model else []
    words += ["--with-hf-reward"] if with_hf_reward else []
    words += ["--trust-remote-code"] if trust_remote_code else []
    words += ["--allow-pickle"] if allow_pickle else []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            stock_scoring.main(words)
        except Exception as error:
            program = "hf_reward" if with_hf_reward else "Stock transformers"
            reason = f"{type(error).__name__}: {error}".splitlines()[-1]
            raise ValueError(f"{program} cannot load {folder}: {reason}") from error
    return json.loads(printed.getvalue().splitlines()[-1])
