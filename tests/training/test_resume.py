"""Resuming: a stopped run ends with the same weights as an uninterrupted one (checkpoints, SIGTERM, streams, kills)."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from paths import PATHS
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_trainer_distributed import free_port
from training_runs import QUIET, largest_difference, load, make_trainer, weights
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel, Qwen3MoeConfig, TrainerCallback

from hf_reward import RewardConfig
from hf_reward.data.file_identity import content_hash
from hf_reward.training.checkpoints import LIST_FILE, checkpoint_problem, checkpoints

SAVES: dict[str, Any] = {
    "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
}  # fmt: skip


class StopAfter(TrainerCallback):
    """Ends training after a step like a crash, without the final work of `Trainer`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stop_and_resume(step: int, make: Any, resume: Any = True) -> Any:
    """Stop one trainer at the end of a step, and return another one that resumed its run."""
    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[StopAfter(step)]).train()
    trainer = make()
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# --- complete checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_complete_before_it_is_pushed_and_before_older_ones_are_removed(
    make_model_folder, chat_pairs, tmp_path, monkeypatch
):
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", save_total_limit=1, **SAVES)
    seen: list[tuple[str, list[str], bool]] = []

    def pushed(folder: str) -> None:
        assert checkpoint_problem(Path(folder)) is None
        names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
        seen.append((folder, names, trainer.checkpoints.folder("final") == "final"))

    monkeypatch.setattr(trainer.publisher, "push_checkpoint", lambda folder, *_: pushed(str(folder)))
    trainer.args.push_to_hub = True
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    run = str(tmp_path / "run")
    assert [folder for folder, *_ in seen] == [f"{run}/checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert seen[0][1] == ["checkpoint-1"]
    assert seen[2][1] == ["checkpoint-2", "checkpoint-3"]
    assert all(idle for *_, idle in seen)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4"]


def test_the_best_checkpoint_is_stored_under_its_final_name_and_kept(make_model_folder, chat_pairs, tmp_path):
    def make(**changes: Any) -> Any:
        return make_trainer(
            make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:5], eval_strategy="steps",
            eval_steps=1, save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="eval_margin",
            **{**SAVES, **changes},
        )  # fmt: skip

    trainer = stop_and_resume(3, lambda **changes: make(num_train_epochs=2, **changes))
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run"
    assert checkpoint_problem(best) is None
    saved = load(best)
    assert largest_difference(weights(saved), weights(trainer.model)) == 0


