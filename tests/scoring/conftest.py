"""Fixtures with a tiny saved reward model; each test gets its own copy of the folder or the scorer."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_reward.scoring.reward_scorer import RewardScorer


@pytest.fixture(scope="session")
def _scorers() -> dict[str, RewardScorer]:
    return {}


@pytest.fixture
def folder(saved_llama: Path, tmp_path: Path) -> Path:
    """A saved tiny Llama with a random head."""
    return Path(shutil.copytree(saved_llama, tmp_path / "saved"))


@pytest.fixture
def make_scorer(saved_llama: Path, _scorers: dict[str, RewardScorer]) -> Callable[..., RewardScorer]:
    """Return a function that makes a scorer of that model on the CPU, with loading options."""

    def make(**options: Any) -> RewardScorer:
        name = repr(sorted(options.items()))
        if name not in _scorers:
            _scorers[name] = RewardScorer.from_pretrained(saved_llama, device="cpu", **options)
        return copy.deepcopy(_scorers[name])

    return make


@pytest.fixture
def scorer(make_scorer: Callable[..., RewardScorer]) -> RewardScorer:
    """A scorer without options."""
    return make_scorer()
