"""`RewardScorer`: score texts, conversations and best-of-N lists with a reward model."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from hf_reward.data.preference_row import PreferenceFormatError, Prompt, Response
from hf_reward.data.score_request import (
    REQUEST_COLUMNS,
    ScoreRequest,
    read_request,
    refuse_image_columns,
    request_from_messages,
    request_from_text,
    requests_of_row,
)
from hf_reward.metrics.uncertainty import UncertainRewards, check_beta
from hf_reward.scoring.loading import require_heads
from hf_reward.scoring.request_scorer import RequestScorer
from hf_reward.scoring.results import Ranking, ScoreResult, ScoringError

logger = logging.getLogger(__name__)


class RewardScorer(RequestScorer):
    """Score texts with a reward model: one trained by hf_reward, or any one-label sequence classifier.

    Texts are formatted as stated in the checkpoint's `reward_config.json`. Models without that file are treated as
    follows: texts become turns of the chat template if there is one, else a text pair for tokenizers with CLS and SEP,
    else prompt + response + EOS. Their length limit is that of the model's positions, if there is one (see
    `position_limits`). The reward of a decoder is read where the stock class reads it, at the last token that is not
    the pad token. Apart from rounding, a reward does not depend on the other texts in the batch.

    The scorer is not thread-safe: only one thread at a time may call it.
    """

    def score(self, prompts: Sequence[Any], responses: Sequence[Any], *, allow_empty: bool = False) -> np.ndarray:
        """Score each response to its prompt.

        Args:
            prompts: Text or messages, one for each response; repeat a prompt that has several responses.
            responses: Text or messages.
            allow_empty: Whether responses may be empty.

        Returns:
            Rewards in the order of the responses, shape `(R,)`, float32.

        Raises:
            ScoringError: If a response cannot be scored; its `rewards` contain those of the others.
            ValueError: If the numbers of prompts and responses differ.
        """
        return self._score(_pairs(prompts, responses), allow_empty).rewards

    def score_with_uncertainty(
        self, prompts: Sequence[Any], responses: Sequence[Any], *, beta: float = 1.0, allow_empty: bool = False
    ) -> UncertainRewards:
        """Score each response with every head of the model.

        Args:
            prompts: As in `score`.
            responses: As in `score`.
            beta: Number of standard deviations that `lower_bound` subtracts from the mean.
            allow_empty: Whether responses may be empty.

        Returns:
            `mean`, `std` (over heads) and `lower_bound` of each response, shape `(R,)`, and the rewards by head.

        Raises:
            ScoringError: If a response cannot be scored.
            ValueError: If the model has one head.
        """
        check_beta("beta", beta)
        require_heads(self.name, self.model, self.record)
        result = self._score(_pairs(prompts, responses), allow_empty, every_head=True)
        assert result.heads is not None
        return UncertainRewards(result.heads, beta)

    def score_conversations(self, conversations: Sequence[Any], *, allow_empty: bool = False) -> np.ndarray:
        """Score the last turn of each conversation.

        Args:
            conversations: Lists of messages that end with the assistant.
            allow_empty: Whether that turn may be empty.

        Returns:
            Rewards, shape `(R,)`, float32.

        Raises:
            ScoringError: If a conversation or text cannot be scored.
        """
        read = partial(request_from_messages, local_files=True)
        return self._score([(read, (each,)) for each in conversations], allow_empty).rewards

    def score_texts(self, texts: Sequence[str], *, allow_empty: bool = False) -> np.ndarray:
        """Score formatted texts, to which the chat template has been applied already.

        Args:
            texts: The texts. A BOS at the start is optional: the model gets the same number as in training.
            allow_empty: Whether a text may be empty.

        Returns:
            Rewards, shape `(R,)`, float32.

        Raises:
            ScoringError: If a conversation or text cannot be scored.
        """
        return self._score([(request_from_text, (each,)) for each in texts], allow_empty).rewards

    def rank(self, prompt: Prompt, responses: Sequence[Response], *, allow_empty: bool = False) -> Ranking:
        """Rank the responses to one prompt.

        Args:
            prompt: Text or messages.
            responses: The responses.
            allow_empty: Whether responses may be empty.

        Returns:
            The ranking.

        Raises:
            ScoringError: If a response cannot be scored.
            ValueError: If there is no response.
        """
        return self.best_of_n([prompt], [responses], allow_empty=allow_empty)[0]

    def best_of_n(
        self, prompts: Sequence[Any], responses_per_prompt: Sequence[Sequence[Any]], *, allow_empty: bool = False
    ) -> list[Ranking]:
        """Rank the responses to each of several prompts. Each prompt is computed once.

        Args:
            prompts: Text or messages, one for each list.
            responses_per_prompt: A list of responses for each prompt.
            allow_empty: Whether responses may be empty.

        Returns:
            A ranking for each prompt.

        Raises:
            ScoringError: If a response cannot be scored.
            ValueError: If the numbers of prompts and lists differ, or a list is empty.
        """
        if len(prompts) != len(responses_per_prompt):
            raise ValueError(
                f"There are {len(prompts)} prompts for {len(responses_per_prompt)} lists of responses. "
                "Pass one prompt for each list."
            )
        for place, responses in enumerate(responses_per_prompt):
            if isinstance(responses, str) or not len(responses):
                raise ValueError(f"The responses to prompt {place} must be a list of one or more, found {responses!r}.")
        counts = [len(responses) for responses in responses_per_prompt]
        repeated = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        flat = [response for responses in responses_per_prompt for response in responses]
        rewards = np.split(self.score(repeated, flat, allow_empty=allow_empty), np.cumsum(counts)[:-1])
        return [
            Ranking(list(responses), found, np.argsort(-found, kind="stable").tolist())
            for responses, found in zip(responses_per_prompt, rewards, strict=True)
        ]

    def compare(self, prompt: Prompt, a: Response, b: Response) -> float:
        """Return the probability that response `a` is preferred to `b` (Bradley and Terry, 1952).

        It is sigmoid((reward of a - reward of b) / T), with the temperature T stored in the checkpoint under
        `calibration`, or T = 1.

        Args:
            prompt: Text or messages.
            a: The first response.
            b: The second response.

        Returns:
            P(a is preferred to b).

        Raises:
            ScoringError: If a response cannot be scored.
            ValueError: If the scorer returns lower bounds; their difference is not a log-odds.
        """
        if self._beta is not None:
            raise ValueError(
                f"`compare` needs mean rewards, but this scorer returns lower bounds (`lower_bound={self._beta}`). Use "
                "a scorer without `lower_bound`."
            )
        first, second = (float(reward) for reward in self.score([prompt, prompt], [a, b]))
        return float(expit((first - second) / self.temperature))

    # --- callbacks ----------------------------------------------------------------------------------------------------

    def __call__(self, prompts: Any, completions: Any = None, **columns: Any) -> Any:
        """Act as a reward function for TRL, or as a batch function for Ray Data and `datasets`.

        Args:
            prompts: TRL's prompts; or a batch, a dict of columns in a layout of `requests_of_row`.
            completions: TRL's completions; None for a batch.
            **columns: Other arguments of TRL (`completion_ids`, columns of the data); ignored.

        Returns:
            For TRL a list of rewards, None where a completion cannot be scored. For a batch its columns, `reward`
            (float32, NaN where a row cannot be scored) and `problem` (the reason, else empty).

        Raises:
            PreferenceFormatError: If a batch lacks the columns to score.
            ValueError: If TRL passes a column of images.
        """
        if completions is None:
            return self._map_batch(prompts)
        refuse_image_columns(columns)
        pairs = zip(prompts, completions, strict=True)
        requests = [read_request(*pair, response_only=True, local_files=True) for pair in pairs]
        # A policy may return an empty completion.
        result = self.score_requests(requests, allow_empty=True, show_progress=False)
        if result.problems:
            place, problem = next(iter(result.problems.items()))
            logger.warning("%s completions have no reward. Completion %s: %s", len(result.problems), place, problem)
        return [None if place in result.problems else float(value) for place, value in enumerate(result.rewards)]

    def _map_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in REQUEST_COLUMNS if name in batch and name != "responses"]
        requests: list[ScoreRequest | None] = []
        problems: list[str] = []
        for values in zip(*(batch[name] for name in names), strict=True):
            try:
                (request,) = requests_of_row(dict(zip(names, values, strict=True)), local_files=True)
                requests.append(request)
                problems.append("")
            except PreferenceFormatError as error:
                requests.append(None)
                problems.append(error.message)
        if not requests and len(next(iter(batch.values()), ())):
            requests_of_row(dict.fromkeys(batch))  # raises an error that names the missing columns
        good = [place for place, request in enumerate(requests) if request is not None]
        result = self.score_requests([request for request in requests if request is not None], show_progress=False)
        rewards = np.full(len(requests), np.nan, dtype=np.float32)
        rewards[good] = result.rewards
        for place, problem in result.problems.items():
            problems[good[place]] = problem
        return {**batch, "reward": rewards, "problem": problems}

    # --- internal -----------------------------------------------------------------------------------------------------

    def _score(
        self, calls: Sequence[tuple[Any, tuple[Any, ...]]], allow_empty: bool, every_head: bool = False
    ) -> ScoreResult:
        """Parse all requests before anything is computed, then score them or raise an error."""
        requests = []
        for place, (read, arguments) in enumerate(calls):
            try:
                requests.append(read(*arguments))
            except PreferenceFormatError as error:
                raise PreferenceFormatError(error.message, place, error.field) from None
        result = self.score_requests(requests, allow_empty=allow_empty, every_head=every_head)
        if result.problems:
            place, problem = next(iter(result.problems.items()))
            raise ScoringError(
                f"{len(result.problems)} of {len(requests)} responses have no reward. The first is number {place}: "
                f"{problem}. The rewards of the others are in the error's `rewards`.",
                result,
            )
        return result


def _pairs(prompts: Sequence[Any], responses: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return a function and its arguments for each request."""
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str):
            raise ValueError(f"`{name}` must be a list, but is one text. For one prompt, use `rank` or [text].")
    if len(prompts) != len(responses):
        raise ValueError(
            f"There are {len(prompts)} prompts for {len(responses)} responses. Pass one prompt for each response."
        )
    return [(partial(read_request, local_files=True), pair) for pair in zip(prompts, responses, strict=True)]