def test_a_failed_save_keeps_earlier_checkpoints_and_frees_the_disk(
    make_model_folder, chat_pairs, tmp_path, monkeypatch
):
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", save_total_limit=1, **SAVES)
    own, calls = torch.save, []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(args[1])
        if "checkpoint-3" in str(args[1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        own(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    assert checkpoint_problem(tmp_path / "run" / "checkpoint-2") is None
    assert any("checkpoint-3" in str(path) for path in calls)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_auto_starts_resumes_and_skips_incomplete_checkpoints(make_model_folder, chat_pairs, tmp_path, caplog):
    def make(name: str, **changes: Any) -> Any:
        return make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / name, **SAVES, **changes)

    complete = make("complete")
    complete.train(resume_from_checkpoint="auto")
    with pytest.raises(KeyboardInterrupt):
        make("cut", callbacks=[StopAfter(4)]).train(resume_from_checkpoint="auto")
    os.truncate(tmp_path / "cut" / "checkpoint-3" / "optimizer.pt", 100)
    (tmp_path / "cut" / "checkpoint-7").mkdir()
    trainer = make("cut")
    with caplog.at_level(logging.INFO):
        trainer.train(resume_from_checkpoint="auto")
    assert "optimizer.pt has 100 bytes" in caplog.text
    assert f"Resuming from {tmp_path / 'cut' / 'checkpoint-2'}" in caplog.text
    assert trainer.state.global_step == 4
    assert largest_difference(weights(complete.model), weights(trainer.model)) == 0
    with pytest.raises(ValueError, match=r"checkpoint-7 cannot be resumed: it has no trainer_state\.json"):
        make("cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*'auto'"):
        make("empty").train(resume_from_checkpoint=True)
    make("cut").train()
    assert "has checkpoints of an earlier run (checkpoint-7, ...)" in caplog.text


@pytest.mark.parametrize(
    ("config", "max_shard_size", "dtype"),
    [
        (MixtralConfig, "5GB", "float32"),
        (Qwen3MoeConfig, "5GB", "float32"),
        (MixtralConfig, "40KB", "float32"),
        (MixtralConfig, "5GB", "bfloat16"),  # the head stays float32
    ],
)
def test_weights_that_have_other_names_in_files_are_resumed_and_restored(
    config, max_shard_size, dtype, chat_tokenizer, chat_pairs, tmp_path, monkeypatch, caplog
):
    """transformers saves one tensor for each expert, which `Trainer` would not load."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    sizes |= {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    sizes |= {"num_local_experts": 4} if config is MixtralConfig else {"num_experts": 4}
    source = tmp_path / "base"
    AutoModelForCausalLM.from_config(config(vocab_size=len(chat_tokenizer), **sizes)).save_pretrained(source)
    chat_tokenizer.save_pretrained(source)
    own = PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda *args, **how: own(*args, **{**how, "max_shard_size": max_shard_size})
    )

    def make(name: str, **changes: Any) -> Any:
        options = {**SAVES, "model_init_kwargs": {"dtype": dtype}}
        return make_trainer(source, chat_pairs, tmp_path / name, **options, **changes)

    complete = make("complete")
    complete.train()
    trainer = stop_and_resume(3, lambda **changes: make("cut", **changes))
    assert largest_difference(weights(complete.model), weights(trainer.model)) == 0
    assert "missing keys" not in caplog.text
    trainer.state.best_model_checkpoint = str(tmp_path / "cut" / "checkpoint-1")
    trainer._load_best_model()
    saved = load(tmp_path / "cut" / "checkpoint-1")
    assert largest_difference(weights(saved), weights(trainer.model)) == 0
    assert trainer.model.score.weight.dtype == torch.float32
    assert largest_difference(weights(complete.model), weights(trainer.model)) > 0


def test_a_stream_resumes_at_the_right_row_of_the_right_pass(make_model_folder, chat_pairs, tmp_path):
    """16 rows in batches of 3, accumulated twice: 12 steps are four and a half passes."""
    for part in range(2):
        Dataset.from_list(chat_pairs[part::2]).to_json(tmp_path / "data" / f"train-{part}.jsonl")
    seen: dict[str, list[list[int]]] = {}

    def make(name: str, **changes: Any) -> Any:
        rows = load_dataset("json", data_dir=str(tmp_path / "data"), split="train", streaming=True)
        trainer = make_trainer(
            make_model_folder("llama"), rows, tmp_path / name,
            **{**SAVES, "per_device_train_batch_size": 3, "save_steps": 5}, max_steps=12, shuffle_buffer_size=6,
            gradient_accumulation_steps=2, lr_scheduler_type="constant", **changes,
        )  # fmt: skip
        own = trainer.compute_loss

        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.setdefault(name, []).append(inputs["row"].tolist())
            return own(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        return trainer

    complete = make("complete")
    complete.train()
    trainer = stop_and_resume(11, lambda **changes: make("cut", **changes))
    assert seen["cut"] == [*seen["complete"][:22], *seen["complete"][20:]]
    assert largest_difference(weights(complete.model), weights(trainer.model)) == 0
    flat = [row for batch in seen["complete"] for row in batch]
    passes = [flat[start : start + 16] for start in (0, 16, 32, 48)]
    assert all(sorted(rows) == sorted(passes[0]) for rows in passes)  # each row once in a pass
    assert len({tuple(rows) for rows in passes}) == 4  # each in a different order
    finished = make("complete")
    finished.train(resume_from_checkpoint="auto")  # from the last step
    finished.save_state()
    assert finished.state.global_step == 12


def test_a_finished_stream_takes_no_further_step(make_model_folder, chat_pairs, tmp_path):
    def make() -> Any:
        stream = Dataset.from_list(chat_pairs).to_iterable_dataset()
        return make_trainer(make_model_folder("llama"), stream, tmp_path / "run", max_steps=4, **SAVES)

    first, again = make(), make()
    first.train()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert largest_difference(weights(first.model), weights(again.model)) == 0


@pytest.mark.parametrize(
    ("strategy", "size", "kept"), [("random", 0, True), ("random", 16, False), ("sequential", 16, True)]
)
def test_a_stream_is_shuffled_unless_settings_keep_its_order(
    make_model_folder, chat_pairs, tmp_path, strategy, size, kept
):
    stream = Dataset.from_list(chat_pairs).to_iterable_dataset()
    trainer = make_trainer(
        make_model_folder("llama"), stream, tmp_path / "run", max_steps=2, shuffle_buffer_size=size,
        train_sampling_strategy=strategy,
    )  # fmt: skip
    batches = iter(trainer.get_train_dataloader())
    rows = [*next(batches)["row"].tolist(), *next(batches)["row"].tolist()]
    assert sorted(rows) == list(range(16))
    assert (rows == list(range(16))) is kept


def test_a_second_way_to_save_on_sigterm_is_refused():
    with pytest.raises(ValueError, match="SIGTERM saves a complete checkpoint"):
        RewardConfig(output_dir="unused", enable_jit_checkpoint=True, **QUIET)


# --- SIGTERM ---------------------------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import test_resume as tests
tests.worker(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""


def worker(folder: Path, out: Path, resume: str) -> None:
    """Run many short steps, and create a file when the run has started."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = [{"prompt": f"Which {n}?", "chosen": f"A good answer {n}.", "rejected": f"No {n}"} for n in range(64)]
    torch.manual_seed(0)
    model = load(folder, peft_config=LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.3, target_modules=["q_proj"]))
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "num_train_epochs": 4, "learning_rate": 1e-2}
    settings |= {"weight_decay": 0.5} if resume == "changed" else {}
    trainer = make_trainer(model, rows, out, **settings)

    class Ready(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3 or resume == "stuck":
                (out.parent / f"ready-{args.process_index}").touch()
            while resume == "stuck" or (
                resume == "wait" and state.global_step == 5 and not trainer.stop_signal.received
            ):
                time.sleep(0.01)  # until the signal comes

    trainer.add_callback(Ready())
    trainer.train(resume_from_checkpoint="auto")
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), out.parent / f"{out.name}.pt")


