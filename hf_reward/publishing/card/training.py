"""Record of the training -> sentences on data, loss and steps, and the settings as YAML."""

import json
import re
from typing import Any

from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.hub_names import hub_datasets
from hf_reward.publishing.card.text import escaped, fenced, hub_id, one_line
from hf_reward.publishing.card.values import as_list, counted, number, share

LOSSES = {
    "bradley_terry": "Bradley-Terry",
    "hinge": "hinge",
    "rao_kupper": "Rao-Kupper (models ties)",
    "davidson": "Davidson (models ties)",
    "plackett_luce": "Plackett-Luce (ranked lists)",
}
_CHANGES = {
    "cut": "truncated prompts",
    "merged": "identical responses merged",
    "duplicates": "duplicate rows",
    "prompts_differed": "rows with two different prompts",
}
_PRIVATE = re.compile(r"(hub|auth|access)_token|api_key|secret|password", re.IGNORECASE)


def training_lines(facts: CardFacts) -> list[str]:
    """Return sentences on data, loss and steps."""
    record, training = facts.record, facts.record.training
    lines = [_data_sentence(name, summary) for name, summary in (training.get("data") or {}).items()]
    datasets = hub_datasets(record)
    if datasets:
        named = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        lines.insert(0, f"Data on the Hub: {named}.")
    options = {name: value for name, value in record.loss.items() if name != "loss_type" and value}
    if record.loss.get("loss_type"):
        shown = ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in options.items())
        kind = str(record.loss["loss_type"])
        lines.append(f"Loss: {LOSSES.get(kind, escaped(kind))}{f' ({shown})' if shown else ''}.")
    steps = counted(training.get("steps") or None, "optimizer step")
    return [*lines, f"{steps}."] if steps else lines


def settings_lines(facts: CardFacts) -> list[str]:
    """Return the settings as YAML lines, without secrets."""
    settings = facts.record.training.get("settings") or {}
    shown = {name: value for name, value in settings.items() if not _PRIVATE.search(str(name)) and value is not None}
    lines = [f"{one_line(name)}: {json.dumps(value, ensure_ascii=False, default=str)}" for name, value in shown.items()]
    return [fenced(line) for line in lines]


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
    notes += [f"tokens in the longest sequence of a row: {', '.join(sizes)}"] if sizes else []
    longer = share(summary.get("longer_preferred"))
    notes += (
        [f"the longer response is preferred in {longer} of {counted(summary.get('num_pairs') or 0, 'pair')}"]
        if longer
        else []
    )
    named = [each for each in as_list(summary.get("sources")) if hub_id(each)]
    notes += [f"sources: {', '.join(named)}"] if named else []
    return "; ".join(parts + notes) + "."
