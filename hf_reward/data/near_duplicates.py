"""Find equal and near-duplicate texts and rows with MinHash, without comparing all pairs.

Each text is represented by the set of its word 5-grams and the MinHash signature of this set. Texts whose signatures
agree in one of 21 bands of 6 values are candidates. A candidate counts only if the Jaccard similarity of the sets is at
least 0.8. Two texts of exactly that similarity become candidates with probability 1 - (1 - 0.8^6)^21 = 0.998.

Only hashes are kept (176 bytes per text). Texts are read again to verify candidates, so memory does not grow with the
length of the texts.

Source: Broder (1997), "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4.

`RowClusters` applies this to the prompts and responses of rows, so that a split can keep near-duplicates together.
Short responses are ignored: a stock phrase such as "I'm sorry, but I can't help with that" occurs with many prompts and
would link all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from xxhash import xxh3_64_intdigest

from hf_reward.data.extras import require
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.row_text import prompt_text, response_text, words_of
from hf_reward.metrics.arrays import IntArray

GRAM = 5
"""Words per n-gram."""
SIMILARITY = 0.8
"""Smallest Jaccard similarity of near duplicates."""

_BANDS, _ROWS = 21, 6
_SIGNATURE = 128  # more than the bands use: rensa is fast at powers of two
_SEED = 42
_REPRESENTATIVES = 32
"""Most texts of a bucket that a new text is compared with; without a limit, the cost of a stock phrase is quadratic."""

_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 1], np.uint64)

Read = Callable[[int, int], str]
"""(row, index) -> the text."""


class TextPart(NamedTuple):
    """A text of a row."""

    text: str
    row: int
    place: int


@dataclass(frozen=True)
class TextClusters:
    """Cluster numbers of the texts of a pool, shape `(T,)` each, in the order of addition."""

    rows: IntArray
    places: IntArray
    exact: IntArray
    """Cluster of texts that are equal up to white space."""
    near: IntArray
    """Cluster of texts that a chain of near-duplicates links, which includes equal texts."""
    compared: bool
    """Whether near-duplicates were searched for; if not, `near` is `exact`."""


class TextPool:
    """Collect texts of rows in batches, then cluster equal texts and near-duplicates.

    Args:
        read: Returns a text again, to verify a candidate.
        near: Whether to search for near-duplicates in addition to equal texts.

    Raises:
        MissingExtraError: If near-duplicates are requested and rensa is not installed.
    """

    def __init__(self, read: Read, *, near: bool = True) -> None:
        self._read = read
        self._minhash = require("rensa", "data").RMinHash if near else None
        self._rows: list[int] = []
        self._places: list[int] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._bands: list[NDArray[np.uint64]] = []

    def add(self, parts: Sequence[TextPart]) -> None:
        """Add a batch of texts. Only their hashes are kept."""
        if not parts:
            return
        texts = [part.text for part in parts]
        self._rows += [part.row for part in parts]
        self._places += [part.place for part in parts]
        self._hashes.append(np.array([text_hash(text) for text in texts], np.uint64))
        if self._minhash is not None:
            self._bands.append(_bands(texts, self._minhash))

    def clusters(self) -> TextClusters:
        """Cluster all added texts.

        Returns:
            The cluster numbers of each text.
        """
        rows, places = np.array(self._rows, np.int64), np.array(self._places, np.int64)
        if not len(rows):
            return TextClusters(rows, places, rows, rows, self._minhash is not None)
        _, first, exact = np.unique(np.concatenate(self._hashes), return_index=True, return_inverse=True)
        if self._minhash is None:
            return TextClusters(rows, places, exact, exact, compared=False)
        finder = _ClusterFinder(lambda text: self._read(int(rows[first[text]]), int(places[first[text]])))
        finder.join(np.concatenate(self._bands)[first])
        return TextClusters(rows, places, exact, finder.numbers(len(first))[exact], compared=True)


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a text that ignores differences in white space."""
    return xxh3_64_intdigest(" ".join(text.split()).encode("utf-8", "surrogatepass"))


def joined(count: int, *partitions: tuple[IntArray, IntArray]) -> IntArray:
    """Join partitions of the same items: two items are in one cluster if a chain of shared labels links them.

    Args:
        count: Number of items.
        *partitions: Item numbers and their labels, shape `(M,)` both. An item may have several labels in a partition,
            or none.

    Returns:
        Cluster number of each item, from 0, shape `(count,)`.
    """
    start, edges = count, []
    for items, labels in partitions:
        numbers = np.unique(labels, return_inverse=True)[1]
        edges.append(np.stack([items, numbers + start]))
        start += len(np.unique(labels))
    links = np.concatenate(edges, axis=1).astype(np.int64)
    graph = coo_matrix((np.ones(links.shape[1]), (links[0], links[1])), shape=(start, start))
    return connected_components(graph, directed=False)[1][:count]


@lru_cache(maxsize=1 << 19)
def _word_number(word: str) -> int:
    return xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


