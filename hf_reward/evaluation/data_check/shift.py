"""Measure the distance between the evaluation texts and the training texts.

If the distance is large, the evaluation accuracy does not apply to texts like the training texts. Three measures are
used: the accuracy of a word-count classifier that separates the sets, the fraction of the evaluation words that occur
in training, and the lengths of the texts. Prompt groups are held out as a unit, so the classifier cannot recognise
the subject of a single prompt.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_reward.data.extras import optional, require
from hf_reward.data.row_text import prompt_text, response_text, words_of
from hf_reward.evaluation.data_check.facts import RowFacts
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.intervals import Interval, cross_validated_interval

SAMPLE_ROWS = 2_000
"""Most rows of each set, drawn at random."""
CLASSIFIED = 1_000
"""Most texts of each set for the classifier test."""
KNOWN_WORDS_LOST = 0.10
"""Excess share of words unknown from training, compared with held-out training prompts, from which the evaluation data
count as shifted."""
LENGTH_RATIO = 2.0
"""Ratio of the median lengths from which the evaluation data count as shifted."""
_FOLDS = 5
_POINTS = {"p05": 0.05, "median": 0.5, "p95": 0.95}


@dataclass(frozen=True, kw_only=True)
class DomainShift:
    """Distance between the texts (prompt and response) of two data sets."""

    texts: int
    """Texts of each set that were classified, from as many prompts as possible."""
    separability: float | None
    """Accuracy of the classifier on held-out prompts; 0.5 for indistinguishable sets. None if a set has fewer than two
    prompt groups, or without scikit-learn."""
    interval: Interval | None
    """95% interval of `separability`, clustered by prompt."""
    known_words: float | None
    """Share of the words of the evaluation texts, repetitions included, that occur in the training texts."""
    known_words_within: float | None
    """The same share for held-out training prompts: the value of `known_words` without a shift."""
    prompt_words: dict[str, dict[str, float]]
    """`data` and `evaluation data` -> quantiles p05, median and p95 of the number of words of a prompt."""
    response_words: dict[str, dict[str, float]]
    """The same for responses."""
    verdict: str
    """`shifted` if the interval of `separability` is above one half and the evaluation texts also have unknown words
    (`known_words` is 0.10 or more below `known_words_within`) or different lengths (a median twice or half as large);
    `apart` if only the first holds, as for two subjects of one kind; `not shown` if the interval includes one half;
    `not assessed` without an interval."""


@dataclass(frozen=True)
class SetTexts:
    """Texts of one set with their prompt groups."""

    texts: list[str]
    groups: np.ndarray
    prompts: list[str]
    responses: list[str]


def measure_shift(train: tuple[RowFacts, RowReader], held: tuple[RowFacts, RowReader], seed: int) -> DomainShift:
    """Measure the distance between training and evaluation texts.

    The classifier is a logistic regression on TF-IDF of words, cross-validated by prompt group; each set has the same
    number of texts, so that chance is one half.

    Args:
        train: Training rows.
        held: Evaluation rows.
        seed: For drawing rows and texts of large sets and for assigning prompt groups to folds.

    Returns:
        The distance.

    Source:
        Lopez-Paz and Oquab (2017), "Revisiting classifier two-sample tests".
    """
    sides = [_texts(*side, seed) for side in (train, held)]
    separability, interval, count = None, None, 0
    if optional("sklearn", "data", "No classifier compares evaluation texts with training texts."):
        separability, interval, count = two_sample_test(sides[0], sides[1], seed)
    vocabulary = {word for text in sides[0].texts for word in words_of(text)}
    known, within = _known_share([_counts(sides[1].texts)], [vocabulary]), _known_within(sides[0], seed)
    names = ("data", "evaluation data")
    prompts = {name: _quantiles(side.prompts) for name, side in zip(names, sides, strict=True)}
    responses = {name: _quantiles(side.responses) for name, side in zip(names, sides, strict=True)}
    differ = any(_other_length(*(each[name]["median"] for name in names)) for each in (prompts, responses))
    differ |= known is not None and within is not None and within - known >= KNOWN_WORDS_LOST
    return DomainShift(
        texts=count,
        separability=separability,
        interval=interval,
        known_words=known,
        known_words_within=within,
        prompt_words=prompts,
        response_words=responses,
        verdict=_verdict(interval, differ),
    )


def _verdict(interval: Interval | None, differ: bool) -> str:
    if interval is None or np.isnan(interval.low):
        return "not assessed"
    if interval.low <= 0.5:
        return "not shown"
    return "shifted" if differ else "apart"


def _other_length(one: float, other: float) -> bool:
    return max(one, other) >= LENGTH_RATIO * max(min(one, other), 1)


def _texts(facts: RowFacts, reader: RowReader, seed: int) -> SetTexts:
    places = np.sort(np.random.default_rng(seed).permutation(facts.usable)[:SAMPLE_ROWS])
    rows = [reader.row(int(number)) for number in facts.number[places]]
    prompts = [prompt_text(row) for row in rows]
    responses = [[response_text(row, place) for place in range(len(row.responses))] for row in rows]
    groups = [str(row.group) for row, texts in zip(rows, responses, strict=True) for _ in texts]
    texts = [f"{prompt}\n{text}" for prompt, texts in zip(prompts, responses, strict=True) for text in texts]
    return SetTexts(texts, np.array(groups), prompts, [text for texts in responses for text in texts])


def two_sample_test(train: SetTexts, held: SetTexts, seed: int) -> tuple[float | None, Interval | None, int]:
    """Train a classifier that separates two sets of texts, cross-validated by prompt group.

    Args:
        train: One set.
        held: The other set.
        seed: For drawing texts of large sets and for assigning prompt groups to folds.

    Returns:
        Accuracy of the classifier and its 95% interval (both None if a set has fewer than two prompt groups), and the
        number of texts used from each set.
    """
    if any(len(np.unique(side.groups)) < 2 for side in (train, held)):
        return None, None, 0
    count = min(len(train.texts), len(held.texts), CLASSIFIED)
    taken = [_spread(side.groups, count, seed) for side in (train, held)]
    texts = [side.texts[place] for side, places in zip((train, held), taken, strict=True) for place in places]
    groups = np.concatenate([side.groups[places] for side, places in zip((train, held), taken, strict=True)])
    labels = np.repeat([0, 1], count)
    fold = _folds(groups, labels, seed)
    right = np.zeros(2 * count)
    for number in range(_FOLDS):
        out = fold == number
        if not out.any() or len(np.unique(labels[~out])) < 2:
            continue  # one set is missing from the training folds: no text counts as correct
        model = _classifier()
        model.fit([text for text, held_out in zip(texts, out, strict=True) if not held_out], labels[~out])
        right[out] = model.predict([text for text, held_out in zip(texts, out, strict=True) if held_out]) == labels[out]
    clusters = np.unique(groups, return_inverse=True)[1]
    return float(right.mean()), cross_validated_interval(right, clusters, len(np.unique(fold))), count


def _classifier() -> Any:
    text, linear_model = (require(f"sklearn.{name}", "data") for name in ("feature_extraction.text", "linear_model"))
    return require("sklearn.pipeline", "data").make_pipeline(
        text.TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        linear_model.LogisticRegression(max_iter=1000, class_weight="balanced"),
    )


def _spread(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw texts in rounds, one of each group per round, and return their indices."""
    order = np.random.default_rng(seed).permutation(len(groups))
    seen: Counter[Any] = Counter()
    turns = np.zeros(len(groups), np.int64)
    for place in order:
        turns[place] = seen[groups[place]]
        seen[groups[place]] += 1
    return np.sort(order[np.argsort(turns[order], kind="stable")][:count])


