"""Token sequences -> rewards in bulk: equal sequences once, shared beginnings once, batches cut to a token budget.

Which sequences share a batch, and which share a beginning, follows from the sequences alone, so the same list gives the
same batches and the same bits again.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from hf_reward.data.preference_row import common_prefix
from hf_reward.modeling.end_tokens import end_token_read, missing_end
from hf_reward.modeling.head_ensemble import every_head, number_of_heads
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.packing_check import packing_problem
from hf_reward.modeling.reward_head import RewardModel, bare_model
from hf_reward.modeling.rewards import compute_head_rewards
from hf_reward.preprocessing.data_collator import UNUSED_COLUMNS, DataCollatorForPreference
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Part = list[int]
"""Places of sequences that stand in one group of a batch."""

_MOST_MEMBERS = 128
"""Sequences of one group: more would save next to nothing and cost time to look for."""
_WORTH_SHARING = 8
"""Tokens that a beginning must have to be computed apart: each part costs a call of the attention in every layer."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences, each distinct one once, in the order in which they are computed."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    where: np.ndarray
    """For each sequence that was given, its place here, shape `(S,)`."""


def distinct_sequences(
    input_ids: Sequence[list[int]], token_type_ids: Sequence[list[int] | None] | None = None
) -> Sequences:
    """Sort sequences so that those with a common beginning are neighbours, and keep each once.

    Args:
        input_ids: Token ids of each sequence.
        token_type_ids: Their token types, if the model reads any.

    Returns:
        The distinct sequences and where each given one is found.
    """
    types = None if token_type_ids is None else [each or [] for each in token_type_ids]
    # Bytes with the largest first compare as the lists do, at the speed of memcmp.
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


def shared_groups(sequences: Sequence[list[int]]) -> list[tuple[Part, int]]:
    """Cut sorted sequences into groups that share a beginning, so that most is saved by computing it once.

    In sorted order a group is a stretch of neighbours, so the best cut of the first i sequences is the best last group
    after the best cut before it.

    Args:
        sequences: Token ids, sorted.

    Returns:
        For each group its places and the number of tokens that all of them share, less than the shortest has.
    """
    shared = _shared_with_previous(sequences)
    saved = [0] * (len(sequences) + 1)  # by the best cut of the first so many sequences
    start = [0] * (len(sequences) + 1)  # of the last group of that cut
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
    groups: list[tuple[Part, int]] = []
    end = len(sequences)
    while end:
        first = start[end]
        groups.append((list(range(first, end)), min(shared[first + 1 : end], default=0)))
        end = first
    return groups[::-1]


def _shared_with_previous(sequences: Sequence[list[int]]) -> list[int]:
    """Tokens that each sequence shares with the one before it, fewer than either has; 0 for the first."""
    found = [0] if sequences else []
    for before, ids in pairwise(sequences):
        limit = min(len(before), len(ids)) - 1
        found.append(len(common_prefix([before[:limit], ids[:limit]])))
    return found


# --- batches ---------------------------------------------------------------------------------------------------------


def packed_batches(sequences: Sequences, max_tokens: int) -> Iterator[tuple[list[Row], Part]]:
    """Batches without padding: each shared beginning once, and at most `max_tokens` tokens unless one has more.

    Args:
        sequences: Sorted sequences.
        max_tokens: Tokens in a batch.

    Yields:
        tuple[list[Row], Part]: Rows for the packed collator, and the places of their sequences, group by group.
    """
    rows: list[Row] = []
    places: Part = []
    room = max_tokens
    for members, shared in shared_groups(sequences.input_ids):
        part: Part = []
        for place in members:
            own = len(sequences.input_ids[place]) - (shared if part else 0)
            if own > room and (part or rows):
                if part:
                    rows.append(_row(sequences, part, shared))
                yield rows, places + part
                rows, places, part, room = [], [], [], max_tokens
                own = len(sequences.input_ids[place])
            part.append(place)
            room -= own
        rows.append(_row(sequences, part, shared))
        places += part
    if rows:
        yield rows, places


