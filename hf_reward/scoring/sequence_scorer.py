"""Score token sequences: equal sequences once, shared prefixes once, batches limited by a token budget.

The sequences alone determine the batches and the shared prefixes, so the same list gives bitwise equal rewards.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device

from hf_reward.data.preference_row import common_prefix
from hf_reward.modeling.end_tokens import missing_end, reward_end_token
from hf_reward.modeling.head_ensemble import every_head, number_of_heads
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.packing_check import Packing, may_pack
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_sequence_rewards
from hf_reward.preprocessing.model_inputs import SequenceGroup, pack, pad

logger = logging.getLogger(__name__)


class Group(NamedTuple):
    """Sequences of a batch that share a prefix."""

    places: list[int]
    shared: int
    """Tokens that all of them share, fewer than the length of the shortest."""


_MOST_MEMBERS = 128
"""Maximum number of sequences in a group: larger groups save almost nothing and take longer to find."""
_WORTH_SHARING = 8
"""Minimum length of a shared prefix: each group costs an attention call in every layer."""


@dataclass(frozen=True)
class Sequences:
    """Distinct token sequences in the order of computation."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    where: np.ndarray
    """Index of each given sequence in `input_ids`, shape `(S,)`."""


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
    # Big-endian bytes sort in the same order as the lists, at the speed of memcmp.
    keys = [np.asarray(ids, dtype=">u4").tobytes() for ids in input_ids]
    if types is not None:
        keys = [key + bytes(each) for key, each in zip(keys, types, strict=True)]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = sorted(first)
    rank = {key: place for place, key in enumerate(order)}
    return Sequences(
        [input_ids[first[key]] for key in order],
        None if types is None else [types[first[key]] for key in order],
        np.array([rank[key] for key in keys], dtype=np.int64),
    )


def shared_groups(sequences: Sequence[list[int]]) -> list[Group]:
    """Partition sorted sequences into groups that share a prefix, so that the saved tokens are maximal.

    In sorted order a group is a contiguous range. Dynamic programming: the best partition of the first i sequences is
    the best last group plus the best partition of the sequences before it.

    Args:
        sequences: Token ids, sorted.

    Returns:
        The groups.
    """
    shared = _shared_with_previous(sequences)
    saved = [0] * (len(sequences) + 1)  # tokens saved by the best partition of the first i sequences
    start = [0] * (len(sequences) + 1)  # start of the last group of that partition
    for end in range(1, len(sequences) + 1):
        saved[end], start[end] = saved[end - 1], end - 1
        common = shared[end - 1]
        for first in range(end - 2, max(-1, end - 1 - _MOST_MEMBERS), -1):
            common = min(common, shared[first + 1])
            if common < _WORTH_SHARING:
                break
            saving = saved[first] + (end - 1 - first) * common
            if saving > saved[end]:
                saved[end], start[end] = saving, first
    groups: list[Group] = []
    end = len(sequences)
    while end:
        first = start[end]
        groups.append(Group(list(range(first, end)), min(shared[first + 1 : end], default=0)))
        end = first
    return groups[::-1]


def _shared_with_previous(sequences: Sequence[list[int]]) -> list[int]:
    """Return the number of tokens that each sequence shares with the previous one, fewer than its length."""
    found = [0] if sequences else []
    for before, ids in pairwise(sequences):
        limit = min(len(before), len(ids)) - 1
        found.append(len(common_prefix([before[:limit], ids[:limit]])))
    return found


# --- batches ---------------------------------------------------------------------------------------------------------


def packed_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[Group]]:
    """Yield batches without padding, of at most `max_tokens` tokens unless one sequence has more.

    Args:
        sequences: Sorted sequences.
        max_tokens: Tokens in a batch; a shared prefix counts once.

    Yields:
        list[Group]: The groups of a batch.
    """
    batch: list[Group] = []
    room = max_tokens
    for members, shared in shared_groups(sequences.input_ids):
        part: list[int] = []
        for place in members:
            own = len(sequences.input_ids[place]) - (shared if part else 0)
            if own > room and (part or batch):
                yield batch + _groups(part, shared)
                batch, part, room = [], [], max_tokens
                own = len(sequences.input_ids[place])
            part.append(place)
            room -= own
        batch += _groups(part, shared)
    if batch:
        yield batch


