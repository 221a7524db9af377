"""Build the front matter of the model card. The user's values are checked here, before the Hub would reject them."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.hub_names import averaged_models, base_models, hub_datasets, refusal
from hf_reward.publishing.card.text import hub_id, one_line, without_paths
from hf_reward.publishing.card.values import as_list, number, rounded_bounds, whole_number

_LANGUAGE = re.compile(r"([a-z]{2,3})(-[A-Za-z0-9]+)*|code|multilingual")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_COMPUTED = (
    *("base_model_relation", "datasets", "eval_results", "library_name", "metrics", "model-index", "model_index"),
    *("pipeline_tag", "ignore_metadata_errors"),
)
_NOT_METADATA = ("model_name", "dataset", "dataset_tags", "dataset_args", "tasks", "finetuned_from", "base_model")
_OWN_TAGS = ("reward-model", "hf_reward", "rlhf", "preference-model")
_METRICS = {
    "accuracy": "accuracy (a tie is wrong)",
    "log_loss": "log loss (nats)",
    "brier_score": "Brier score",
}


def card_metadata(facts: CardFacts) -> ModelCardData:
    """Return the front matter of a card.

    Args:
        facts: Inputs of the card; `facts.record.card` contains the user's values.

    Returns:
        Metadata whose YAML can be parsed again.

    Raises:
        ValueError: If a value is not allowed in the metadata of a card.
    """
    record, card = facts.record, facts.record.card
    models, datasets = base_models(record), hub_datasets(record)
    results = [*_held_out_results(facts, datasets), *_benchmark_results(facts.benchmarks)]
    relation = "merge" if averaged_models(record) else ("adapter" if facts.is_adapter else "finetune")
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
        model_name=facts.title if results else None,
        eval_results=results or None,
        **_extra(card),
    )


def _language(value: Any) -> str | list[str] | None:
    for code in as_list(value):
        if not isinstance(code, str) or not _LANGUAGE.fullmatch(code):
            raise refusal("language", code, "a lower-case ISO 639 code such as 'en', 'code', 'multilingual', or a list")
    return value or None


def _license(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not _LICENSE.fullmatch(value.lower()):
        raise refusal("license", value, "a licence identifier of the Hub such as 'apache-2.0', or 'other'")
    return value.lower()


def _tags(record: CheckpointRecord) -> list[str]:
    trained = number(record.training.get("steps")) and not record.origin.get("imported_from")
    tags = as_list(record.card.get("tags"))
    for tag in tags:
        if not isinstance(tag, str) or not tag or tag != one_line(tag):
            raise refusal("tags", tag, "text on one line, or a list of such texts")
    return list(dict.fromkeys([*_OWN_TAGS, *(["generated_from_trainer"] if trained else []), *tags]))


def _extra(card: dict[str, Any]) -> dict[str, Any]:
    """Return the user's other metadata, without the fields of the Trainer's card that are not metadata."""
    extra = {}
    for key, value in card.items():
        if key in ("language", "license", "tags", *_NOT_METADATA) or value is None:
            continue
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z][\w\-]*", key) or key in _COMPUTED:
            raise refusal(str(key), value, "left out: the card computes it" if key in _COMPUTED else "a plain name")
        if not _is_plain(value):
            raise refusal(key, value, "text, a finite number, true, false, or lists and dicts of them")
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


# --- the `model-index`: interval and counts beside each value ---------------------------------------------------------


def _held_out_results(facts: CardFacts, datasets: list[str]) -> list[EvalResult]:
    values = facts.values
    known = {
        "ci95": rounded_bounds([values.get("accuracy_ci_low"), values.get("accuracy_ci_high")]),
        "pairs": whole_number(values.get("num_pairs")),
        "prompts": whole_number(values.get("num_prompts")),
    }
    own = datasets * 2 if len(datasets) == 1 else ["held-out-preferences", "held-out preference pairs"]
    data = {"dataset_type": own[0], "dataset_name": own[1]}
    return [
        _result(kind, name, values[kind], known if kind == "accuracy" else {}, **data)
        for kind, name in _METRICS.items()
        if kind in values
    ]


def _benchmark_results(benchmarks: list[dict[str, Any]]) -> list[EvalResult]:
    results = []
    for each in benchmarks:
        overall = number(each.get("overall"))
        if overall is not None:
            name = one_line(each.get("benchmark") or "benchmark")
            known = {"ci95": rounded_bounds(as_list(each.get("ci"))), "pairs": whole_number(each.get("n"))}
            data_name = one_line(without_paths(str(each.get("data_name") or "")))
            named = f"{name} ({data_name})" if data_name else name
            data = {
                "dataset_type": hub_id(each.get("dataset_id")) or named,
                "dataset_name": f"{named} (partial)" if each.get("partial") else named,
            }
            results.append(_result("accuracy", "accuracy", overall, known, **data))
    return results


def _result(kind: str, name: str, value: float, known: dict[str, Any], **data: Any) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        task_name="preference prediction",
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 4),
        metric_args={key: each for key, each in known.items() if each is not None} or None,
        **data,
    )
