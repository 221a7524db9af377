"""Model + texts -> rewards: one text, a best-of-N list, or as many as there are."""

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import PreferenceFormatError, Prompt, Response
from hf_reward.data.score_request import (
    REQUEST_COLUMNS,
    ScoreRequest,
    read_request,
    request_from_messages,
    request_from_text,
    requests_of_row,
)
from hf_reward.metrics.uncertainty import UncertainRewards, check_beta
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.head_ensemble import number_of_heads
from hf_reward.modeling.packing_check import Packing
from hf_reward.modeling.reward_head import RewardModel, bare_model
from hf_reward.preprocessing.response_encoding import EncodedResponse, ResponseEncoder
from hf_reward.preprocessing.template_clock import without_clock
from hf_reward.scoring.loading import (
    correction_of,
    describe_scoring,
    heads_hash,
    load_for_scoring,
    require_heads,
    require_same_in_batches,
)
from hf_reward.scoring.sequence_scorer import SequenceScorer, distinct_sequences

logger = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": 4096}
_BATCH_TOKENS_ELSEWHERE = 32_768
_NO_RESPONSE = (
    "its response is not known apart from its prompt (a whole text or token ids), so its reward cannot be corrected "
    "for length; give prompt and response, or score without `length_correction` (`--length-correction`)"
)


@dataclass(frozen=True)
class ScoreResult:
    """Rewards of some requests, and what was wrong with those that have none."""

    rewards: np.ndarray
    """NaN where there is a problem, shape `(R,)`, float32."""
    problems: dict[int, str] = field(default_factory=dict)
    """Place of a request -> why it has no reward."""
    cut: int = 0
    """Requests whose prompt was cut to fit `max_length`."""
    tokens: int = 0
    """Tokens of all sequences that have a reward, each as often as it was asked for."""
    heads: np.ndarray | None = None
    """Rewards by each head where that was asked for, NaN where there is a problem, shape `(R, M)`, float32."""


class ScoringError(ValueError):
    """Some requests have no reward. What could be scored is in `rewards`, so nothing is lost."""

    def __init__(self, message: str, result: ScoreResult) -> None:
        super().__init__(message)
        self.rewards, self.problems = result.rewards, result.problems


@dataclass(frozen=True)
class Ranking:
    """The responses to one prompt, best first."""

    responses: list[Any]
    """As they were given."""
    rewards: np.ndarray
    """Reward of each response, in the order in which they were given, shape `(N,)`, float32."""
    order: list[int]
    """Places of the responses, best first; equal rewards keep their order."""

    @property
    def best(self) -> Any:
        """The response with the highest reward."""
        return self.responses[self.order[0]]


