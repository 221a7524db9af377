"""Requests over HTTP -> rewards: the server that policies, evaluations and other machines ask.

    bodies (protocol) -> requests -> token ids, in a thread -> a bounded queue -> batches (batcher) -> the one model

Its packages are those of `hf_reward[serve]`, which nothing else in hf_reward needs.
"""

from importlib.util import find_spec

_PACKAGES = ("fastapi", "prometheus_client", "prometheus_fastapi_instrumentator", "uvicorn")
_missing = [name for name in _PACKAGES if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"The server needs packages that are not installed: {', '.join(_missing)}. Run pip install 'hf_reward[serve]'."
    )
