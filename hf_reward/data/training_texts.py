"""Texts of the training rows -> a small summary that travels with a model, and what tells other texts from them.

A model is only known to work on texts like those it was evaluated on. The summary holds no text: it has quantiles of
lengths, and hashes of the words that are most frequent, so that texts of another kind can be recognised by their length
and by how few of these words they use.
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
from hf_reward.data.row_text import response_text, words_of
from hf_reward.data.sources import as_sources, load_source

SAMPLE_ROWS = 2_000
"""Rows that a summary, and what is compared with it, rest on at most."""
COMMON_WORDS = 2_000
"""Words whose hashes are kept: the most frequent ones."""
DIFFERENCE_THRESHOLD = 0.20
"""Share of texts beyond a bound that 5% (known words) or 2% (lengths) of the training texts are beyond, from which on
the texts are said to differ; fixed in advance."""
MIN_TEXTS = 20
"""Fewer texts are described, and not said to differ or to agree."""

_KINDS = ("prompt", "response")
_HASH_BYTES = 3  # 2,000 of 2^24 hashes: one unknown word in 8,000 is taken for a common one
_POINTS = {"p01": 0.01, "p05": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99}

Texts = Mapping[str, Sequence[str]]
"""`prompt` and `response` -> texts of that kind."""


def summarize_training_data(data: Any, seed: int, **source_defaults: Any) -> dict[str, Any]:
    """Summarise the texts of training data.

    Args:
        data: What `as_sources` takes.
        seed: Which rows, where there are more than 2,000.
        **source_defaults: `split`, `columns` and `layout` for sources that name none.

    Returns:
        What `summarize_texts` returns. Empty for streams, token ids and rows that are tokenised already: their texts
        cannot be sampled.
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
                continue  # training counts or refuses it
    return summarize_texts([row for row in rows if row.token_ids is None])


def summarize_texts(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Summarise the texts of canonical rows.

    The share of common words is measured on the half of the prompt groups whose words are not counted, and the other
    way round, so that it is what new prompts of the same kind have.

    Args:
        rows: Rows of texts or messages.

    Returns:
        JSON values, empty without rows: `rows`; `common_words` (base64 of 3-byte hashes, ascending);
        and for `prompt` and `response` the quantiles p01, p05, median, p95 and p99 of `words` (of a text) and of
        `known_words` (share of a text's words that are common ones), with `texts`, their number.
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
    """How texts of one kind differ from those of training."""

    kind: str
    """`prompt` or `response`."""
    texts: int
    words: float
    """Median number of words."""
    words_in_training: float
    unusual_length: float
    """Share of texts that are shorter or longer than 98% of the training texts; 2% of those are."""
    known_words: float
    """Median share of a text's words that are common in training."""
    known_words_in_training: float
    few_known_words: float
    """Share of texts with a smaller share of common words than 95% of the training texts; 5% of those have one."""

    @property
    def differs(self) -> bool:
        """Whether one of the two shares is 20% or more, with 20 texts or more."""
        return self.texts >= MIN_TEXTS and max(self.unusual_length, self.few_known_words) >= DIFFERENCE_THRESHOLD

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return dict(vars(self)) | {"differs": self.differs}

    def __str__(self) -> str:
        return (
            f"{self.texts:,} {self.kind}s: median {self.words:,.0f} words (training {self.words_in_training:,.0f}), "
            f"{self.unusual_length:.1%} outside the range of 98% of the training texts; median share of words that "
            f"are common in training {self.known_words:.1%} (training {self.known_words_in_training:.1%}), "
            f"{self.few_known_words:.1%} below 95% of the training texts."
        )


def compare_texts(summary: Mapping[str, Any], texts: Texts) -> list[TextComparison]:
    """Compare texts with the summary of the training texts.

    Args:
        summary: What `summarize_texts` returned, such as `CheckpointRecord.training_texts`.
        texts: Prompts and responses; one of a prompt's texts is enough. Blank texts are left out.

    Returns:
        A comparison for each kind that both have.

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
    """Check a summary before anything long is begun.

    Args:
        summary: What `summarize_texts` returned.

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
            "The model's record (reward_config.json) must hold a summary of its training texts, `training_texts`, but "
            f"none can be read ({error!r}). It is written when a model is trained on texts that are no stream; models "
            "trained with another library or an earlier version have none."
        ) from None


def comparison_lines(found: Sequence[TextComparison]) -> list[str]:
    """The comparisons in words, and what follows from them.

    Args:
        found: What `compare_texts` returned.

    Returns:
        A sentence each.
    """
    if not found:
        return ["No text could be compared with the training data: rows of already formatted `text` have no parts."]
    lines = [str(each) for each in found]
    unlike = [f"{each.kind}s" for each in found if each.differs]
    if unlike:
        return [
            *lines,
            f"The {' and '.join(unlike)} differ from the training data: the accuracy that was measured on its "
            "held-out rows need not hold for them. Measure the model on labelled rows of this kind "
            "(`hf-reward benchmark pairs`).",
        ]
    if max(each.texts for each in found) < MIN_TEXTS:
        return [*lines, f"Fewer than {MIN_TEXTS} texts: too few to say whether they differ from the training data."]
    return [*lines, "No difference from the training data stands out in length and common words."]


def texts_of(row: PreferenceRow) -> dict[str, list[str]]:
    """The prompt (none if it is blank) and the responses of a row without roles, as `compare_texts` takes them."""
    prompt = row.prompt
    if not isinstance(prompt, str):
        prompt = "\n".join(str(message.get("content") or "") for message in prompt)
    responses = [response_text(row, place) for place in range(len(row.responses))]
    return {
        "prompt": [prompt] if prompt.strip() else [],
        "response": [text for text in responses if text.strip()],
    }


def _all_texts(row: PreferenceRow) -> list[str]:
    found = texts_of(row)
    return [*found["prompt"], *found["response"]]


def _halves(rows: Sequence[PreferenceRow]) -> list[list[PreferenceRow]]:
    """The rows of every other prompt group, and the others."""
    numbers = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return [[row for row in rows if numbers[row.group] % 2 == half] for half in (0, 1)]


def _common_words(texts: Iterable[str]) -> np.ndarray:
    """Hashes of the most frequent words, ascending, uint32."""
    counts = Counter(word for text in texts for word in words_of(text))
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:COMMON_WORDS]
    return np.unique(np.array([_hash(word) for word, _ in ordered], np.uint32))


def _hash(word: str) -> int:
    return xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) & (2 ** (8 * _HASH_BYTES) - 1)


def _known_shares(texts: Sequence[str], common: np.ndarray) -> np.ndarray:
    """Share of the words of each text that are common ones, shape `(N,)`."""
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
    """Hashes of the common words, ascending, uint32."""
    packed = np.frombuffer(base64.b64decode(summary["common_words"], validate=True), np.uint8)
    parts = packed.reshape(-1, _HASH_BYTES).astype(np.uint32)
    return (parts * np.array([1 << 8 * place for place in reversed(range(_HASH_BYTES))], np.uint32)).sum(axis=1)
