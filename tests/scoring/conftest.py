"""One tiny reward model is saved for all tests of scoring; each test has a copy of the folder or of the scorer."""

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
    """Give a scorer of that model, on the CPU, by the options with which it is loaded."""

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
