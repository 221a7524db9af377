"""Judges that answer requests: an HTTP endpoint, and the decision pipeline of transformers."""

import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from transformers import pipeline
from transformers.pipelines import SUPPORTED_TASKS

from hf_reward.data.extras import require
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.protocols import PROTOCOLS, Answer, AnswerError, usage_of
from hf_reward.scoring.judging.requests import JudgeError, JudgeSettings

_TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_WRONG_ADDRESS = {401, 403, 404, 405, 501}
FIRST_WAIT_SECONDS = 1.0
"""Wait before the second attempt; it doubles with each attempt."""
_LONGEST_WAIT_SECONDS = 60.0


class HttpEndpoint:
    """A judge behind a URL."""

    def __init__(
        self, url: str, kind: str, *, model: str = "", token: str | None = None, settings: JudgeSettings
    ) -> None:
        """Prepare the client; the model's name is asked if it is missing.

        Args:
            url: Address of the endpoint.
            kind: One of `PROTOCOLS`.
            model: Name of the model; by default the first one that `/v1/models` lists.
            token: Bearer token.
            settings: Settings of the requests.

        Raises:
            JudgeError: If the name of the model is missing and the server does not list models.
        """
        httpx2: Any = require("httpx2", "serve")
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(headers=headers, timeout=settings.timeout, follow_redirects=True)
        self._url, self._protocol, self._settings = url, PROTOCOLS[kind], settings
        self.at_once = settings.at_once
        self._model = model or self._first_model()
        self.name = f"{self._model} at {urllib.parse.urlsplit(url).netloc}"
        self.fingerprint = {"judge": url.partition("?")[0], "kind": kind, "model": self._model}  # a query may be secret

    def bodies(self, pair: JudgedPair) -> list[dict[str, Any]]:
        """Return the bodies of the requests for a pair in its order."""
        found = self._protocol.bodies(self._model, pair, self._settings.question, self._settings.votes)
        return [body | dict(self._settings.extra_body) for body in found]

    def ask(self, body: Mapping[str, Any], before: Callable[[], None]) -> Answer:
        """Send a request; see `Endpoint.ask`."""
        answer = self._post(body, before)
        given, written = usage_of(answer)
        return Answer(self._protocol.read(answer, self._settings.votes), given, written)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _post(self, body: Mapping[str, Any], before: Callable[[], None]) -> Any:
        content = json.dumps(body).encode("ascii")  # lone surrogates stay escapes
        headers = {"Content-Type": "application/json"}
        problem, wait = "", FIRST_WAIT_SECONDS
        for attempt in range(self._settings.attempts):
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT_SECONDS))
                wait = FIRST_WAIT_SECONDS * 2**attempt * random.uniform(1, 1.2)  # so that threads do not repeat at once
            before()
            try:
                answer = self._http.post(self._url, content=content, headers=headers)
            except self._errors as error:
                problem = f"the server cannot be reached ({type(error).__name__})"
                continue
            if answer.is_success:
                return _parsed(answer)
            problem = f"status {answer.status_code}: {' '.join(answer.text[:1000].split())[:200]}"
            if answer.status_code in _WRONG_ADDRESS:
                raise JudgeError(f"{self._url} does not accept requests ({problem}). Check the URL and the token.")
            if answer.status_code not in _TEMPORARY:
                break
            wait = max(wait, _seconds(answer.headers.get("retry-after")))
        raise AnswerError(problem)

    def _first_model(self) -> str:
        address = f"{self._url.removesuffix(self._protocol.path)}/models"
        try:
            return str(self._http.get(address).json()["data"][0]["id"])
        except (*self._errors, ValueError, LookupError, TypeError) as error:
            raise JudgeError(
                f"The name of the judge's model is missing, and {address} does not list one ({type(error).__name__}). "
                f"Add the name to the URL: {self._url}#MODEL"
            ) from error


def _parsed(answer: Any) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        raise AnswerError(f"the answer must be JSON, but is {answer.content[:100]!r}") from None


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:  # a date
        return 0.0


class PipelineEndpoint:
    """The decision pipeline of transformers (5.23): a decision model, or any chat model, in this process."""

    def __init__(self, model: str, settings: JudgeSettings, **loading: Any) -> None:
        """Load the model.

        Args:
            model: Folder or Hub id.
            settings: Settings; of these, the question applies.
            **loading: Arguments of `pipeline`, such as `device`.

        Raises:
            JudgeError: If the installed transformers has no decision pipeline.
        """
        if "decision" not in SUPPORTED_TASKS:
            raise JudgeError("`decision:` judges require transformers 5.23 or newer. Upgrade, or use a server.")
        self._decide: Any = pipeline("decision", model=model, **loading)
        self._settings, self._guard = settings, threading.Lock()
        self.name, self.at_once = model, 1
        self.fingerprint = {"judge": model, "kind": "decision pipeline"}

    def bodies(self, pair: JudgedPair) -> list[dict[str, Any]]:
        """Return the bodies of the requests for a pair in its order."""
        return PROTOCOLS["systemone"].bodies(self.name, pair, self._settings.question, 0)

    def ask(self, body: Mapping[str, Any], before: Callable[[], None]) -> Answer:
        """Run the model; see `Endpoint.ask`."""
        before()
        with self._guard:
            answers = self._decide({"state": body["state"], "questions": body["questions"]})
        return Answer(PROTOCOLS["systemone"].read({"answers": answers}, 0))
