"""Accuracy of trivial baselines, which a reward model has to exceed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import vstack

from hf_reward.data.extras import require
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.row_text import response_text
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import Interval, clustered_interval, cross_validated_interval
from hf_reward.metrics.preference import pairwise_credit

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

_GRAMS = (1, 2)
"""Words and word pairs."""


@dataclass(frozen=True)
class Baseline:
    """Accuracy of a trivial baseline on held-out pairs, with half-credit for ties."""

    name: str
    accuracy: float
    interval: Interval
    num_pairs: int

    @property
    def key(self) -> str:
        """The name as part of a metric's name."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_")

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for a model's record."""
        bounds = {"ci_low": self.interval.low, "ci_high": self.interval.high}
        known = {name: None if np.isnan(value) else value for name, value in bounds.items()}
        return {"name": self.name, "accuracy": self.accuracy, **known, "num_pairs": self.num_pairs}

    def __str__(self) -> str:
        low, high = self.interval.low, self.interval.high
        interval = "no interval from one prompt" if np.isnan(low) else f"{low:.1%} to {high:.1%}"
        return f"{self.name}: {self.accuracy:.1%} ({interval}, {counted(self.num_pairs, 'pair')})"


def length_rule(rows: Sequence[PreferenceRow]) -> Baseline:
    """Score the rule "the response with more characters is better".

    Args:
        rows: Held-out canonical rows.

    Returns:
        Its accuracy. The metrics of a model report the same rule in tokens.

    Raises:
        ValueError: If no row holds a strict preference.
    """
    pairs = _strict_texts(rows)
    gaps = np.array([len(a) - len(b) for a, b in zip(pairs.better, pairs.worse, strict=True)], float)
    return _score("length rule (characters)", gaps, pairs.group)


def tfidf_bradley_terry(
    train: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow], *, sees_length: bool = False
) -> Baseline:
    """Fit and score a Bradley-Terry model on TF-IDF features of words and word pairs.

    A logistic regression without intercept on the difference between the features of the preferred and the other
    response is Bradley-Terry with a linear reward. Its accuracy needs word counts only.

    Args:
        train: Canonical rows to fit on.
        held_out: Canonical rows to score; their prompts should not be in `train`.
        sees_length: Do not normalise the features of a text, so that the model can also prefer longer (or shorter)
            texts.

    Returns:
        Its accuracy.

    Raises:
        ValueError: If `train` or `held_out` holds no strict preference.
        MissingExtraError: If scikit-learn is not installed.
    """
    known, held = _strict_texts(train), _strict_texts(held_out)
    words = _fit_counter([*known.better, *known.worse])
    fitted, scored = (words.transform([*pairs.better, *pairs.worse]).tocsr() for pairs in (known, held))
    return _score(_name(sees_length), _gaps(fitted, scored, sees_length), held.group)


@dataclass(frozen=True)
class CrossFitted:
    """Reward gaps of strict pairs (preferred minus other), each from a model that was fitted without the pair."""

    gaps: np.ndarray
    """Shape `(M,)`."""
    row: np.ndarray
    """Index of the row of each pair, shape `(M,)`."""
    group: np.ndarray
    """Number of its prompt group, shape `(M,)`."""
    folds: int

    def baseline(self, name: str) -> Baseline:
        """Return the accuracy, with an interval for cross-validation."""
        return _score(name, self.gaps, self.group, self.folds)


def cross_fitted_tfidf(
    rows: Sequence[PreferenceRow],
    *,
    folds: int = 5,
    seed: int = 42,
    by_row: bool = False,
    sees_length: bool = False,
) -> CrossFitted:
    """Predict every pair with a `tfidf_bradley_terry` model of the other folds.

    Args:
        rows: Canonical rows.
        folds: Number of parts; fewer if there are fewer prompt groups.
        seed: For assigning groups (or rows) to parts.
        by_row: Split by single rows instead of complete prompt groups.
        sees_length: As in `tfidf_bradley_terry`.

    Returns:
        The reward gaps.

    Raises:
        ValueError: If strict preferences are in fewer than two groups.
        MissingExtraError: If scikit-learn is not installed.
    """
    pairs = _strict_texts(rows)
    parts = np.unique(pairs.row if by_row else pairs.group, return_inverse=True)[1]
    count = int(parts.max()) + 1
    if count < 2:
        raise ValueError(
            f"Cross-validation needs strict preferences for at least two prompts, but the data has {count}. Add rows."
        )
    fold = (np.random.default_rng(seed).permutation(count) % folds)[parts]
    texts = [*pairs.better, *pairs.worse]
    counts = _fit_counter(texts).transform(texts).tocsr()
    gaps = np.zeros(len(parts))
    folds = min(folds, count)
    for number in range(folds):
        held = fold == number
        gaps[held] = _gaps(counts[np.tile(~held, 2)], counts[np.tile(held, 2)], sees_length)
    return CrossFitted(gaps, pairs.row, pairs.group, folds)


