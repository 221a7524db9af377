"""Client for servers that score rows: ours, vLLM, SGLang and OpenRLHF."""

import json
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_reward.data.extras import require
from hf_reward.data.fields import is_finite
from hf_reward.data.preference_row import Prompt, has_images
from hf_reward.data.score_request import ScoreRequest
from hf_reward.preprocessing.response_encoding import EncodedResponse

httpx2: Any = require("httpx2", "serve")  # huggingface_hub 1 does not install it

_AT_ONCE = 16
"""Rows per request: few enough for servers with small queues."""
_TIMEOUT_SECONDS = 120
_ENDPOINTS = {"hf_reward": "/score", "vllm": "/classify", "sglang": "/classify", "openrlhf": "/get_reward"}
KINDS = tuple(_ENDPOINTS)
_OWNERS = {"hf_reward": "hf_reward", "vllm": "vllm", "sglang": "sglang"}
"""`owned_by` in the answer of `/v1/models` -> kind."""


class ServerClientError(ValueError):
    """The server cannot be reached, returns an error, or an invalid answer."""


class ServerRewards(NamedTuple):
    """Rewards of rows from a server."""

    values: list[Any]
    tokens: int | None
    """Number of tokens that the server reports, or None."""


@dataclass(frozen=True)
class SentRow:
    """One row to send to a server."""

    request: ScoreRequest
    encoded: EncodedResponse
    text: str
    """The formatted text, for servers that take no messages."""


class ServerClient:
    """Client of one server."""

    def __init__(self, url: str, *, kind: str = "auto", token: str | None = None) -> None:
        """Connect to a server and detect its kind.

        Args:
            url: Address, with or without the endpoint; `http://host:8000#NAME` for one of several models.
            kind: One of `KINDS`, or "auto" to detect it.
            token: Bearer token for the server.

        Raises:
            ServerClientError: If the server cannot be reached, or its kind cannot be detected.
            ValueError: If the kind or the URL is invalid.
        """
        if kind not in ("auto", *KINDS):
            raise ValueError(f"`kind` must be 'auto' or one of {', '.join(KINDS)}, but is {kind!r}.")
        self._named = urllib.parse.urlsplit(url).fragment
        self._base = server_address(url, tuple(set(_ENDPOINTS.values())))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # A redirect to another origin does not get the token.
        self._http = httpx2.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True)
        self.kind = kind if kind != "auto" else self._find_kind(urllib.parse.urlsplit(url).path.rstrip("/"))
        self.url = self._base + _ENDPOINTS[self.kind]
        self.name = f"{self.url}#{self._named}" if self._named else self.url
        """The URL, with the name of the model if one was given."""

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def takes_requests(self) -> bool:
        """Whether the server formats prompts and responses by itself."""
        return self.kind == "hf_reward"

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the server tokenises a text with the special tokens that its tokenizer adds."""
        return self.kind == "sglang"

    def rewards(self, rows: Sequence[SentRow]) -> ServerRewards:
        """Score rows on the server.

        Args:
            rows: The rows.

        Returns:
            Their finite rewards and the number of tokens.

        Raises:
            ServerClientError: If the server does not return one finite number for each row.
        """
        ask = {"hf_reward": self._ours, "vllm": self._vllm, "sglang": self._sglang, "openrlhf": self._openrlhf}
        found: list[float] = []
        tokens: list[int | None] = []
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            values, count = ask[self.kind](part)
            if len(values) != len(part) or not all(is_finite_number(value) for value in values):
                raise ServerClientError(
                    f"{self.url} must return {len(part)} finite numbers, but returned {str(values)[:200]}."
                )
            found += [float(value) for value in values]
            tokens.append(count)
        counts = [count for count in tokens if count is not None]
        return ServerRewards(found, sum(counts) if len(counts) == len(tokens) else None)

    def _ours(self, rows: Sequence[SentRow]) -> ServerRewards:
        items = [request_item(row.request) for row in rows]
        answer = self._post({"items": items, "allow_empty": True, **({"model": self._named} if self._named else {})})
        values = self._read(answer, lambda: [each[0] for each in answer["rewards"]])
        return ServerRewards(values, _count(answer.get("tokens")))

    def _vllm(self, rows: Sequence[SentRow]) -> ServerRewards:
        # The text already contains the special tokens of the template.
        body = {"input": [row.text for row in rows], "add_special_tokens": False}
        answer = self._post({"model": self._model_name(), **body})
        data = self._read(answer, lambda: sorted(answer["data"], key=lambda each: each["index"]))
        values = self._read(answer, lambda: [_only(each["probs"]) for each in data])
        return ServerRewards(values, _count((answer.get("usage") or {}).get("prompt_tokens")))

    def _sglang(self, rows: Sequence[SentRow]) -> ServerRewards:
        answer = self._post({"model": self._model_name(), "text": [row.text for row in rows]})
        return ServerRewards(self._read(answer, lambda: [_only(each["embedding"]) for each in answer]), None)

    def _openrlhf(self, rows: Sequence[SentRow]) -> ServerRewards:
        texts = [row.text for row in rows]
        # The body that its trainer sends; reward models ignore prompts and labels.
        answer = self._post({"query": texts, "prompts": [""] * len(texts), "labels": [None] * len(texts)})
        return ServerRewards(self._read(answer, lambda: list(answer["rewards"])), None)

    # --- transport ---------------------------------------------------------------------------------------------------

    def _find_kind(self, path: str) -> str:
        """Detect the kind from /v1/models; OpenRLHF's server has no such path and is detected by its endpoint."""
        if path.endswith("/get_reward"):
            return "openrlhf"
        try:
            owner = self._models()[0].get("owned_by")
        except (ServerClientError, IndexError, AttributeError) as error:
            if isinstance(error, ServerClientError) and not isinstance(error, _NoSuchPathError):
                raise
            owner = None
        if owner not in _OWNERS:
            raise ServerClientError(
                f"The kind of server at {self._base} cannot be detected (`owned_by` in /v1/models: {owner!r}). Name "
                f"it: one of {', '.join(KINDS)}."
            )
        return _OWNERS[owner]

    def _models(self) -> list[Any]:
        answer = self._call("GET", f"{self._base}/v1/models")
        return self._read(answer, lambda: list(answer["data"]))

    def _model_name(self) -> str:
        if self._named:
            return self._named
        try:
            return str(self._models()[0]["id"])
        except (_NoSuchPathError, IndexError, KeyError, TypeError):
            return "default"

    def _post(self, body: dict[str, Any]) -> Any:
        content = json.dumps(body).encode("ascii")  # lone surrogates stay escapes
        return self._call("POST", self.url, content=content, headers={"Content-Type": "application/json"})

    def _call(self, method: str, url: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, url, **options)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ServerClientError(f"{url} cannot be reached: {reason}. Is the server running there?") from error
        if not answer.is_success:
            raise status_error(url, answer.status_code, answer.text)
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            content = answer.content[:200]
            raise ServerClientError(f"{url} returned invalid JSON: {content!r}.") from error

    def _read(self, answer: Any, read: Callable[[], list[Any]]) -> list[Any]:
        try:
            return read()
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerClientError(
                f"{self._base} did not answer in the format of {self.kind}: {str(answer)[:200]}. Check the kind of "
                f"the server ({', '.join(KINDS)})."
            ) from error


