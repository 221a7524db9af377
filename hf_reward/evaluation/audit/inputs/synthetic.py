"""Synthetic preference data and reward functions with biases of known size, for the self-test.

An answer contains a mark such as `ref17a`, which identifies its quality after every edit. Preferences follow the
Bradley-Terry model with these qualities, so the quality is a calibrated reward.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.audit.cases import Text
from hf_reward.evaluation.audit.edits.padding import CLOSERS
from hf_reward.evaluation.audit.findings import readable
from hf_reward.evaluation.audit.inputs.audit_inputs import Opinion, Question

_MARK = re.compile(r"ref(\d+)([ab])", re.IGNORECASE)
_UNLIKED = re.compile("  |```|https?://|\U0001f60a|" + "|".join(map(re.escape, CLOSERS)))
_DENIAL = re.compile(r"don't think|\bis wrong|\bis false|\bnot so\b|\bis not this")
_CASE = re.compile(r"case (\d+)\b", re.IGNORECASE)
_WORDS = (
    *("river", "stone", "window", "garden", "letter", "market", "winter", "table"),
    *("forest", "story", "bridge", "engine", "paper", "signal", "harvest", "mirror"),
    *("island", "captain", "basket", "museum", "thunder", "lantern", "village", "orchard"),
    *("compass", "station", "ribbon", "meadow", "kitchen", "anchor"),
)
_QUALITY_SPREAD = 1.2
_QUALITY_LENGTH_CORRELATION = 0.4
"""Better answers are longer, as in real data, so observational checks suggest a bias toward length."""


@dataclass(frozen=True)
class SyntheticData:
    """Rows and the quality of each answer."""

    rows: list[PreferenceRow]
    quality: Mapping[str, float]
    """Mark of an answer -> its quality."""


def synthetic_data(num_prompts: int, seed: int) -> SyntheticData:
    """Generate one pair per prompt.

    Args:
        num_prompts: Number of prompts.
        seed: Random seed.

    Returns:
        The data.
    """
    random = np.random.default_rng(seed)
    rows, quality = [], {}
    for number in range(num_prompts):
        answers = {}
        for side in "ab":
            mark = f"ref{number}{side}"
            quality[mark] = float(random.normal(0, _QUALITY_SPREAD))
            answers[side] = _answer(mark, quality[mark], random)
        wins = random.random() < 1 / (1 + np.exp(quality[f"ref{number}b"] - quality[f"ref{number}a"]))
        order = "ab" if wins else "ba"
        rows.append(
            PreferenceRow(
                prompt=[{"role": "user", "content": f"Please tell me something about case {number}."}],
                responses=[[{"role": "assistant", "content": answers[side]}] for side in order],
                ranks=[0, 1],
                group=f"case {number}",
            )
        )
    return SyntheticData(rows, quality)


def _answer(mark: str, quality: float, random: np.random.Generator) -> str:
    noise = random.normal()
    share = _QUALITY_LENGTH_CORRELATION
    level = share * quality / _QUALITY_SPREAD + np.sqrt(1 - share**2) * noise
    sentences = int(np.clip(round(4 + 1.5 * level), 2, 9))
    parts = []
    for place in range(sentences):
        words = random.choice(_WORDS, size=int(random.integers(5, 11))).tolist()
        if place == 0:
            words.insert(1, mark)
        parts.append(" ".join(words).capitalize() + ".")
    return " ".join(parts)


@dataclass
class SyntheticReward:
    """A reward function with biases of known size; the defaults have none."""

    quality: Mapping[str, float]
    questions: Sequence[Question] = ()
    opinions: Sequence[Opinion] = ()
    seed: int = 0
    length: float = 0.0
    """Reward for each doubling of the number of words."""
    bold: float = 0.0
    """Reward for any bold text."""
    sycophancy: float = 0.0
    """Reward for agreement with a stated belief of the user."""
    scale: float = 1.0
    """Factor of all rewards; 2 is overconfident by a factor of two."""
    offset: float = 0.0
    """Standard deviation of an offset per prompt, which preferences do not show."""
    dislikes: float = 0.0
    """Penalty for double spaces, code fences, links, emoji and stock sentences, as a good model may have."""
    noise: float = 0.05
    """Standard deviation of noise that depends on the complete text, edits included."""
    _facts: dict[str, tuple[str, str]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.__name__ = "synthetic reward"
        self._facts = {each.question: (_core(each.correct), _core(each.incorrect)) for each in self.questions}

    def __call__(self, texts: Sequence[Text]) -> list[float]:
        """Return the rewards of texts."""
        return [self.scale * self._reward(each) for each in texts]

    def _reward(self, text: Text) -> float:
        prompt, response = readable(text.prompt), text.response
        reward = self._quality(prompt, response)
        reward += self.noise * _normal(f"{self.seed}\x00{prompt}\x00{response}")
        if self.offset:
            reward += self.offset * _normal(f"{self.seed}\x00offset\x00{_CASE.findall(prompt) or prompt}")
        if self.dislikes and _UNLIKED.search(response):
            reward -= self.dislikes
        if self.length:
            reward += self.length * float(np.log2(max(1, len(response.split()))))
        if self.bold and "**" in response:
            reward += self.bold
        if self.sycophancy:
            reward += self.sycophancy * self._agreement(prompt, response)
        return reward

    def _quality(self, prompt: str, response: str) -> float:
        mark, case = _MARK.search(response), _CASE.search(prompt)
        if mark is not None and case is not None:
            return self.quality[mark.group().lower()] if mark.group(1) == case.group(1) else -6.0
        if case is not None:
            return -6.0  # junk
        side = self._side(prompt, response)
        if side is None:
            return 0.0
        question, is_correct = side
        return (0.7 if is_correct else -0.7) + 0.5 * _normal(f"{self.seed}\x00{question}\x00{is_correct}")

    def _side(self, prompt: str, response: str) -> tuple[str, bool] | None:
        """Question of the prompt, and whether the response is correct; None if unknown."""
        for question, (correct, incorrect) in self._facts.items():
            if question in prompt:
                lower = response.lower()
                if correct in lower or incorrect in lower:
                    return question, correct in lower
                return None
        return None

    def _agreement(self, prompt: str, response: str) -> float:
        """1 if the response agrees with the user's belief on a question of fact, else 0."""
        side = self._side(prompt, response)
        if side is None:
            return 0.0
        statement = prompt.replace(side[0], "").lower()
        own, other = self._facts[side[0]] if side[1] else self._facts[side[0]][::-1]
        return float(
            (own in statement and not _DENIAL.search(statement))
            or (other in statement and bool(_DENIAL.search(statement)))
        )


def _core(sentence: str) -> str:
    """A sentence in lower case without its end mark, to be found within other sentences."""
    return sentence.strip().rstrip(".!").lower()


def _normal(key: str) -> float:
    """A standard normal number that depends only on the key: the sum of twelve uniform numbers minus six."""
    digest = xxhash.xxh3_128_digest(key.encode("utf-8", "surrogatepass")) + xxhash.xxh3_64_digest(key.encode(), seed=1)
    return float(np.frombuffer(digest, dtype="<u2").sum() / 65536 - 6)
