"""Metadata of model cards and evaluation result files that the test Hub accepts.

The rules and the wording of the errors follow the Hub as far as they are known. This is stricter where the Hub warns or
does not look (an unknown `pipeline_tag`, `license: other` without a name, a base model without a namespace), so that a
test sees the mistake.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from huggingface_hub import parse_eval_result_entries


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = _words("""
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
""")
PIPELINE_TAGS = _words("""
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation fill-mask sentence-similarity text-ranking
    text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression time-series-forecasting text-to-video
    image-text-to-text image-text-to-image image-text-to-video visual-question-answering document-question-answering
    zero-shot-image-classification zero-shot-object-detection graph-ml mask-generation text-to-3d image-to-3d
    image-feature-extraction audio-text-to-text video-text-to-text visual-document-retrieval keypoint-detection
    any-to-any other
""")
TWO_LETTER_LANGUAGES = _words("""
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss
    st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
""")
SPECIAL_LANGUAGES = frozenset({"code", "multilingual"})
MODELS_WITHOUT_NAMESPACE = _words("""
    gpt2 gpt2-medium gpt2-large gpt2-xl distilgpt2 bert-base-uncased bert-base-cased bert-large-uncased roberta-base
    roberta-large distilroberta-base distilbert-base-uncased t5-small t5-base t5-large xlm-roberta-base
""")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
HUB_ID = re.compile(rf"{_NAME}/{_NAME}")
DATASET_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}")
FRONT_MATTER = re.compile(
    r"\A\ufeff?\s*---[ \t]*\r?\n(?P<metadata>.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)


class InvalidMetadata(ValueError):
    """Metadata that the Hub refuses; `errors` holds one message per mistake."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def read_metadata(card: str) -> dict[str, Any]:
    """The front matter of a card; empty where it has none.

    Raises:
        InvalidMetadata: if the front matter is no YAML mapping.
    """
    match = FRONT_MATTER.match(card)
    if match is None:
        return {}
    try:
        metadata = yaml.safe_load(match["metadata"])
    except yaml.YAMLError as error:
        raise InvalidMetadata([f"Invalid YAML in the metadata of README.md: {error}"]) from error
    if metadata is not None and not isinstance(metadata, dict):
        raise InvalidMetadata(["The metadata of README.md must be a mapping"])
    return metadata or {}


def check_card(card: str, kind: str = "model") -> dict[str, Any]:
    """Read the metadata of a card, and check those of a model.

    Raises:
        InvalidMetadata: if any field is not what the Hub accepts.
    """
    metadata = read_metadata(card)
    if kind == "model" and (errors := list(_card_errors(metadata))):
        raise InvalidMetadata(errors)
    return metadata


def check_evaluation_results(content: bytes, path: str) -> list[dict[str, Any]]:
    """Read and check a `.eval_results/*.yaml` file with the parser of huggingface_hub.

    Raises:
        InvalidMetadata: if it is no list of entries, each with a dataset, a task and a value.
    """
    try:
        entries = yaml.safe_load(content)
        if not isinstance(entries, list) or not entries:
            raise TypeError("it must be a list of results")
        if len(parse_eval_result_entries(entries)) != len(entries):  # an entry with "error" is skipped
            raise ValueError("a result must not have an `error`")
        for entry in entries:
            if not HUB_ID.fullmatch(entry["dataset"]["id"]):
                raise ValueError(f"{entry['dataset']['id']!r} is no dataset id")
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidMetadata([f"Invalid evaluation results in {path}: {error!r}"]) from error
    return entries


def _card_errors(metadata: Mapping[str, Any]) -> Iterable[str]:
    for field, (is_valid, message) in VALUE_RULES.items():
        for value in _as_list(metadata.get(field)):
            if not is_valid(value):
                yield f'"{field}" with value "{value}" is not valid. {message}'
    for field in ("tags", "metrics"):
        if metadata.get(field) is not None and not isinstance(metadata[field], list):
            yield f'"{field}" must be an array'
    for field in ("pipeline_tag", "library_name"):
        if isinstance(metadata.get(field), list):
            yield f'"{field}" must be a string'
    if metadata.get("license") == "other" and not _is_text(metadata.get("license_name")):
        yield '"license_name" is required when "license" is "other"'
    if "model-index" in metadata:
        yield from _model_index_errors(metadata["model-index"])


def _model_index_errors(index: Any) -> Iterable[str]:
    if not isinstance(index, list) or not index:
        yield '"model-index" must be an array'
        return
    for model_number, model in enumerate(index):
        place = f"model-index[{model_number}]"
        if not _is_text(_get(model, "name")):
            yield f'"{place}.name" is required'
        results = _get(model, "results")
        if not isinstance(results, list):  # the stock card of a Trainer has an empty one
            yield f'"{place}.results" must be an array'
            continue
        for result_number, result in enumerate(results):
            yield from _result_errors(result, f"{place}.results[{result_number}]")


def _result_errors(result: Any, place: str) -> Iterable[str]:
    for part, field in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        if not _is_text(_get(_get(result, part), field)):
            yield f'"{place}.{part}.{field}" is required'
    metrics = _get(result, "metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'"{place}.metrics" must be an array'
        return
    for number, metric in enumerate(metrics):
        if not _is_text(_get(metric, "type")):
            yield f'"{place}.metrics[{number}].type" is required'
        if _get(metric, "value") is None:
            yield f'"{place}.metrics[{number}].value" is required'


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _get(value: Any, field: str) -> Any:
    return value.get(field) if isinstance(value, dict) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_language(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return value in TWO_LETTER_LANGUAGES | SPECIAL_LANGUAGES or re.fullmatch(r"[a-z]{3}", value) is not None


def _one_of(names: frozenset[str]) -> Callable[[Any], bool]:
    return lambda value: _is_text(value) and value in names


def _is_base_model(value: Any) -> bool:
    return _is_text(value) and (HUB_ID.fullmatch(value) is not None or value in MODELS_WITHOUT_NAMESPACE)


def _is_dataset(value: Any) -> bool:
    return _is_text(value) and DATASET_ID.fullmatch(value) is not None


# what each value of a field has to be, and what the Hub advises otherwise
VALUE_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (_one_of(LICENSES), f"It must be one of [{', '.join(sorted(LICENSES))}]."),
    "language": (
        _is_language,
        "It must be an ISO 639-1, 639-2 or 639-3 code (two/three lowercase letters), or a special value like "
        '"code", "multilingual".',
    ),
    "pipeline_tag": (_one_of(PIPELINE_TAGS), "It is not in the official list of pipeline tags."),
    "base_model": (_is_base_model, "Use a model id from https://hf.co/models."),
    "datasets": (_is_dataset, "Use a dataset id from https://hf.co/datasets."),
    "library_name": (_is_text, "It must be a string."),
    "model_name": (_is_text, "It must be a string."),
    "license_name": (_is_text, "It must be a string."),
    "license_link": (_is_text, "It must be a string."),
    "tags": (_is_text, "It must be a string."),
    "metrics": (_is_text, "It must be a string."),
}
