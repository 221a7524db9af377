"""Measure the attention of one layer over packed batches: one call per segment with repeated keys, or cascade.

    python tests/performance/attention.py                     # float32 and bfloat16, one thread
    python tests/performance/attention.py --threads 2 --dtype float32 --rounds 9 --json attention.json

The heads are those of SmolLM2-135M (9, 3 of keys, size 64), unless `--key-heads` is given. The two ways alternate in
one process, and the fastest round of each counts. With one thread, processor time is measured, so that other processes
disturb less; with more, the time that passes. R / M is the number of repeated keys for each partial output that the
cascade merges. Kept bytes are those of all tensors that the backward pass keeps, with inputs and output.
"""

import json
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import core_count, cpu_name
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hf_reward.modeling.attention_kernels import FlashCPU
from hf_reward.modeling.cascade_attention import cascade_attention
from hf_reward.modeling.packed_attention import layout_costs, segment_attention
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

HEADS, HEAD_SIZE = 9, 64
Spans = list[tuple[int, int]]


def groups(count: int, prefix: int, responses: int, own: int) -> Spans:
    """Return groups of responses to a prompt."""
    spans: Spans = []
    for _ in range(count):
        root = len(spans)
        spans += [(prefix, -1), *[(own, root)] * responses]
    return spans


def conversation(turns: int, length: int) -> Spans:
    """Return a conversation with two responses at each turn; the first one is continued."""
    spans: Spans = [(length, -1)]
    last = 0
    for _ in range(turns):
        spans += [(length, last), (length, last)]
        last = len(spans) - 2
    return depth_first(spans)


def tree(depth: int, branches: int, length: int) -> Spans:
    """Return a complete tree of segments of one length."""
    spans: Spans = [(length, -1)]
    level = [0]
    for _ in range(depth - 1):
        spans += [(length, parent) for parent in level for _ in range(branches)]
        level = list(range(len(spans) - len(level) * branches, len(spans)))
    return depth_first(spans)


def depth_first(spans: Spans) -> Spans:
    """Order segments as a layout requires it."""
    ordered: Spans = []

    def visit(place: int, parent: int) -> None:
        ordered.append((spans[place][0], parent))
        mine = len(ordered) - 1
        for child, (_, above) in enumerate(spans):
            if above == place:
                visit(child, mine)

    visit(0, -1)
    return ordered


SHAPES: dict[str, Spans] = {
    "(16; 2 x 16)": groups(1, 16, 2, 16),
    "(128; 2 x 48)": groups(1, 128, 2, 48),
    "8 x (128; 2 x 48)": groups(8, 128, 2, 48),
    "4 x (32; 2 x 200)": groups(4, 32, 2, 200),
    "(128; 8 x 16)": groups(1, 128, 8, 16),
    "(512; 4 x 64)": groups(1, 512, 4, 64),
    "8 x (256; 4 x 32)": groups(8, 256, 4, 32),
    "(512; 2 x 300)": groups(1, 512, 2, 300),
    "4 x (512; 8 x 64)": groups(4, 512, 8, 64),
    "(1024; 4 x 64)": groups(1, 1024, 4, 64),
    "(1024; 16 x 64)": groups(1, 1024, 16, 64),
    "(1024; 2 x 64)": groups(1, 1024, 2, 64),
    "(2048; 16 x 32)": groups(1, 2048, 16, 32),
    "conversation, depth 4, 128 a turn": conversation(3, 128),
    "conversation, depth 7, 128 a turn": conversation(6, 128),
    "tree, depth 3, 512 then 2 x 128 then 6 x 32": depth_first(
        [(512, -1), (128, 0), (128, 0), *[(32, 1)] * 3, *[(32, 2)] * 3]
    ),
    "tree, depth 3, 3 branches of 96": tree(3, 3, 96),
    "tree, depth 4, 3 branches of 64": tree(4, 3, 64),
}
"""Length and parent of each segment; `(prefix; responses x own tokens)`."""


