"""Command line and YAML file -> the settings of one training run.

A YAML file gives settings, the command line overrides them, and what neither knows is refused. Every field of
`RunArguments` and of `RewardConfig` can stand in either.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NoReturn

from peft import LoraConfig
from transformers import BitsAndBytesConfig, HfArgumentParser

from hf_reward.data.interface import Interface, setting
from hf_reward.training.settings_file import SettingsFile, UnknownSettingError, no_setting, read_settings
from hf_reward.training.training_args import RewardConfig


@dataclass
class RunArguments:
    """Which model and data a run uses, and what it leaves behind."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the model to start from."})
    train_data: list[str] = field(
        metadata={
            "help": "Paths or Hub ids of preference data; several are a mixture. One may also be a JSON object "
            'such as {"path": "a.jsonl", "weight": 0.5, "name": "a"}.'
        }
    )
    eval_data: list[str] | None = field(default=None, metadata={"help": "The same, for evaluation."})
    test_size: float | None = field(
        default=None,
        metadata={"help": "Without `eval_data`: hold out this share of the training rows, whole prompts at a time."},
    )
    columns: str | None = field(default=None, metadata={"help": "JSON object: our column name -> the data's."})
    layout: str = field(default="auto", metadata={"help": "Row layout; 'hh' has to be asked for."})
    min_gap: float | None = field(
        default=None,
        metadata={
            "help": "Rated rows: make pairs of the responses to a prompt whose scores differ by so much or more."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split of Hub ids and folders, for training."})
    eval_split: str = field(default="test", metadata={"help": "Split of Hub ids and folders, for evaluation."})
    streaming: bool = field(default=False, metadata={"help": "Read the training data as a stream; needs `max_steps`."})
    max_train_rows: int | None = field(default=None, metadata={"help": "Use only so many rows, chosen by `seed`."})
    baselines: bool = field(default=False, metadata={"help": "Score TF-IDF and length rules beside the model."})

    dtype: str = field(default="float32", metadata={"help": "Precision of the loaded backbone."})
    gguf_file: str | None = field(default=None, metadata={"help": "Name of a GGUF file in the model's folder."})
    attn_implementation: str | None = field(default=None, metadata={"help": "As in transformers."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Load a model whose weights are pickles (tensors only are read)."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train only the head."})
    require_chat_template: bool = field(
        default=False,
        metadata={"help": "Refuse to start unless the chat template in use is the one the model folder came with."},
    )

    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter and the head."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules that get LoRA, or 'all-linear'."}
    )
    lora_first_layer: int = field(default=0, metadata={"help": "Leave the layers below this one without LoRA."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: quantise the backbone to 4 bits (NF4)."})

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Try every station in a minute and write nothing: data, model, memory, the longest rows, one "
            "save, one reload. Exit code 1 if one failed."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})

    def __post_init__(self) -> None:
        if self.use_lora and self.freeze_backbone:
            raise ValueError(
                f"`{setting('freeze_backbone')}` trains the head only, but `{setting('use_lora')}` asks for an "
                f"adapter. "
                "Set one of them."
            )
        if self.eval_data is not None and self.test_size is not None:
            raise ValueError(
                f"`{setting('eval_data')}` is given, so nothing is held out by `{setting('test_size')}`. Set one of "
                f"them."
            )
        if self.streaming and (self.test_size is not None or self.baselines or self.min_gap is not None):
            raise ValueError(
                f"`{setting('test_size')}`, `{setting('baselines')}` and `{setting('min_gap')}` need all training "
                f"rows at hand. Leave them out with `{setting('streaming')}`."
            )

    def lora_config(self, num_layers: int) -> LoraConfig | None:
        """The adapter that these settings ask for, or None.

        Args:
            num_layers: Layers of the backbone.

        Returns:
            PEFT's configuration.

        Raises:
            ValueError: If `lora_first_layer` leaves no layer, or the modules are not named.
        """
        if not self.use_lora:
            return None
        layers, targets = None, self.lora_target_modules
        if self.lora_first_layer:
            if targets == ["all-linear"]:
                raise ValueError(
                    "`lora_first_layer` needs the modules by name: PEFT takes 'all-linear' for all layers only. Set "
                    "`lora_target_modules`, for Llama-like models to "
                    "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj."
                )
            if not 0 < self.lora_first_layer < num_layers:
                raise ValueError(
                    f"`{setting('lora_first_layer', self.lora_first_layer)}` must be below the {num_layers} layers."
                )
            layers = list(range(self.lora_first_layer, num_layers))
        return LoraConfig(
            task_type="SEQ_CLS",
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            layers_to_transform=layers,
        )

    def quantization_config(self) -> BitsAndBytesConfig | None:
        """The quantisation that these settings ask for, or None."""
        if not self.load_in_4bit:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        )

    def column_mapping(self) -> dict[str, str] | None:
        """`columns` as a dict."""
        return None if self.columns is None else json.loads(self.columns)