class _NoSuchPathError(ServerClientError):
    """The server answers, but has no such path."""


def server_address(url: str, endpoints: Sequence[str]) -> str:
    """Return the address of a server without an endpoint.

    Args:
        url: Address, with or without one of the endpoints.
        endpoints: The endpoints.

    Returns:
        The address, without a slash at its end.

    Raises:
        ValueError: If the URL is invalid.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"The URL of a server must have the form http://host:8000, but is {url!r}.")
    path = parts.path.rstrip("/")
    for endpoint in endpoints:
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{parts.netloc}{path}"


def status_error(url: str, status: int, text: str) -> ServerClientError:
    """Return the error for an answer of a server with an error status."""
    answer = " ".join(text[:2000].split())[:300]
    if status in (401, 403):
        return ServerClientError(f"{url} requires a valid token ({status}): {answer}")
    if status in (404, 405):
        return _NoSuchPathError(f"{url} does not exist ({status}), so the server is of another kind: {answer}")
    return ServerClientError(f"{url} returned {status}: {answer}")


def request_item(request: ScoreRequest) -> dict[str, Any]:
    """Return a request as an item of our `/score`."""
    if request.formatted:
        return {"text": request.response}
    options = {"chat_template_kwargs": dict(request.template)} if request.template else {}
    return {"prompt": _without_files(request.prompt), "response": request.response, **options}


def _without_files(prompt: Prompt) -> Prompt:
    """Return a prompt whose images are data URLs, because a server reads no files."""
    if not has_images(prompt):
        return prompt
    from hf_reward.data.image_messages import as_raw  # noqa: PLC0415 - not for texts

    return as_raw(prompt, paths=False)


def _only(values: Any) -> Any:
    """Return the single number of a one-label model."""
    if len(values) != 1:
        raise TypeError(f"{len(values)} numbers for a text")
    return values[0]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number, but neither a boolean nor infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
