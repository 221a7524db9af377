"""Record, audit and benchmarks -> README.md of a model folder. The template speaks; what it says is made here."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from hf_reward.checkpoint_record import CheckpointRecord
from hf_reward.evaluation_entries import (
    NO_VALUE,
    accuracy_rows,
    as_list,
    averaged_models,
    base_models,
    benchmark_view,
    card_metadata,
    cells,
    counted,
    decimals,
    escaped,
    hub_datasets,
    hub_id,
    interval,
    measure_lines,
    metric_values,
    number,
    one_line,
    share,
    signed,
    source_rows,
    without_paths,
    write_evaluation_entries,
)
from hf_reward.metrics import accuracy_reading

TEMPLATE = "model_card_template.md"
AUDIT_FILE = "audit_summary.json"
BENCHMARKS_FILE = "benchmark_results.json"
PICTURE_FILE = "audit_effects.png"
LOSSES = {
    "bradley_terry": "Bradley-Terry",
    "hinge": "hinge",
    "rao_kupper": "Rao-Kupper (models ties)",
    "davidson": "Davidson (models ties)",
    "plackett_luce": "Plackett-Luce (ranked lists)",
}
FEW_PAIRS = 20
"""Below so many pairs an accuracy is not compared with another."""
_CHANGES = {
    "cut": "prompts cut to fit",
    "merged": "equal responses merged",
    "duplicates": "rows that repeat an earlier one",
    "prompts_differed": "rows whose sides had different prompts",
}
_MARK = "<!-- written by hf_reward; edit freely above, a push then keeps your text: "
_PRIVATE = re.compile(r"(hub|auth|access)_token|api_key|secret|password", re.IGNORECASE)
_VERDICTS = {
    "biased": "Biased",
    "inconclusive": "Cannot tell",
    "equivalent": "No effect that matters",
    "not_assessed": "Not assessed",
}


def template_path() -> Path:
    """Where the card's template is: in the wheel beside this file, in a checkout at the repository's root."""
    packaged = Path(str(files("hf_reward"))) / TEMPLATE
    return packaged if packaged.is_file() else Path(__file__).parent.parent / TEMPLATE


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Everything that a card is made of."""

    folder: Path
    record: CheckpointRecord
    audit: dict[str, Any]
    benchmarks: list[dict[str, Any]]
    consumers: Sequence[tuple[str, str, str]]
    title: str
    model_id: str
    """What to load in the snippets."""
    has_id: bool
    """Whether that is a Hub id, and not the folder's name in its place."""

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file()

    @property
    def values(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return metric_values(self.record)

    @property
    def probes(self) -> list[dict[str, Any]]:
        return list(self.audit.get("probes") or [])


def write_model_card(
    folder: str | Path,
    record: CheckpointRecord,
    *,
    consumers: Sequence[tuple[str, str, str]] | None = None,
    model_id: str | None = None,
    title: str | None = None,
) -> Path:
    """Write README.md, `.eval_results/*.yaml` and, of an audit, its picture into a model folder.

    An audit is read from `audit_summary.json` and benchmarks from `benchmark_results.json`, where the folder has them.

    Args:
        folder: The model folder.
        record: What travels with the model.
        consumers: Programs that may hold the model: name, verdict and a note each.
        model_id: The Hub id that the snippets load; by default the folder's name stands in its place.
        title: Name of the folder, where the card is written in another one that is to be renamed.

    Returns:
        The card.

    Raises:
        ValueError: If something that the user says cannot stand in a card, or a result file is damaged.
    """
    folder = Path(folder)
    facts = _gather(folder, record, consumers or [], model_id, title or folder.resolve().name)
    metadata = card_metadata(record, facts.benchmarks, title=facts.title, is_adapter=facts.is_adapter)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    template = environment.from_string(template_path().read_text(encoding="utf-8"))
    text = template.render(metadata=metadata.to_yaml(), has_picture=_draw(facts), **_sections(facts))
    path = folder / "README.md"
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"  # a section that is left out leaves its blank lines
    ModelCard(f"{text}\n{_MARK}{_digest(text)} -->\n").save(path)
    write_evaluation_entries(folder, record, facts.benchmarks)
    return path


def is_generated(path: str | Path) -> bool:
    """Whether a card is as `write_model_card` left it: one that somebody edited is not written over by a push."""
    text, mark, digest = Path(path).read_text(encoding="utf-8").rpartition(f"\n{_MARK}")
    return bool(mark) and digest.removesuffix(" -->\n") == _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sections(facts: _Facts) -> dict[str, Any]:
    """What the template loops over and says."""
    record = facts.record
    settings, command = _settings(facts), _fenced(str(record.training.get("command") or ""))
    return {
        "title": escaped(facts.title),
        "glance": _glance(facts),
        "usage": _usage(facts),
        "consumers": [[escaped(cell) or NO_VALUE for cell in row] for row in facts.consumers],
        "accuracies": accuracy_rows(record),
        "measures": measure_lines(record),
        "sources": source_rows(record),
        "benchmarks": [benchmark_view(each) for each in facts.benchmarks],
        "audit": {"summary": escaped(facts.audit.get("summary") or ""), "rows": _audit_rows(facts)},
        "picture": PICTURE_FILE,
        "biases": _biases(facts),
        "scale": _scale(facts),
        "training": _training(facts),
        "settings": settings,
        "limits": _limits(facts),
        "command": command,
        "has_local": "LOCAL/" in "".join([command, *settings]),
        "versions": ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in record.versions.items()),
        "license": _license_sentence(facts),
    }


