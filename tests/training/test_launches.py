"""Runs over several machines: the launch file with two on this machine, and the Slurm script with fake programs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hf_reward import verify_checkpoint

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
FAKES = {
    "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$@" >> "$LOG/scontrol"; fi',
    # like srun: run the command once on each machine, and forward SIGTERM
    "srun": """shift
SLURM_NODEID=0 "$@" & one=$!
SLURM_NODEID=1 "$@" & other=$!
trap 'kill -TERM $one $other' TERM
wait $one; wait $other; wait $one; wait $other""",
    "accelerate": """printf '%s\\n' "$@" > "$LOG/accelerate-$SLURM_NODEID"
env > "$LOG/environment-$SLURM_NODEID"
[ -n "$RUNS_LONG" ] || exit 0
trap 'touch "$LOG/stopped-$SLURM_NODEID"; exit 143' TERM
touch "$LOG/running-$SLURM_NODEID"
while true; do sleep 0.05; done""",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_machines_train_and_save_one_model(make_model_folder, text_pairs, tmp_path):
    """Each has one CPU process over gloo; number of processes, address and device are overridden."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in text_pairs))
    command = [
        *LAUNCH, "--config_file", str(ROOT / "recipes" / "accelerate_configs" / "multi_node.yaml"),
        "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1",
        "--main_process_port", str(free_port()), "--machine_rank", "{rank}", str(ROOT / "recipes" / "train.py"),
        "--model_name_or_path", str(make_model_folder("llama")), "--train_data", str(data), "--eval_data", str(data),
        "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--max_steps", "2", "--save_strategy", "no",
        "--per_device_train_batch_size", "4", "--report_to", "none", "--plot_curves", "false",
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    machines = [
        subprocess.Popen(
            [word.format(rank=rank) if word == "{rank}" else word for word in command],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    output = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(output)[-6000:]
    assert "Written:" in output[0]
    assert "Written:" not in output[1]
    record = json.loads((tmp_path / "run" / "reward_config.json").read_text())
    assert record["training"]["settings"]["processes"] == 2
    assert record["training"]["settings"]["rows_per_step"] == 8
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_num_pairs"] == len(text_pairs)
    assert verify_checkpoint(tmp_path / "run").equal


@pytest.fixture
def slurm(tmp_path) -> Any:
    """Start the Slurm script with fakes of the programs that it calls."""
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "log").mkdir()

    def start(**changes: str) -> subprocess.Popen[str]:
        settings = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "RUNS_LONG": "",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
            "OUTPUT_DIR": str(tmp_path / "run"),
        }
        command = ["bash", str(ROOT / "recipes" / "slurm.sh"), "--config", "my own.yaml"]
        environment = {name: value for name, value in {**settings, **changes}.items() if value is not None}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def words(tmp_path: Path, node: int) -> list[str]:
    return (tmp_path / "log" / f"accelerate-{node}").read_text().splitlines()


def test_slurm_starts_every_machine_with_its_rank(slurm, tmp_path):
    job = slurm()
    assert job.wait(timeout=60) == 0, job.stdout.read()
    for node in (0, 1):
        assert words(tmp_path, node) == [
            *("launch", "--config_file", "recipes/accelerate_configs/fsdp2.yaml"),
            *("--num_machines", "2", "--num_processes", "16", "--machine_rank", str(node)),
            *("--main_process_ip", "node-a", "--main_process_port", "23456", "recipes/train.py"),
            *("--config", "my own.yaml", "--output_dir", str(tmp_path / "run")),
        ]
        environment = (tmp_path / "log" / f"environment-{node}").read_text()
        assert "OMP_NUM_THREADS=8\n" in environment
        assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110\n" in environment
    assert not (tmp_path / "log" / "scontrol").exists()


def test_a_restarted_job_resumes(slurm, tmp_path):
    assert slurm(SLURM_RESTART_COUNT="1").wait(timeout=60) == 0
    assert words(tmp_path, 1)[-2:] == ["--overwrite_output_dir", "true"]
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    assert slurm(SLURM_RESTART_COUNT="1").wait(timeout=60) == 0
    assert words(tmp_path, 1)[-2:] == ["--resume_from_checkpoint", "true"]


def test_a_job_without_an_output_folder_is_refused(slurm):
    job = slurm(OUTPUT_DIR="")
    assert job.wait(timeout=60) == 1
    assert "Set the output folder" in job.stdout.read()


def test_sigterm_reaches_the_processes_and_requeues_the_job(slurm, tmp_path):
    job = slurm(RUNS_LONG="yes")
    running = [tmp_path / "log" / f"running-{node}" for node in (0, 1)]
    patience = time.monotonic() + 60
    while not all(path.exists() for path in running) and time.monotonic() < patience:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=60)
    assert all((tmp_path / "log" / f"stopped-{node}").exists() for node in (0, 1))
    assert (tmp_path / "log" / "scontrol").read_text() == "requeue 123456\n"
