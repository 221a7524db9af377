"""Texts to score, and the comparisons of their rewards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import xxhash

from hf_reward.data.preference_row import Prompt
from hf_reward.data.score_request import ScoreRequest


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and a response to score."""

    prompt: Prompt
    """Text, or messages with only `role`, `content` and, for images, `image_sources`."""
    response: str
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template."""

    @cached_property
    def key(self) -> str:
        """Return the XXH3-128 hash of the content, which identifies the text and, by references, its images."""
        digest = xxhash.xxh3_128()
        turns = (
            [("", self.prompt)] if isinstance(self.prompt, str) else [(m["role"], m["content"]) for m in self.prompt]
        )
        parts = [part for turn in turns for part in turn] + [self.response]
        if self.template:
            parts.append(repr(sorted(self.template.items())))
        for part in parts:
            content = str(part).encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)}:".encode() + content)
        return digest.hexdigest()

    def request(self) -> ScoreRequest:
        """Return the request for `RewardScorer.score_requests`."""
        return ScoreRequest(prompt=self.prompt, response=self.response, template=self.template)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Texts whose rewards are compared with each other."""

    cluster: str
    """Its prompt or question; cases of one cluster are not independent."""
    texts: Mapping[str, Text]
    """Role in the comparison -> text."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Further properties that the probe uses."""


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """A case with the rewards of all its texts."""

    case: Case
    rewards: Mapping[str, float]
    """Role -> reward."""
    cut: bool = False
    """Whether the prompt of one of its texts was truncated."""

    @property
    def compares_prompts(self) -> bool:
        """Whether rewards of different prompts can be compared. A judge of pairs compares responses to one prompt."""
        return True

    def gap(self, one: str, other: str) -> float:
        """Return the reward of one role minus that of another."""
        return self.rewards[one] - self.rewards[other]