def _groups(places: list[int], shared: int) -> list[Group]:
    """Return one group, or none if there are no places; a single sequence shares nothing."""
    return [Group(places, shared if len(places) > 1 else 0)] if places else []


def padded_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[Group]]:
    """Yield batches of sequences of similar length, longest first, with one sequence per group.

    Args:
        sequences: Sequences in any order.
        max_tokens: Tokens in a batch, padding included.

    Yields:
        list[Group]: The groups of a batch.
    """
    lengths = [len(ids) for ids in sequences.input_ids]
    batch: list[Group] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and lengths[batch[0].places[0]] * (len(batch) + 1) > max_tokens:  # the first is the longest
            yield batch
            batch = []
        batch.append(Group([place], 0))
    if batch:
        yield batch


# --- rewards ---------------------------------------------------------------------------------------------------------


class SequenceScorer:
    """A model with packed or padded batches."""

    def __init__(self, model: RewardModel, *, batch_tokens: int, packing: Packing = "auto") -> None:
        """Check the options, and whether the model can be packed.

        Args:
            model: A reward model on the device to use, optionally wrapped by PEFT. Its training mode is restored.
            batch_tokens: Maximum number of tokens in a batch; a longer sequence is a batch of its own.
            packing: "auto", True or False, as in `score_rows`.

        Raises:
            ValueError: If `packing` is True and the model does not allow it, or `batch_tokens` is below 1.
        """
        if batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, but is {batch_tokens}.")
        self.model, self.batch_tokens = model, batch_tokens
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
                    places = _places(batch)
                    if count % processes == number:
                        rewards[places] = self._rewards(sequences, batch)
                    if progress is not None:
                        progress(len(places))
        finally:
            self.model.train(training)
        return rewards

    def _batches(self, sequences: Sequences) -> Iterator[list[Group]]:
        return (packed_batches if self.packs else padded_batches)(sequences, self.batch_tokens)

    def _rewards(self, sequences: Sequences, batch: list[Group]) -> np.ndarray:
        """Compute the rewards of a batch, `(N, M)`; halve a batch that does not fit into the device's memory."""
        device = unwrap_model(self.model).device
        inputs = self._packed(sequences, batch) if self.packs else self._padded(sequences, batch)
        try:
            return compute_sequence_rewards(self.model, send_to_device(inputs, device)).T.cpu().numpy()
        except torch.OutOfMemoryError:
            halves = _halves(batch)
            if halves is None:
                raise
            logger.warning(
                "A batch of %s tokens does not fit into the device's memory and is halved. Lower `batch_tokens` (%s).",
                inputs["input_ids"].numel(),
                self.batch_tokens,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return np.concatenate([self._rewards(sequences, half) for half in halves])

    def _packed(self, sequences: Sequences, batch: list[Group]) -> dict[str, Any]:
        ids = sequences.input_ids
        return pack([SequenceGroup([ids[place] for place in group.places], group.shared) for group in batch])

    def _padded(self, sequences: Sequences, batch: list[Group]) -> dict[str, Any]:
        places, types = _places(batch), sequences.token_type_ids
        return pad(
            [sequences.input_ids[place] for place in places],
            None if types is None else [types[place] for place in places],
            pad_token_id=self._pad_token_id,
        )

    def _trial_inputs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return two groups of arbitrary ids, padded and packed, to test whether packing is exact."""
        ids = [number * 7919 % self.vocabulary for number in range(1, 129)]
        first = [ids[:24] + ids[24:40], ids[:24] + ids[40:49]]
        second = [ids[50:70], ids[70:90] + ids[90:101]]
        sequences, batch = Sequences([*first, *second], None, np.arange(4)), [Group([0, 1], 24), Group([2, 3], 0)]
        return self._padded(sequences, batch), self._packed(sequences, batch)


def _places(batch: list[Group]) -> list[int]:
    return [place for group in batch for place in group.places]


def _halves(batch: list[Group]) -> tuple[list[Group], list[Group]] | None:
    """Split a batch into two, in order; None for a single sequence."""
    if len(batch) > 1:
        middle = len(batch) // 2
        return batch[:middle], batch[middle:]
    places, shared = batch[0]
    middle = len(places) // 2
    return (_groups(places[:middle], shared), _groups(places[middle:], shared)) if middle else None
