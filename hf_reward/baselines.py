"""Rules that never read a response as a language model does -> the accuracy that a reward model has to beat."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from hf_reward.metrics import Interval, clustered_interval, pairwise_credit
from hf_reward.preference_row import PreferenceRow


@dataclass(frozen=True)
class Baseline:
    """Accuracy of a simple rule on held-out pairs, ties half."""

    name: str
    accuracy: float
    interval: Interval
    num_pairs: int

    @property
    def key(self) -> str:
        """The name as part of a metric's name."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_")

    def to_dict(self) -> dict[str, Any]:
        """What a model's record keeps of it."""
        bounds = {"ci_low": self.interval.low, "ci_high": self.interval.high}
        known = {name: None if np.isnan(value) else value for name, value in bounds.items()}
        return {"name": self.name, "accuracy": self.accuracy, **known, "num_pairs": self.num_pairs}

    def __str__(self) -> str:
        low, high = self.interval.low, self.interval.high
        interval = "no interval from one prompt" if np.isnan(low) else f"{low:.1%} to {high:.1%}"
        return f"{self.name}: {self.accuracy:.1%} ({interval}, {self.num_pairs} pairs)"


def length_rule(rows: Sequence[PreferenceRow]) -> Baseline:
    """Prefer the response with more characters.

    Args:
        rows: Held-out canonical rows.

    Returns:
        Its accuracy. The metrics of a model report the same rule in tokens.

    Raises:
        ValueError: If no row holds a strict preference.
    """
    better, worse, clusters = _strict_texts(rows)
    gaps = np.array([len(a) - len(b) for a, b in zip(better, worse, strict=True)], float)
    return _score("length rule (characters)", gaps, clusters)


def tfidf_bradley_terry(train: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> Baseline:
    """A Bradley-Terry model on TF-IDF features of words and word pairs.

    The preferred response's features minus the other's go through a logistic regression without intercept, which
    is Bradley-Terry with a linear reward. Whatever it scores can be had without reading.

    Args:
        train: Canonical rows to fit on.
        held_out: Canonical rows to score; their prompts should be others.

    Returns:
        Its accuracy.

    Raises:
        ValueError: If either side holds no strict preference.
    """
    better, worse, _ = _strict_texts(train)
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([*better, *worse])
    gaps = features.transform(better) - features.transform(worse)
    labels = np.repeat([1, 0], gaps.shape[0])
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(vstack([gaps, -gaps]).tocsr(), labels)
    better, worse, clusters = _strict_texts(held_out)
    held_gaps = features.transform(better) - features.transform(worse)
    return _score("TF-IDF Bradley-Terry", np.asarray(held_gaps @ model.coef_[0]), clusters)


def _score(name: str, gaps: np.ndarray, clusters: np.ndarray) -> Baseline:
    credit = pairwise_credit(gaps)
    return Baseline(name, float(credit.mean()), clustered_interval(credit, clusters), len(gaps))


def _strict_texts(rows: Sequence[PreferenceRow]) -> tuple[list[str], list[str], np.ndarray]:
    """Texts of the preferred and the other response of every strict pair, and the prompt of each."""
    better, worse, clusters = [], [], []
    for row in rows:
        for i, first in enumerate(row.ranks):
            for j, second in enumerate(row.ranks):
                if first < second:
                    better.append(response_text(row, i))
                    worse.append(response_text(row, j))
                    clusters.append(row.group)
    if not better:
        raise ValueError("No row holds a strict preference, so there is no baseline.")
    return better, worse, np.unique(clusters, return_inverse=True)[1]


def response_text(row: PreferenceRow, place: int) -> str:
    """Text of one response of a row; of messages, their contents."""
    response = row.responses[place]
    if isinstance(response, str):
        return response
    return "\n".join(str(message.get("content") or "") for message in response)
