"""Commands run in the process of the tests: their verbosity does not outlast a test."""

import logging
import warnings

import datasets
import huggingface_hub
import pytest
import transformers


@pytest.fixture(autouse=True)
def _restored_verbosity():
    """Give other tests the verbosity back."""
    loggers = (transformers.logging, datasets.logging, huggingface_hub.logging)
    levels, root = [each.get_verbosity() for each in loggers], logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    for each, before in zip(loggers, levels, strict=True):
        each.set_verbosity(before)
    root.handlers[:] = handlers
    root.setLevel(level)