def _folds(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Assign each text to a fold, such that every fold has groups of both sets."""
    random = np.random.default_rng(seed)
    fold: dict[str, int] = {}
    for label in (0, 1):
        names = [name for name in np.unique(groups[labels == label]).tolist() if name not in fold]
        fold |= {names[place]: number % _FOLDS for number, place in enumerate(random.permutation(len(names)))}
    return np.array([fold[group] for group in groups.tolist()])


def _known_within(side: SetTexts, seed: int) -> float | None:
    """Return the share of the words of each part of the prompt groups that occur in the other parts."""
    names, place = np.unique(side.groups, return_inverse=True)
    if len(names) < 2:
        return None
    fold = (np.random.default_rng(seed).permutation(len(names)) % _FOLDS)[place]
    counts = [
        _counts([text for text, where in zip(side.texts, fold, strict=True) if where == number])
        for number in range(min(_FOLDS, len(names)))
    ]
    others = [set().union(*(other for other in counts if other is not own)) for own in counts]
    return _known_share(counts, others)


def _counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in words_of(text))


def _known_share(counts: Sequence[Counter[str]], known: Sequence[set[str]]) -> float | None:
    total = sum(sum(each.values()) for each in counts)
    pairs = zip(counts, known, strict=True)
    found = sum(count for each, words in pairs for word, count in each.items() if word in words)
    return found / total if total else None


def _quantiles(texts: Sequence[str]) -> dict[str, float]:
    lengths = [len(text.split()) for text in texts]
    return {name: float(np.quantile(lengths, point)) for name, point in _POINTS.items()}
