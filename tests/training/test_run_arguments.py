"""YAML and command line -> settings: types, overrides, errors."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig

from hf_reward.data.interface import Interface, setting, used_through
from hf_reward.data.path_safety import require_folder_or_hub_id
from hf_reward.data.sources import as_sources
from hf_reward.training.run_arguments import RunArguments, interface_of, parse_run_arguments
from hf_reward.training.settings_file import read_settings

NEEDED = ["--model_name_or_path", "m", "--train_data", "a.jsonl"]
KNOWN = {"seed", "max_steps", "learning_rate"}


@pytest.fixture
def write_yaml(tmp_path):
    """Write settings unchanged, together with the two that every run needs."""

    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(f"model_name_or_path: m\ntrain_data: [a.jsonl]\n{text}\n", encoding="utf-8")
        return str(path)

    return write


def run_with(**changes) -> RunArguments:
    return RunArguments(model_name_or_path="m", train_data=["a.jsonl"], **changes)


# --- values ---


def test_scientific_notation_in_yaml_is_a_number(write_yaml):
    _, args = parse_run_arguments(["--config", write_yaml("learning_rate: 1e-5\nhead_learning_rate: 2e-4")])
    assert (args.learning_rate, args.head_learning_rate) == (1e-5, 2e-4)


def test_values_of_every_kind(write_yaml):
    text = (
        "bf16: false\nuse_cpu: true\neval_strategy: 'no'\nmax_steps: -1\nwarmup_steps: 0.1\nseparator: \"\\n\"\n"
        "lora_target_modules: [q_proj, v_proj]\ncolumns: {chosen: better}\nplot_curves: false"
    )
    run, args = parse_run_arguments(["--config", write_yaml(text)])
    assert (args.bf16, args.use_cpu, args.eval_strategy, args.max_steps) == (False, True, "no", -1)
    assert (args.warmup_steps, args.separator, args.plot_curves) == (0.1, "\n", False)
    assert run.lora_target_modules == ["q_proj", "v_proj"]
    assert run.column_mapping() == {"chosen": "better"}


def test_null_is_skipped(write_yaml):
    run, args = parse_run_arguments(["--config", write_yaml("columns: null\nlearning_rate: null\nmodel_revision: ~")])
    assert (run.columns, run.column_mapping(), run.model_revision, args.learning_rate) == (None, None, None, 1e-4)


def test_mixture_of_sources(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: m\ntrain_data:\n  - a.jsonl\n"
        "  - {path: b.jsonl, weight: 0.5, name: half, columns: {chosen: better}}\n"
    )
    run, _ = parse_run_arguments(["--config", str(path)])
    assert json.loads(run.train_data[1])["weight"] == 0.5
    plain, half = as_sources(run.train_data)
    assert (plain.name, plain.weight, plain.columns) == ("a", 1.0, None)
    assert (half.name, half.weight, half.data, half.columns) == ("half", 0.5, "b.jsonl", {"chosen": "better"})


def test_the_command_line_overrides_the_file_in_any_position(write_yaml):
    path = write_yaml("learning_rate: 1e-5\nseed: 3\nuse_lora: true")
    words = ["--seed", "7", "--config", path, "--learning_rate", "2e-5", "--train_data", "x.jsonl", "y.jsonl"]
    run, args = parse_run_arguments([*words, "--use_lora", "false"])
    assert (args.learning_rate, args.seed, run.train_data, run.use_lora) == (2e-5, 7, ["x.jsonl", "y.jsonl"], False)


def test_config_with_an_equals_sign(write_yaml):
    _, args = parse_run_arguments([f"--config={write_yaml('seed: 5')}"])
    assert args.seed == 5


# --- refusals ---


def exit_message(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_run_arguments(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("key", ["group_by_length: true", "learnin_rate: 1e-5", "warmup_ratio: 0.1"])
def test_unknown_key_is_refused_with_its_file_and_line(key, write_yaml, capsys):
    path = write_yaml(f"# a comment\nseed: 1\n{key}")
    message = exit_message(["--config", path], capsys)
    assert f"{path}, line 5: there is no setting {key.split(':')[0]}" in message
    assert len(message.splitlines()) < 8  # not the usage of two hundred settings


def test_every_unknown_key_is_named_once_with_the_nearest_setting(write_yaml, capsys):
    path = write_yaml("learnin_rate: 1e-5\nmax_lenght: 512\nlearning_rat:\nzzz: [1, 2]")
    message = exit_message(["--config", path], capsys)
    wanted = [
        f"{path}, line 3: there is no setting learnin_rate (did you mean learning_rate?)",
        f"{path}, line 4: there is no setting max_lenght (did you mean max_length?)",
        f"{path}, line 5: there is no setting learning_rat (did you mean learning_rate?)",
        f"{path}, line 6: there is no setting zzz. ",
    ]
    assert all(message.count(each) == 1 for each in wanted)
    assert message.count("there is no setting") == 4


def test_a_malformed_value_names_its_file_and_line(write_yaml, capsys):
    path = write_yaml("seed: 1\nlearning_rate: fast")
    message = exit_message(["--config", path], capsys)
    assert f"{path}, line 4: argument --learning_rate" in message
    assert "invalid float value: 'fast'" in message
    message = exit_message(["--config", write_yaml("learning_rate: 1e-5"), "--learning-rate", "fast"], capsys)
    assert "argument --learning_rate" in message
    assert "line 3" not in message


def test_unknown_option_is_refused_once_with_the_nearest_setting(capsys):
    message = exit_message([*NEEDED, "--nonsense", "3", "--learnin-rate", "1", "--learnin-rate", "2"], capsys)
    assert "there is no setting --nonsense; " in message
    assert message.count("there is no setting --learnin-rate (did you mean --learning_rate?)") == 1


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", r"run\.yaml: the file must be UTF-8, but is UTF-16\. .*iconv -f UTF-16 -t UTF-8"),
        ("utf-16-le", r"must be UTF-8, but is UTF-16LE"),
        (
            "latin-1",
            r"run\.yaml, line 2: the file must be UTF-8, but byte 10 of the file is 0xE9 .*iconv -f WINDOWS-1252",
        ),
    ],
)
def test_a_file_in_another_encoding_is_named_with_byte_and_remedy(encoding, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("seed: 1\n# é\n".encode(encoding))
    with pytest.raises(ValueError, match=message):
        read_settings(path, KNOWN)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("\ufeffseed: 1\r\nmax_steps: 2\r\n".encode())
    assert read_settings(path, KNOWN).values == {"seed": 1, "max_steps": 2}


def test_errors_of_a_run_use_the_syntax_of_its_settings():
    columns = {"columns": {"chosen": "your_column"}, "skip_bad_rows": True, "max_length": 512}
    names = {}
    for argv in ([], ["--config", "a.yaml"], ["--config=a.yaml"]):
        with used_through(interface_of(argv)):
            names[" ".join(argv)] = [setting(name, value) for name, value in columns.items()]
    yaml = ["columns: {chosen: your_column}", "skip_bad_rows: true", "max_length: 512"]
    options = ['--columns \'{"chosen": "your_column"}\'', "--skip_bad_rows true", "--max_length 512"]
    assert names == {"": options, "--config a.yaml": yaml, "--config=a.yaml": yaml}
    with used_through(Interface.COMMAND):
        found = [setting(name, value) for name, value in columns.items()]
        assert found == ["--columns chosen=your_column", "--skip-bad-rows", "--max-length 512"]
        assert setting("max_length") == "--max-length"
    found = [setting(name, value) for name, value in columns.items()]
    assert found == ["columns={'chosen': 'your_column'}", "skip_bad_rows=True", "max_length=512"]


def test_abbreviation_is_refused(capsys):
    assert "--learning" in exit_message([*NEEDED, "--learning", "1e-5"], capsys)


def test_malformed_value_is_refused(write_yaml, capsys):
    assert "learning_rate" in exit_message(["--config", write_yaml("learning_rate: fast")], capsys)
    # A bare `no` is false in YAML.
    assert "eval_strategy" in exit_message(["--config", write_yaml("eval_strategy: no")], capsys)


def test_missing_model_and_missing_config_value_are_refused(capsys):
    assert "model_name_or_path" in exit_message(["--train_data", "a.jsonl"], capsys)
    assert "--config" in exit_message(["--config"], capsys)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no configuration file 'nowhere\.yaml'"):
        parse_run_arguments(["--config", "nowhere.yaml"])


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_a_file_without_a_mapping_is_refused(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold settings"):
        read_settings(Path(path), KNOWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_lora": True, "freeze_backbone": True}, "`freeze_backbone`"),
        ({"eval_data": ["b.jsonl"], "test_size": 0.1}, "`test_size`"),
        ({"streaming": True, "test_size": 0.1}, "`streaming`"),
        ({"streaming": True, "baselines": True}, "`streaming`"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        run_with(**changes)


# --- adapters and quantisation ---


def test_lora_config():
    assert run_with().lora_config(2) is None
    config = run_with(use_lora=True, lora_r=4, lora_alpha=8, lora_dropout=0.1).lora_config(2)
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (4, 8, 0.1, "all-linear")
    assert config.task_type == "SEQ_CLS"


def test_lora_on_the_upper_layers():
    run = run_with(use_lora=True, lora_first_layer=2, lora_target_modules=["q_proj"])
    assert run.lora_config(5).layers_to_transform == [2, 3, 4]
    with pytest.raises(ValueError, match="must be below the 2 layers"):
        run.lora_config(2)


def test_lora_on_the_upper_layers_needs_named_modules():
    with pytest.raises(ValueError, match="`lora_target_modules`"):
        run_with(use_lora=True, lora_first_layer=1).lora_config(2)


def test_quantization_config():
    assert run_with().quantization_config() is None
    config = run_with(load_in_4bit=True).quantization_config()
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)


def test_a_name_that_is_too_long_for_a_file_is_reported_as_missing():
    with pytest.raises(FileNotFoundError, match="There is no configuration file"):
        read_settings("x" * 5000, KNOWN)


@pytest.mark.parametrize("name", ["./nope", "nope/with/model", "/nope/model", "/" + "x" * 5000])
def test_a_missing_model_folder_is_reported(name):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        require_folder_or_hub_id(name)


def test_a_stream_needs_its_number_of_steps(tmp_path):
    words = [
        "--model_name_or_path",
        "m",
        "--train_data",
        "d",
        "--output_dir",
        str(tmp_path / "o"),
        "--streaming",
        "true",
    ]
    with pytest.raises(ValueError, match="`streaming` needs `max_steps`"):
        parse_run_arguments(words)
    assert parse_run_arguments([*words, "--max_steps", "3"])[0].streaming


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat:\n", "line 3: there is no setting learning_rat"),
        ("max_steps: 2\nseed: 1\nmax_steps: 4\n", "max_steps is given more than once, in lines 3, 5"),
    ],
)
def test_settings_without_effect_in_a_file_are_refused(write_yaml, text, message):
    with pytest.raises(ValueError, match=message):
        read_settings(write_yaml(text), KNOWN)
