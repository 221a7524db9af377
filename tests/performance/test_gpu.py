"""The GPU run records every stage, whatever happens to it, and reports what it recorded."""

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_report
import gpu_stages
import pytest


def script(code: str, name: str = "stage", share: float = 1.0) -> gpu.Stage:
    """A stage that runs some code; `sys.argv[1]` is the file for the result."""
    return gpu.Stage(name, share, ("-c", f"import json, sys, time, pathlib\n{code}"))


SAVE = "pathlib.Path(sys.argv[1]).write_text(json.dumps({'measured': 1}))"


def run(stage: gpu.Stage, out: Path, limit: float = 30) -> dict[str, Any]:
    return gpu.run_stage(stage, limit, out, dict(os.environ))


# --- the driver ------------------------------------------------------------------------------------------------------


def test_the_stages_are_in_the_documented_order() -> None:
    names = [stage.name for stage in gpu.stage_table(["qwen2.5-0.5b", "llama-3.1-8b"])]
    assert names == [
        *("kernels", "cuda_tests", "parity", "quickstart"),
        *("training_qwen2.5-0.5b", "training_llama-3.1-8b", "scoring", "fit"),
    ]
    kinds = {stage.command[1] for stage in gpu.stage_table(["tiny"])}
    assert kinds | {"machine"} == {stage.__name__ for stage in gpu_stages.STAGES}


def test_the_result_of_a_stage_is_recorded(tmp_path: Path) -> None:
    found = run(script(SAVE), tmp_path)
    assert (found["status"], found["message"], found["result"]) == ("passed", "", {"measured": 1})
    assert json.loads((tmp_path / "stage.json").read_text()) == found
    assert not list(tmp_path.glob("*.partial.json"))


def test_a_failed_stage_keeps_its_measurements_and_the_last_line_of_its_output(tmp_path: Path) -> None:
    found = run(script(f"{SAVE}\nprint('before')\nraise SystemExit('the kernels differ')"), tmp_path)
    assert (found["status"], found["message"], found["result"]) == ("failed", "the kernels differ", {"measured": 1})
    assert run(script("import os; os.kill(os.getpid(), 9)"), tmp_path)["message"] == "ended by signal 9"


def test_a_stage_that_times_out_is_killed_with_its_processes(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    start = f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}])"
    found = run(script(f"{SAVE}\n{start}\ntime.sleep(60)"), tmp_path, limit=1.0)
    assert (found["status"], found["result"]) == ("timed out", {"measured": 1})
    assert found["seconds"] < 30
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_a_file_that_was_being_written_is_no_result(tmp_path: Path) -> None:
    found = run(script("pathlib.Path(sys.argv[1]).write_text('{\"meas'); raise SystemExit('killed')"), tmp_path)
    assert (found["status"], found["result"]) == ("failed", None)


def test_the_stages_after_a_failure_run_and_the_exit_code_is_one(tmp_path: Path) -> None:
    bad, good = script("raise SystemExit('no')", "bad"), script(SAVE, "good")
    assert gpu.run_all([bad, good], time.monotonic() + 60, tmp_path, dict(os.environ)) == 1
    statuses = {name: json.loads((tmp_path / f"{name}.json").read_text())["status"] for name in ("bad", "good")}
    assert statuses == {"bad": "failed", "good": "passed"}
    assert "| bad | failed |" in (tmp_path / "report.md").read_text()
    assert gpu.run_all([good], time.monotonic() + 60, tmp_path, dict(os.environ)) == 0


def test_unused_time_goes_to_the_stages_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def record(stage: gpu.Stage, limit: float, *_: Any) -> dict[str, Any]:
        limits.append(limit)
        return {"status": "passed", "seconds": 0.0, "message": ""}

    monkeypatch.setattr(gpu, "run_stage", record)
    stages = [script("", "one", 1), script("", "two", 1), script("", "three", 2)]
    gpu.run_all(stages, time.monotonic() + 100, tmp_path, {})
    assert limits == pytest.approx([25, 100 / 3, 100], abs=1)  # 1/4, 1/3 and all of the time that is left