class RewardScorer:
    """Scores texts with a reward model, ours or any native one-label classifier.

    Formatting comes from the checkpoint's `reward_config.json`. Without one (foreign models), text becomes turns of the
    chat template if there is one, else a text pair for tokenizers with CLS and SEP, else prompt + response + EOS; the
    limit is the end of the model's positions, if they have one (see `position_limits`); and decoders are read where the
    stock class reads them, at the last token that is not the pad token. A reward does not depend on what else is scored
    with it, but for rounding.

    The scorer is not thread-safe: let one thread at a time call it.
    """

    def __init__(
        self,
        model: str | Path | RewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        record: CheckpointRecord | None = None,
        *,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        packing: Packing = "auto",
        distributed: bool = False,
        length_correction: bool = False,
        lower_bound: float | None = None,
        **loading: Any,
    ) -> None:
        """Take a model, or load one.

        Args:
            model: A folder or Hub id, or a loaded reward model, which is used where it is.
            tokenizer: The tokenizer of a loaded model.
            record: The record of a loaded model, if it has one.
            batch_tokens: Tokens in a batch, unless one text alone has more; by default 4,096 on a CPU and 32,768
                elsewhere.
            max_length: Another limit than the checkpoint's.
            packing: Compute shared beginnings once and no padding: "auto" where the model allows it, True or False.
            distributed: Whether the processes of `accelerate launch` share the work of each call. They all have to make
                the same calls, and all get all rewards. Without it each works for itself.
            length_correction: Whether to take off each reward what the record's length correction says for the
                characters of the response. Whole formatted texts and token ids, of which no response is known, are
                then problems.
            lower_bound: For a model with several heads: give everywhere, instead of the mean reward of its heads, that
                mean less so many of their standard deviations.
            **loading: For a folder or Hub id: `device`, `dtype`, `verify` and what
                `AutoModelForRewardScoring.from_pretrained` takes.

        Raises:
            ValueError: If the model cannot score (several labels, a new head, no tokenizer, rewards that depend on the
                batch), an option is unusable, or there is no length correction, or but one head, where that is asked
                for.
        """
        self.name = str(model) if isinstance(model, str | Path) else str(bare_model(model).name_or_path or "model")
        if isinstance(model, str | Path):
            model, tokenizer, record = load_for_scoring(str(model), **loading)
        elif loading:
            raise TypeError(f"{', '.join(loading)} is for models that are loaded here; this one is loaded already.")
        if tokenizer is None:
            raise ValueError("A loaded model needs its tokenizer: RewardScorer(model, tokenizer, record).")
        tokenizer = without_clock(tokenizer)
        self.model, self.tokenizer, self.record, self.distributed = model, tokenizer, record, distributed
        self._correction = correction_of(self.name, record, length_correction)
        self._beta = lower_bound
        if lower_bound is not None:
            check_beta("lower_bound", lower_bound)
            require_heads(self.name, model, record)
        device = bare_model(model).device.type
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(device, _BATCH_TOKENS_ELSEWHERE)
        require_same_in_batches(model, tokenizer, record)
        self._encoder = encoder_of(model, tokenizer, record, max_length)
        self._sequences = SequenceScorer(model, batch_tokens=self.batch_tokens, packing=packing)
        self.__name__ = Path(self.name).name  # TRL logs a reward function under it

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "RewardScorer":
        """Load a reward model for scoring.

        Args:
            name_or_path: A folder or Hub id of a reward model or of its adapter.
            **options: Those of the constructor; `device` (by default a GPU if there is one), `dtype` ("float32"),
                `verify=True` to refuse a model whose stored probe rewards have changed, `revision`, `token`,
                `trust_remote_code`, `device_map`, ...

        Returns:
            The scorer.

        Raises:
            ValueError: If the model cannot score, or an option is unusable.
        """
        return cls(name_or_path, **options)

    # --- for people --------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Any], responses: Sequence[Any], *, allow_empty: bool = False) -> np.ndarray:
        """Score each response to its prompt.

        Args:
            prompts: Text or messages for each response; where one prompt has several responses, give it as often.
            responses: Text or messages.
            allow_empty: Whether responses may be empty.

        Returns:
            Rewards in the order of the responses, shape `(R,)`, float32.

        Raises:
            ScoringError: If a response cannot be scored; its `rewards` hold those that could.
            ValueError: If there are not as many prompts as responses.
        """
        return self._score(_pairs(prompts, responses), allow_empty).rewards

    def score_with_uncertainty(
        self, prompts: Sequence[Any], responses: Sequence[Any], *, beta: float = 1.0, allow_empty: bool = False
    ) -> UncertainRewards:
        """Score each response to its prompt by each of the model's heads.

        Args:
            prompts: As in `score`.
            responses: As in `score`.
            beta: Standard deviations that `lower_bound` of the result takes off the mean.
            allow_empty: Whether responses may be empty.

        Returns:
            `mean`, `std` (over heads) and `lower_bound` of each response, shape `(R,)`, and what they come from.

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
            ScoringError: If one cannot be scored.
        """
        return self._score([(request_from_messages, (each,)) for each in conversations], allow_empty).rewards

    def score_texts(self, texts: Sequence[str], *, allow_empty: bool = False) -> np.ndarray:
        """Score whole texts, to which the model's chat template has been applied already.

        Args:
            texts: The texts, with or without BOS at their start: the model gets as many as in training.
            allow_empty: Whether a text may be empty.

        Returns:
            Rewards, shape `(R,)`, float32.

        Raises:
            ScoringError: If one cannot be scored.
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
        """Rank the responses to each of several prompts; each prompt is computed once.

        Args:
            prompts: Text or messages, one for each list.
            responses_per_prompt: A list of responses for each prompt.
            allow_empty: Whether responses may be empty.

        Returns:
            A ranking for each prompt.

        Raises:
            ScoringError: If a response cannot be scored.
            ValueError: If there are not as many prompts as lists, or a list is empty.
        """
        if len(prompts) != len(responses_per_prompt):
            raise ValueError(
                f"There are {len(prompts)} prompts for {len(responses_per_prompt)} lists of responses. Give one each."
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
        """Probability that one response is preferred to another, by Bradley and Terry (1952).

        The logistic function of (reward of a - reward of b) / T, where T is the temperature that the checkpoint stores
        under `calibration`, or 1.

        Args:
            prompt: Text or messages.
            a: One response.
            b: The other.

        Returns:
            P(a is preferred to b).

        Raises:
            ScoringError: If one of them cannot be scored.
            ValueError: If the scorer gives lower bounds, whose difference says nothing of that probability.
        """
        if self._beta is not None:
            raise ValueError(
                f"`compare` needs mean rewards, but this scorer gives lower bounds (`lower_bound={self._beta}`). Use a "
                "scorer without."
            )
        first, second = (float(reward) for reward in self.score([prompt, prompt], [a, b]))
        difference = (first - second) / self.temperature
        return 1 / (1 + math.exp(-difference)) if difference >= 0 else 1 - 1 / (1 + math.exp(difference))

    @property
    def rows(self) -> str:
        """What the model takes: `conversations`, or `text`."""
        return self._encoder.rows

    @property
    def temperature(self) -> float:
        """What reward differences are divided by before they become probabilities; 1 unless the checkpoint says."""
        return float(self.record.calibration.get("temperature", 1.0)) if self.record is not None else 1.0

    # --- for programs ------------------------------------------------------------------------------------------------

    def __call__(self, prompts: Any, completions: Any = None, **columns: Any) -> Any:
        """Be a reward function of TRL's trainers, or map a batch of columns, as Ray Data and `datasets` do.

        Args:
            prompts: TRL's prompts; or a batch, a dict of columns as `requests_of_row` reads them.
            completions: TRL's completions; absent for a batch.
            **columns: What else TRL passes (`completion_ids`, columns of the data); not read.

        Returns:
            For TRL a list of rewards, None where one cannot be scored. For a batch its columns, `reward` (float32, NaN
            where a row cannot be scored) and `problem`, which says why, else empty.

        Raises:
            PreferenceFormatError: If a batch has no column that says what to score.
        """
        if completions is None:
            return self._map_batch(prompts)
        requests = [read_request(*pair, is_apart=True) for pair in zip(prompts, completions, strict=True)]
        result = self.score_requests(requests, allow_empty=True, show_progress=False)  # a policy may say nothing
        if result.problems:
            place, problem = next(iter(result.problems.items()))
            logger.warning("%s completions have no reward, the first (%s): %s", len(result.problems), place, problem)
        return [None if place in result.problems else float(value) for place, value in enumerate(result.rewards)]

    def _map_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in REQUEST_COLUMNS if name in batch and name != "responses"]
        requests: list[ScoreRequest | None] = []
        problems: list[str] = []
        for values in zip(*(batch[name] for name in names), strict=True):
            try:
                (request,) = requests_of_row(dict(zip(names, values, strict=True)))
                requests.append(request)
                problems.append("")
            except PreferenceFormatError as error:
                requests.append(None)
                problems.append(error.message)
        if not requests and len(next(iter(batch.values()), ())):
            requests_of_row(dict.fromkeys(batch))  # says which columns are needed
        good = [place for place, request in enumerate(requests) if request is not None]
        result = self.score_requests([request for request in requests if request is not None], show_progress=False)
        rewards = np.full(len(requests), np.nan, dtype=np.float32)
        rewards[good] = result.rewards
        for place, problem in result.problems.items():
            problems[good[place]] = problem
        return {**batch, "reward": rewards, "problem": problems}

    def score_requests(
        self,
        requests: Sequence[ScoreRequest],
        *,
        allow_empty: bool = False,
        show_progress: bool | None = None,
        every_head: bool = False,
    ) -> ScoreResult:
        """Score requests; one that cannot be scored stops no other.

        Args:
            requests: What to score.
            allow_empty: Whether responses may be empty.
            show_progress: Show a bar; by default where there is a terminal and it takes some seconds.
            every_head: Give the rewards by each head too.

        Returns:
            Rewards, and what was wrong with those that have none.
        """
        encoded = self.encode(requests, allow_empty=allow_empty)
        return self.score_encoded(encoded, show_progress=show_progress, every_head=every_head)

    def encode(self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False) -> list[EncodedResponse]:
        """Tokenise requests; see `ResponseEncoder.encode`."""
        return self._encoder.encode(requests, allow_empty=allow_empty)

    def copy_encoder(self) -> ResponseEncoder:
        """What tokenises for this model, for a thread of its own."""
        return self._encoder.copy()

    def score_encoded(
        self, encoded: Sequence[EncodedResponse], *, show_progress: bool | None = None, every_head: bool = False
    ) -> ScoreResult:
        """Score what `encode` returned, each distinct sequence once.

        Args:
            encoded: Token ids of each request.
            show_progress: As in `score_requests`.
            every_head: As in `score_requests`.

        Returns:
            Rewards, and what was wrong with those that have none.
        """
        by_head = every_head or self._beta is not None
        columns = np.full((len(encoded), number_of_heads(self.model) if by_head else 1), np.nan, dtype=np.float32)
        problems = {place: each.problem for place, each in enumerate(encoded) if each.problem}
        for place, each in enumerate(encoded):
            if place not in problems and (problem := self._problem(each)):
                problems[place] = problem
        good = [place for place in range(len(encoded)) if place not in problems]
        if good:
            columns[good] = self._rewards([encoded[place] for place in good], show_progress, by_head)
        if good and self._correction is not None:
            lengths = [encoded[place].characters or 0 for place in good]  # None is a problem, so never here
            for column in columns.T:  # views
                column[good] = self._correction.apply(column[good], lengths)
        rewards = columns[:, 0]
        if by_head:
            rewards = UncertainRewards(columns, self._beta or 0.0).lower_bound
        for place in good:
            if not math.isfinite(rewards[place]):
                problems[place] = f"its reward is {rewards[place]}, no number: the weights or `dtype` overflow on it"
                rewards[place] = np.nan
        cut = sum(encoded[place].cut_tokens > 0 for place in good)
        tokens = sum(len(encoded[place].input_ids) for place in good)
        return ScoreResult(rewards, dict(sorted(problems.items())), cut, tokens, columns if every_head else None)

    def with_padding(self) -> "RewardScorer":
        """The same model and settings, with padded batches instead of packed ones."""
        other = copy.copy(self)
        other._sequences = SequenceScorer(self.model, batch_tokens=self.batch_tokens, packing=False)
        return other

    def fingerprint(self) -> dict[str, Any]:
        """What decides a reward: results are comparable only where all of it is equal.

        Returns:
            JSON values: model, weights, tokenizer and template (as hashes), format, precision, engine and versions, and
            the length correction as a hash where it is on, and the heads where their spread counts.
        """
        correction = {}
        if self._correction is not None:
            content = json.dumps(self._correction.to_dict(), sort_keys=True)
            correction = {"length_correction": xxhash.xxh3_128_hexdigest(content.encode())}
        return {
            "model": self.name,
            **describe_scoring(self.model, self.tokenizer, self._encoder),
            "engine": "transformers, packed" if self._sequences.packs else "transformers, padded",
            "batch_tokens": self.batch_tokens,
            **correction,
            **({} if self._beta is None else {"lower_bound": self._beta, "heads": heads_hash(self.model)}),
        }

    @property
    def corrects_length(self) -> bool:
        """Whether rewards are corrected for length."""
        return self._correction is not None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _score(
        self, calls: Sequence[tuple[Any, tuple[Any, ...]]], allow_empty: bool, every_head: bool = False
    ) -> ScoreResult:
        """Read every request before anything is computed, then score them all or say which could not be."""
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
                f"{problem}. The others are in the error's `rewards`.",
                result,
            )
        return result

    def _problem(self, encoded: EncodedResponse) -> str | None:
        if self._correction is not None and encoded.characters is None:
            return _NO_RESPONSE
        return self._sequences.problem(encoded.input_ids)

    def _rewards(self, encoded: Sequence[EncodedResponse], show_progress: bool | None, by_head: bool) -> np.ndarray:
        """Rewards, by each head or by their mean alone, shape `(R, M)`."""
        typed = encoded[0].token_type_ids is not None
        sequences = distinct_sequences(
            [each.input_ids for each in encoded], [each.token_type_ids for each in encoded] if typed else None
        )
        state = PartialState(cpu=not torch.accelerator.is_available()) if self.distributed else None
        share = (0, 1) if state is None else (state.process_index, state.num_processes)
        hidden = None if show_progress is None else not show_progress
        with tqdm(
            total=len(sequences.input_ids), disable=hidden, delay=3, desc="Scoring", unit="text", leave=False
        ) as bar:
            score = self._sequences.score_heads if by_head else self._sequences.score
            rewards = score(sequences, share=share, progress=bar.update).reshape(len(sequences.input_ids), -1)
        if state is not None and state.num_processes > 1:
            everywhere: Any = reduce(torch.from_numpy(rewards).to(state.device), "sum")
            rewards = everywhere.cpu().numpy()
        return rewards[sequences.where]


def _pairs(prompts: Sequence[Any], responses: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """How each response and its prompt become a request."""
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str):
            raise ValueError(f"`{name}` must be a list, but is one text. For one prompt, use `rank` or [text].")
    if len(prompts) != len(responses):
        raise ValueError(f"There are {len(prompts)} prompts for {len(responses)} responses. Give one for each.")
    return [(read_request, pair) for pair in zip(prompts, responses, strict=True)]