def _grams(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes of the 5-grams of all texts in one array, and the offsets of the texts in it."""
    numbers: list[int] = []
    counts = np.zeros(len(texts), np.int64)
    for place, text in enumerate(texts):
        words = words_of(text)
        numbers += map(_word_number, words)
        numbers += [0] * (GRAM - len(words))  # a text of fewer words is padded to one gram
        counts[place] = max(len(words), GRAM)
    words = np.array(numbers, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(words, GRAM)
    grams = (windows * _MIX).sum(axis=1, dtype=np.uint64)
    ends = np.cumsum(counts)
    starts = ends - counts
    inside = np.zeros(len(words) + 1, np.int64)  # +1 at a text's first gram, -1 after its last gram
    np.add.at(inside, starts, 1)
    np.add.at(inside, ends - GRAM + 1, -1)
    kept = np.cumsum(inside)[: len(grams)] > 0
    return grams[kept], np.concatenate([[0], np.cumsum(counts - GRAM + 1)]).astype(np.uint64)


def _bands(texts: Sequence[str], minhash: Any) -> NDArray[np.uint64]:
    """Return a hash of each band of each text's signature, shape `(T, 21)`."""
    grams, starts = _grams(texts)
    signatures = minhash.digest_matrix_from_flat_token_hashes(grams, starts, _SIGNATURE, _SEED).to_rows()
    values = np.array(signatures, np.uint64)[:, : _BANDS * _ROWS].reshape(len(texts), _BANDS, _ROWS)
    factors = np.array([0x9E3779B97F4A7C15], np.uint64) ** np.arange(1, _ROWS + 1, dtype=np.uint64)
    return (values * factors).sum(axis=2, dtype=np.uint64)


class _ClusterFinder:
    """Union-find over texts. Two texts are joined if their similarity is verified."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._parent: dict[int, int] = {}  # contains only joined texts
        self._gram_set = lru_cache(maxsize=4096)(lambda text: frozenset(_grams([read(text)])[0].tolist()))

    def join(self, bands: NDArray[np.uint64]) -> None:
        for band in bands.T:
            order = np.argsort(band, kind="stable")
            new = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))  # start of each bucket
            sizes = np.diff(new, append=len(order))
            for start, size in zip(new[sizes > 1], sizes[sizes > 1], strict=True):
                self._join_bucket(order[start : start + size].tolist())

    def _join_bucket(self, bucket: Sequence[int]) -> None:
        representatives = [bucket[0]]
        for text in bucket[1:]:
            root = self._root(text)
            if any(self._root(other) == root for other in representatives):
                continue
            match = next((other for other in representatives if self._is_similar(text, other)), None)
            if match is not None:
                self._parent[root] = self._root(match)
            elif len(representatives) < _REPRESENTATIVES:
                representatives.append(text)

    def _is_similar(self, first: int, second: int) -> bool:
        one, other = self._gram_set(first), self._gram_set(second)
        shared = len(one & other)
        return shared >= SIMILARITY * (len(one) + len(other) - shared)

    def _root(self, text: int) -> int:
        while (parent := self._parent.get(text, text)) != text:
            self._parent[text] = self._parent.get(parent, parent)
            text = parent
        return text

    def numbers(self, count: int) -> IntArray:
        """Return the cluster number of each of `count` texts, from 0."""
        roots = np.arange(count)
        for text in self._parent:
            roots[text] = self._root(text)
        return np.unique(roots, return_inverse=True)[1]


MIN_RESPONSE_WORDS = 20
"""Responses with fewer words are ignored."""
_PROMPT = -1


@dataclass(frozen=True)
class RowClusters:
    """Clusters of the prompts and of the responses of rows."""

    prompts: TextClusters
    responses: TextClusters

    def joined_groups(self, groups: np.ndarray) -> IntArray:
        """Join prompt groups that are linked by equal or near-duplicate texts.

        Args:
            groups: Prompt group of each row, of any type, shape `(R,)`; rows are numbered as in `RowPool.add`.

        Returns:
            Joined group of each row, as a number, shape `(R,)`.
        """
        own = (np.arange(len(groups)), np.unique(groups, return_inverse=True)[1])
        clusters = [(texts.rows, texts.near) for texts in (self.prompts, self.responses)]
        return joined(len(groups), own, *clusters)


class RowPool:
    """Collect rows in batches, then cluster their prompts and responses.

    Args:
        read: Returns a row by its number, to verify a candidate.
        near: Whether to search for near-duplicates in addition to equal texts.
    """

    def __init__(self, read: Callable[[int], PreferenceRow], *, near: bool = True) -> None:
        self._prompts = TextPool(lambda row, _: prompt_text(read(row)), near=near)
        self._responses = TextPool(lambda row, place: response_text(read(row), place), near=near)

    def add(self, rows: Sequence[PreferenceRow], numbers: Sequence[int]) -> None:
        """Add a batch of rows. Only hashes of their texts are kept.

        Args:
            rows: Canonical rows.
            numbers: Number of each row, as passed to `read`.
        """
        numbered = list(zip(rows, numbers, strict=True))
        prompts = [TextPart(prompt_text(row), number, _PROMPT) for row, number in numbered]
        self._prompts.add([part for part in prompts if part.text.strip()])
        responses = [
            TextPart(response_text(row, place), number, place)
            for row, number in numbered
            for place in range(len(row.responses))
        ]
        self._responses.add([part for part in responses if len(words_of(part.text)) >= MIN_RESPONSE_WORDS])

    def clusters(self) -> RowClusters:
        """Cluster the prompts and responses of all added rows."""
        return RowClusters(self._prompts.clusters(), self._responses.clusters())
