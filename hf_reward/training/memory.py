"""Memory of a training step: estimated from the parameters, and measured while it runs."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

_SAMPLING_SECONDS = 0.01
STATES_PER_PARAMETER = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_apex_fused": 2,
    "nadamw": 2,
    "radamw": 2,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
}
"""Numbers in the optimizer state for each trainable parameter, in the precision of the parameter."""
_BYTES_PER_PARAMETER = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "ademamix_8bit": 3}
"""The same in bytes for optimizers with quantised states, without their block constants."""


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count all and trainable parameters of a model; quantised ones count in their stored form.

    Args:
        model: The model.

    Returns:
        The number of all parameters, and of trainable ones.
    """
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(name: str, model: nn.Module) -> int | None:
    """Return the expected size of the optimizer state.

    Args:
        name: `optim` of the settings.
        model: The model.

    Returns:
        Bytes; None for an optimizer whose state depends on more than the number of parameters.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if name in STATES_PER_PARAMETER:
        return STATES_PER_PARAMETER[name] * bytes_of(trained)
    if name in _BYTES_PER_PARAMETER:
        return _BYTES_PER_PARAMETER[name] * sum(weight.numel() for weight in trained)
    return None


def optimizer_state(optimizer: Any) -> int:
    """Return the current size of an optimizer's state.

    Args:
        optimizer: A torch optimizer, with or without accelerate's wrapper.

    Returns:
        Bytes.
    """
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    return bytes_of(value for state in states for value in state.values() if isinstance(value, torch.Tensor))


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return free and total memory of a CUDA device, else of the machine, in bytes.

    Args:
        device: Device of the training.

    Returns:
        Free and total bytes.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    machine = psutil.virtual_memory()
    return machine.available, machine.total


@dataclass
class Peak:
    """Memory in use at the start and at the peak, in bytes."""

    start: int = 0
    highest: int = 0

    @property
    def growth(self) -> int:
        """Peak minus start."""
        return self.highest - self.start


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure peak memory within the block: memory allocated by torch on CUDA, else the resident set of this process.

    Args:
        device: Device of the work.

    Yields:
        Peak: The measurement, complete after the block.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak.start = torch.cuda.memory_allocated(device)
        try:
            yield peak
        finally:
            peak.highest = torch.cuda.max_memory_allocated(device)
        return
    process, done = psutil.Process(), threading.Event()
    peak.start = peak.highest = process.memory_info().rss

    def watch() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            peak.highest = max(peak.highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.highest = max(peak.highest, process.memory_info().rss)


def gib(size: float) -> str:
    """Format a size in MiB below one GiB, else in GiB.

    Args:
        size: Bytes.

    Returns:
        The formatted size.
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
