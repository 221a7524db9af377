"""Requests over HTTP -> rewards: the server that policies, evaluations and other machines ask.

    bodies (protocol) -> requests -> token ids, in a thread -> a bounded queue -> batches (batcher) -> the one model

It needs FastAPI, uvicorn and prometheus_client, which `hf_reward[serve]` installs; nothing else in hf_reward does.
"""

from importlib.util import find_spec

_missing = [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"The server needs packages that are not installed: {', '.join(_missing)}. Run pip install 'hf_reward[serve]'."
    )
