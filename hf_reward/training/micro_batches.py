"""One optimizer step over the micro-batches of a token budget: the gradient of the full batch in less memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def equalize_micro_batches(inputs: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Add empty micro-batches to a batch, so that all processes have the same number.

    Processes of a sharded model synchronise in every forward and backward pass, so a missing pass would block them.

    Args:
        inputs: A batch, with or without micro-batches of `DataCollatorWithTokenBudget`.
        accelerator: Of the run.

    Returns:
        The batch, or a copy with additional micro-batches.
    """
    if "micro_batches" not in inputs or accelerator.num_processes == 1:
        return inputs
    parts, rows = inputs["micro_batches"], inputs["micro_rows"]
    counts: Any = accelerator.gather(torch.tensor(len(parts), device=accelerator.device))
    missing = int(counts.max()) - len(parts)
    smallest = min(parts, key=lambda part: part["input_ids"].numel())
    no_rows = torch.tensor([], dtype=torch.long)
    return {
        **inputs,
        "micro_batches": [*parts, *[smallest] * missing],
        "micro_rows": [*rows, *[no_rows] * missing],
    }


def accumulate_micro_batches(
    inputs: dict[str, Any],
    accelerator: Accelerator,
    model: nn.Module,
    *,
    step: Callable[[dict[str, Any]], Tensor],
    empty_loss: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """Accumulate losses and gradients of micro-batches.

    Args:
        inputs: Result of `equalize_micro_batches`.
        accelerator: Of the run.
        model: The wrapped model.
        step: Runs forward and backward of a micro-batch; returns its loss, normalized by the full batch.
        empty_loss: Returns a loss of 0 that depends on every parameter, for a micro-batch without rows.

    Returns:
        The loss of the batch, shape `()`.
    """
    last, total = len(inputs["micro_batches"]) - 1, torch.zeros((), device=accelerator.device)
    for number, (part, rows) in enumerate(zip(inputs["micro_batches"], inputs["micro_rows"], strict=True)):
        with _without_gradient_sync(accelerator, model, number < last):
            if len(rows):
                total += step(part)
            else:
                accelerator.backward(empty_loss(part))
    return total


@contextmanager
def _without_gradient_sync(accelerator: Accelerator, model: nn.Module, keep: bool) -> Iterator[None]:
    """Disable the exchange of gradients between processes within the block, if `keep` is set."""
    state = accelerator.gradient_state
    before = state.sync_gradients
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    # FSDP2 would store the complete gradient on each device, but the purpose of a token budget is to save memory.
    always = deepspeed or accelerator.is_fsdp2 or state.plugin_kwargs.get("sync_each_batch")
    state._set_sync_gradients(before and not keep)  # DeepSpeed steps its optimizer when this is set
    try:
        with accelerator.no_sync(model) if keep and not always else nullcontext():
            yield
    finally:
        state._set_sync_gradients(before)


def offloaded_activations(wanted: bool) -> AbstractContextManager[Any]:
    """Return a context in which activations are stored in CPU memory between forward and backward, if `wanted`."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()) if wanted else nullcontext()
