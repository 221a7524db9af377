"""Folder -> does it still give the rewards that it was saved with, in stock transformers and in a fresh process?"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from hf_reward.data.score_request import read_request, request_from_messages, request_from_text
from hf_reward.modeling.architectures import classifier_class, has_stock_class
from hf_reward.modeling.checkpoint_record import CheckpointRecord, adapter_base, drift, stated_revision
from hf_reward.modeling.custom_code import brings_code, custom_classifier, require_trust
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.probes import (
    COARSE_TOLERANCE,
    HALF_TOLERANCE,
    LONGEST,
    differing,
    longest_probe,
    relative_differences,
    tolerance,
)
from hf_reward.modeling.reward_head import RewardModel, as_reward_model
from hf_reward.modeling.weight_safety import non_finite_in_file, refuse_adapter_loop, require_safe_weights
from hf_reward.preprocessing.response_encoding import CONVERSATIONS
from hf_reward.preprocessing.template_clock import reads_clock
from hf_reward.publishing.stock_scoring import as_inputs, as_text


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str
    difference: float | None = None
    """Largest difference of rewards relative to max(1, |reward|)."""
    allowed: float | None = None


@dataclass(kw_only=True)
class Verification:
    """What `verify_checkpoint` found."""

    folder: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether everything that was looked at is as it was saved."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def largest_difference(self, *names: str) -> float:
        """Of the checks whose names start so (by default of all rewards); infinite where a reward is not finite."""
        found = [check.difference for check in self.checks if check.name.startswith(names or ("rewards, ",))]
        return max((math.inf if each is None else each for each in found), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"equal": self.equal, **asdict(self)}

    def __str__(self) -> str:
        if self.equal:
            largest = self.largest_difference("rewards, float32")
            return f"{self.folder}: equal (largest difference in float32 {largest:.1e})"
        return f"{self.folder}: differs: " + "; ".join(f"{each.name}: {each.detail}" for each in self.failures)


class VerificationError(ValueError):
    """A folder does not give the rewards that it should."""

    def __init__(self, message: str, verification: Verification | None = None) -> None:
        super().__init__(message)
        self.verification = verification


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
    files = _weight_files(folder, base_model, allow_pickle)
    is_adapter = (folder / "adapter_config.json").is_file()
    require_trust(adapter_base(folder, base_model) if is_adapter else folder, trust_remote_code)
    result = Verification(folder=str(folder), checks=_check_finite(files))
    result.checks += [] if is_adapter else [_check_config(folder, record, trust_remote_code)]
    result.checks.append(_check_tokenizer(folder, record, trust_remote_code))
    result.checks.append(_check_scorer(folder, record, base_model, trust_remote_code))
    recorded = _recorded_rewards(record, dtypes)
    made_here = needs_hf_reward(folder, base_model)
    if made_here:
        result.notes.append(
            "transformers has no classifier for this architecture: it was loaded through hf_reward, as others must."
        )
    ways = ["alone", "right"]
    if record.probes.get("left_padding"):
        ways.append("left")
    if not is_adapter and not made_here:
        ways.append("pipeline")
    ways = [way for way in ways if only is None or way in only]
    lost = sum(value is None for value in next(iter(recorded.values())))
    if lost:
        detail = f"{lost} of {len(record.probes['conversations'])} were no finite numbers when the model was saved"
        result.checks.append(Check(name="recorded rewards", passed=False, detail=detail))
    found = run_stock_scoring(
        folder,
        list(recorded),
        ways,
        base_model=base_model,
        with_hf_reward=made_here,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    result.checks += _compare(record, recorded, found)
    result.notes += _half_precision_notes(result.checks)
    if record.probes.get("device", "cpu") != "cpu":
        result.notes.append(f"Rewards were recorded on {record.probes['device']} and checked on the CPU.")
    return result


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


def _check_config(folder: Path, record: CheckpointRecord, trust_remote_code: bool) -> Check:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    wrong = []
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        wrong.append(f"`architectures` is {config.architectures}, which is no sequence classifier")
    if config.num_labels != 1:
        wrong.append(f"it has {config.num_labels} labels instead of 1")
    if config.problem_type != "regression":
        wrong.append(f"`problem_type` is {config.problem_type!r}, so pipelines and servers put a sigmoid on the reward")
    if text.pad_token_id != record.pad_token_id:
        wrong.append(f"the pad token's id is {text.pad_token_id}, but was {record.pad_token_id} when saved")
    return Check(name="config.json", passed=not wrong, detail="; ".join(wrong) or "as saved")


def _check_tokenizer(folder: Path, record: CheckpointRecord, trust_remote_code: bool) -> Check:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    wrong = drift(record, tokenizer)
    if reads_clock(tokenizer):
        wrong.insert(
            0,
            "the chat template prints today's date, so the same text gets another reward every day (train or import "
            "the model again with this version, which lets the template print one date)",
        )
    return Check(name="tokenizer", passed=not wrong, detail="; ".join(wrong) or "as saved")


def _check_scorer(folder: Path, record: CheckpointRecord, base_model: str | None, trust_remote_code: bool) -> Check:
    """Whether `RewardScorer` reads the tokens that stock programs read, up to the longest text that training read."""
    is_adapter = (folder / "adapter_config.json").is_file()
    place = adapter_base(folder, base_model) if is_adapter else str(folder)
    revision = stated_revision(folder, base_model) if is_adapter else {}
    model = _without_weights(place, trust_remote_code, **revision)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    encoder = encoder_of(model, tokenizer, record, None)
    limit = encoder.rule.max_length
    given = [
        probe  # those of earlier versions may be longer than what training read
        for probe in record.probes["conversations"]
        if limit is None or probe["name"] == LONGEST or len(probe["input_ids"].split()) <= limit
    ]
    longest = None if limit is None else longest_probe(tokenizer, limit, separator=encoder.rule.separator)
    given += [] if longest is None else [longest.to_dict()]
    texts = [as_text(probe, tokenizer) for probe in given]
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
        ids = list(as_inputs([text], tokenizer, special)["input_ids"][0])
        if each.input_ids != ids:
            detail = each.problem or f"it reads {len(each.input_ids)} tokens instead of {len(ids)}"
            return Check(name="token ids, scorer", passed=False, detail=f"at the probe {probe['name']!r}: {detail}")
    longest_read = max((len(each.input_ids) for each in found), default=0)
    detail = f"those of stock programs, up to texts of {longest_read} tokens"
    return Check(name="token ids, scorer", passed=True, detail=detail)


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


def _compare(record: CheckpointRecord, recorded: dict[str, list[float | None]], found: dict[str, Any]) -> list[Check]:
    conversations = record.probes["conversations"]
    names = [probe["name"] for probe in conversations]
    missing = found["missing"]
    checks = [
        Check(
            name="weights",
            passed=not missing,
            detail=f"missing and therefore random: {', '.join(missing[:4])}" if missing else "all there",
        ),
        _check_ids(conversations, found["input_ids"]),
    ]
    for dtype, expected in recorded.items():
        for way, rewards in found["rewards"][dtype].items():
            allowed = _allowed(dtype, way, record)
            if way == "pipeline":  # it drops the second text of a pair if that is empty
                rewards = [
                    known if probe.get("text_pair") == "" else reward
                    for probe, known, reward in zip(conversations, expected, rewards, strict=True)
                ]
            differences = relative_differences(expected, rewards)
            largest = max(differences)
            places = differing(expected, rewards, allowed)
            bound = f"allowed {allowed:.1e}" if math.isfinite(allowed) else "reported only"
            detail = f"largest difference {largest:.1e}, {bound}"
            if places:
                worst = max(places, key=differences.__getitem__)
                detail += f", at the probe {names[worst]!r}: {rewards[worst]} instead of {expected[worst]}"
            checks.append(
                Check(
                    name=f"rewards, {dtype}, {_WAY_NAMES[way]}",
                    passed=not places,
                    detail=detail,
                    difference=largest if math.isfinite(largest) else None,  # JSON has no infinity
                    allowed=allowed if math.isfinite(allowed) else None,
                )
            )
    return checks


def _allowed(dtype: str, way: str, record: CheckpointRecord) -> float:
    """Allowed relative difference; infinite where a difference says nothing against the folder.

    Weights are judged in float32, to the last digits. Half precisions round differently in every batch and on every
    device (0.045 was seen in a sound model of 30 layers), so they are judged only where float32 was not recorded.
    """
    if dtype == "float32":
        if record.quantization:  # quantised kernels differ by device
            return HALF_TOLERANCE
        return tolerance(dtype, same_device=record.probes.get("device", "cpu") == "cpu")
    is_judged = "float32" not in record.probes["rewards"] and way in ("alone", "pipeline")
    if not is_judged:
        return math.inf
    as_saved = dtype == record.dtype and not record.probes.get("weights_cast")  # an adapter's float32 ones too
    return HALF_TOLERANCE if as_saved else COARSE_TOLERANCE  # the weights themselves are rounded then


def _half_precision_notes(checks: list[Check]) -> list[str]:
    """What half precision does to this model's rewards, where that is more than the usual rounding."""
    found: dict[str, float] = {}
    for check in checks:
        if check.name.startswith("rewards, ") and check.difference is not None and check.allowed is None:
            dtype = check.name.split(", ")[1]
            found[dtype] = max(check.difference, found.get(dtype, 0.0))
    return [
        f"Computed in {dtype}, rewards differ by up to {difference:.1e} of max(1, |reward|): close answers may swap. "
        "Score in float32 where that matters."
        for dtype, difference in found.items()
        if difference > HALF_TOLERANCE
    ]


_WAY_NAMES = {
    "alone": "each alone",
    "right": "padded on the right",
    "left": "padded on the left",
    "pipeline": "text-classification pipeline",
}


def _check_ids(conversations: list[dict[str, Any]], found: list[list[int]]) -> Check:
    for probe, ids in zip(conversations, found, strict=True):
        expected = [int(word) for word in probe["input_ids"].split()]
        if ids != expected:
            pairs = enumerate(zip(expected, ids, strict=False))
            place = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(ids)))
            detail = (
                f"the probe {probe['name']!r} now has {len(ids)} tokens instead of {len(expected)}; the first that "
                f"differs is number {place}: {ids[place : place + 3]} instead of {expected[place : place + 3]}"
            )
            return Check(name="token ids", passed=False, detail=detail)
    return Check(name="token ids", passed=True, detail="as saved")
