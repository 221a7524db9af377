"""Rewards from a server as a function for RL trainers. A failure is an error, never a reward of 0."""

import asyncio
import json
import random
import urllib.parse
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hf_reward.data.score_request import ScoreRequest, read_request, refuse_image_columns, request_from_messages
from hf_reward.scoring.server_client import (
    ServerClientError,
    httpx2,
    is_finite_number,
    request_item,
    server_address,
    status_error,
)
from hf_reward.scoring.server_token import read_token

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which a request is repeated."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
_ENDPOINT = "/score"


class RemoteReward:
    """Client of `hf-reward serve` that returns one finite reward for each response, or raises an error.

    It can be passed to TRL as `reward_funcs=RemoteReward(url)`. It holds no connections, so it can be pickled, copied
    to other processes, and called from several threads and event loops.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        batch_size: int = 64,
        concurrency: int = 8,
        attempts: int = 8,
        timeout: float = 120.0,
    ) -> None:
        """Check the settings; nothing is sent yet.

        Args:
            url: Address of the server, with or without `/score`; `http://host:8000#NAME` for one of several models.
            token: Bearer token; by default the variable HF_REWARD_SERVER_TOKEN, if it is set.
            batch_size: Responses per request.
            concurrency: Requests of one call at the same time.
            attempts: Number of times a request is sent if the server cannot be reached, is full, or fails. Waits double
                from 1 s to 30 s, or are as long as the server's `Retry-After` requires.
            timeout: Seconds until an attempt without an answer counts as failed.

        Raises:
            ValueError: If the URL or a number is invalid.
        """
        for name, value in (("batch_size", batch_size), ("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, but is {value}.")
        self.url = server_address(url, (_ENDPOINT,)) + _ENDPOINT
        self.model = urllib.parse.urlsplit(url).fragment or None
        self.token = read_token() if token is None else token
        self.batch_size, self.concurrency, self.attempts, self.timeout = batch_size, concurrency, attempts, timeout
        self.__name__ = "remote_reward"  # TRL logs reward functions under this name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Act as a reward function for TRL.

        Args:
            prompts: TRL's prompts, texts or messages.
            completions: TRL's completions.
            **columns: Other arguments of TRL (`completion_ids`, columns of the data); ignored.

        Returns:
            One reward for each completion.

        Raises:
            ValueError: If TRL passes a column of images.
        """
        refuse_image_columns(columns)
        return self.score(prompts, completions)

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
        """Score one response to each prompt. This also works inside a running event loop.

        Args:
            prompts: Texts or messages.
            responses: Texts or messages; may be empty. The end-of-turn token of a decoded text is not repeated.

        Returns:
            Finite rewards in the order of the responses.

        Raises:
            ServerClientError: If the server cannot be reached after all attempts, returns an error (also for a response
                that it cannot score), or does not return a finite number for each response.
            PreferenceFormatError: If a prompt or response is neither text nor messages.
        """
        return _finished(self.ascore(prompts, responses))

    async def ascore(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
        """Score as `score` does, without blocking the event loop; arguments, result and errors are the same."""
        pairs = zip(prompts, responses, strict=True)
        return await self.ascore_requests([read_request(*pair, response_only=True, local_files=True) for pair in pairs])

    async def ascore_conversations(self, conversations: Sequence[Any]) -> list[float]:
        """Score complete conversations, each with an assistant turn at its end; else as `ascore`."""
        return await self.ascore_requests([request_from_messages(each, local_files=True) for each in conversations])

    def score_conversations(self, conversations: Sequence[Any]) -> list[float]:
        """Score complete conversations, each with an assistant turn at its end; else as `score`."""
        return _finished(self.ascore_conversations(conversations))

    async def ascore_requests(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Score requests.

        Args:
            requests: The requests.

        Returns:
            Finite rewards in the order of the requests.

        Raises:
            ServerClientError: As for `score`.
        """
        batches = [requests[start : start + self.batch_size] for start in range(0, len(requests), self.batch_size)]
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        turn = asyncio.Semaphore(self.concurrency)
        async with httpx2.AsyncClient(headers=headers, timeout=self.timeout) as client:
            tasks = [asyncio.ensure_future(self._batch(client, turn, batch)) for batch in batches]
            try:
                found = await asyncio.gather(*tasks)
            finally:  # after a failure, the other requests are cancelled
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [reward for rewards in found for reward in rewards]

    async def _batch(self, client: Any, turn: asyncio.Semaphore, batch: Sequence[ScoreRequest]) -> list[float]:
        async with turn:  # the body contains the images, so there are only as many as requests at the same time
            content = await asyncio.to_thread(self._body, batch)
            answer = await self._post(client, content)
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        rows = rewards if isinstance(rewards, list) else []
        if len(rows) != len(batch) or not all(_is_one_reward(row) for row in rows):
            raise ServerClientError(
                f"{self.url} must return one finite reward for each of {len(batch)} responses, but returned "
                f"{str(answer)[:200]}."
            )
        return [float(row[0]) for row in rows]

    def _body(self, batch: Sequence[ScoreRequest]) -> bytes:
        body: dict[str, Any] = {"items": [request_item(request) for request in batch], "allow_empty": True}
        if self.model is not None:
            body["model"] = self.model
        return json.dumps(body).encode("ascii")  # lone surrogates stay escapes

    async def _post(self, client: Any, content: bytes) -> Any:
        """Send a request, and repeat it after temporary failures."""
        problem = ServerClientError("")
        for attempt in range(self.attempts):
            wait = 0.0
            try:
                answer = await client.post(self.url, content=content, headers={"Content-Type": "application/json"})
            except httpx2.HTTPError as error:
                reason = str(error) or type(error).__name__
                problem = ServerClientError(f"{self.url} cannot be reached: {reason}. Is the server running there?")
            else:
                if answer.is_success:
                    return _json(self.url, answer)
                problem = status_error(self.url, answer.status_code, answer.text)
                if answer.status_code not in _TEMPORARY:
                    raise problem
                wait = _seconds(answer.headers.get("retry-after"))
            if attempt + 1 < self.attempts:
                wait = max(wait, min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS))
                await asyncio.sleep(wait * random.uniform(1, 1.2))  # so that clients do not repeat at once
        raise ServerClientError(f"{problem} (after {self.attempts} attempts)")


def _finished(work: Coroutine[Any, Any, list[float]]) -> list[float]:
    """Run a coroutine in a thread of its own, because this thread may already run an event loop."""
    with ThreadPoolExecutor(1, thread_name_prefix="remote-reward") as thread:
        return thread.submit(asyncio.run, work).result()


def _is_one_reward(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 1 and is_finite_number(row[0])


def _json(url: str, answer: Any) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError) as error:
        raise ServerClientError(f"{url} returned invalid JSON: {answer.content[:200]!r}.") from error


def _seconds(value: str | None) -> float:
    """Return a `Retry-After` in seconds; 0 for a date or another text."""
    return float(value) if value is not None and value.isdecimal() and len(value) < 6 else 0.0
