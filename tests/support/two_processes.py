"""A function run in two forked processes over gloo, so that imports are not repeated."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def in_two_processes(function: Callable[[int], Any], patience: float = 180.0) -> list[tuple[str, Any]]:
    """Run a function in both, as if each had a machine of its own.

    Args:
        function: What to run, given its rank; its result has to pickle.
        patience: Seconds to wait for each.

    Returns:
        Of each process its result, or the error that ended it, as `("result", value)` or `("error", traceback)`.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, pipes = [], []
    for rank in range(2):
        receive, send = context.Pipe(duplex=False)
        processes.append(context.Process(target=_child, args=(rank, port, function, send)))
        pipes.append(receive)
        processes[-1].start()
        send.close()
    try:
        found = [pipe.recv() if pipe.poll(patience) else ("error", f"no answer in {patience} s") for pipe in pipes]
    except EOFError:
        found = [("error", "a process ended without an answer")] * 2
    for process in processes:
        process.kill() if any(kind == "error" for kind, _ in found) else process.join(patience)
        process.join()
    return found


def _child(rank: int, port: int, function: Callable[[int], Any], send: Any) -> None:
    # LOCAL_RANK 0 in both: the first process of each machine reads its files.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()
    torch.set_num_threads(1)
    try:
        send.send(("result", function(rank)))
    except BaseException:
        send.send(("error", traceback.format_exc()))
    finally:
        send.close()
        os._exit(0)
