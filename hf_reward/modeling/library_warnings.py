"""Suppress irrelevant warnings of other libraries."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ROW = re.compile(r"^(\S+)\s*\|\s*(UNEXPECTED|MISSING)\s*\|", re.MULTILINE)
_STATUS = re.compile(r"\|\s*(MISMATCH|CONVERSION)\s*\|")


class _HeadsOnly(logging.Filter):
    """Drops a load report that only names heads: that of the language model, and the new reward head."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = f"{backbone}."

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to show the record."""
        text = _ANSI.sub("", record.getMessage())
        keys = [key for key, _ in _ROW.findall(text)]
        if "LOAD REPORT" not in text or not keys or _STATUS.search(text):
            return True
        return any(key.startswith(self.backbone) and ".pooler." not in key for key in keys)


@contextmanager
def without_report_of_heads(backbone: str) -> Iterator[None]:
    """Suppress transformers' report that the head of a language model is unused and the reward head is new.

    This is expected when a language model is loaded as a reward model, and recorded in `has_new_head`. Reports on
    weights of the backbone or on other shapes are shown.

    Args:
        backbone: Name of the backbone inside the model: `base_model_prefix`.
    """
    logger, silenced = logging.getLogger("transformers.modeling_utils"), _HeadsOnly(backbone)
    logger.addFilter(silenced)
    try:
        yield
    finally:
        logger.removeFilter(silenced)


@contextmanager
def without_renamed_checkpointing() -> Iterator[None]:
    """Suppress the FutureWarning on PEFT's use of an attribute that transformers renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


_MISSING_KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community"


def _no_missing_kernel(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MISSING_KERNEL)


def silence_missing_kernel() -> None:
    """Suppress the message that bitsandbytes found no kernel on the Hub for 4-bit weights on a CPU with bfloat16.

    PEFT imports bitsandbytes, so every program that imports PEFT would print it. bitsandbytes works without the kernel.
    Call this before PEFT is imported.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_no_missing_kernel)