def start(tmp_path: Path, folder: Path, out: str, resume: str, processes: int = 1) -> subprocess.Popen[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=PATHS))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port"]
        launcher.append(str(free_port()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [*launcher, str(script), str(folder), str(tmp_path / out), resume]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)


def wait_for(process: subprocess.Popen[str], *files: Path) -> None:
    end = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_sigterm_saves_a_checkpoint_and_the_resumed_run_equals_an_uninterrupted_one(
    make_model_folder, tmp_path, processes
):
    folder = make_model_folder("llama")
    stopped = start(tmp_path, folder, "stopped", "wait", processes)
    wait_for(stopped, *(tmp_path / f"ready-{rank}" for rank in range(processes)))
    stopped.send_signal(signal.SIGTERM)
    errors = stopped.communicate(timeout=120)[1]
    assert stopped.returncode != 0 if processes > 1 else stopped.returncode == 143
    [saved] = checkpoints(tmp_path / "stopped")
    step = int(saved.name.rpartition("-")[2])
    assert 3 <= step <= 5
    assert f"Stopped by SIGTERM after step {step} of" in errors
    assert checkpoint_problem(saved) is None

    for out in ("stopped", "complete"):
        process = start(tmp_path, folder, out, "run", processes)
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors[-3000:]
        if out == "stopped":
            assert f"Resuming from {saved}" in errors
    one, other = (torch.load(tmp_path / f"{out}.pt", weights_only=True) for out in ("stopped", "complete"))
    assert largest_difference(one, other) == 0


@pytest.mark.parametrize("moment", ["on_train_end", "on_evaluate", "on_evaluate of several"])
def test_sigterm_after_the_last_step_saves_it_too(make_model_folder, chat_pairs, tmp_path, moment, caplog):
    class Signal(TrainerCallback):
        sent = False

    def send(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.sent:  # a second one would end this process
            self.sent = True
            signal.raise_signal(signal.SIGTERM)

    setattr(Signal, moment.split()[0], send)
    held_out: Any = chat_pairs[:4]
    if "several" in moment:
        held_out = {"one": chat_pairs[:4], "other": chat_pairs[4:8]}

    def make(**changes: Any) -> Any:
        model = make_model_folder("llama")
        return make_trainer(model, chat_pairs, tmp_path / "run", evaluation=held_out, **changes)

    def run(trainer: Any) -> None:
        trainer.train()
        trainer.evaluate()

    before = signal.getsignal(signal.SIGTERM)
    trainer = make(callbacks=[Signal()])
    with pytest.raises(SystemExit) as ended:
        run(trainer)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    [saved] = checkpoints(tmp_path / "run")
    assert checkpoint_problem(saved) is None
    assert f"Stopped by SIGTERM after step {trainer.state.max_steps} of" in caplog.text

    again = make()
    result = again.train(resume_from_checkpoint="auto")
    assert largest_difference(weights(trainer.model), weights(again.model)) == 0
    assert result.metrics["resumed_from_step"] == trainer.state.max_steps
    assert not [name for name in result.metrics if name.startswith("train_")]  # no step was left
    assert min(value for name, value in again.evaluate().items() if name.endswith("_loss")) > 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_with_a_damaged_optimizer_is_skipped(make_model_folder, chat_pairs, tmp_path, caplog):
    def make() -> Any:
        return make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", **SAVES)

    make().train()
    file = checkpoints(tmp_path / "run")[-1] / "optimizer.pt"
    content = file.read_bytes()
    (file.parent / LIST_FILE).write_text(json.dumps({"files": {}}))  # written by a version without hashes
    for damaged in (b"\0" * len(content), content[:-3000] + b"\0" * 100 + content[-2900:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file.parent} cannot be resumed: optimizer.pt is (cut off|damaged)"):
            make().train(resume_from_checkpoint=str(file.parent))
    assert make().train(resume_from_checkpoint="auto").metrics["resumed_from_step"] == 3
    assert f"{file.parent} is skipped: optimizer.pt is damaged" in caplog.text


def test_auto_logs_that_no_checkpoint_is_complete(make_model_folder, chat_pairs, tmp_path, caplog):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run").train(resume_from_checkpoint="auto")
    assert "Starting at step 0: none of the 1 checkpoints is complete" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-9 cannot be resumed: there is no such folder"):
        make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run").train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9")
        )


def test_auto_skips_changed_files_and_weights_that_are_not_finite(make_model_folder, chat_pairs, tmp_path, caplog):
    def make(name: str) -> Any:
        return make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / name, **SAVES)

    complete = make("run")
    complete.train()
    folders = checkpoints(tmp_path / "run")
    for folder, place in ((folders[3], 300), (folders[2], -3)):  # a bit in a tensor, and one at the end
        file = folder / ("model.safetensors" if place > 0 else "optimizer.pt")
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
    weight_file = folders[1] / "model.safetensors"
    tensors = load_file(weight_file)
    tensors["model.norm.weight"][2] = math.nan
    save_file(tensors, weight_file, metadata={"format": "pt"})
    listed = json.loads((folders[1] / LIST_FILE).read_text())
    listed["xxh3_128"]["model.safetensors"] = content_hash(weight_file)  # saved by a run that had diverged
    (folders[1] / LIST_FILE).write_text(json.dumps(listed))
    again = make("run")
    with caplog.at_level(logging.INFO):
        again.train(resume_from_checkpoint="auto")
    for message in (
        "checkpoint-4 is skipped: the content of model.safetensors has changed since it was saved",
        "checkpoint-3 is skipped: the content of optimizer.pt has changed since it was saved",
        "checkpoint-2 is skipped: model.safetensors has weights that are not finite (model.norm.weight and 0",
        f"Resuming from {folders[0]}",
    ):
        assert message in caplog.text
    assert largest_difference(weights(complete.model), weights(again.model)) == 0
    save_file(tensors, weight_file, metadata={"format": "pt"})  # the resumed run has replaced it
    (folders[1] / LIST_FILE).unlink()
    last = make("run")
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed: .* not finite"):
        last.train(resume_from_checkpoint=str(folders[1]))