def parse_run_arguments(argv: Sequence[str]) -> tuple[RunArguments, RewardConfig]:
    """Read the settings of a run.

    Args:
        argv: The command line without the program's name; `--config x.yaml` names a file.

    Returns:
        What to train on, and how.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no mapping of settings, or settings contradict each other. Unknown or malformed
            settings end the program with a message that names them and exit code 2.
    """
    path, rest = _config_file(argv)
    parser = _Parser(
        [RunArguments, RewardConfig],  # type: ignore[arg-type]
        prog="train",
        usage="train [--config FILE.yaml] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    words: list[str] = []
    if path:
        try:
            found = read_settings(path, _settings())
        except UnknownSettingError as error:
            parser.error(f"{error}. `--help` lists all settings.")
        words = _as_argv(found)
        parser.lines = _lines_of(found, rest)
    # Later options override earlier ones in argparse, so the file's settings simply go first.
    run, args, unknown = parser.parse_args_into_dataclasses(args=[*words, *rest], return_remaining_strings=True)
    if unknown:
        names = [word.split("=")[0] for word in unknown if word.startswith("--")]
        said = [no_setting(name[2:], _settings(), "--") for name in dict.fromkeys(names)]
        parser.error(f"{'; '.join(said) or f'there is no setting {unknown}'}. `--help` lists all settings.")
    if run.streaming and args.max_steps < 1:
        raise ValueError(
            f"A stream has no known end, so `{setting('streaming')}` needs `{setting('max_steps')}`. Set it."
        )
    return run, args


def interface_of(argv: Sequence[str]) -> Interface:
    """The interface through which a run gets its settings.

    Args:
        argv: The command line without the program's name.

    Returns:
        YAML if a file is named, else options.
    """
    return Interface.YAML if any(word.split("=")[0] == "--config" for word in argv) else Interface.TRAIN


class _Parser(HfArgumentParser):
    """Names the line of a file in which a malformed value stands."""

    lines: Mapping[str, str] = MappingProxyType({})
    """Setting that only the file gives -> its place."""

    def error(self, message: str) -> NoReturn:
        option = re.match(r"argument --(\w+)", message)
        place = self.lines.get(option[1]) if option else None
        super().error(message if place is None else f"{place}: {message}")


def _config_file(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    first = argparse.ArgumentParser(prog="train", add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(list(argv))
    return known.config, rest


def _settings() -> set[str]:
    return {each.name for kind in (RunArguments, RewardConfig) for each in fields(kind) if each.init}


def _lines_of(found: SettingsFile, rest: Sequence[str]) -> dict[str, str]:
    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    return {name: f"{found.path}, line {line}" for name, line in found.lines.items() if name not in given}


def _as_argv(found: SettingsFile) -> list[str]:
    """The command line that says the same, which gives every value its field's type: YAML 1.1 reads `1e-5` as text."""
    return [word for name, value in found.values.items() for word in (f"--{name}", *_as_words(value))]


def _as_words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for part in value for word in _as_words(part)]
    word = json.dumps(value) if isinstance(value, dict) else str(value)
    if word.startswith("--"):
        raise ValueError(f"The value {word!r} would be read as a setting of its own. Give settings as `name: value`.")
    return [word]
