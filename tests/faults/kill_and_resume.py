"""Compare training runs that are killed repeatedly with an uninterrupted run, on made-up rows with a tiny model.

    python tests/faults/kill_and_resume.py                          # at least 20 kills for each kind of run
    python tests/faults/kill_and_resume.py --kills 50 --seed 1 --case lora --json kills.json

Each start is a separate process that ends itself with SIGKILL: at a random micro-batch of training or evaluation, or up
to 30 ms after a random file operation of a save (open, rename, mkdir, remove). The next process resumes with
`resume_from_checkpoint="auto"`. After each kill, every folder with the name of a checkpoint must be complete. After the
last kill the run may finish. Its weights, optimizer state and evaluation are then compared bit by bit with those of an
uninterrupted run. Processes are forked after all imports, so starts are fast; each has one thread.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from bulk_check import WORDS, make_model
from datasets import disable_progress_bars, load_dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import PrinterCallback

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardTrainer
from hf_reward.training.checkpoints import checkpoint_problem, checkpoints

CASES: dict[str, dict[str, Any]] = {
    "budget": {"max_tokens_per_batch": 150, "gradient_accumulation_steps": 2, "num_train_epochs": 10},
    "lora": {
        "lora_dropout": 0.3,
        "packing": "false",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "num_train_epochs": 5,
    },
    "stream": {"stream": True, "shuffle_buffer_size": 20, "gradient_accumulation_steps": 2, "max_steps": 150},
}
"""Settings by kind of run: a token budget with accumulation; an adapter with dropout in padded batches, which keeps
only the newest and the best checkpoint; several passes over a shuffled stream of two files."""
PLACES = ("training", "evaluation", "saving")
_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


@dataclass(frozen=True)
class Kill:
    """Moment of a kill: a delay in seconds after event number `count` of a place."""

    place: str
    count: int
    delay: float = 0.0


def main() -> None:
    """Parse the command line, check each kind of run, and print a table."""
    parser = ArgumentParser(description="Kill and resume training runs.")
    parser.add_argument("--kills", type=int, default=20, help="number of kills for each kind of run")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    table = Table("run", "steps", "kills", *PLACES, "incomplete saves", "broken", "equal at the end")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model, data = make_model(Path(folder) / "model"), make_rows(Path(folder) / "data")
        for case in options.case:
            results[case] = found = check(case, model, data, Path(folder) / case, options.kills, options.seed)
            counts = [found["steps"], found["kills"], *(found["places"].get(place, 0) for place in PLACES)]
            counts += [found["leftovers"], len(found["broken"]), "yes" if found["equal"] else "NO"]
            table.add_row(case, *map(str, counts))
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(found["broken"] or not found["equal"] for found in results.values()))


def make_rows(folder: Path, count: int = 120) -> Path:
    """Write made-up pairs to two files."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for part in range(2):
        rows = [
            {side: " ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for side in ("prompt", "chosen", "rejected")}
            for _ in range(count // 2)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"train-{part:05}-of-00002.jsonl").write_text(text, encoding="utf-8")
    return folder


# --- one start -------------------------------------------------------------------------------------------------------


def start(case: str, model: Path, data: Path, out: Path, kill: Kill | None) -> None:
    """Start or resume a run until its end or the kill."""
    torch.set_num_threads(1)
    disable_progress_bars()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    settings = dict(CASES[case])
    streamed, dropout = settings.pop("stream", False), settings.pop("lora_dropout", None)
    rows = load_dataset("json", data_dir=str(data), split="train", streaming=streamed)
    evaluation = load_dataset("json", data_dir=str(data), split="train[:21]")
    common: dict[str, Any] = {
        "output_dir": str(out), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "plot_curves": False,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 3,
        "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 2,
        "num_train_epochs": 1, "log_level": "error",
    }  # fmt: skip
    peft = LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=dropout, target_modules="all-linear") if dropout else None
    trainer = RewardTrainer(
        model=AutoModelForRewardScoring.from_pretrained(model),
        args=RewardConfig(**{**common, **settings}),
        train_dataset=rows,
        eval_dataset=evaluation,
        peft_config=peft,
    )
    trainer.remove_callback(PrinterCallback)
    if kill is not None:
        watch(trainer, out, kill)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(out / "final"))
    metrics = {"steps": trainer.state.global_step, **_without_times(trainer.evaluate())}
    (out / "final" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def watch(trainer: RewardTrainer, out: Path, kill: Kill) -> None:
    """Count the events of a place, and end the process at the chosen one."""
    seen: Counter[str] = Counter()

    def note(place: str) -> None:
        seen[place] += 1
        if place == kill.place and seen[place] == kill.count:
            if kill.delay:
                threading.Timer(kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    own = trainer.compute_loss

    def compute_loss(model: Any, *args: Any, **kwargs: Any) -> Any:
        note("training" if model.training else "evaluation")
        return own(model, *args, **kwargs)

    def on_operation(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and any(str(out) in str(argument) for argument in arguments[:2]):
            note("saving")

    trainer.compute_loss = compute_loss
    sys.addaudithook(on_operation)


def _without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith(("_runtime", "_per_second"))}


# --- many starts -----------------------------------------------------------------------------------------------------


def check(case: str, model: Path, data: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a run repeatedly, let it finish, and compare it with an uninterrupted run.

    Returns:
        `kills`, their `places`, the number of `leftovers` of unfinished saves and removals, the `broken` checkpoints,
        `starts`, and whether the result was `equal`.
    """
    run_to_end(case, model, data, folder / "uninterrupted")
    events = count_events(case, model, data, folder / "counted")
    draw, out = random.Random(seed), folder / "killed"
    places: Counter[str] = Counter()
    starts, leftovers, broken = 1, 0, []
    while was_killed(case, model, data, out, kill := drawn_kill(draw, events) if places.total() < kills else None):
        assert kill is not None, "a start without a kill was killed"
        starts += 1
        places[kill.place] += 1
        leftovers += len(list(out.glob(".*-checkpoint-*")))
        broken += [f"{path.name}: {why}" for path in checkpoints(out) if (why := checkpoint_problem(path))]
    return {
        "kills": places.total(), "places": dict(places), "leftovers": leftovers, "broken": broken, "starts": starts,
        "steps": events["steps"], "equal": result(out) == result(folder / "uninterrupted"),
    }  # fmt: skip


def drawn_kill(draw: random.Random, events: dict[str, int]) -> Kill:
    """Return a random place and a moment within about one and a half saves, so that the run makes slow progress."""
    place = draw.choice(PLACES)
    delay = draw.choice([0.0, draw.uniform(0.0, 0.03)]) if place == "saving" else 0.0
    return Kill(place, draw.randint(1, round(1.5 * events[place] / events["saves"])), delay)


def count_events(case: str, model: Path, data: Path, out: Path) -> dict[str, int]:
    """Count the events of each place in a complete run."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def count() -> None:
        seen: Counter[str] = Counter()
        own = RewardTrainer.compute_loss

        def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            seen["training" if model.training else "evaluation"] += 1
            return own(self, model, *args, **kwargs)

        def on_operation(event: str, arguments: tuple[Any, ...]) -> None:
            seen["saving"] += event in _OPERATIONS and any(str(out) in str(argument) for argument in arguments[:2])

        RewardTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
        sys.addaudithook(on_operation)
        start(case, model, data, out, None)
        steps = json.loads((out / "final" / "metrics.json").read_text(encoding="utf-8"))["steps"]
        send.send({**{place: seen[place] for place in PLACES}, "steps": steps, "saves": steps // 5})

    process = multiprocessing.get_context("fork").Process(target=count)
    process.start()
    events = receive.recv()
    process.join()
    return events


def run_to_end(case: str, model: Path, data: Path, out: Path) -> None:
    """Start once, without a kill."""
    if was_killed(case, model, data, out, None):
        raise RuntimeError(f"The uninterrupted run {case!r} was killed.")


def was_killed(case: str, model: Path, data: Path, out: Path, kill: Kill | None) -> bool:
    """Start a separate process, and return whether it ended by SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=start, args=(case, model, data, out, kill))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"A start of {case!r} ended with code {process.exitcode} in {out}, {kill}.")
    return process.exitcode != 0


def result(out: Path) -> dict[str, str]:
    """Return hashes of weights and optimizer state, and the metrics, of a finished run."""
    [weights] = (out / "final").glob("*model.safetensors")
    last = checkpoints(out)[-1]
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    moments = {
        f"{number}.{name}": value
        for number, state in optimizer["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    metrics = (out / "final" / "metrics.json").read_text(encoding="utf-8")
    return {"weights": _hash(load_file(weights)), last.name: _hash(moments), "metrics": metrics}


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{time.monotonic() - began:.0f} seconds")