def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = ArgumentParser(description="Time and memory of packed attention, with repeated keys and without.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--key-heads", type=int, default=3, help="9, 3 or 1 heads of keys and values")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES), metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=7, help="the fastest round counts")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads = f"{HEADS} heads, {options.key_heads} of keys, size {HEAD_SIZE}"
    machine = f"{cpu_name()}, {core_count()} cores, {options.threads} threads, torch {torch.__version__}"
    title = "attention of one layer, milliseconds with repeated keys / cascade"
    table = Table(title=title, caption=f"{machine}; {heads}")
    times = ("forward", "ratio", "with backward", "ratio")
    headings = ("dtype", "shape", "R / M", "chosen", *times, "MB kept", "difference")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("dtype", "shape") else "right")
    found = []
    for dtype in options.dtype:
        for name in options.shapes:
            row = {"dtype": dtype, "shape": name, **measure(SHAPES[name], getattr(torch, dtype), options)}
            found.append(row)
            table.add_row(*cells(row))
    Console(width=150).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    times = [
        text
        for one, other in (row["forward_ms"], row["backward_ms"])
        for text in (f"{one:.1f} / {other:.1f}", f"{one / other:.2f}")
    ]
    kept = " / ".join(f"{count / 1e6:.1f}" for count in row["bytes"])
    return [
        row["dtype"],
        row["shape"],
        f"{row['repeated']:.1f}",
        row["chosen"],
        *times,
        kept,
        f"{row['difference']:.0e}",
    ]


def measure(spans: Spans, dtype: torch.dtype, options: Any) -> dict[str, Any]:
    """Measure both ways for one layout.

    Args:
        spans: Length and parent of each segment.
        dtype: Dtype of the tensors.
        options: The command line.

    Returns:
        Repeated keys for each merged output; the choice of `packed_attention`; fastest forward pass, and forward and
        backward pass, in milliseconds; kept bytes; and largest relative difference of output and gradients. Repeated
        keys come first in each pair.
    """
    layout = layout_of(spans)
    total = layout.segments[-1].end
    repeated, merged = repeated_keys(layout)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> Tensor:
        return torch.randn(1, total, heads, HEAD_SIZE, generator=generator).to(dtype)

    query, key, value = (draw(heads).transpose(1, 2).requires_grad_() for heads in (HEADS, *[options.key_heads] * 2))
    gradient = draw(HEADS)
    ways: list[Callable[[], Tensor]] = [
        lambda: segment_attention(query, key, value, layout),
        lambda: cascade_attention(query, key, value, layout, FlashCPU()),
    ]
    trained = [
        lambda way=way: [output := way(), *torch.autograd.grad(output, (query, key, value), gradient)] for way in ways
    ]
    expected, results = (each() for each in trained)
    differences = [((x - y).float().norm() / x.float().norm()).item() for x, y in zip(expected, results, strict=True)]
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with torch.no_grad():
        forward = fastest(ways, options.rounds, clock)
    backward = fastest(trained, options.rounds, clock)
    return {
        "repeated": repeated / merged,
        "chosen": "cascade" if layout_costs(layout).repeats_much else "repeated",
        "forward_ms": forward,
        "backward_ms": backward,
        "bytes": [kept_bytes(way) for way in ways],
        "difference": max(differences),
    }


def repeated_keys(layout: PackedLayout) -> tuple[int, int]:
    """Count the keys that one way repeats, and the partial outputs that the other merges."""
    lengths = [segment.end - segment.start for segment in layout.segments]
    repeated = sum(lengths[place] for places in layout.ancestors for place in places)
    return repeated, sum(segment.subtree_end - segment.end for segment in layout.segments)


def fastest(ways: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return the milliseconds of the fastest round of each way; the ways alternate."""
    found = [float("inf")] * len(ways)
    for _ in range(rounds + 1):
        for place, way in enumerate(ways):
            start = clock()
            way()
            found[place] = min(found[place], (clock() - start) * 1000)
    return found


def kept_bytes(way: Callable[[], Tensor]) -> int:
    """Return the bytes that the backward pass keeps, with inputs and output."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(way())
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    main()
