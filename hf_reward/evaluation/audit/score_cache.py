"""Texts -> rewards: each distinct text is scored once and cached in a file, so that an audit can resume."""

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import tqdm

from hf_reward.data.preference_row import Prompt
from hf_reward.evaluation.audit.cases import Text
from hf_reward.evaluation.audit.findings import readable
from hf_reward.scoring.reward_scorer import RewardScorer

logger = logging.getLogger(__name__)

CACHE_FILE = "scores.jsonl"
_CHUNK_CHARACTERS = 200_000
"""Characters in a chunk; an interrupted audit loses at most one chunk."""

RewardFunction = (
    Callable[[Sequence[Text]], Sequence[float]] | Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
)
"""Function of prompts and responses, or of `Text`s, that returns rewards; NaN for texts without a reward."""


class ScoreCache:
    """Rewards by text, in memory and in a file."""

    def __init__(self, path: Path | None, fingerprint: Mapping[str, Any]) -> None:
        """Read the rewards of an earlier audit of the same model.

        Args:
            path: The file; None for no file.
            fingerprint: Properties that determine the rewards. Rewards with another fingerprint are not used.

        Raises:
            ValueError: If the file was not written by an audit, or is damaged.
        """
        self.path = path
        self.rewards: dict[str, float] = {}
        self.cut: set[str] = set()
        """Texts with a truncated prompt."""
        # The same weights under another name (a relative path, a moved folder) give the same rewards.
        decisive = {
            name: each for name, each in fingerprint.items() if name != "model" or not fingerprint.get("weights")
        }
        self._head = json.dumps({"fingerprint": json.loads(json.dumps(decisive, default=str))}, sort_keys=True)
        self.from_file = 0
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        if not lines[0].startswith('{"fingerprint": '):
            raise ValueError(
                f"{path} was not written by an audit and is not overwritten. Name another folder with --out."
            )
        if lines[0] != self._head:
            logger.warning("%s has rewards of another model or setting and is replaced.", path)
            path.unlink()
            return
        for line in lines[1:-1]:  # the part after the last line break is incomplete
            try:
                key, reward, cut = json.loads(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}). Remove it and run the audit again.") from error
            self.rewards[key] = float("nan") if reward is None else float(reward)
            if cut:
                self.cut.add(key)
        self.from_file = len(self.rewards)
        # An incomplete line at the end would make the next one unreadable.
        path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")

    def add(self, keys: Sequence[str], rewards: Sequence[float], cut: Sequence[bool]) -> None:
        """Add rewards to the cache and the file."""
        self.rewards.update(zip(keys, map(float, rewards), strict=True))
        self.cut |= {key for key, one in zip(keys, cut, strict=True) if one}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file():
            self.path.write_text(self._head + "\n", encoding="utf-8")
        with self.path.open("a", encoding="utf-8") as file:
            for key, reward, one in zip(keys, rewards, cut, strict=True):
                file.write(json.dumps([key, None if np.isnan(reward) else float(reward), int(one)]) + "\n")


def takes_prompts(score: RewardFunction) -> bool:
    """Return whether a function takes prompts and responses instead of `Text`s.

    Args:
        score: The function. Its positional parameters without default decide.

    Returns:
        True for two parameters (or any number, `*args`), False for one.

    Raises:
        TypeError: If it is not a function or takes another number of arguments.
    """
    usage = (
        "A function of texts must be called as f(prompts, responses), or as f(texts) with texts that have `prompt` and "
    )
    if not callable(score):
        raise TypeError(f"{usage}`response`, but {type(score).__name__} cannot be called. Pass a scorer or a function.")
    try:
        parameters = inspect.signature(score).parameters.values()
    except ValueError:  # a compiled function without a signature
        return True
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return True
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needed = [each.name for each in places if each.default is each.empty]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"{usage}`response`, but {score!r} needs {', '.join(needed) or 'nothing'}. Wrap it in a lambda."
        )
    return len(needed) == 2


def _rewards_of(texts: Sequence[Text], score: RewardFunction) -> list[float]:
    function: Any = score
    given = ([each.prompt for each in texts], [each.response for each in texts]) if takes_prompts(score) else (texts,)
    rewards = [float(reward) for reward in function(*given)]
    if len(rewards) != len(texts):
        raise ValueError(
            f"A function of texts must return a reward for each of its {len(texts)} texts, but returned {len(rewards)}."
        )
    return rewards


def score_texts(texts: Sequence[Text], score: RewardScorer | RewardFunction, cache: ScoreCache) -> dict[str, float]:
    """Score distinct texts, sorted by prompt so that each prompt is computed once.

    Args:
        texts: Any texts; duplicates are scored once.
        score: A scorer, which scores empty responses too, or a function.
        cache: Cached rewards, which the new ones are added to.

    Returns:
        Key of each text -> reward, NaN for texts without one.
    """
    missing = {each.key: each for each in texts if each.key not in cache.rewards}
    ordered = sorted(missing.values(), key=lambda each: (readable(each.prompt), each.response, each.key))
    with tqdm(total=len(ordered), desc="Scoring", unit="text", disable=None, delay=3, leave=False) as bar:
        for chunk in _chunks(ordered):
            cache.add([each.key for each in chunk], *_scored(chunk, score))
            bar.update(len(chunk))
    return {each.key: cache.rewards[each.key] for each in texts}


def _chunks(texts: Sequence[Text]) -> list[list[Text]]:
    chunks: list[list[Text]] = [[]]
    size = 0
    for each in texts:
        more = len(each.response)
        if chunks[-1] and size + more > _CHUNK_CHARACTERS:
            chunks.append([])
            size = 0
        chunks[-1].append(each)
        size += more
    return [chunk for chunk in chunks if chunk]


def _scored(texts: Sequence[Text], score: RewardScorer | RewardFunction) -> tuple[list[float], list[bool]]:
    """Return rewards, and which texts have a truncated prompt."""
    if not isinstance(score, RewardScorer):
        return _rewards_of(texts, score), [False] * len(texts)
    encoded = score.encode([each.request() for each in texts], allow_empty=True)
    found = score.score_encoded(encoded, show_progress=False)
    return found.rewards.tolist(), [each.cut_tokens > 0 for each in encoded]
