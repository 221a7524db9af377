"""Record, audit and benchmarks -> README.md of a model folder, from `model_card_template.md`."""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined, Template

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.biases import PICTURE_FILE, audit_rows, bias_sentences, draw_audit
from hf_reward.publishing.card.evaluation_entries import write_evaluation_entries
from hf_reward.publishing.card.facts import AUDIT_FILE, BENCHMARKS_FILE, CardFacts, read_json
from hf_reward.publishing.card.glance import glance_lines, summary_sentence
from hf_reward.publishing.card.metadata import card_metadata
from hf_reward.publishing.card.origin import import_lines, license_sentence, limit_lines
from hf_reward.publishing.card.results import accuracy_rows, benchmark_views, has_intervals, measure_lines, source_rows
from hf_reward.publishing.card.text import escaped, fenced, one_line
from hf_reward.publishing.card.training import settings_lines, training_lines
from hf_reward.publishing.card.usage import scale_lines, snippet_choices
from hf_reward.publishing.card.values import cells
from hf_reward.publishing.compatibility import Verdict

TEMPLATE = "model_card_template.md"
_MARK = "<!-- written by hf_reward; a push keeps any edit above this line: "
_MARK_0_1 = "<!-- written by hf_reward; edit freely above, a push then keeps your text: "


def template_path() -> Path:
    """Return the path of the template: in the package of a wheel, at the top of the repository in a checkout."""
    packaged = Path(str(files("hf_reward"))) / TEMPLATE
    return packaged if packaged.is_file() else Path(__file__).parents[3] / TEMPLATE


@lru_cache
def _template() -> Template:
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    return environment.from_string(template_path().read_text(encoding="utf-8"))


def write_model_card(
    folder: str | Path,
    record: CheckpointRecord,
    *,
    compatibility: Sequence[Verdict] | None = None,
    model_id: str | None = None,
    title: str | None = None,
) -> Path:
    """Write README.md, `.eval_results/*.yaml` and the figure of the audit into a model folder.

    Audit and benchmark results are read from `audit_summary.json` and `benchmark_results.json`, if the folder has them.

    Args:
        folder: The model folder.
        record: Record of the model.
        compatibility: Verdict on each program that may load the model.
        model_id: Hub id that the snippets load; by default they load the name of the folder.
        title: Final name of the folder, if the folder is renamed later.

    Returns:
        Path of the card.

    Raises:
        ValueError: If a value of `record.card` is not allowed in a card, or a result file is damaged.
    """
    folder = Path(folder)
    facts = _gather(folder, record, compatibility or [], model_id, title or folder.resolve().name)
    metadata = card_metadata(facts)
    text = _template().render(metadata=metadata.to_yaml(), has_picture=draw_audit(facts), **_sections(facts))
    path = folder / "README.md"
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"  # sections that are left out leave blank lines
    ModelCard(f"{text}\n{_MARK}{_digest(text)} -->\n").save(path)
    write_evaluation_entries(facts)
    return path


def check_card(values: dict[str, Any]) -> None:
    """Check the user's values for the card before a run starts, not at the first save.

    Args:
        values: `license`, `language`, `dataset`, ... as for `CheckpointRecord.card`.

    Raises:
        ValueError: If a value is not allowed; the message states the allowed values.
    """
    blank = CheckpointRecord(
        format={}, reads="last_token", pad_token_id=None, template_hash=None, tokenizer_hash="", card=values
    )
    with tempfile.TemporaryDirectory() as empty:
        card_metadata(_gather(Path(empty), blank, [], None, "model"))


def is_generated(path: str | Path) -> bool:
    """Return whether a card is unchanged since `write_model_card`. A push does not replace an edited card.

    Args:
        path: The card.

    Returns:
        False after any edit, except for changed line endings, which Git may convert.
    """
    card = Path(path).read_text(encoding="utf-8").replace(_MARK_0_1, _MARK)  # `read_text` normalises line endings
    text, mark, digest = card.rpartition(f"\n{_MARK}")
    return bool(mark) and digest == f"{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _gather(
    folder: Path, record: CheckpointRecord, compatibility: Sequence[Verdict], model_id: str | None, name: str
) -> CardFacts:
    try:
        validate_repo_id(model_id)
    except HFValidationError as error:
        raise ValueError(f"`model_id` must be a Hub id such as 'org/name', but is {model_id!r}: {error}") from None
    audit, benchmarks = read_json(folder / AUDIT_FILE, dict), read_json(folder / BENCHMARKS_FILE, list)
    if not all(isinstance(each, dict) for each in [*benchmarks, *(audit.get("probes") or [])]):
        files = f"{folder / AUDIT_FILE} and {BENCHMARKS_FILE}"
        raise ValueError(f"{files} must list objects. Rerun the commands that wrote these files.")
    return CardFacts(
        folder=folder,
        record=record,
        audit=audit,
        benchmarks=benchmarks,
        compatibility=compatibility,
        title=one_line(record.card.get("model_name") or "") or one_line(name) or "reward model",
        model_id=model_id or re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "reward-model",
        has_id=model_id is not None,
    )


def _sections(facts: CardFacts) -> dict[str, Any]:
    """Return the variables of the template."""
    record = facts.record
    settings, command = settings_lines(facts), fenced(str(record.training.get("command") or ""))
    return {
        "title": escaped(facts.title),
        "summary": summary_sentence(facts),
        "glance": glance_lines(facts),
        "usage": snippet_choices(facts),
        "imported": import_lines(facts),
        "compatibility": [cells(*(one_line(each).replace("|", "\\|") for each in row)) for row in facts.compatibility],
        "accuracies": accuracy_rows(facts),
        "measures": measure_lines(facts),
        "has_intervals": has_intervals(facts),
        "sources": source_rows(facts),
        "benchmarks": benchmark_views(facts),
        "audit": {"summary": escaped(facts.audit.get("summary") or ""), "rows": audit_rows(facts)},
        "picture": PICTURE_FILE,
        "biases": bias_sentences(facts),
        "scale": scale_lines(facts),
        "training": training_lines(facts),
        "settings": settings,
        "limits": limit_lines(facts),
        "command": command,
        "has_local": "LOCAL/" in "".join([command, *settings]),
        "versions": ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in record.versions.items()),
        "license": license_sentence(facts),
    }