@pytest.mark.parametrize("part", ["layers.1", "score"])
def test_a_checkpoint_whose_adapter_lacks_weights_is_refused(make_model_folder, chat_pairs, tmp_path, part):
    """Without the list of files nothing else detects it: PEFT keeps initial weights for those missing in the file."""

    def make() -> Any:
        options = {"peft_config": LoraConfig(r=2), "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        return make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run", **options)

    make().train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / LIST_FILE).unlink()
    path = checkpoint / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if part not in name}, path)
    with pytest.raises(ValueError, match=rf"lacks \d+ weights of the adapter, such as .*{part}"):
        make().train(resume_from_checkpoint=str(checkpoint))


def test_weights_that_are_not_finite_are_not_saved(make_model_folder, chat_pairs, tmp_path):
    class Break(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                model.model.norm.weight.data[1] = math.inf

    folder = make_model_folder("llama")
    settings = {**SAVES, "save_total_limit": 1, "callbacks": [Break()]}
    with pytest.raises(FloatingPointError, match=r"After step 3 weights are not finite \(model.norm.weight and 0 oth"):
        make_trainer(folder, chat_pairs, tmp_path / "run", **settings).train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


@pytest.mark.slow
@pytest.mark.faults  # 5 starts; 400 s were seen on two cores that 14 others used
def test_a_second_run_is_refused_while_the_first_is_alive_and_resumes_after_it_was_killed(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    first = start(tmp_path, folder, "run", "wait")
    wait_for(first, tmp_path / "ready-0")
    second = start(tmp_path, folder, "run", "run")
    errors = second.communicate(timeout=120)[1]
    assert second.returncode != 0
    assert f"Another run (process {first.pid} on " in errors
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    [saved] = checkpoints(tmp_path / "run")
    (tmp_path / "ready-0").unlink()
    killed = start(tmp_path, folder, "run", "stuck")
    wait_for(killed, tmp_path / "ready-0")
    killed.kill()
    killed.wait(60)
    other = start(tmp_path, folder, "run", "changed")
    errors = other.communicate(timeout=120)[1]
    assert other.returncode != 0
    assert "settings.weight_decay: was 0.0, is 0.5" in errors
    last = start(tmp_path, folder, "run", "run")
    errors = last.communicate(timeout=240)[1]
    assert last.returncode == 0, errors[-3000:]
    assert f"Resuming from {saved}" in errors


@pytest.mark.slow
@pytest.mark.faults
def test_a_second_sigterm_ends_the_process_at_once(make_model_folder, tmp_path):
    process = start(tmp_path, make_model_folder("llama"), "stopped", "stuck")
    wait_for(process, tmp_path / "ready-0")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert any("The run saves a checkpoint after this step" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert not checkpoints(tmp_path / "stopped")


# --- SIGKILL ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_is_killed_repeatedly_equals_an_uninterrupted_one():
    recipe = Path(__file__).parents[2] / "tests" / "faults" / "kill_and_resume.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-W", "ignore", str(recipe), "--kills", "20", "--case", "budget", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "yes" in done.stdout
