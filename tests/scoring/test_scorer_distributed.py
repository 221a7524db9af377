"""Two processes share a call of the scorer and both get every reward."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import saved_model

from hf_reward import RewardScorer

pytestmark = pytest.mark.slow

WORKER = """
import json, sys
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from hf_reward import RewardScorer

state = PartialState(cpu=True)
folder, pairs, out = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
scorer = RewardScorer.from_pretrained(folder, distributed=True, batch_tokens=80)
seen = []
scorer.model.base_model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
rewards = scorer.score(*zip(*pairs)).tolist()
one = RewardScorer.from_pretrained(folder, batch_tokens=80).score(*zip(*pairs[:1])).tolist()
json.dump({"rewards": rewards, "alone": one, "tokens": sum(seen), "world": state.num_processes},
          open(f"{out}-{state.process_index}", "w"))
state.destroy_process_group()
"""


def test_two_processes(make_model_folder: Any, tmp_path: Path) -> None:
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    pairs = [(f"Question {number // 3}?", f"answer {number} " * (1 + number % 5)) for number in range(31)]
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += [str(tmp_path / name) for name in ("worker.py", "saved", "pairs.json", "out")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    found = [json.loads((tmp_path / f"out-{rank}").read_text()) for rank in range(2)]
    assert [each["world"] for each in found] == [2, 2]
    expected = RewardScorer.from_pretrained(folder, batch_tokens=80).score(*zip(*pairs, strict=True))
    for each in found:
        np.testing.assert_array_equal(np.float32(each["rewards"]), expected)
        np.testing.assert_allclose(each["alone"], expected[:1], rtol=1e-5)
    assert all(each["tokens"] for each in found), "both have to work"
