"""Fixtures of the trainer's tests."""

import datasets
import pytest


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return the cache folder of `datasets`, empty at the start of each test."""
    folder = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
