"""Command line and YAML file -> the settings of one training run.

A YAML file gives settings, the command line overrides them, and what neither knows is refused. Every field of
`RunArguments` and of `RewardConfig` can stand in either.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from transformers import BitsAndBytesConfig, HfArgumentParser

from hf_reward.training_args import RewardConfig


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
                "`freeze_backbone` trains the head only, but `use_lora` asks for an adapter. Set one of them."
            )
        if self.eval_data is not None and self.test_size is not None:
            raise ValueError("`eval_data` is given, so nothing is held out by `test_size`. Set one of them.")
        if self.streaming and (self.test_size is not None or self.baselines):
            raise ValueError(
                "`test_size` and `baselines` need all training rows at hand. Leave them out with `streaming`."
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
                raise ValueError(f"`lora_first_layer={self.lora_first_layer}` must be below the {num_layers} layers.")
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
            settings end the program with argparse's message and exit code 2.
    """
    first = argparse.ArgumentParser(prog="train", add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(list(argv))
    # Later options override earlier ones in argparse, so the file's settings simply go first.
    words = [*(yaml_as_argv(known.config) if known.config else []), *rest]
    parser = HfArgumentParser(
        [RunArguments, RewardConfig],  # type: ignore[arg-type]
        prog="train",
        usage="train [--config FILE.yaml] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    run, args, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if unknown:
        names = [word.split("=")[0] for word in unknown if word.startswith("--")] or unknown  # a value may be a token
        parser.error(f"there is no setting {', '.join(names)}. `--help` lists all settings.")
    if run.streaming and args.max_steps < 1:
        raise ValueError("A stream has no known end, so `streaming` needs `max_steps`. Set it.")
    return run, args


def yaml_as_argv(path: str | Path) -> list[str]:
    """Read a YAML file of settings as the command line that says the same.

    Going through the command line gives every value its field's type: YAML 1.1 reads `1e-5` as text.

    Args:
        path: The file.

    Returns:
        The words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a mapping of settings.
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise FileNotFoundError(f"There is no configuration file {str(path)!r} (looked in {Path.cwd()}).")
    try:
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_OneOfEach)
    except Exception as error:  # a tag that names a Python object, a tab, a date that is none, ...
        raise ValueError(f"{path} is no YAML of plain values: {error}. Correct it.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings such as `learning_rate: 1e-5`, one per line.")
    _require_small(settings, path)
    words: list[str] = []
    known = {each.name for kind in (RunArguments, RewardConfig) for each in fields(kind) if each.init}
    for name, value in settings.items():
        if value is None and name not in known:
            raise ValueError(f"{path}: there is no setting {name}. `--help` lists all settings.")
        if value is not None:
            words += [f"--{name}", *_as_words(value)]
    return words


class _OneOfEach(yaml.SafeLoader):
    """YAML's safe loader, which would let the last of several equal names win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        repeated = sorted(name for name, count in names.items() if count > 1)
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is given more than once")
        return super().construct_mapping(node, deep)


_MOST_VALUES = 100_000


def _require_small(settings: dict[Any, Any], path: str | Path) -> None:
    """Stop at aliases that would unfold without end, or nearly so."""
    waiting: list[Any] = [settings]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        waiting += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    raise ValueError(f"{path} holds more than {_MOST_VALUES:,} values, or an alias (`*name`) inside of itself.")


def _as_words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for part in value for word in _as_words(part)]
    word = json.dumps(value) if isinstance(value, dict) else str(value)
    if word.startswith("--"):
        raise ValueError(f"The value {word!r} would be read as a setting of its own. Give settings as `name: value`.")
    return [word]
