"""Model + requests -> rewards: tokens, batches, heads, length correction, shares of several processes."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import reduce
from huggingface_hub.utils import tqdm
from transformers import PreTrainedTokenizerBase

from hf_reward.data.score_request import ScoreRequest
from hf_reward.metrics.uncertainty import UncertainRewards, check_beta
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.head_ensemble import number_of_heads
from hf_reward.modeling.packing_check import Packing
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
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
from hf_reward.scoring.results import ScoreResult
from hf_reward.scoring.sequence_scorer import SequenceScorer, distinct_sequences

_BATCH_TOKENS = {"cpu": 4096}
_BATCH_TOKENS_ELSEWHERE = 32_768
_NO_RESPONSE = (
    "its response is not known apart from its prompt (a whole text or token ids), so its reward cannot be corrected "
    "for length; give prompt and response, or score without `length_correction` (`--length-correction`)"
)


class RequestScorer:
    """Scores requests with a reward model. `RewardScorer` adds what reads texts, lists and conversations."""

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
            packing: Compute shared prefixes once and no padding: "auto" where the model allows it, True or False.
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
        self.name = str(model) if isinstance(model, str | Path) else str(unwrap_model(model).name_or_path or "model")
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
        device = unwrap_model(model).device.type
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(device, _BATCH_TOKENS_ELSEWHERE)
        require_same_in_batches(model, tokenizer, record)
        self._encoder = encoder_of(model, tokenizer, record, max_length)
        self._sequences = SequenceScorer(model, batch_tokens=self.batch_tokens, packing=packing)
        self.__name__ = Path(self.name).name  # TRL logs a reward function under it

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
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

    @property
    def rows(self) -> str:
        """What the model takes: `conversations`, or `text`."""
        return self._encoder.rows

    @property
    def temperature(self) -> float:
        """What reward differences are divided by before they become probabilities; 1 unless the checkpoint says."""
        return float(self.record.calibration.get("temperature", 1.0)) if self.record is not None else 1.0

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
        found = {place: each.problem or self._problem(each) for place, each in enumerate(encoded)}
        problems = {place: problem for place, problem in found.items() if problem}
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

    def with_padding(self) -> Self:
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

    def _problem(self, encoded: EncodedResponse) -> str:
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
            rewards = self._sequences.score(sequences, by_head=by_head, share=share, progress=bar.update)
        if state is not None and state.num_processes > 1:
            everywhere: Any = reduce(torch.from_numpy(rewards).to(state.device), "sum")
            rewards = everywhere.cpu().numpy()
        return rewards[sequences.where]
