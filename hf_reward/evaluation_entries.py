"""What of a record and its results is published: safe text, front matter, `.eval_results/*.yaml`, tables of the card.

Nothing local is published: a base model or dataset that is a path here is left out, paths in texts are shortened. What
the user says of the model is checked, so that a mistake stops here and not at the Hub.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_reward.checkpoint_record import CheckpointRecord

ENTRIES_FOLDER = ".eval_results"
NO_VALUE = "-"
_OURS = "hf_reward--"
"""Files of `.eval_results` that start so were written here, and are written anew."""
_FOLDERS = {"models", "datasets", "data", "outputs", "output", "checkpoints", "runs", "results", "tmp"}
"""Names of folders by custom, so that `models/x` is a path even where it does not exist."""
_FILE_ENDS = (".json", ".jsonl", ".csv", ".parquet", ".gguf", ".safetensors", ".jinja")
_LANGUAGE = re.compile(r"([a-z]{2,3})(-[A-Za-z0-9]+)*|code|multilingual")
_ABSOLUTE = r"(?:file://)?(?:~[\w-]*/|/|\.\./|[A-Za-z]:\\)"
_QUOTED_PATH = re.compile(rf"(['\"])([^'\"\s]*?)(?<![\w:/.])({_ABSOLUTE}[^'\"]*)\1")
_PATH = re.compile(rf"(?<![\w.:/~\\-]){_ABSOLUTE}(?:\\.|[^\s'\"`,;|)\]}}])+")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_COMPUTED = (
    *("base_model_relation", "datasets", "eval_results", "library_name", "metrics", "model-index", "model_index"),
    *("pipeline_tag", "ignore_metadata_errors"),
)
_NOT_METADATA = ("model_name", "dataset", "dataset_tags", "dataset_args", "tasks", "finetuned_from", "base_model")
_OF_SOURCE = ("accuracy_ci_low", "accuracy_ci_high", "num_pairs", "length_baseline")
_OWN_TAGS = ("reward-model", "hf_reward", "rlhf", "preference-model")


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that a record may hold in its place."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def one_line(value: Any) -> str:
    """Text without line breaks, control characters and doubled spaces."""
    return "".join(char for char in " ".join(str(value).split()) if char.isprintable())


def escaped(text: Any) -> str:
    """Text on one line that breaks no table and makes no markup, without paths of this machine and tokens."""
    plain = without_paths(one_line(text))
    plain = re.sub(r"([\\|`*\[\]])", r"\\\1", plain).replace("<", "&lt;")
    return f"\\{plain}" if re.match(r"[-+#>=~_]", plain) else plain


def without_paths(text: str) -> str:
    """The text with `LOCAL/name` for every absolute path, and without Hub tokens."""
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}{found[2]}{_last_part(found[3])}{found[1]}", text)
    return _SECRET.sub("HF_TOKEN", _PATH.sub(lambda found: _last_part(found[0]), text))


def _last_part(path: str) -> str:
    return "/".join(["LOCAL", *[part for part in re.split(r"[\\/]+", path) if part][-1:]])


def share(value: Any) -> str | None:
    """A fraction as a percentage; what is no fraction stays as it is."""
    found = number(value)
    if found is None:
        return None
    return f"{found:.1%}" if 0 <= found <= 1 else f"{found:.4g}"


def interval(low: Any, high: Any, form: Callable[[Any], str | None] = share) -> str | None:
    """Two bounds in words, None where one is missing."""
    bounds = [form(low), form(high)]
    return f"{bounds[0]} to {bounds[1]}" if None not in bounds else None


def signed(value: Any) -> str | None:
    """A number with its sign."""
    found = number(value)
    return None if found is None else f"{found:+.3g}"


def decimals(value: Any) -> str | None:
    """A number with three decimals."""
    found = number(value)
    return None if found is None else f"{found:.3f}"


def counted(value: Any, noun: str) -> str | None:
    """A number of things."""
    found = number(value)
    return None if found is None else f"{found:,.0f} {noun}{'' if found == 1 else 's'}"


def cells(*values: str | None) -> list[str]:
    """Cells of a table's row, with a dash for what is missing."""
    return [value or NO_VALUE for value in values]


