"""Folder -> does it still give the rewards that it was saved with, in stock transformers and in a fresh process?"""

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
from hf_reward.modeling.custom_code import brings_code, custom_classifier, require_trust
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.probes import LONGEST, longest_probe
from hf_reward.modeling.reward_head import RewardModel, as_reward_model
from hf_reward.modeling.weight_safety import non_finite_in_file, refuse_adapter_loop, require_safe_weights
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, ResponseEncoder
from hf_reward.preprocessing.template_clock import uses_clock
from hf_reward.publishing.reward_comparison import compare, half_precision_notes
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
        base_model: Where the base of an adapter lies now, if not where `adapter_config.json` says.
        dtypes: Compute precisions to check; by default those that rewards were recorded in.
        only: Of the ways to score (`alone`, `right`, `left`, `pipeline`) these; by default all that are possible.
        trust_remote_code: Whether the folder's own code may run, if its model needs that.
        allow_pickle: Read weights that are pickles, tensors only.

    Returns:
        What was looked at: configuration, tokenizer, template, token ids (also those of `RewardScorer`), and the
        rewards of each probe alone, in right-padded batches, in left-padded ones where that held when it was saved, and
        in the text-classification pipeline.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder has no record or no probes, its weights (or those of an adapter's base) are not whole
            safetensors, or it cannot be loaded at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} (looked in {Path.cwd()}).")
    record = CheckpointRecord.load(folder)
    if record is None or not record.probes.get("conversations"):
        missing = "no reward_config.json" if record is None else "a reward_config.json without probes"
        raise ValueError(
            f"{folder} has {missing}, so there is nothing to compare with. Save it again with `hf-reward export`, or "
            "bring a foreign model in with `hf-reward import`."
        )
    place = _Place(folder, record, base_model, trust_remote_code)
    files = _weight_files(folder, base_model, allow_pickle)
    require_trust(place.base or folder, trust_remote_code)
    recorded = _recorded_rewards(record, dtypes)
    made_here = needs_hf_reward(folder, base_model)
    checks = [*_check_finite(files), *_check_config(place), _check_tokenizer(place), _check_scorer(place)]
    lost = sum(value is None for value in next(iter(recorded.values())))
    if lost:
        detail = f"{lost} of {len(record.probes['conversations'])} were no finite numbers when the model was saved"
        checks.append(Check(name="recorded rewards", passed=False, detail=detail))
    found = run_stock_scoring(
        folder,
        list(recorded),
        [way for way in _possible_ways(place, made_here=made_here) if only is None or way in only],
        base_model=base_model,
        with_hf_reward=made_here,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    checks += compare(record, recorded, found)
    return Verification(folder=str(folder), checks=checks, notes=_notes(record, checks, made_here=made_here))


@dataclass(frozen=True)
class _Place:
    """A folder to verify, with what is read of it once."""

    folder: Path
    record: CheckpointRecord
    base_model: str | None
    """Where the base of an adapter lies now, if not where `adapter_config.json` says."""
    trust_remote_code: bool

    @cached_property
    def base(self) -> str | None:
        """Where the base is, if the folder holds an adapter."""
        is_adapter = (self.folder / "adapter_config.json").is_file()
        return adapter_base(self.folder, self.base_model) if is_adapter else None

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, as stock programs load it."""
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)


def _possible_ways(place: _Place, *, made_here: bool) -> list[str]:
    """The ways in which stock programs can score this folder with the same rewards."""
    ways = ["alone", "right"]
    if place.record.probes.get("left_padding"):
        ways.append("left")
    if place.base is None and not made_here:
        ways.append("pipeline")
    return ways


def _notes(record: CheckpointRecord, checks: list[Check], *, made_here: bool) -> list[str]:
    notes = half_precision_notes(checks)
    if made_here:
        notes.insert(
            0, "transformers has no classifier for this architecture: it was loaded through hf_reward, as others must."
        )
    device = record.probes.get("device", "cpu")
    return notes + ([f"Rewards were recorded on {device} and checked on the CPU."] if device != "cpu" else [])


def _weight_files(folder: Path, base_model: str | None, allow_pickle: bool, **hub: str) -> list[Path]:
    """The weights that the stock program will load, those of an adapter's bases among them; others are refused."""
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
    detail = f"{len(broken)} tensors hold values that are not finite: {', '.join(broken[:3])}"
    return [Check(name="finite weights", passed=False, detail=detail)]


def _recorded_rewards(record: CheckpointRecord, dtypes: list[str] | None) -> dict[str, list[float | None]]:
    """Rewards by compute precision; float32 is always among them, because it alone judges the weights."""
    recorded = record.probes["rewards"]
    unknown = sorted(set(dtypes or []) - set(recorded))
    if unknown:
        raise ValueError(f"Rewards were recorded in {', '.join(recorded)}, and not in {', '.join(unknown)}.")
    return {name: values for name, values in recorded.items() if dtypes is None or name in {"float32", *dtypes}}


def _check_config(place: _Place) -> list[Check]:
    """Of a whole model; an adapter has no configuration of its own."""
    if place.base is not None:
        return []
    config = AutoConfig.from_pretrained(place.folder, trust_remote_code=place.trust_remote_code)
    pad, recorded = config.get_text_config().pad_token_id, place.record.pad_token_id
    wrong = []
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        wrong.append(f"`architectures` is {config.architectures}, which is no sequence classifier")
    if config.num_labels != 1:
        wrong.append(f"it has {config.num_labels} labels instead of 1")
    if config.problem_type != "regression":
        wrong.append(f"`problem_type` is {config.problem_type!r}, so pipelines and servers put a sigmoid on the reward")
    if pad != recorded:
        wrong.append(f"the pad token's id is {pad}, but was {recorded} when saved")
    return [Check(name="config.json", passed=not wrong, detail="; ".join(wrong) or "as saved")]


def _check_tokenizer(place: _Place) -> Check:
    wrong = drift(place.record, place.tokenizer)
    if uses_clock(place.tokenizer):
        wrong.insert(
            0,
            "the chat template prints today's date, so the same text gets another reward every day (train or import "
            "the model again with this version, which lets the template print one date)",
        )
    return Check(name="tokenizer", passed=not wrong, detail="; ".join(wrong) or "as saved")


def _check_scorer(place: _Place) -> Check:
    """Whether `RewardScorer` reads the tokens that stock programs read, up to the longest text that training read."""
    revision = stated_revision(place.folder, place.base_model) if place.base is not None else {}
    model = _without_weights(place.base or str(place.folder), place.trust_remote_code, **revision)
    encoder = encoder_of(model, place.tokenizer, place.record, None)
    given = _probes_within(place, encoder)
    texts = [as_text(probe, place.tokenizer) for probe in given]
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
        ids = list(as_inputs([text], place.tokenizer, special)["input_ids"][0])
        if each.input_ids != ids:
            detail = each.problem or f"it reads {len(each.input_ids)} tokens instead of {len(ids)}"
            return Check(name="token ids, scorer", passed=False, detail=f"at the probe {probe['name']!r}: {detail}")
    longest_read = max((len(each.input_ids) for each in found), default=0)
    detail = f"those of stock programs, up to texts of {longest_read} tokens"
    return Check(name="token ids, scorer", passed=True, detail=detail)


def _probes_within(place: _Place, encoder: ResponseEncoder) -> list[dict[str, Any]]:
    """The recorded probes that training would have read whole, and one as long as that."""
    recorded, limit = place.record.probes["conversations"], encoder.rule.max_length
    if limit is None:
        return recorded
    longest = longest_probe(place.tokenizer, limit, separator=encoder.rule.separator)
    fitting = [
        probe  # those of earlier versions may be longer than what training read
        for probe in recorded
        if probe["name"] == LONGEST or len(probe["input_ids"].split()) <= limit
    ]
    return fitting if longest is None else [*fitting, longest.to_dict()]


def _without_weights(name: str, trust_remote_code: bool, **hub: str) -> RewardModel:
    """The model of a folder without its weights, from its configuration."""
    if (Path(name) / "adapter_config.json").is_file():  # trained on top of another adapter
        return _without_weights(adapter_base(name), trust_remote_code, **stated_revision(name))
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    if brings_code(name):
        custom_classifier(config, name, **hub)
    config.num_labels = 1
    with torch.device("meta"):
        return as_reward_model(classifier_class(config)(config))


def needs_hf_reward(folder: Path, base_model: str | None = None) -> bool:
    """Whether transformers itself lacks a classifier for the folder's architecture, or cannot stack its adapters.

    Args:
        folder: A saved model or adapter.
        base_model: Where the base of an adapter lies now, if not where `adapter_config.json` says.

    Returns:
        True where only hf_reward loads the folder.

    Raises:
        ValueError: If the base of an adapter cannot be found.
    """
    if not (folder / "adapter_config.json").is_file():
        return not brings_code(folder) and not has_stock_class(AutoConfig.from_pretrained(folder))
    base = adapter_base(folder, base_model)
    if (Path(base) / "adapter_config.json").is_file():
        return True
    if brings_code(base):
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
        ways: Of `stock_scoring.WAYS`.
        base_model: Where the base of an adapter lies.
        with_hf_reward: Load through hf_reward, where stock transformers cannot.
        trust_remote_code: Whether the folder's own code may run.
        allow_pickle: Read weights that are pickles, tensors only.

    Returns:
        What the program printed: `input_ids`, `missing` and `rewards` by precision and way.

    Raises:
        ValueError: If the folder cannot be loaded.
    """
    # -P: this package's own folder must not come first on the path of a program that is to be stock.
    script = Path(__file__).with_name("stock_scoring.py")
    command = [sys.executable, "-P", str(script), str(folder), "--dtypes", *dtypes, "--ways", *ways]
    command += ["--base", base_model] if base_model else []
    command += ["--with-hf-reward"] if with_hf_reward else []
    command += ["--trust-remote-code"] if trust_remote_code else []
    command += ["--allow-pickle"] if allow_pickle else []
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # On the CPU: the accelerator's memory may be full of the model that is being saved.
    environment = {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        program = "hf_reward" if with_hf_reward else "Stock transformers"
        raise ValueError(f"{program} cannot load {folder}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