def cross_validated_tfidf(
    rows: Sequence[PreferenceRow],
    *,
    folds: int = 5,
    seed: int = 42,
    by_row: bool = False,
    sees_length: bool = False,
) -> Baseline:
    """Score `tfidf_bradley_terry` by cross-validation, where there is no held-out set.

    Args:
        rows: Canonical rows.
        folds: Number of parts; fewer if there are fewer prompt groups.
        seed: For assigning groups (or rows) to parts.
        by_row: Split by single rows instead of complete prompt groups. The result is too high where groups have
            several rows, as with a random split.
        sees_length: As in `tfidf_bradley_terry`.

    Returns:
        Its accuracy over all pairs.

    Raises:
        ValueError: If strict preferences are in fewer than two groups.
        MissingExtraError: If scikit-learn is not installed.
    """
    found = cross_fitted_tfidf(rows, folds=folds, seed=seed, by_row=by_row, sees_length=sees_length)
    return found.baseline(cross_validated_name(by_row=by_row, sees_length=sees_length))


def cross_validated_name(*, by_row: bool, sees_length: bool) -> str:
    """Return the name of a cross-validated `tfidf_bradley_terry`."""
    return f"{_name(sees_length)}, cross-validated by {'row' if by_row else 'prompt group'}"


def _fit_counter(texts: Sequence[str]) -> "CountVectorizer":
    """Fit a counter of words and word pairs, or of characters where no text has a word of two letters."""
    counter = require("sklearn.feature_extraction.text", "data").CountVectorizer
    try:
        return counter(ngram_range=_GRAMS).fit(texts)
    except ValueError:  # an empty vocabulary
        return counter(ngram_range=_GRAMS, analyzer="char").fit(texts)


def _gaps(train: Any, held_out: Any, sees_length: bool) -> np.ndarray:
    """Fit on word counts (preferred texts first, then the others) and return the reward gaps of held-out pairs."""
    known = np.asarray((train > 0).sum(axis=0)).ravel() > 0  # words that occur only in held-out texts get no weight
    norm: Any = None if sees_length else "l2"
    scale = require("sklearn.feature_extraction.text", "data").TfidfTransformer(sublinear_tf=True, norm=norm)
    features = scale.fit_transform(train[:, known])
    gaps = features[: features.shape[0] // 2] - features[features.shape[0] // 2 :]
    labels = np.repeat([1, 0], gaps.shape[0])
    # Without normalisation the features are a hundred times larger, and their squares ten thousand times.
    strength = 1e-4 if sees_length else 1.0
    linear_model = require("sklearn.linear_model", "data")
    model = linear_model.LogisticRegression(fit_intercept=False, max_iter=1000, C=strength)
    model.fit(vstack([gaps, -gaps]).tocsr(), labels)
    rewards = np.asarray(scale.transform(held_out[:, known]) @ model.coef_[0])
    return rewards[: len(rewards) // 2] - rewards[len(rewards) // 2 :]


def _name(sees_length: bool) -> str:
    return "TF-IDF Bradley-Terry that sees length" if sees_length else "TF-IDF Bradley-Terry"


def _score(name: str, gaps: np.ndarray, clusters: np.ndarray, folds: int | None = None) -> Baseline:
    credit = pairwise_credit(gaps)
    found = cross_validated_interval(credit, clusters, folds) if folds else clustered_interval(credit, clusters)
    return Baseline(name, float(credit.mean()), found, len(gaps))


@dataclass(frozen=True)
class _StrictTexts:
    """Texts of the preferred and the other response of every strict pair, its row and its prompt group."""

    better: list[str]
    worse: list[str]
    row: np.ndarray
    group: np.ndarray


def _strict_texts(rows: Sequence[PreferenceRow]) -> _StrictTexts:
    better, worse, places, groups = [], [], [], []
    for place, row in enumerate(rows):
        for i, first in enumerate(row.ranks):
            for j, second in enumerate(row.ranks):
                if first < second:
                    better.append(response_text(row, i))
                    worse.append(response_text(row, j))
                    places.append(place)
                    groups.append(row.group)
    if not better:
        raise ValueError("No row holds a strict preference, so there is no baseline.")
    return _StrictTexts(better, worse, np.array(places), np.unique(groups, return_inverse=True)[1])
