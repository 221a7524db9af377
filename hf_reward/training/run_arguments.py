"""Command line and YAML file -> the settings of one training run.

Every field of `RunArguments` and `RewardConfig` is a key of the YAML file and an option. Options override the file.
Unknown names are refused.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NoReturn

from peft import LoraConfig
from transformers import BitsAndBytesConfig, HfArgumentParser

from hf_reward.data.interface import Interface, setting
from hf_reward.training.settings_file import SettingsFile, UnknownSettingError, no_setting, read_settings
from hf_reward.training.training_args import RewardConfig

USAGE = "hf-reward train [--config FILE.yaml] [--SETTING VALUE ...]"
EXAMPLES = """\
  hf-reward train --config run.yaml --learning_rate 1e-5
  hf-reward train --model_name_or_path MODEL --train_data pairs.jsonl \\
      --test_size 0.1 --output_dir outputs/run"""
_PROGRAM = "hf-reward train"


@dataclass
class RunArguments:
    """Model, data and outputs of a run; the settings of training itself are in `RewardConfig`."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the model to start from."})
    train_data: list[str] = field(
        metadata={
            "help": "Files, folders or Hub ids of preference data; several are mixed. A source may also be a JSON "
            'object such as {"path": "a.jsonl", "weight": 0.5, "name": "a"}.'
        }
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or Hub ids of evaluation data, in the format of `train_data`."}
    )
    test_size: float | None = field(
        default=None,
        metadata={"help": "Fraction of the training rows to hold out, split by prompt, if there is no `eval_data`."},
    )
    columns: str | None = field(
        default=None,
        metadata={"help": "Mapping from the column names of hf_reward to those of the data.", "metavar": "dict"},
    )
    layout: str = field(
        default="auto",
        metadata={
            "help": "Row layout. 'auto' recognises every layout but 'hh'.",
            "metavar": "auto|pairs|hh|ranked|votes|tokenized",
        },
    )
    min_gap: float | None = field(
        default=None,
        metadata={"help": "For rated rows: smallest score difference at which two responses form a pair."},
    )
    train_split: str = field(
        default="train", metadata={"help": "Split of the training data, for Hub datasets and folders."}
    )
    eval_split: str = field(
        default="test", metadata={"help": "Split of the evaluation data, for Hub datasets and folders."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream the training data; needs `max_steps`."})
    max_train_rows: int | None = field(
        default=None,
        metadata={"help": "Largest number of training rows. From more rows, a sample is drawn with `seed`."},
    )
    baselines: bool = field(
        default=False, metadata={"help": "Also score a TF-IDF and a length baseline on the evaluation rows."}
    )

    dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the loaded backbone.", "metavar": "float32|bfloat16|float16|auto"},
    )
    gguf_file: str | None = field(default=None, metadata={"help": "Name of a GGUF file in the model's folder."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention implementation of transformers, such as 'sdpa' or 'flash_attention_2'."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Allow weights in pickle files; only tensors are loaded from them."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train only the reward head."})
    require_chat_template: bool = field(
        default=False,
        metadata={"help": "Require that the chat template in use is the one in the model folder."},
    )

    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter and the reward head."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA update."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout probability of the LoRA layers."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules that get LoRA layers, or 'all-linear'."}
    )
    lora_first_layer: int = field(
        default=0, metadata={"help": "First backbone layer with LoRA; the layers below get none."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the backbone to 4 bits, NF4 (QLoRA)."})

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Test data, model, memory, the longest rows, saving and reloading in about a minute. Temporary "
            "files are removed. Exit code 1 if a test fails."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Allow an output folder that is not empty."})

    def __post_init__(self) -> None:
        if self.use_lora and self.freeze_backbone:
            raise ValueError(
                f"`{setting('freeze_backbone')}` trains the head only, but `{setting('use_lora')}` adds an adapter "
                "to the backbone. Set one of them."
            )
        if self.eval_data is not None and self.test_size is not None:
            raise ValueError(
                f"`{setting('eval_data')}` is set, so `{setting('test_size')}` would hold out no rows. Set one of them."
            )
        if self.streaming and (self.test_size is not None or self.baselines or self.min_gap is not None):
            raise ValueError(
                f"`{setting('test_size')}`, `{setting('baselines')}` and `{setting('min_gap')}` need all training "
                f"rows in memory. Remove them, or do not set `{setting('streaming')}`."
            )

    def lora_config(self, num_layers: int) -> LoraConfig | None:
        """Return the LoRA configuration, or None without `use_lora`.

        Args:
            num_layers: Number of backbone layers.

        Returns:
            PEFT's configuration.

        Raises:
            ValueError: If `lora_first_layer` leaves no layer, or `lora_target_modules` is 'all-linear' with it.
        """
        if not self.use_lora:
            return None
        layers, targets = None, self.lora_target_modules
        if self.lora_first_layer:
            if targets == ["all-linear"]:
                raise ValueError(
                    "`lora_first_layer` needs the modules by name: in PEFT, 'all-linear' means all layers. Set "
                    "`lora_target_modules`. Llama-like models have "
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
        """Return the quantisation configuration, or None without `load_in_4bit`."""
        if not self.load_in_4bit:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        )

    def column_mapping(self) -> dict[str, str] | None:
        """Return `columns` as a dict."""
        return None if self.columns is None else json.loads(self.columns)


def parse_run_arguments(argv: Sequence[str]) -> tuple[RunArguments, RewardConfig]:
    """Parse the settings of a run.

    Args:
        argv: The command line without the program's name; `--config x.yaml` names a file.

    Returns:
        The run's model and data, and the settings of training.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a mapping of settings, or settings contradict each other. Unknown or malformed
            settings end the program with a message that names them and exit code 2.
    """
    own, rest = _own_options(argv)
    parser = _Parser([RunArguments, RewardConfig], add_help=False, allow_abbrev=False)  # type: ignore[arg-type]
    words: list[str] = []
    if own.config:
        try:
            found = read_settings(own.config, _settings())
        except UnknownSettingError as error:
            parser.error(f"{error}. `--help-all` lists all settings.")
        words = _as_argv(found)
        parser.lines = _lines_of(found, rest)
    bar = [] if sys.stderr.isatty() else ["--disable_tqdm", "true"]  # a progress bar in a file is a long line
    words = [*bar, *words, *_output_words(own), *rest]  # in argparse, later options override earlier ones
    run, args, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if unknown:
        names = [word.split("=")[0] for word in unknown if word.startswith("--")]
        messages = [no_setting(name[2:], _settings(), "--") for name in dict.fromkeys(names)]
        parser.error(f"{'; '.join(messages) or f'there is no setting {unknown}'}. `--help-all` lists all settings.")
    if run.streaming and args.max_steps < 1:
        raise ValueError(
            f"The length of a stream is unknown, so `{setting('streaming')}` needs `{setting('max_steps')}`. Set it."
        )
    return run, args


def interface_of(argv: Sequence[str]) -> Interface:
    """Return the interface through which a run gets its settings.

    Args:
        argv: The command line without the program's name.

    Returns:
        YAML if `--config` is given, else options.
    """
    return Interface.YAML if any(word.split("=")[0] == "--config" for word in argv) else Interface.TRAIN


class _Parser(HfArgumentParser):
    """Names the file and line of a malformed value, and does not print the usage of all settings with an error."""

    lines: Mapping[str, str] = MappingProxyType({})
    """Setting that only the file gives -> its file and line."""

    def error(self, message: str) -> NoReturn:
        option = re.match(r"argument --(\w+)", message)
        place = self.lines.get(option[1]) if option else None
        message = message if place is None else f"{place}: {message}"
        self.exit(2, f"Usage: {USAGE}\n`{_PROGRAM} --help` lists the settings.\n\n{_PROGRAM}: error: {message}\n")


def _own_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options that are not settings, and end the program after printing help."""
    if not argv:
        sys.stderr.write(f"Usage: {USAGE}\nExamples:\n{EXAMPLES}\n`{_PROGRAM} --help` lists the settings.\n")
        raise SystemExit(2)
    parser = argparse.ArgumentParser(prog=_PROGRAM, usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    for name in ("--quiet", "--verbose", "--help-all"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    own, rest = parser.parse_known_args(list(argv))
    if own.quiet and own.verbose:
        parser.error("--quiet and --verbose contradict each other; set one of them")
    if own.help or own.help_all:
        from hf_reward.training.settings_help import print_help  # noqa: PLC0415 - it imports this module

        print_help(every_setting=own.help_all)
        raise SystemExit(0)
    return own, rest


def _output_words(own: argparse.Namespace) -> list[str]:
    """Write `--quiet` and `--verbose` as settings."""
    if own.quiet:
        return ["--log_level", "error", "--disable_tqdm", "true"]
    return ["--log_level", "info"] if own.verbose else []


def _settings() -> set[str]:
    return {each.name for kind in (RunArguments, RewardConfig) for each in fields(kind) if each.init}


def _lines_of(found: SettingsFile, rest: Sequence[str]) -> dict[str, str]:
    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    return {name: f"{found.path}, line {line}" for name, line in found.lines.items() if name not in given}


def _as_argv(found: SettingsFile) -> list[str]:
    """Write the file's values as options, so that the parser converts them: in YAML 1.1, `1e-5` is text."""
    return [word for name, value in found.values.items() for word in (f"--{name}", *_as_words(value))]


def _as_words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for part in value for word in _as_words(part)]
    word = json.dumps(value) if isinstance(value, dict) else str(value)
    if word.startswith("--"):
        raise ValueError(f"The value {word!r} would be parsed as an option. Write settings as `name: value`.")
    return [word]
