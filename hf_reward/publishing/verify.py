"""Verify the rewards of a saved folder with stock transformers in a fresh process."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from hf_reward.data.score_request import read_request, request_from_messages, request_from_text
from hf_reward.modeling.architectures import classifier_class, has_stock_class
from hf_reward.modeling.checkpoint_record import CheckpointRecord, adapter_base, drift, stated_revision
from hf_reward.modeling.custom_code import custom_classifier, has_custom_code, require_trust
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.probes import LONGEST, longest_probe
from hf_reward.modeling.reward_head import RewardModel, as_reward_model
from hf_reward.modeling.weight_safety import non_finite_in_file, refuse_adapter_loop, require_safe_weights
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, ResponseEncoder
from hf_reward.preprocessing.template_clock import uses_clock
from hf_reward.preprocessing.tokenizer import adds_special_tokens
from hf_reward.publishing.reward_comparison import compare, half_precision_notes, picture_notes
from hf_reward.publishing.stock_scoring import as_inputs, as_text
from hf_reward.publishing.verification import Check, Verification, VerificationError

__all__ = ["Check", "Verification", "VerificationError", "needs_hf_reward", "run_stock_scoring", "verify_checkpoint"]


def verify_checkpoint(
    folder: str | Path,
    *,
    base_model: str | None = None,
    dtypes: list[str] | None = None,
    only: Collection[str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Verification:
    """Load a folder in a fresh process with stock transformers and compare it with its record.

    Args:
        folder: A saved model or adapter with its `reward_config.json`.
        base_model: Current location of the base of an adapter, if it differs from `adapter_config.json`.
        dtypes: Compute precisions to check; by default all recorded ones.
        only: Ways of scoring (`alone`, `right`, `left`, `pipeline`); by default all possible ones.
        trust_remote_code: Whether code from the folder may run, if the model requires it.
        allow_pickle: Read pickled weights (tensors only).

    Returns:
        Checks of configuration, tokenizer, template, token ids (also those of `RewardScorer`), and of the rewards of
        each probe alone, in right-padded batches, in left-padded batches if left padding gave the same rewards when the
        model was saved, in the text-classification pipeline, and of pictures with the processor of the folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder has no record or no probes, its weights (or those of an adapter's base) are not
            complete safetensors files, or it cannot be loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} (current directory: {Path.cwd()}).")
    record = CheckpointRecord.load(folder)
    if record is None or not record.probes.get("conversations"):
        missing = "no reward_config.json" if record is None else "a reward_config.json without probes"
        raise ValueError(
            f"{folder} has {missing}, so there are no recorded rewards to compare with. Save it with `hf-reward "
            "export`, or convert a model from another library with `hf-reward import`."
        )
    target = _Folder(folder, record, base_model, trust_remote_code)
    files = _weight_files(folder, base_model, allow_pickle)
    require_trust(target.base or folder, trust_remote_code)
    recorded = _recorded_rewards(record, dtypes)
    with_hf_reward = needs_hf_reward(folder, base_model)
    checks = [*_check_finite(files), *_check_config(target), _check_tokenizer(target), _check_scorer(target)]
    pictures = record.probes.get("images") or {"rewards": {}}
    first = [*next(iter(recorded.values())), *next(iter(pictures["rewards"].values()), [])]
    if lost := sum(value is None for value in first):
        detail = f"{lost} of {len(first)} were not finite when the model was saved"
        checks.append(Check(name="recorded rewards", passed=False, detail=detail))
    found = run_stock_scoring(
        folder,
        list(recorded),
        [way for way in _possible_ways(target, with_hf_reward=with_hf_reward) if only is None or way in only],
        base_model=base_model,
        with_hf_reward=with_hf_reward,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    checks += compare(record, recorded, found)
    notes = [*_tokenizer_notes(target), *_notes(record, checks, with_hf_reward=with_hf_reward)]
    notes += picture_notes(record, found)
    return Verification(folder=str(folder), checks=checks, notes=notes)


@dataclass(frozen=True)
class _Folder:
    """A folder to verify, with its base and tokenizer loaded once."""

    folder: Path
    record: CheckpointRecord
    base_model: str | None
    """Current location of the base of an adapter, if it differs from `adapter_config.json`."""
    trust_remote_code: bool

    @cached_property
    def base(self) -> str | None:
        """Location of the base model if the folder contains an adapter."""
        is_adapter = (self.folder / "adapter_config.json").is_file()
        return adapter_base(self.folder, self.base_model) if is_adapter else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder, loaded with stock transformers."""
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)


def _possible_ways(target: _Folder, *, with_hf_reward: bool) -> list[str]:
    """Return the ways of scoring that must give the same rewards."""
    ways = ["alone", "right"]
    if target.record.probes.get("left_padding"):
        ways.append("left")
    if target.base is None and not with_hf_reward:
        ways.append("pipeline")
    return ways


def _notes(record: CheckpointRecord, checks: list[Check], *, with_hf_reward: bool) -> list[str]:
    notes = half_precision_notes(checks)
    if with_hf_reward:
        notes.insert(0, "transformers has no classifier for this architecture. Loading the model requires hf_reward.")
    device = record.probes.get("device", "cpu")
    return notes + ([f"Rewards were recorded on {device} and checked on the CPU."] if device != "cpu" else [])


def _tokenizer_notes(target: _Folder) -> list[str]:
    has_template = any("messages" in probe for probe in target.record.probes["conversations"])
    if not (has_template and adds_special_tokens(target.tokenizer)):
        return []
    return [
        "The tokenizer adds special tokens to those of the chat template. Programs that tokenise formatted "
        "conversations need `add_special_tokens=False`, or rewards differ. If the model was trained on conversations, "
        "`hf-reward export` writes a copy whose tokenizer adds none."
    ]


def _weight_files(folder: Path, base_model: str | None, allow_pickle: bool, **hub: str) -> list[Path]:
    """Return the weight files that stock programs load, including those of base models. Unsafe files are refused."""
    files = require_safe_weights(folder, allow_pickle=allow_pickle, **hub)
    if not (folder / "adapter_config.json").is_file():
        return files
    refuse_adapter_loop(str(folder))
    base, revision = adapter_base(folder, base_model), stated_revision(folder, base_model)
    return files + _weight_files(Path(base), None, allow_pickle, **revision)


def _check_finite(files: list[Path]) -> list[Check]:
    broken = [f"{name} in {path}" for path in files for name in non_finite_in_file(path)]
    if not broken:
        return []
    detail = f"{len(broken)} tensors contain values that are not finite: {', '.join(broken[:3])}"
    return [Check(name="finite weights", passed=False, detail=detail)]


def _recorded_rewards(record: CheckpointRecord, dtypes: list[str] | None) -> dict[str, list[float | None]]:
    """Return the rewards by compute precision, always including float32, which checks the weights."""
    recorded = record.probes["rewards"]
    unknown = sorted(set(dtypes or []) - set(recorded))
    if unknown:
        raise ValueError(
            f"`dtypes` must be recorded precisions ({', '.join(recorded)}), but contains {', '.join(unknown)}."
        )
    return {name: values for name, values in recorded.items() if dtypes is None or name in {"float32", *dtypes}}


def _check_config(target: _Folder) -> list[Check]:
    """Check the configuration of a complete model. An adapter has none."""
    if target.base is not None:
        return []
    config = AutoConfig.from_pretrained(target.folder, trust_remote_code=target.trust_remote_code)
    pad, recorded = config.get_text_config().pad_token_id, target.record.pad_token_id
    wrong = []
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        wrong.append(f"`architectures` is {config.architectures}, which is not a sequence classifier")
    if config.num_labels != 1:
        wrong.append(f"it has {config.num_labels} labels instead of 1")
    if config.problem_type != "regression":
        wrong.append(f"`problem_type` is {config.problem_type!r}, so pipelines and servers apply a sigmoid")
    if pad != recorded:
        wrong.append(f"the pad token's id is {pad}, but was {recorded} when saved")
    return [Check(name="config.json", passed=not wrong, detail="; ".join(wrong) or "unchanged")]


def _check_tokenizer(target: _Folder) -> Check:
    wrong = drift(target.record, target.tokenizer)
    if uses_clock(target.tokenizer):
        wrong.insert(
            0,
            "the chat template prints today's date, so the reward of a text changes every day (train or import the "
            "model again with this version of hf_reward, which fixes the date in the template)",
        )
    return Check(name="tokenizer", passed=not wrong, detail="; ".join(wrong) or "unchanged")


def _check_scorer(target: _Folder) -> Check:
    """Check that `RewardScorer` and stock programs use the same token ids, up to the length limit of training."""
    revision = stated_revision(target.folder, target.base_model) if target.base is not None else {}
    model = _without_weights(target.base or str(target.folder), target.trust_remote_code, **revision)
    encoder = encoder_of(model, target.tokenizer, target.record, None)
    given = _probes_within(target, encoder)
    texts = [as_text(probe, target.tokenizer) for probe in given]
    requests = [
        request_from_messages(probe["messages"])
        if "messages" in probe and encoder.rows == CONVERSATIONS
        else read_request(*text)
        if len(text) == 2
        else request_from_text(text[0])
        for probe, (text, _) in zip(given, texts, strict=True)
    ]
    found = encoder.encode(requests, allow_empty=True)
    for probe, (text, special), each in zip(given, texts, found, strict=True):
        ids = list(as_inputs([text], target.tokenizer, special)["input_ids"][0])
        if each.input_ids != ids:
            detail = each.problem or f"{len(each.input_ids)} tokens instead of {len(ids)}"
            return Check(name="token ids, scorer", passed=False, detail=f"at the probe {probe['name']!r}: {detail}")
    longest = max((len(each.input_ids) for each in found), default=0)
    detail = f"same as in stock programs, for texts of up to {longest} tokens"
    return Check(name="token ids, scorer", passed=True, detail=detail)


def _probes_within(target: _Folder, encoder: ResponseEncoder) -> list[dict[str, Any]]:
    """Return the recorded probes within the length limit of training, and one probe of exactly that length."""
    recorded, limit = target.record.probes["conversations"], encoder.rule.max_length
    if limit is None:
        return recorded
    longest = longest_probe(target.tokenizer, limit, separator=encoder.rule.separator)
    fitting = [
        probe  # probes of earlier versions may exceed the limit
        for probe in recorded
        if probe["name"] == LONGEST or len(probe["input_ids"].split()) <= limit
    ]
    return fitting if longest is None else [*fitting, longest.to_dict()]


def _without_weights(name: str, trust_remote_code: bool, **hub: str) -> RewardModel:
    """Build the model of a folder from its configuration, without weights."""
    if (Path(name) / "adapter_config.json").is_file():  # trained on top of another adapter
        return _without_weights(adapter_base(name), trust_remote_code, **stated_revision(name))
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    if has_custom_code(name):
        custom_classifier(config, name, **hub)
    config.num_labels = 1
    with torch.device("meta"):
        return as_reward_model(classifier_class(config)(config))


def needs_hf_reward(folder: Path, base_model: str | None = None) -> bool:
    """Return whether stock transformers cannot load a folder: no classifier for it, or stacked adapters.

    Args:
        folder: A saved model or adapter.
        base_model: Current location of the base of an adapter, if it differs from `adapter_config.json`.

    Returns:
        True if only hf_reward loads the folder.

    Raises:
        ValueError: If the base of an adapter cannot be found.
    """
    if not (folder / "adapter_config.json").is_file():
        return not has_custom_code(folder) and not has_stock_class(AutoConfig.from_pretrained(folder))
    base = adapter_base(folder, base_model)
    if (Path(base) / "adapter_config.json").is_file():
        return True
    if has_custom_code(base):
        return False
    return not has_stock_class(AutoConfig.from_pretrained(base, **stated_revision(folder, base_model)))


def run_stock_scoring(
    folder: Path,
    dtypes: list[str],
    ways: list[str],
    *,
    base_model: str | None = None,
    with_hf_reward: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Run `stock_scoring` on a folder in a fresh process.

    Args:
        folder: The folder.
        dtypes: Compute precisions.
        ways: Ways of scoring, from `stock_scoring.WAYS`.
        base_model: Location of the base of an adapter.
        with_hf_reward: Load with hf_reward, if stock transformers cannot.
        trust_remote_code: Whether code from the folder may run.
        allow_pickle: Read pickled weights (tensors only).

    Returns:
        The output of the program: `input_ids`, `missing`, and `rewards` by precision and way of scoring.

    Raises:
        ValueError: If the folder cannot be loaded.
    """
    # -P keeps the folder of this package off the path: the program must not import its modules.
    script = Path(__file__).with_name("stock_scoring.py")
    command = [sys.executable, "-P", str(script), str(folder), "--dtypes", *dtypes, "--ways", *ways]
    command += ["--base", base_model] if base_model else []
    command += ["--with-hf-reward"] if with_hf_reward else []
    command += ["--trust-remote-code"] if trust_remote_code else []
    command += ["--allow-pickle"] if allow_pickle else []
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # On the CPU, because the model that is being saved may fill the memory of the accelerator.
    environment = {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        program = "hf_reward" if with_hf_reward else "Stock transformers"
        raise ValueError(f"{program} cannot load {folder}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
