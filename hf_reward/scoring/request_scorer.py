"""Score requests: tokenisation, batches, heads, length correction and distribution over processes."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
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
from hf_reward.modeling.model_images import load_images
from hf_reward.modeling.packing_check import Packing
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.preprocessing.response_encoding import EncodedResponse, ResponseEncoder
from hf_reward.preprocessing.template_clock import without_clock
from hf_reward.scoring.loading import (
    batch_of_images,
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
    "its response cannot be separated from its prompt (a formatted text or token ids), so its reward cannot be "
    "corrected for length; give prompt and response, or score without `length_correction` (`--length-correction`)"
)


class RequestScorer:
    """Scorer of requests. `RewardScorer` adds the methods for texts, lists and conversations."""

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
        images: Any = None,
        **loading: Any,
    ) -> None:
        """Load a model, or use a loaded one.

        Args:
            model: A folder or Hub id, or a loaded reward model, which stays on its device.
            tokenizer: The tokenizer of a loaded model.
            record: The record of a loaded model, if it has one.
            batch_tokens: Maximum number of tokens in a batch; a longer text is a batch of its own. By default 4,096 on
                a CPU and 32,768 elsewhere.
            max_length: Maximum length in tokens; by default that of the checkpoint.
            packing: Compute shared prefixes once, without padding: "auto" where the model allows it, True or False.
            distributed: Share the work of each call among the processes of `accelerate launch`. All processes must make
                the same calls, and all get all rewards. If False, each process scores everything it is given.
            length_correction: Subtract the length curve stored in the record, at the number of characters of the
                response. Formatted texts and token ids then get no reward, because their response is unknown.
            lower_bound: For a model with several heads: return the mean of the heads minus this number of standard
                deviations, instead of the mean.
            images: `ImageProcessing` of a loaded vision-language model; loaded with a folder or Hub id.
            **loading: For a folder or Hub id: `device`, `dtype`, `verify` and the options of
                `AutoModelForRewardScoring.from_pretrained`.

        Raises:
            ValueError: If the model cannot score (several labels, a new head, no tokenizer, rewards that depend on the
                batch), an option is invalid, or the model lacks the requested length correction or heads.
        """
        self.name = str(model) if isinstance(model, str | Path) else str(unwrap_model(model).name_or_path or "model")
        if isinstance(model, str | Path):
            model, tokenizer, record = load_for_scoring(str(model), **loading)
            images = load_images(model, tokenizer)
        elif loading:
            raise TypeError(
                f"{', '.join(loading)}: loading options need a folder or Hub id, but the model is loaded already."
            )
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
        if images is not None:
            self._encoder = replace(self._encoder, images=images)
        self._images = None if images is None else batch_of_images(images)
        self._sequences = SequenceScorer(model, batch_tokens=self.batch_tokens, packing=packing, images=self._images)
        self.__name__ = Path(self.name).name  # TRL logs reward functions under this name

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
        """Load a reward model for scoring.

        Args:
            name_or_path: A folder or Hub id of a reward model or of its adapter.
            **options: Options of the constructor, and `device` (by default a GPU if there is one), `dtype`
                ("float32"), `verify=True` to raise an error if the stored probe rewards have changed, `revision`,
                `token`, `trust_remote_code`, `device_map`, ...

        Returns:
            The scorer.

        Raises:
            ValueError: If the model cannot score, or an option is invalid.
        """
        return cls(name_or_path, **options)

    @property
    def rows(self) -> str:
        """Format of the model's inputs: `conversations` or `text`."""
        return self._encoder.rows

    @property
    def takes_images(self) -> bool:
        """Whether requests may have images."""
        return self._images is not None

    @property
    def temperature(self) -> float:
        """Divisor of reward differences for probabilities; 1 unless the checkpoint stores another."""
        return float(self.record.calibration.get("temperature", 1.0)) if self.record is not None else 1.0

    def score_requests(
        self,
        requests: Sequence[ScoreRequest],
        *,
        allow_empty: bool = False,
        show_progress: bool | None = None,
        every_head: bool = False,
    ) -> ScoreResult:
        """Score requests. A request that cannot be scored does not affect the others.

        Args:
            requests: The requests.
            allow_empty: Whether responses may be empty.
            show_progress: Show a progress bar; by default on a terminal, after some seconds.
            every_head: Also return the rewards of each head.

        Returns:
            Rewards, and the problems of requests without one.
        """
        encoded = self.encode(requests, allow_empty=allow_empty)
        return self.score_encoded(encoded, show_progress=show_progress, every_head=every_head)

    def encode(self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False) -> list[EncodedResponse]:
        """Tokenise requests; see `ResponseEncoder.encode`."""
        return self._encoder.encode(requests, allow_empty=allow_empty)

    def copy_encoder(self) -> ResponseEncoder:
        """Copy the encoder, for use in another thread."""
        return self._encoder.copy()

    def score_encoded(
        self, encoded: Sequence[EncodedResponse], *, show_progress: bool | None = None, every_head: bool = False
    ) -> ScoreResult:
        """Score the output of `encode`; equal sequences are computed once.

        Args:
            encoded: Token ids of each request.
            show_progress: As in `score_requests`.
            every_head: As in `score_requests`.

        Returns:
            Rewards, and the problems of requests without one.
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
                problems[place] = (
                    f"its reward is {rewards[place]}, not a finite number: the weights or `dtype` overflow"
                )
                rewards[place] = np.nan
        cut = sum(encoded[place].cut_tokens > 0 for place in good)
        tokens = sum(len(encoded[place].input_ids) for place in good)
        return ScoreResult(rewards, dict(sorted(problems.items())), cut, tokens, columns if every_head else None)

    def with_padding(self) -> Self:
        """Copy the scorer, with padded instead of packed batches."""
        other = copy.copy(self)
        other._sequences = SequenceScorer(
            self.model, batch_tokens=self.batch_tokens, packing=False, images=self._images
        )
        return other

    def fingerprint(self) -> dict[str, Any]:
        """Describe everything that determines a reward. Results are comparable only if fingerprints are equal.

        Returns:
            JSON values: model, weights, tokenizer and template (as hashes), format, precision, engine and versions;
            with `length_correction` a hash of the curve, with `lower_bound` a hash of the heads.
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
        """Compute rewards, of each head or of their mean, shape `(R, M)`."""
        typed = encoded[0].token_type_ids is not None
        ids, images = [each.input_ids for each in encoded], []
        if self._images is not None:
            ids, images = self._images.numbered(ids, [each.images for each in encoded])
        sequences = distinct_sequences(ids, [each.token_type_ids for each in encoded] if typed else None)
        sequences = replace(sequences, images=images)
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
