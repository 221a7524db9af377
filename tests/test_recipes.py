"""Every recipe parses and states whether it was tested; every accelerate configuration loads."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_reward.training.run_arguments import RunArguments, parse_run_arguments

RECIPES = Path(__file__).parents[1] / "recipes"
RUNS = sorted(RECIPES.glob("*.yaml"))
LAUNCHES = sorted((RECIPES / "accelerate_configs").glob("*.yaml"))


def header(path: Path) -> str:
    """Return the comment at the top of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))])


def named(paths: list[Path]) -> list:
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("path", named(RUNS))
def test_every_setting_of_a_recipe_reaches_its_dataclass(path):
    run, args = parse_run_arguments(["--config", str(path)])
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        parsed = getattr(run if name in RunArguments.__dataclass_fields__ else args, name)
        if name == "report_to":
            assert parsed == [] or parsed == value
        elif name == "columns":
            assert run.column_mapping() == value
        elif isinstance(value, str) and not isinstance(parsed, str):
            assert parsed == float(value), name  # 1e-5 is text in YAML
        else:
            assert parsed == value, name
    assert args.output_dir.startswith("outputs/")
    assert run.eval_data or run.test_size  # each recipe evaluates


@pytest.mark.parametrize("path", named([*RUNS, *LAUNCHES]))
def test_the_header_states_whether_the_recipe_was_tested(path):
    assert any(line.startswith(("# Tested:", "# Not tested")) or ". Tested:" in line or ". Not tested" in line
               for line in header(path).splitlines())  # fmt: skip


@pytest.mark.parametrize("path", named(RUNS))
def test_no_recipe_claims_to_have_been_tested_on_a_gpu(path):
    if "GPU" in header(path) and "no GPU" not in header(path):
        assert "# Not tested" in header(path)


@pytest.mark.parametrize("path", named([path for path in RUNS if "train_data: [path/to" not in path.read_text()]))
def test_ready_recipes_name_no_local_data(path):
    run, _ = parse_run_arguments(["--config", str(path)])
    assert all(name == "demonstration" or name.count("/") == 1 for name in run.train_data)


@pytest.mark.parametrize("path", named(LAUNCHES))
def test_accelerate_config_loads(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.mixed_precision == "no"  # RewardConfig sets the precision; accelerate requires text instead of false
    assert config.num_machines == (2 if path.stem == "multi_node" else 1)


def test_accelerate_configs_match_their_names():
    configs = {path.stem: load_config_from_file(str(path)) for path in LAUNCHES}
    assert sorted(configs) == ["cpu", "fsdp2", "multi_gpu", "multi_node", "single_gpu", "zero2", "zero3"]
    assert (configs["cpu"].use_cpu, configs["cpu"].num_processes, configs["cpu"].distributed_type.value) == (
        True,
        1,
        "NO",
    )
    assert (configs["single_gpu"].distributed_type.value, configs["single_gpu"].num_processes) == ("NO", 1)
    assert configs["multi_gpu"].distributed_type.value == "MULTI_GPU"
    assert configs["multi_node"].distributed_type.value == "MULTI_GPU"
    assert configs["fsdp2"].fsdp_config["fsdp_version"] == 2
    assert configs["fsdp2"].fsdp_config["fsdp_activation_checkpointing"] is False  # an adapter would be lost
    assert configs["fsdp2"].fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert configs["zero2"].deepspeed_config["zero_stage"] == 2
    assert configs["zero3"].deepspeed_config["zero_stage"] == 3
    assert configs["zero3"].deepspeed_config["zero3_save_16bit_model"] is True


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_nested_keys_are_options_of_accelerate_launch(name):
    """Accelerate does not check keys in `fsdp_config` and `deepspeed_config`: a misspelt key would have no effect."""
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(RECIPES / "accelerate_configs" / f"{name}.yaml"))
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options


def test_readme_names_every_yaml():
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in [*RUNS, *LAUNCHES] if path.name not in text]
    assert not missing


@pytest.mark.slow
def test_cpu_config_launches_a_script(tmp_path):
    script = tmp_path / "hello.py"
    script.write_text(
        "from accelerate import Accelerator\na = Accelerator()\nprint(a.device, a.num_processes, a.mixed_precision)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    command = [*launch, "--config_file", str(RECIPES / "accelerate_configs" / "cpu.yaml"), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().splitlines()[-1] == "cpu 1 no"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "a.yaml", "--dry_run"], ["--config", "a.yaml"]),
        (["--dry-run", "--seed", "1"], ["--seed", "1"]),
        (["--dry_run", "true"], ["--dry_run", "true", "--dry_run", "false"]),
        (["--config", "dry.yaml"], ["--config", "dry.yaml", "--dry_run", "false"]),
    ],
)
def test_a_dry_run_suggests_the_real_run(words, expected):
    import train

    assert train.words_of_real_run(words) == expected