def padded_batches(
    sequences: Sequences, max_tokens: int, tokens: Callable[[Sequence[Row]], int]
) -> Iterator[tuple[list[Row], Part]]:
    """Batches of about equally long sequences, the longest first, one sequence in a group.

    Args:
        sequences: Sequences in any order.
        max_tokens: Tokens in a batch, padding included.
        tokens: Tokens that the model computes for some rows.

    Yields:
        tuple[list[Row], Part]: Rows for the padding collator, and the places of their sequences.
    """
    lengths = [len(ids) for ids in sequences.input_ids]
    rows: list[Row] = []
    places: Part = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        row = _row(sequences, [place], 0)
        if rows and tokens([rows[0]]) * (len(rows) + 1) > max_tokens:  # the first is the longest
            yield rows, places
            rows, places = [], []
        rows.append(row)
        places.append(place)
    if rows:
        yield rows, places


def _row(sequences: Sequences, part: Part, shared: int) -> Row:
    types = sequences.token_type_ids
    return {
        "input_ids": [sequences.input_ids[place] for place in part],
        "token_type_ids": None if types is None else [types[place] for place in part],
        "prefix_length": shared if len(part) > 1 else 0,
        "ranks": [0] * len(part),
        **UNUSED_COLUMNS,
    }


# --- rewards ---------------------------------------------------------------------------------------------------------


