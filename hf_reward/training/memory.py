"""What a training step needs in memory: counted from the parameters, measured while it runs."""

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
"""Numbers that an optimizer keeps for each trainable one, in the precision of the parameter."""
_BYTES_PER_PARAMETER = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "ademamix_8bit": 3}
"""The same for optimizers with a precision of their own, without their block constants."""


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters of a model, and the trainable ones among them; quantised ones count as stored.

    Args:
        model: The model.

    Returns:
        Both counts.
    """
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(name: str, model: nn.Module) -> int | None:
    """Expected size of the optimizer's state.

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
    """Bytes that an optimizer's state holds now.

    Args:
        optimizer: A torch optimizer, perhaps wrapped by accelerate.

    Returns:
        Bytes.
    """
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    return bytes_of(value for state in states for value in state.values() if isinstance(value, torch.Tensor))


def free_memory(device: torch.device) -> tuple[int, int]:
    """Free and total memory of a device, in bytes; of the machine for a device that cannot say.

    Args:
        device: Where training runs.

    Returns:
        Both.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    machine = psutil.virtual_memory()
    return machine.available, machine.total


@dataclass
class Peak:
    """The highest use of memory, beside that at the beginning, in bytes."""

    start: int = 0
    highest: int = 0

    @property
    def growth(self) -> int:
        """How far use rose above the beginning."""
        return self.highest - self.start


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the highest use within this: what torch allocated on CUDA, else this process's resident set.

    Args:
        device: Where the work runs.

    Yields:
        Peak: The use of memory, complete when the block has ended.
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
    """A size for people.

    Args:
        size: Bytes.

    Returns:
        MiB below one GiB, else GiB.
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