def as_list(value: Any) -> list[Any]:
    """One value or several, as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def hub_id(name: Any) -> str | None:
    """The Hub id that a name is, or None if it is a path on this machine or no id at all."""
    if not isinstance(name, str) or is_local(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name or None


def is_local(name: str) -> bool:
    """Whether a name is a path: one that exists, an absolute or relative one, or a file's."""
    if name.startswith((".", "/", "~")) or "\\" in name or re.match(r"[A-Za-z]:", name) or name.count("/") > 1:
        return True
    if name.endswith(("/", *_FILE_ENDS)) or ("/" in name and name.split("/")[0] in _FOLDERS):
        return True
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def base_models(record: CheckpointRecord) -> list[str]:
    """Hub ids of what the model was made of: the published parts of an average, else its base model."""
    said = record.card.get("base_model") or record.card.get("finetuned_from") or record.base_model
    return averaged_models(record) or [name for name in map(hub_id, as_list(said)) if name]


def averaged_models(record: CheckpointRecord) -> list[str]:
    """Hub ids of the models whose weights were averaged."""
    return [name for name in map(hub_id, as_list(record.origin.get("averaged"))) if name]


def hub_datasets(record: CheckpointRecord) -> list[str]:
    """Hub ids of the datasets that the user names.

    Args:
        record: The model's record.

    Returns:
        The ids in order; paths are left out.

    Raises:
        ValueError: If a name is neither a Hub id nor a path.
    """
    found: list[str] = []
    for field in ("dataset", "dataset_tags"):
        for name in as_list(record.card.get(field)):
            if not isinstance(name, str) or (hub_id(name) is None and not is_local(name)):
                raise _refusal(field, name, "a Hub id such as 'org/name' (a path is left out of the card), or a list")
            if hub_id(name) and name not in found:
                found.append(name)
    return found


# --- front matter ----------------------------------------------------------------------------------------------------


def card_metadata(
    record: CheckpointRecord, benchmarks: list[dict[str, Any]], *, title: str, is_adapter: bool
) -> ModelCardData:
    """The front matter of a card.

    Args:
        record: The model's record; `record.card` holds what the user says.
        benchmarks: Benchmark results.
        title: Name of the model.
        is_adapter: Whether the folder holds an adapter.

    Returns:
        Metadata whose YAML can be read back.

    Raises:
        ValueError: If something that the user says cannot stand in a card's metadata.
    """
    card, models, datasets = record.card, base_models(record), hub_datasets(record)
    results = evaluation_results(record, datasets, benchmarks)
    relation = "merge" if averaged_models(record) else ("adapter" if is_adapter else "finetune")
    return ModelCardData(
        language=_language(card.get("language")),
        license=_license(card.get("license")),
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=models if len(models) > 1 else (models[0] if models else None),
        base_model_relation=relation if models else None,
        datasets=datasets or None,
        metrics=["accuracy"],
        tags=_tags(record),
        model_name=title if results else None,
        eval_results=results or None,
        **_extra(card),
    )


def _refusal(field: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"`{field}` of the model card must be {allowed}, but is {value!r}. Correct it in `record.card`.")


def _language(value: Any) -> str | list[str] | None:
    for code in as_list(value):
        if not isinstance(code, str) or not _LANGUAGE.fullmatch(code):
            raise _refusal(
                "language", code, "a lower-case ISO 639 code such as 'en', 'code', 'multilingual', or a list"
            )
    return value or None


def _license(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not _LICENSE.fullmatch(value.lower()):
        raise _refusal("license", value, "the Hub's name of a licence such as 'apache-2.0', or 'other'")
    return value.lower()


def _tags(record: CheckpointRecord) -> list[str]:
    trained = number(record.training.get("steps")) and not record.origin.get("imported_from")
    said = as_list(record.card.get("tags"))
    for tag in said:
        if not isinstance(tag, str) or not tag or tag != one_line(tag):
            raise _refusal("tags", tag, "text on one line, or a list of such")
    return list(dict.fromkeys([*_OWN_TAGS, *(["generated_from_trainer"] if trained else []), *said]))


def _extra(card: dict[str, Any]) -> dict[str, Any]:
    """What else the user wants in the metadata; names of the Trainer's own card that are none are left out."""
    extra = {}
    for key, value in card.items():
        if key in ("language", "license", "tags", *_NOT_METADATA) or value is None:
            continue
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z][\w\-]*", key) or key in _COMPUTED:
            raise _refusal(str(key), value, "left out: the card computes it" if key in _COMPUTED else "a plain name")
        if not _is_plain(value):
            raise _refusal(key, value, "text, a finite number, true, false, or lists and dicts of them")
        extra[key] = value
    return extra


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(key) and _is_plain(each) for key, each in value.items())
    if isinstance(value, str):
        return all(char.isprintable() or char == "\n" for char in value)
    return value is None or isinstance(value, bool) or number(value) is not None


# --- results ---------------------------------------------------------------------------------------------------------


