"""Score token sequences: equal sequences and shared tokens once, batches limited by a token budget.

The sequences alone determine the batches and the shared prefixes, so the same list gives bitwise equal rewards.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from hf_reward.modeling.end_tokens import missing_end, reward_end_token
from hf_reward.modeling.head_ensemble import every_head, number_of_heads
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.packing_check import Packing, may_pack
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_sequence_rewards
from hf_reward.preprocessing.model_inputs import pack, pad
from hf_reward.preprocessing.prefix_tree import pack_sequences, shared_with_previous, sorted_distinct

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sequences:
    """Distinct token sequences in the order of computation."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    where: np.ndarray
    """Index of each given sequence in `input_ids`, shape `(S,)`."""
    images: Sequence[Any] = ()
    """The distinct images of `image_inputs.numbered`, if `input_ids` has their ids."""


def distinct_sequences(
    input_ids: Sequence[list[int]], token_type_ids: Sequence[list[int] | None] | None = None
) -> Sequences:
    """Sort sequences so that those with a common prefix are adjacent, and remove duplicates.

    Args:
        input_ids: Token ids of each sequence.
        token_type_ids: Their token types, if the model uses them.

    Returns:
        The distinct sequences, and the index of each given one among them.
    """
    types = None if token_type_ids is None else [each or [] for each in token_type_ids]
    # Ids are sorted before types: the length separates the two.
    keys = input_ids if types is None else [[*ids, len(ids), *each] for ids, each in zip(input_ids, types, strict=True)]
    order, where = sorted_distinct(keys)
    return Sequences(
        [input_ids[place] for place in order],
        None if types is None else [types[place] for place in order],
        np.array(where, dtype=np.int64),
    )


# --- batches ---------------------------------------------------------------------------------------------------------


def packed_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches without padding, of at most `max_tokens` tokens unless one sequence has more.

    Args:
        sequences: Sorted sequences.
        max_tokens: Tokens in a batch; shared tokens count once.

    Yields:
        list[int]: The places of the sequences of a batch.
    """
    ids = sequences.input_ids
    shared = shared_with_previous(ids)
    start = 0
    while start < len(ids):
        end, tokens = start + 1, len(ids[start])
        while end < len(ids) and tokens + len(ids[end]) - shared[end] <= max_tokens:
            tokens += len(ids[end]) - shared[end]
            end += 1
        # The forest may have a few tokens more: it does not share those that save too little.
        while end - start > 1 and (excess := len(pack_sequences(ids[start:end]).input_ids) - max_tokens) > 0:
            end = max(start + 1, end - max(1, excess // max(map(len, ids[start:end]))))
        yield list(range(start, end))
        start = end


def padded_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of sequences of similar length, longest first.

    Args:
        sequences: Sequences in any order.
        max_tokens: Tokens in a batch, padding included.

    Yields:
        list[int]: The places of the sequences of a batch.
    """
    lengths = [len(ids) for ids in sequences.input_ids]
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:  # the first is the longest
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


# --- rewards ---------------------------------------------------------------------------------------------------------