def _gather(
    folder: Path, record: CheckpointRecord, consumers: Sequence[tuple[str, str, str]], model_id: str | None, name: str
) -> _Facts:
    try:
        validate_repo_id(model_id)
    except HFValidationError as error:
        raise ValueError(f"`model_id` must be a Hub id such as 'org/name', but is {model_id!r}: {error}") from None
    audit, benchmarks = _read_json(folder / AUDIT_FILE, dict), _read_json(folder / BENCHMARKS_FILE, list)
    if not all(isinstance(each, dict) for each in [*benchmarks, *(audit.get("probes") or [])]):
        raise ValueError(f"{folder / AUDIT_FILE} and {BENCHMARKS_FILE} must list objects. Write them anew.")
    return _Facts(
        folder=folder,
        record=record,
        audit=audit,
        benchmarks=benchmarks,
        consumers=consumers,
        title=one_line(record.card.get("model_name") or "") or one_line(name) or "reward model",
        model_id=model_id or re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "reward-model",
        has_id=model_id is not None,
    )


def _read_json(path: Path, kind: type) -> Any:
    """Content of a result file, empty without one."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Run its command again, or remove it.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {'list' if kind is list else 'object'}. Run its command again.")
    return content


def _draw(facts: _Facts) -> bool:
    """Draw the audit; screens are left out, since they settle nothing."""
    path = facts.folder / PICTURE_FILE
    rows = [each for each in facts.probes if not each.get("screen_only")]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    from hf_reward.card_figures import Effect, draw_audit_effects  # noqa: PLC0415 - matplotlib takes a second to import

    effects = [
        Effect(
            label=one_line(each.get("name") or "probe"),
            unit=one_line(each.get("unit") or ""),
            verdict=_verdict(each),
            estimate=number(each.get("estimate")),
            low=number(each.get("ci_low")),
            high=number(each.get("ci_high")),
            delta=number(each.get("delta")),
        )
        for each in rows
    ]
    draw_audit_effects(effects, path)
    return True


# --- what it scores, and how to call it ------------------------------------------------------------------------------


def _usage(facts: _Facts) -> dict[str, Any]:
    """What decides the snippets."""
    config, tokens = _read_json(facts.folder / "config.json", dict), _tokenizer_config(facts)
    architecture = str((config.get("architectures") or [""])[0])
    is_stock = facts.is_adapter or not architecture or hasattr(transformers, architecture)
    has_end = not tokens or (tokens.get("eos_token") is not None and not tokens.get("add_eos_token"))
    separator = str(facts.record.format.get("separator") or "")
    pad = facts.record.pad_token_id
    options = f', num_labels=1, problem_type="regression", pad_token_id={pad}' if facts.is_adapter else ""
    return {
        "id": facts.model_id,
        "served": "merged" if facts.is_adapter else facts.model_id,
        "has_id": facts.has_id,
        "kind": _kind(facts, tokens),
        "text": " + ".join(
            ["prompt", *([json.dumps(separator)] if separator else []), "response"]
            + (["tokenizer.eos_token"] if has_end else [])
        ),
        "options": options,
        "is_adapter": facts.is_adapter,
        "is_stock": is_stock,
        "sglang": _sglang(architecture),
        "has_probes": bool(facts.record.probes.get("conversations")),
    }


def _tokenizer_config(facts: _Facts) -> dict[str, Any]:
    return _read_json(facts.folder / "tokenizer_config.json", dict)


def _kind(facts: _Facts, tokens: dict[str, Any]) -> str:
    """`chat`, `pair` (prompt and response as a text pair) or `text` (prompt, response and end token in one)."""
    if facts.record.template_hash:
        return "chat"
    probes = facts.record.probes.get("conversations") or []
    if probes:
        return "pair" if "text_pair" in probes[0] else "text"
    if tokens:
        return "pair" if tokens.get("cls_token") and tokens.get("sep_token") else "text"
    return "pair" if facts.record.reads == "pooled" else "text"


def _sglang(architecture: str) -> str | None:
    """What SGLang 0.5.23 is documented to return, None where it has no reward head for the architecture."""
    shifted = (
        "differences between rewards are right, but every reward is shifted by a constant that changes at each load"
    )
    if architecture.startswith(("Qwen2For", "Qwen3For")):
        return f"for this architecture {shifted}"
    if architecture.startswith(("LlamaFor", "Gemma2For")):
        return "rewards come back raw"
    if architecture:
        return None
    return f"rewards come back raw for Llama and Gemma 2; for Qwen2 and Qwen3 {shifted}"


def _glance(facts: _Facts) -> list[tuple[str, str]]:
    temperature = _temperature(facts)
    gap = "reward_a - reward_b" if temperature is None else f"(reward_a - reward_b) / {temperature:.3g}"
    reads = "A conversation" if facts.record.template_hash else "A prompt with its response"
    return [
        (
            "What it scores",
            f"{reads}, as one raw number. Of two answers to the same prompt the better one should get the higher "
            f"number: P(a is preferred to b) = `sigmoid({gap})`. A reward alone means nothing.",
        ),
        ("How good it is", _reading(facts)),
        ("What it is biased to", " ".join(_biases(facts)[:2])),
        ("What it was made of", _origin(facts)),
    ]


def _reading(facts: _Facts) -> str:
    values = facts.values
    if "accuracy" not in values:
        return "Not evaluated."
    bounds = [values.get("accuracy_ci_low", float("nan")), values.get("accuracy_ci_high", float("nan"))]
    low, high = bounds if bounds[0] == bounds[0] and bounds[1] == bounds[1] else (float("nan"), float("nan"))
    if {"num_pairs", "num_prompts", "length_baseline"} <= set(values) and 0 <= values["accuracy"] <= 1:
        return accuracy_reading({**values, "accuracy_ci_low": low, "accuracy_ci_high": high})
    bounds = interval(low, high)
    return (
        f"Accuracy {share(values['accuracy'])} on held-out pairs"
        f"{f' (95% interval {bounds})' if bounds else ''}; the length rule was not measured on them, so "
        "this may be length alone."
    )


def _origin(facts: _Facts) -> str:
    record, origin, models = facts.record, facts.record.origin, base_models(facts.record)
    named = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    said = record.card.get("base_model") or record.card.get("finetuned_from") or record.base_model
    base = named or ("a local model" if said else "a base model that was not recorded")
    moved = _largest_change(origin)
    if origin.get("averaged"):
        parts = f"{len(as_list(origin['averaged']))} models"
        parts += f" ({named})" if averaged_models(record) else f" that were fine-tuned from {base}"
        spread = f"; their rewards differ from this one's by up to {moved}" if moved else ""
        return f"The weights are the average of {parts}{spread}."
    sentences = [f"An adapter for {base}." if facts.is_adapter else f"Fine-tuned from {base}."]
    if origin.get("imported_from"):
        sentences = [f"Converted from the format {escaped(origin['imported_from'])}, not trained here; base: {base}."]
        offset = number(origin.get("offset"))
        sentences += [f"Rewards differ from the original's by the constant {abs(offset):.4g}."] if offset else []
    if origin.get("merged_from"):
        sentences.append(f"Its {escaped(origin['merged_from'])} was merged into the weights.")
    return " ".join([*sentences, *([f"Saving it so moved rewards by at most {moved}."] if moved else [])])


def _largest_change(origin: dict[str, Any]) -> str | None:
    """How far rewards moved on the way to this model."""
    found = [number(each) for each in [origin.get("largest_difference"), *(origin.get("differences") or {}).values()]]
    known = [each for each in found if each is not None]
    return f"{max(known):.2g}" if known else None


# --- biases ----------------------------------------------------------------------------------------------------------


def _verdict(probe: dict[str, Any]) -> str:
    return probe["verdict"] if probe.get("verdict") in _VERDICTS else "not_assessed"


def _audit_rows(facts: _Facts) -> list[list[str]]:
    rows = []
    for each in facts.probes:
        screen = " (screen only)" if each.get("screen_only") else ""
        delta, q_value = number(each.get("delta")), number(each.get("q_value"))
        counts = (counted(each.get("n"), "case"), counted(each.get("clusters"), "prompt"))
        rows.append(
            cells(
                escaped(each.get("name") or "probe") + screen,
                escaped(each.get("family") or ""),
                " ".join(part for part in (signed(each.get("estimate")), escaped(each.get("unit") or "")) if part),
                interval(each.get("ci_low"), each.get("ci_high"), signed),
                None if delta is None else f"±{delta:.3g}",
                ", ".join(count for count in counts if count),
                None if q_value is None else f"{q_value:.2g}",
                _VERDICTS[_verdict(each)].lower(),
            )
        )
    return rows


def _biases(facts: _Facts) -> list[str]:
    """Sentences, what is biased first."""
    settled = [each for each in facts.probes if not each.get("screen_only")]
    sentences = []
    for verdict, words in _VERDICTS.items():
        found = [_effect(each) for each in settled if _verdict(each) == verdict]
        if found:
            sentences.append(f"{words}: {'; '.join(found)}.")
    screens = [_effect(each) for each in facts.probes if each.get("screen_only")]
    if screens:
        sentences.append(f"Screens, which raise a question and settle none: {'; '.join(screens)}.")
    if settled and not any(_verdict(each) == "biased" for each in settled):
        sentences.insert(0, "No probe of the audit showed a bias that matters.")
    if sentences:
        return sentences
    rest = "Bias audit: not run, so tastes for flattery, formatting, confidence or style are not measured."
    return [_length_sentence(facts), rest]


def _effect(probe: dict[str, Any]) -> str:
    name, size = escaped(probe.get("name") or "probe"), signed(probe.get("estimate"))
    return f"{name} ({' '.join([size, escaped(probe.get('unit') or '')]).strip()})" if size else name


def _length_sentence(facts: _Facts) -> str:
    values = facts.values
    sides = [
        (values.get(f"accuracy_preferred_{side}"), values.get(f"num_preferred_{side}"))
        for side in ("longer", "shorter")
    ]
    if any(accuracy is None or count is None for accuracy, count in sides):
        return "Length: not measured."
    (longer, many), (shorter, few) = [(accuracy or 0.0, count or 0.0) for accuracy, count in sides]
    text = (
        f"Length: right in {longer:.1%} of the {counted(many, 'pair')} where the preferred response is longer, and in "
    )
    text += f"{shorter:.1%} of the {counted(few, 'pair')} where it is shorter"
    if min(many, few) < FEW_PAIRS:
        return f"{text}; too few pairs to tell a taste for length."
    gap = 100 * (longer - shorter)
    taste = "longer" if gap > 0 else "shorter"
    return f"{text}, {abs(gap):.1f} points apart" + (f": a sign of a taste for {taste} responses." if gap else ".")


# --- scale, training, limits -----------------------------------------------------------------------------------------


def _temperature(facts: _Facts) -> float | None:
    found = number(facts.record.reward_statistics.get("temperature"))
    return found if found and found > 0 else None


def _scale(facts: _Facts) -> list[str]:
    values, kept, lines = facts.values, facts.record.reward_statistics, []
    mean = values.get("mean_reward", number(kept.get("mean")))
    std = values.get("std_reward", number(kept.get("std")))
    if mean is not None and std is not None:
        limits = interval(values.get("min_reward"), values.get("max_reward"), decimals)
        reach = f", from {limits}" if limits else ""
        lines.append(f"On held-out responses: mean {mean:.3f}, standard deviation {std:.3f}{reach}.")
        if std > 0:
            lines.append(f"To normalise for RL: `(reward {'-' if mean >= 0 else '+'} {abs(mean):.4g}) / {std:.4g}`.")
    else:
        lines.append("Mean and spread of rewards: not measured.")
    temperature, loss = _temperature(facts), values.get("log_loss")
    if loss is not None:
        worth = "say more than a coin" if loss < 0.6931 else "are no better than a coin's: use rewards to rank only"
        lines.append(f"Calibration: log loss {loss:.3f} against ln 2 = 0.693, so the probabilities {worth}.")
    lines.append(
        "Temperature: " + ("not fitted." if temperature is None else f"{temperature:.3g}, fitted: divide gaps by it.")
    )
    return lines


def _training(facts: _Facts) -> list[str]:
    record, training = facts.record, facts.record.training
    lines = [_data_sentence(name, summary) for name, summary in (training.get("data") or {}).items()]
    datasets = hub_datasets(record)
    if datasets:
        named = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        lines.insert(0, f"Data on the Hub: {named}.")
    options = {name: value for name, value in record.loss.items() if name != "loss_type" and value is not None}
    if record.loss.get("loss_type"):
        said = ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in options.items())
        kind = str(record.loss["loss_type"])
        lines.append(f"Loss: {LOSSES.get(kind, escaped(kind))}{f' ({said})' if said else ''}.")
    steps = counted(training.get("steps") or None, "optimizer step")
    return [*lines, f"{steps}."] if steps else lines


def _data_sentence(name: str, summary: dict[str, Any]) -> str:
    kept, rows, prompts = (number(summary.get(key)) or 0 for key in ("kept", "rows", "prompts"))
    scope = "the first " if summary.get("sampled") else ""
    parts = [f"{escaped(name)}: {kept:,.0f} of {scope}{counted(rows, 'row')} kept, {counted(prompts, 'prompt')}"]
    dropped = [
        f"{count} {escaped(reason)}" for reason, count in sorted((summary.get("dropped") or {}).items()) if count
    ]
    notes = [f"dropped: {', '.join(dropped)}"] if dropped else []
    for key, words in _CHANGES.items():
        count = number(summary.get(key))
        notes += [f"{words}: {count:,.0f}"] if count else []
    sizes = [f"{escaped(key)} {value}" for key, value in (summary.get("token_quantiles") or {}).items()]
    notes += [f"tokens of the longest sequence: {', '.join(sizes)}"] if sizes else []
    longer = share(summary.get("longer_preferred"))
    notes += (
        [f"the longer response is preferred in {longer} of {counted(summary.get('num_pairs') or 0, 'pair')}"]
        if longer
        else []
    )
    named = [each for each in as_list(summary.get("sources")) if hub_id(each)]
    notes += [f"from {', '.join(named)}"] if named else []
    return "; ".join(parts + notes) + "."


def _settings(facts: _Facts) -> list[str]:
    """Settings as YAML lines, without keys to anything."""
    settings = facts.record.training.get("settings") or {}
    shown = {name: value for name, value in settings.items() if not _PRIVATE.search(str(name)) and value is not None}
    lines = [f"{one_line(name)}: {json.dumps(value, ensure_ascii=False, default=str)}" for name, value in shown.items()]
    return [_fenced(line) for line in lines]


def _fenced(text: str) -> str:
    """Text for a code block, on one line."""
    return without_paths(one_line(re.sub(r"\\\s*\n", " ", text))).replace("```", "'''")


def _limits(facts: _Facts) -> list[str]:
    record, lines = facts.record, []
    longest = number(record.format.get("max_length"))
    if longest:
        lines.append(f"Trained on sequences of up to {longest:,.0f} tokens; what it gives longer ones is not known.")
    languages = ", ".join(map(escaped, as_list(record.card.get("language"))))
    lines.append(f"Languages: {languages or 'not stated; trust it only in those of its data'}.")
    if record.dtype != "float32":
        lines.append(
            f"The weights are saved in {escaped(record.dtype)}: programs that also compute in it round rewards, and "
            "close answers may tie."
        )
    return lines


def _license_sentence(facts: _Facts) -> str:
    card = facts.record.card
    name = escaped(card.get("license_name") or card.get("license") or "")
    link = escaped(card.get("license_link") or "")
    own = f"{name}{f' ({link})' if link else ''}." if name else "Not stated: ask its authors before you use it."
    return f"{own} The terms of the base model and of the data apply too."
