"""HTTP server for rewards.

    body (protocol) -> requests -> token ids, in a thread -> bounded queue -> batches (batcher) -> model

Requires the packages of `hf_reward[serve]`, which no other module of hf_reward imports.
"""

from importlib.util import find_spec

_PACKAGES = ("fastapi", "fastapi_offline", "prometheus_client", "prometheus_fastapi_instrumentator", "uvicorn")
_missing = [name for name in _PACKAGES if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"The server needs packages that are not installed: {', '.join(_missing)}. Run pip install 'hf_reward[serve]'."
    )