class SequenceScorer:
    """A model and the form in which it takes its batches."""

    def __init__(self, model: RewardModel, *, batch_tokens: int, packing: str | bool = "auto") -> None:
        """Take a model.

        Args:
            model: A reward model on the device to use, perhaps wrapped by PEFT. Its mode is left as it was.
            batch_tokens: Tokens in a batch, unless one sequence alone has more.
            packing: "auto", True or False, as in `score_rows`.

        Raises:
            ValueError: If packing is asked for and not possible, or there is no room for a token.
        """
        if batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, but is {batch_tokens}.")
        self.model, self.batch_tokens = model, batch_tokens
        bare: Any = bare_model(model)
        self.vocabulary = int(bare.get_input_embeddings().weight.shape[0])
        self._end = end_token_read(model)
        # Padding is masked, and every position is read explicitly, so any token can stand there.
        self._padded = DataCollatorForPreference(bare.config.get_text_config().pad_token_id or 0)
        self._packed = DataCollatorForPackedPreference()
        self.packs = self._may_pack(packing)

    def problem(self, input_ids: Sequence[int]) -> str:
        """Why the model cannot take a sequence, or empty: on a GPU a wrong id would end the process."""
        if not input_ids or min(input_ids) < 0:
            return "it has no token ids, or a negative one"
        if max(input_ids) >= self.vocabulary:
            return f"token id {max(input_ids)} is not below the model's {self.vocabulary}"
        if self._end is not None and self._end not in input_ids:
            return missing_end(self.model)
        return ""

    @torch.inference_mode()
    def score(
        self, sequences: Sequences, *, share: tuple[int, int] = (0, 1), progress: Callable[[int], Any] | None = None
    ) -> np.ndarray:
        """Reward of every distinct sequence.

        Args:
            sequences: What `distinct_sequences` made.
            share: Compute only batches `i` modulo `n` of `(i, n)`, for one of several processes.
            progress: Called with the number of sequences done after each batch.

        Returns:
            Rewards, 0 where another process computes them, shape `(S,)`, float32.
        """
        return self._columns(sequences, 1, share, progress)[:, 0]

    @torch.inference_mode()
    def score_heads(
        self, sequences: Sequences, *, share: tuple[int, int] = (0, 1), progress: Callable[[int], Any] | None = None
    ) -> np.ndarray:
        """Reward of every distinct sequence by every head of an ensemble.

        Args:
            sequences: What `distinct_sequences` made.
            share: As in `score`.
            progress: As in `score`.

        Returns:
            Rewards, 0 where another process computes them, shape `(S, M)`, float32.
        """
        with every_head(self.model):
            return self._columns(sequences, number_of_heads(self.model), share, progress)

    def _columns(
        self, sequences: Sequences, heads: int, share: tuple[int, int], progress: Callable[[int], Any] | None
    ) -> np.ndarray:
        rewards = np.zeros((len(sequences.input_ids), heads), dtype=np.float32)
        number, processes = share
        training = self.model.training
        self.model.eval()
        try:
            with packed_model(bare_model(self.model)) if self.packs else nullcontext():
                for count, (rows, places) in enumerate(self._batches(sequences)):
                    if count % processes == number:
                        rewards[places] = self._rewards(rows)
                    if progress is not None:
                        progress(len(places))
        finally:
            self.model.train(training)
        return rewards

    def _batches(self, sequences: Sequences) -> Iterator[tuple[list[Row], Part]]:
        if self.packs:
            return packed_batches(sequences, self.batch_tokens)
        return padded_batches(sequences, self.batch_tokens, self._padded.tokens)

    def _rewards(self, rows: list[Row]) -> np.ndarray:
        """Rewards of a batch, group by group, `(N, M)`; one that does not fit the device's memory is halved."""
        device = bare_model(self.model).device
        batch = (self._packed if self.packs else self._padded)(rows)
        try:
            found = compute_head_rewards(self.model, send_to_device(batch, device))  # (M, G, K)
            return found[:, (batch["ranks"] == 0).to(device)].T.cpu().numpy()
        except torch.OutOfMemoryError:
            halves = _halves(rows)
            if halves is None:
                raise
            logger.warning(
                "A batch of %s tokens does not fit the device's memory and is halved. Lower `batch_tokens` (%s).",
                batch["input_ids"].numel(),
                self.batch_tokens,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return np.concatenate([self._rewards(half) for half in halves])

    def _may_pack(self, packing: str | bool) -> bool:
        choice = str(packing).lower()
        if choice not in ("auto", "true", "false"):
            raise ValueError(f"`packing` must be 'auto', True or False, but is {packing!r}.")
        if choice == "false":
            return False
        rows = _trial_rows(self.vocabulary)
        problem = packing_problem(bare_model(self.model), self._padded(rows), self._packed(rows))
        if problem is None:
            return True
        if choice == "true":
            raise ValueError(f"`packing=True` is not possible with this model: {problem}. Use 'auto' or False.")
        logger.info("Batches are padded, not packed: %s.", problem)
        return False


def _halves(rows: list[Row]) -> tuple[list[Row], list[Row]] | None:
    """Two lists of rows that together hold the sequences of one, in their order; None for a single sequence."""
    if len(rows) > 1:
        middle = len(rows) // 2
        return rows[:middle], rows[middle:]
    row = rows[0]
    count = len(row["ranks"])
    if count == 1:
        return None
    parts = []
    for chosen in (slice(0, count // 2), slice(count // 2, count)):
        part = {name: row[name] and row[name][chosen] for name in ("input_ids", "token_type_ids", "ranks")}
        parts.append({**row, **part, "prefix_length": row["prefix_length"] if len(part["ranks"]) > 1 else 0})
    return [parts[0]], [parts[1]]


def _trial_rows(vocabulary: int) -> list[Row]:
    """Two groups of sequences with which packing is tried before it is relied on; the ids are arbitrary."""
    numbers = (np.arange(1, 129, dtype=np.int64) * 7919) % vocabulary
    ids = [int(number) for number in numbers]
    first = [ids[:24] + ids[24:40], ids[:24] + ids[40:49]]
    second = [ids[50:70], ids[70:90] + ids[90:101]]
    sequences = Sequences([*first, *second], None, np.arange(4))
    return [_row(sequences, [0, 1], 24), _row(sequences, [2, 3], 0)]
