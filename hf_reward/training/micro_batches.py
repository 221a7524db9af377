"""One optimizer step over the micro-batches of a token budget: the gradient of the whole batch, in less memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def in_step(inputs: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Give a batch as many micro-batches as that of any other process; those added have no rows.

    Sharded models wait for each other in every forward and backward pass, so one pass less would block them all.

    Args:
        inputs: A batch, perhaps of `DataCollatorWithTokenBudget`.
        accelerator: Of the run.

    Returns:
        The batch, or a copy with further micro-batches.
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


def step_in_parts(
    inputs: dict[str, Any],
    accelerator: Accelerator,
    model: nn.Module,
    *,
    step: Callable[[dict[str, Any]], Tensor],
    empty_loss: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """Add up losses and gradients of micro-batches.

    Args:
        inputs: What `in_step` returns.
        accelerator: Of the run.
        model: The wrapped model.
        step: Forward and backward of a micro-batch; its loss, divided by the groups of the whole batch.
        empty_loss: A loss of 0 that depends on every parameter, for a micro-batch without rows.

    Returns:
        The loss of the batch, shape `()`.
    """
    last, total = len(inputs["micro_batches"]) - 1, torch.zeros((), device=accelerator.device)
    for number, (part, rows) in enumerate(zip(inputs["micro_batches"], inputs["micro_rows"], strict=True)):
        with _gradients_kept_back(accelerator, model, number < last):
            if len(rows):
                total += step(part)
            else:
                accelerator.backward(empty_loss(part))
    return total


@contextmanager
def _gradients_kept_back(accelerator: Accelerator, model: nn.Module, keep: bool) -> Iterator[None]:
    """Do not exchange gradients between processes yet."""
    state = accelerator.gradient_state
    before = state.sync_gradients
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    # FSDP2 would keep a whole gradient on each device meanwhile, and a budget is there to save memory.
    always = deepspeed or accelerator.is_fsdp2 or state.plugin_kwargs.get("sync_each_batch")
    state._set_sync_gradients(before and not keep)  # DeepSpeed steps its optimizer where this is set
    try:
        with accelerator.no_sync(model) if keep and not always else nullcontext():
            yield
    finally:
        state._set_sync_gradients(before)


def offloaded_activations(wanted: bool) -> AbstractContextManager[Any]:
    """Within this, activations lie in CPU memory between forward and backward, if that is wanted."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()) if wanted else nullcontext()