def test_site_comes_first_in_every_stage(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    options = gpu.parse(["--site", str(tmp_path / "wheels"), "--device", "cpu", "--out", str(tmp_path)])
    environment = gpu.make_environment(options)
    assert environment["PYTHONPATH"].split(os.pathsep)[:2] == [str(tmp_path / "wheels"), str(gpu.ROOT)]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(SystemExit):
        gpu.parse(["--site", str(tmp_path / "missing")])
    with pytest.raises(SystemExit):
        gpu.parse(["--stages", "unknown"])


# --- stages ----------------------------------------------------------------------------------------------------------


def test_a_stage_without_its_packages_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_stages, "find_spec", lambda name: None)
    gpu_stages.main("cuda_tests", "tiny", str(tmp_path / "result.json"))
    found = json.loads((tmp_path / "result.json").read_text())
    assert found == {"skipped": "pytest and hypothesis are not installed"}
    skips = f"pathlib.Path(sys.argv[1]).write_text({json.dumps(found)!r})"
    record = run(script(skips), tmp_path)
    assert (record["status"], record["message"]) == ("skipped", "pytest and hypothesis are not installed")


def test_without_trl_only_our_side_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(gpu_stages, "_speed", lambda task, words: commands.append(words))
    for found in (None, True):
        monkeypatch.setattr(gpu_stages, "find_spec", lambda name, found=found: found)
        gpu_stages.training(gpu_stages.Task("llama-3.1-8b", tmp_path / "result.json"))
    assert [words[words.index("--sides") + 1 :] for words in commands] == [["hf_reward"], ["TRL", "hf_reward"]]
    assert commands[0][commands[0].index("--cases") + 1] == "e"  # LoRA


def test_without_bitsandbytes_qlora_is_skipped_and_an_error_ends_only_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(name: str, method: str) -> dict[str, Any]:
        return {"fits": False, "error": "no kernel image"} if method == "full" else {"fits": name == "smollm2-135m"}

    monkeypatch.setattr(gpu_stages, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_stages, "_attempt", attempt)
    with pytest.raises(SystemExit, match="no kernel image"):
        gpu_stages.fit(gpu_stages.Task("qwen2.5-0.5b", tmp_path / "result.json"))
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["qlora"] == {"skipped": "bitsandbytes is not installed"}
    assert found["lora"]["largest"] == "smollm2-135m"
    assert len(found["full"]["attempts"]) == 1


@pytest.mark.parametrize("count", range(6))
def test_bisection_finds_the_largest_model_that_fits(count: int) -> None:
    names = ["a", "b", "c", "d", "e"]
    tried: list[str] = []
    found = gpu_stages.largest(names, lambda name: tried.append(name) or name in names[:count])
    assert found == (names[count - 1] if count else None)
    assert len(tried) == len(set(tried)) <= 3


def test_only_a_lack_of_memory_means_that_a_model_does_not_fit() -> None:
    fit = importlib.import_module("gpu_fit")
    lacks = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert all(fit.out_of_memory(RuntimeError(text)) for text in lacks)
    assert fit.out_of_memory(fit.torch.OutOfMemoryError())
    assert not fit.out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_copied_layers_are_the_model_that_transformers_makes() -> None:
    """Same parameters, and the attention of every layer follows the model's configuration."""
    from transformers import PreTrainedModel

    fit = importlib.import_module("gpu_fit")
    shape = gpu_stages.GEOMETRIES["tiny"]
    model: PreTrainedModel = fit.make_model(shape, "full")
    assert sum(weight.numel() for weight in model.parameters()) == fit.count_parameters(shape)
    layers: Any = model.base_model.layers
    assert all(layer.self_attn.config is model.config for layer in layers)
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1]
    assert [list(gpu_stages.FIT_SHAPES), len(gpu_stages.FIT_SHAPES)] == [
        sorted(gpu_stages.FIT_SHAPES, key=lambda n: fit.count_parameters(gpu_stages.FIT_SHAPES[n])),
        9,
    ]


# --- report ----------------------------------------------------------------------------------------------------------