def evaluation_results(
    record: CheckpointRecord, datasets: list[str], benchmarks: list[dict[str, Any]]
) -> list[EvalResult]:
    """Results for the `model-index`: held-out pairs and benchmarks, interval and counts beside each value.

    Args:
        record: The model's record.
        datasets: Hub ids of its data.
        benchmarks: Benchmark results.

    Returns:
        None, one or more results.
    """
    values = metric_values(record)
    known = {
        "ci95": _known([values.get("accuracy_ci_low"), values.get("accuracy_ci_high")]),
        "pairs": _count(values.get("num_pairs")),
        "prompts": _count(values.get("num_prompts")),
    }
    data = (datasets[0], datasets[0]) if len(datasets) == 1 else ("held-out-preferences", "held-out preference pairs")
    results = [
        _result(data, kind, name, values[kind], known if kind == "accuracy" else {})
        for kind, name in (
            ("accuracy", "accuracy (a tie is wrong)"),
            ("log_loss", "log loss (nats)"),
            ("brier_score", "Brier score"),
        )
        if kind in values
    ]
    for each in benchmarks:
        if number(each.get("overall")) is not None:
            name = one_line(each.get("benchmark") or "benchmark")
            known = {"ci95": _known(as_list(each.get("ci"))), "pairs": _count(each.get("n"))}
            title = f"{name} (partial)" if each.get("partial") else name
            results.append(_result((hub_id(each.get("dataset_id")) or name, title), "accuracy", "accuracy",
                                   number(each["overall"]), known))  # fmt: skip
    return results


def _result(data: tuple[str, str], kind: str, name: str, value: Any, known: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        task_name="preference prediction",
        dataset_type=data[0],
        dataset_name=data[1],
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 4),
        metric_args={key: each for key, each in known.items() if each is not None} or None,
    )


def _known(bounds: list[Any]) -> list[float] | None:
    values = [number(bound) for bound in bounds]
    return (
        [round(value, 4) for value in values if value is not None] if len(values) == 2 and None not in values else None
    )


def _count(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def write_evaluation_entries(folder: Path, record: CheckpointRecord, benchmarks: list[dict[str, Any]]) -> list[Path]:
    """Write `.eval_results/*.yaml` for results whose Hub dataset is known; what an earlier call wrote goes.

    Args:
        folder: The model folder.
        record: The model's record.
        benchmarks: Benchmark results; partial ones do not compare with others' and are left out.

    Returns:
        The files, one for each dataset.
    """
    place = folder / ENTRIES_FOLDER
    for old in place.glob(f"{_OURS}*.yaml"):
        old.unlink()
    entries: dict[str, list[EvalResultEntry]] = {}
    for entry in [*_held_out_entry(record), *_benchmark_entries(benchmarks)]:
        entries.setdefault(entry.dataset_id, []).append(entry)
    files = []
    for dataset, found in entries.items():
        place.mkdir(exist_ok=True)
        files.append(place / f"{_OURS}{dataset.replace('/', '--')}.yaml")
        content = yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True, width=1000)
        files[-1].write_text(content, encoding="utf-8")
    return files


def _held_out_entry(record: CheckpointRecord) -> list[EvalResultEntry]:
    datasets, values = hub_datasets(record), record.evaluation
    accuracy = number(values.get("accuracy"))
    if accuracy is None or len(datasets) != 1:
        return []
    parts = _interval_notes([values.get("accuracy_ci_low"), values.get("accuracy_ci_high")], values.get("num_pairs"))
    prompts, length = _count(values.get("num_prompts")), number(values.get("length_baseline"))
    parts += [f"{prompts} prompts"] if prompts is not None else []
    parts += [f"length rule {length:.4f}"] if length is not None else []
    notes = "; ".join(["pairwise accuracy on held-out pairs, a tie is wrong", *parts])
    return [EvalResultEntry(dataset_id=datasets[0], task_id="default", value=round(accuracy, 4), notes=notes)]


def _benchmark_entries(benchmarks: list[dict[str, Any]]) -> list[EvalResultEntry]:
    entries = []
    for each in benchmarks:
        dataset, overall = hub_id(each.get("dataset_id")), number(each.get("overall"))
        if dataset is None or overall is None or each.get("partial"):
            continue
        parts = [one_line(each.get("benchmark") or ""), *_interval_notes(as_list(each.get("ci")), each.get("n"))]
        ties, task = _count(each.get("ties")), one_line(each.get("task_id") or "default")
        parts += [f"{ties} ties"] if ties is not None else []
        notes = "; ".join(part for part in parts if part) or None
        entries.append(EvalResultEntry(dataset_id=dataset, task_id=task, value=round(overall, 4), notes=notes))
    return entries