class SequenceScorer:
    """A model with packed or padded batches."""

    def __init__(self, model: RewardModel, *, batch_tokens: int, packing: Packing = "auto", images: Any = None) -> None:
        """Check the options, and whether the model can be packed.

        Args:
            model: A reward model on the device to use, optionally wrapped by PEFT. Its training mode is restored.
            batch_tokens: Maximum number of tokens in a batch; a longer sequence is a batch of its own.
            packing: "auto", True or False, as in `score_rows`.
            images: `ImageBatch` of a vision-language model.

        Raises:
            ValueError: If `packing` is True and the model does not allow it, or `batch_tokens` is below 1.
        """
        if batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, but is {batch_tokens}.")
        self.model, self.batch_tokens, self.images = model, batch_tokens, images
        bare: Any = unwrap_model(model)
        self.vocabulary = int(bare.get_input_embeddings().weight.shape[0])
        self._end = reward_end_token(model)
        # Padding is masked and rewards are read at explicit positions, so any token works as padding.
        self._pad_token_id = bare.config.get_text_config().pad_token_id or 0
        self.packs = may_pack(model, packing, self._trial_inputs, log_level=logging.INFO)

    def problem(self, input_ids: Sequence[int]) -> str:
        """Return why the model cannot take a sequence, or "". On a GPU an invalid id would crash the process."""
        if not input_ids or min(input_ids) < 0:
            return "it has no token ids, or a negative one"
        if max(input_ids) >= self.vocabulary:
            return f"token id {max(input_ids)} is not below the model's {self.vocabulary}"
        if self._end is not None and self._end not in input_ids:
            return missing_end(self.model)
        return ""

    @torch.inference_mode()
    def score(
        self,
        sequences: Sequences,
        *,
        by_head: bool = False,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[int], Any] | None = None,
    ) -> np.ndarray:
        """Score every distinct sequence.

        Args:
            sequences: The result of `distinct_sequences`.
            by_head: Return the rewards of each head of an ensemble instead of their mean.
            share: `(i, n)`: compute every n-th batch from the i-th on, for one of n processes.
            progress: Called after each batch with the number of its sequences.

        Returns:
            Rewards, shape `(S, M)`, float32; 0 for the batches of other processes. M is 1 unless `by_head`.
        """
        heads = number_of_heads(self.model) if by_head else 1
        rewards = np.zeros((len(sequences.input_ids), heads), dtype=np.float32)
        number, processes = share
        training = self.model.training
        self.model.eval()
        try:
            with ExitStack() as stack:
                if self.packs:
                    stack.enter_context(packed_model(unwrap_model(self.model)))
                if by_head:
                    stack.enter_context(every_head(self.model))
                for count, batch in enumerate(self._batches(sequences)):
                    if count % processes == number:
                        rewards[batch] = self._rewards(sequences, batch)
                    if progress is not None:
                        progress(len(batch))
        finally:
            self.model.train(training)
        return rewards

    def _batches(self, sequences: Sequences) -> Iterator[list[int]]:
        return (packed_batches if self.packs else padded_batches)(sequences, self.batch_tokens)

    def _rewards(self, sequences: Sequences, batch: list[int]) -> np.ndarray:
        """Compute the rewards of a batch, `(N, M)`; halve a batch that does not fit into the device's memory."""
        device = unwrap_model(self.model).device
        inputs = self._packed(sequences, batch) if self.packs else self._padded(sequences, batch)
        if self.images is not None:
            inputs = self.images.complete(inputs, sequences.images)
        try:
            return compute_sequence_rewards(self.model, send_to_device(inputs, device)).T.cpu().numpy()
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            logger.warning(
                "A batch of %s tokens does not fit into the device's memory and is halved. Lower `batch_tokens` (%s).",
                inputs["input_ids"].numel(),
                self.batch_tokens,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return np.concatenate([self._rewards(sequences, half) for half in (batch[:middle], batch[middle:])])

    def _packed(self, sequences: Sequences, batch: list[int]) -> dict[str, Any]:
        return pack([sequences.input_ids[place] for place in batch])

    def _padded(self, sequences: Sequences, batch: list[int]) -> dict[str, Any]:
        types = sequences.token_type_ids
        return pad(
            [sequences.input_ids[place] for place in batch],
            None if types is None else [types[place] for place in batch],
            pad_token_id=self._pad_token_id,
        )

    def _trial_inputs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return arbitrary ids, padded and packed, to test whether packing is exact."""
        ids = [number * 7919 % self.vocabulary for number in range(1, 129)]
        first = [ids[:24] + ids[24:40], ids[:24] + ids[40:49], ids[:24] + ids[24:36] + ids[101:109]]
        second = [ids[50:70], ids[70:90] + ids[90:101]]
        sequences = Sequences([*first, *second], None, np.arange(5))
        batch = list(range(5))
        return self._padded(sequences, batch), self._packed(sequences, batch)