def test_peaks_belong_to_the_named_device() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA L4", "NVIDIA L40S", None)
    assert [gpu_report.peak_of(name) for name in names] == [989e12, 756e12, 312e12, 121e12, None, None]


def training_record() -> dict[str, Any]:
    row = {"geometry": "tiny", "case": "e", "round": 0}
    ours = {"seconds": [1.0, 1.0], "tokens_computed": [500, 500], "pairs": 10, "useful_tokens": 1000}
    return {
        "settings": {"geometry": ["tiny"], "steps": 2},
        "operations": {"tiny": {"parameters": 10**9, "attention": 1000}},
        "rows": {"tiny": {"e": {"attended_per_token": 100}}},
        "measurements": [
            {**row, "side": "TRL", "error": "CUDA out of memory"},
            {**row, "side": "hf_reward", **ours, "peak_bytes": 2**31, "matmul_flops": [1e12]},
        ],
    }


def test_training_is_reported_with_its_share_of_the_peak() -> None:
    about = {"gpu": "NVIDIA L4", "gpu_bytes": 24 * 2**30, "cuda": "12.8", "versions": {"torch": "2.11", "trl": None}}
    records = {
        "machine": {"stage": "machine", "status": "passed", "seconds": 1.0, "message": "", "result": about},
        "training_tiny": {
            "stage": "training_tiny",
            "status": "timed out",
            "seconds": 9.0,
            "message": "not finished",
            "result": training_record(),
        },
    }
    found = gpu_report.report(records)
    # 500 useful tokens/s of 4 x 1e9 + 6 x 1000 x 100 operations are 2.0003e12 FLOP/s, 1.65% of 121e12
    assert "| e | hf_reward | 5 | 500 | 500 | 2.0 | 2 | 1.7% | - |" in found
    assert "| e | TRL | CUDA out of memory |" in found
    assert "trl not installed" in found
    assert "| training_tiny | timed out | 9 | not finished |" in found


def test_operations_are_those_of_the_speed_benchmark() -> None:
    training = importlib.import_module("speed_training")
    record, case = training_record(), next(case for case in training.CASES if case.name == "e")
    share = training.operations_share(case, "tiny", record)
    assert gpu_report.flops_per_useful_token(record, "tiny", "e") == pytest.approx(share * 1e12)


def test_every_other_stage_is_reported() -> None:
    kernel = {"way": "varlen", "dtype": "float16", "head_size": 64, "error": 1e-3, "off": None}
    results = {
        "kernels": [kernel, {**kernel, "way": "cascade", "error": None, "off": "no operator"}],
        "cuda_tests": {"summary": "9 passed"},
        "parity": {"model": "m", "rows": "64 rows", "errors": {"cascade": {"rewards": [0.02, 0.01]}}},
        "quickstart": {"process_seconds": 30.0, "eval_accuracy": 0.65},
        "scoring": {
            "geometry": "tiny",
            "dtype": "bfloat16",
            "answers": 3,
            "rows": 6,
            "largest_difference": {"TRL": 0.0},
            "seconds": {"TRL": [2.0], "hf_reward": [1.0]},
        },
        "fit": {
            "full": {"attempts": {"b": {"fits": False}, "a": {"fits": True, "parameters": 10**9, "peak_bytes": 2**30}}},
            "qlora": {"skipped": "bitsandbytes is not installed"},
        },
    }
    results["fit"]["full"]["largest"] = "a"
    records = {
        name: {"stage": name, "status": "passed", "seconds": 1.0, "message": "", "result": result}
        for name, result in results.items()
    }
    found = gpu_report.report(records)
    for line in (
        "| varlen | float16 | 64 | with and without window | 1 | 1.0e-03 | - |",
        "| cascade | float16 | 64 | without window | 0 | - | no operator |",
        "`pytest -m cuda`: 9 passed",
        "| cascade | rewards | 2.00e-02 | 1.00e-02 | 2.00 |",
        "| eval_accuracy | 0.65 |",
        "| TRL | 3.0 | 2.00 |",
        "| full | a | 1.00 | 1.0 | b |",
        "| qlora | bitsandbytes is not installed | - | - | - |",
    ):
        assert line in found.splitlines(), line