def _interval_notes(bounds: list[Any], count: Any) -> list[str]:
    known, pairs = _known(bounds), _count(count)
    parts = [f"95% interval {known[0]:.4f} to {known[1]:.4f}"] if known else []
    return parts + ([f"{pairs} pairs"] if pairs is not None else [])


# --- tables of the card ----------------------------------------------------------------------------------------------


def metric_values(record: CheckpointRecord) -> dict[str, float]:
    """The metrics of the evaluation that are numbers."""
    found = {name: number(value) for name, value in record.evaluation.items()}
    return {name: value for name, value in found.items() if value is not None}


def accuracy_rows(record: CheckpointRecord) -> list[list[str]]:
    """Rule, accuracy, interval and pairs of the model and of what it has to beat; empty without an accuracy."""
    values = metric_values(record)
    if "accuracy" not in values:
        return []
    sizes = (counted(values.get("num_pairs"), "pair"), counted(values.get("num_prompts"), "prompt"))
    bounds = interval(values.get("accuracy_ci_low"), values.get("accuracy_ci_high"))
    size = ", ".join(each for each in sizes if each)
    rows = [cells("**this model** (a tie is wrong)", share(values["accuracy"]), bounds, size)]
    rows += _metric_row(values, "this model, ties count half", "accuracy_half_credit", "num_pairs")
    rows += _metric_row(values, "rule: prefer the longer response (tokens)", "length_baseline", "num_pairs")
    for each in record.baselines:
        if number(each.get("accuracy")) is not None:
            name = f"baseline: {escaped(each.get('name') or 'unnamed')}"
            bounds = interval(each.get("ci_low"), each.get("ci_high"))
            rows.append(cells(name, share(each["accuracy"]), bounds, counted(each.get("num_pairs"), "pair")))
    for side in ("longer", "shorter"):
        name = f"this model where the preferred response is {side}"
        rows += _metric_row(values, name, f"accuracy_preferred_{side}", f"num_preferred_{side}")
    return rows


def _metric_row(values: dict[str, float], label: str, name: str, count: str) -> list[list[str]]:
    return [cells(label, share(values[name]), None, counted(values.get(count), "pair"))] if name in values else []


def measure_lines(record: CheckpointRecord) -> list[str]:
    """What the evaluation says beside accuracy, a sentence each."""
    forms = {
        "tie_rate": "{:.1%} of pairs get equal rewards.",
        "log_loss": "Log loss {:.3f} nats a pair; knowing nothing scores ln 2 = 0.693.",
        "brier_score": "Brier score {:.3f}; knowing nothing scores 0.250.",
        "margin": "The preferred response's reward minus the other's: {:+.3f} on average.",
    }
    values = metric_values(record)
    return [form.format(values[name]) for name, form in forms.items() if name in values]


def source_rows(record: CheckpointRecord) -> list[list[str]]:
    """Name, accuracy, interval, length rule and pairs of each source of a mixture."""
    values, rows = metric_values(record), []
    for key in sorted(values):
        name = key.removesuffix("_accuracy")
        if name and name != key and f"{name}_num_pairs" in record.evaluation:  # else a metric of the user's own
            part = {each: values.get(f"{name}_{each}") for each in _OF_SOURCE}
            bounds = interval(part["accuracy_ci_low"], part["accuracy_ci_high"])
            size = counted(part["num_pairs"], "pair")
            rows.append(cells(escaped(name), share(values[key]), bounds, share(part["length_baseline"]), size))
    return rows


def benchmark_view(result: dict[str, Any]) -> dict[str, Any]:
    """One benchmark as a table's row, its sections in words, and what it was run without."""
    name, ties = escaped(result.get("benchmark") or "unnamed"), number(result.get("ties"))
    bounds = as_list(result.get("ci"))
    return {
        "row": cells(
            name + (" (partial)" if result.get("partial") else ""),
            share(result.get("overall")),
            interval(*bounds) if len(bounds) == 2 else None,
            counted(result.get("n"), "pair"),
            None if ties is None else f"{ties:g}",
            _shares(result.get("baselines") or {}),
        ),
        "name": name,
        "sections": _shares(result.get("sections") or {}),
        "missing": ", ".join(map(escaped, as_list(result.get("partial")))),
    }


def _shares(values: dict[str, Any]) -> str:
    return ", ".join(f"{escaped(name)} {share(value)}" for name, value in values.items() if share(value))
