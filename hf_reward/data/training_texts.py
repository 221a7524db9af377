"""Summarise the training texts in the checkpoint, and compare other texts with the summary.

A model's accuracy is only known for texts similar to its evaluation data. The summary contains no text. It has
quantiles of lengths and hashes of the most frequent words. Texts of a different kind differ in length or use few of
these words.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from xxhash import xxh3_64_intdigest

from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_text import response_text, without_references, words_of
from hf_reward.data.sources import as_sources, load_source

SAMPLE_ROWS = 2_000
"""Most rows that are summarised or compared."""
COMMON_WORDS = 2_000
"""Number of most frequent words whose hashes are kept."""
DIFFERENCE_THRESHOLD = 0.20
"""Share of unusual texts from which on texts are reported as different; fixed in advance. Of the training texts, 5% are
unusual in known words and 2% in length."""
MIN_TEXTS = 20
"""With fewer texts, no difference is reported."""

_KINDS = ("prompt", "response")
_HASH_BYTES = 3  # 2,000 of 2^24 hashes: one unknown word in 8,000 collides with a common one
_POINTS = {"p01": 0.01, "p05": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99}

Texts = Mapping[str, Sequence[str]]
"""`prompt` and `response` -> texts of that kind."""


def summarize_training_data(data: Any, seed: int, **source_defaults: Any) -> dict[str, Any]:
    """Summarise the texts of training data.

    Args:
        data: Data as accepted by `as_sources`.
        seed: Random seed of the sample, if there are more than 2,000 rows.
        **source_defaults: `split`, `columns` and `layout` for sources without their own.

    Returns:
        The result of `summarize_texts`; empty for streams and tokenised rows, whose texts cannot be sampled.
    """
    rows: list[PreferenceRow] = []
    sources = as_sources(data, **source_defaults)
    for source in sources:
        raw = load_source(source)
        if not isinstance(raw, Dataset) or "input_ids" in raw.column_names:
            return {}
        count = min(len(raw), -(-SAMPLE_ROWS // len(sources)))
        for number in sorted(np.random.default_rng(seed).permutation(len(raw))[:count].tolist()):
            try:
                rows.append(to_preference_row(raw[number], layout=source.layout, columns=source.columns))
            except PreferenceFormatError:
                continue  # counted or refused in training
    return summarize_texts([row for row in rows if row.token_ids is None])


def summarize_texts(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Summarise the texts of canonical rows.

    The share of common words is cross-fitted over two halves of the prompt groups, so that it applies to new prompts of
    the same kind: each half is measured with the common words of the other half.

    Args:
        rows: Rows of texts or messages.

    Returns:
        JSON values, empty without rows: `rows`; `common_words` (base64 of 3-byte hashes, ascending); and for `prompt`
        and `response` the number of `texts` and the quantiles p01, p05, median, p95 and p99 of `words` (number of words
        per text) and `known_words` (share of a text's words that are common words).
    """
    if not rows:
        return {}
    halves = _halves(rows)
    common = [_common_words(text for row in half for text in _all_texts(row)) for half in halves]
    summary: dict[str, Any] = {"rows": len(rows)}
    for kind in _KINDS:
        known, lengths = [], []
        for half, words in zip(halves, reversed(common), strict=True):
            texts = [text for row in half for text in texts_of(row)[kind]]
            known.append(_known_shares(texts, words if len(words) else common[0]))
            lengths.append(_lengths(texts))
        if sum(map(len, known)):
            summary[kind] = {
                "texts": sum(map(len, known)),
                "words": _quantiles(np.concatenate(lengths)),
                "known_words": _quantiles(np.concatenate(known)),
            }
    hashes = _common_words(text for row in rows for text in _all_texts(row))
    packed = hashes.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - _HASH_BYTES :]
    return summary | {"common_words": base64.b64encode(packed.tobytes()).decode("ascii")}


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """Differences of prompts or responses from those of the training data."""

    kind: str
    """`prompt` or `response`."""
    texts: int
    words: float
    """Median number of words."""
    words_in_training: float
    unusual_length: float
    """Share of texts outside the central 98% of lengths of the training texts (2% of the training texts)."""
    known_words: float
    """Median share of a text's words that are common in training."""
    known_words_in_training: float
    few_known_words: float
    """Share of texts below the 5% quantile of known words of the training texts (5% of the training texts)."""

    @property
    def differs(self) -> bool:
        """Whether one of the two shares is at least 20%, with at least 20 texts."""
        return self.texts >= MIN_TEXTS and max(self.unusual_length, self.few_known_words) >= DIFFERENCE_THRESHOLD

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return dict(vars(self)) | {"differs": self.differs}

    def __str__(self) -> str:
        return (
            f"{self.texts:,} {self.kind}s: median {self.words:,.0f} words (training {self.words_in_training:,.0f}), "
            f"{self.unusual_length:.1%} outside the lengths of 98% of the training texts; median share of words that "
            f"are common in training {self.known_words:.1%} (training {self.known_words_in_training:.1%}), "
            f"{self.few_known_words:.1%} below the share of 95% of the training texts."
        )


def compare_texts(summary: Mapping[str, Any], texts: Texts) -> list[TextComparison]:
    """Compare texts with the summary of the training texts.

    Args:
        summary: Result of `summarize_texts`, such as `CheckpointRecord.training_texts`.
        texts: Prompts and responses, each prompt once. Blank texts are ignored.

    Returns:
        A comparison for each kind of text in both.

    Raises:
        ValueError: If the summary is empty or damaged.
    """
    common = require_summary(summary)
    found = []
    for kind in _KINDS:
        given = [text for text in texts.get(kind, ()) if text.strip()]
        trained = summary.get(kind)
        if not given or not trained:
            continue
        lengths, known = _lengths(given), _known_shares(given, common)
        bounds, shares = trained["words"], trained["known_words"]
        found.append(
            TextComparison(
                kind=kind,
                texts=len(given),
                words=float(np.median(lengths)),
                words_in_training=bounds["median"],
                unusual_length=float(np.mean((lengths < bounds["p01"]) | (lengths > bounds["p99"]))),
                known_words=float(np.median(known)),
                known_words_in_training=shares["median"],
                few_known_words=float(np.mean(known < shares["p05"])),
            )
        )
    return found


def require_summary(summary: Mapping[str, Any]) -> np.ndarray:
    """Validate a summary, so that a long run can fail early.

    Args:
        summary: Result of `summarize_texts`.

    Returns:
        Hashes of the common words, shape `(W,)`, uint32.

    Raises:
        ValueError: If the summary is empty or damaged.
    """
    try:
        for kind in (kind for kind in _KINDS if kind in summary):
            [float(summary[kind][name][point]) for name in ("words", "known_words") for point in _POINTS]
        return _unpacked(summary)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "The comparison requires `training_texts`, the summary of the training texts in reward_config.json, but it "
            f"is missing or damaged ({error!r}). Training writes it, unless the data are streams or tokenised. To get "
            "one, train the model again with this version."
        ) from None


def comparison_lines(found: Sequence[TextComparison]) -> list[str]:
    """Describe the comparisons and their conclusion.

    Args:
        found: Result of `compare_texts`.

    Returns:
        One sentence each.
    """
    if not found:
        return [
            "No text could be compared with the training data: in formatted `text`, prompt and response are not known."
        ]
    lines = [str(each) for each in found]
    different = [f"{each.kind}s" for each in found if each.differs]
    if different:
        return [
            *lines,
            f"The {' and '.join(different)} differ from the training data, so the accuracy on its held-out rows may "
            "not apply to them. Measure the model on labelled rows of this kind (`hf-reward benchmark pairs`).",
        ]
    if max(each.texts for each in found) < MIN_TEXTS:
        return [*lines, f"With fewer than {MIN_TEXTS} texts, differences from the training data cannot be assessed."]
    return [*lines, "Lengths and common words show no clear difference from the training data."]


def texts_of(row: PreferenceRow) -> dict[str, list[str]]:
    """Return the prompt and the responses of a row, without roles and blank texts, as input of `compare_texts`."""
    prompt = row.prompt
    if not isinstance(prompt, str):
        prompt = without_references("\n".join(str(message.get("content") or "") for message in prompt))
    responses = [response_text(row, place) for place in range(len(row.responses))]
    return {
        "prompt": [prompt] if prompt.strip() else [],
        "response": [text for text in responses if text.strip()],
    }


def _all_texts(row: PreferenceRow) -> list[str]:
    found = texts_of(row)
    return [*found["prompt"], *found["response"]]


def _halves(rows: Sequence[PreferenceRow]) -> list[list[PreferenceRow]]:
    """Split rows in two halves, by alternating prompt groups."""
    numbers = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return [[row for row in rows if numbers[row.group] % 2 == half] for half in (0, 1)]


def _common_words(texts: Iterable[str]) -> np.ndarray:
    """Return the hashes of the most frequent words, ascending, uint32."""
    counts = Counter(word for text in texts for word in words_of(text))
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:COMMON_WORDS]
    return np.unique(np.array([_hash(word) for word, _ in ordered], np.uint32))


def _hash(word: str) -> int:
    return xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) & (2 ** (8 * _HASH_BYTES) - 1)


def _known_shares(texts: Sequence[str], common: np.ndarray) -> np.ndarray:
    """Return the share of each text's words that are common words, shape `(N,)`."""
    known = set(common.tolist())
    shares = []
    for text in texts:
        words = words_of(text)
        shares.append(sum(_hash(word) in known for word in words) / len(words))
    return np.array(shares, np.float64)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], np.int64)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(np.quantile(values, point)), 4) for name, point in _POINTS.items()}


def _unpacked(summary: Mapping[str, Any]) -> np.ndarray:
    """Decode the hashes of the common words, ascending, uint32."""
    packed = np.frombuffer(base64.b64decode(summary["common_words"], validate=True), np.uint8)
    parts = packed.reshape(-1, _HASH_BYTES).astype(np.uint32)
    return (parts * np.array([1 << 8 * place for place in reversed(range(_HASH_BYTES))], np.uint32)).sum(axis=1)
