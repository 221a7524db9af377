"""Write the results of the card to `.eval_results/*.yaml`. The Hub shows these results on the pages of the datasets."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hf_reward.metrics.counts import counted
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.publishing.card.facts import CardFacts
from hf_reward.publishing.card.hub_names import hub_datasets
from hf_reward.publishing.card.text import hub_id, one_line
from hf_reward.publishing.card.values import as_list, number, rounded_bounds, whole_number

ENTRIES_FOLDER = ".eval_results"
_OWN_PREFIX = "hf_reward--"
"""Prefix of the files in `.eval_results` that hf_reward writes and replaces."""
ENTRIES = f"{ENTRIES_FOLDER}/*.yaml"
OWN_ENTRIES = f"{ENTRIES_FOLDER}/{_OWN_PREFIX}*.yaml"


def write_evaluation_entries(facts: CardFacts) -> list[Path]:
    """Write `.eval_results/*.yaml` for results whose Hub dataset is known. Files of earlier calls are removed.

    Args:
        facts: Inputs of the card. Partial benchmarks are left out, because they are not comparable.

    Returns:
        The files, one for each dataset.
    """
    place = facts.folder / ENTRIES_FOLDER
    for old in place.glob(f"{_OWN_PREFIX}*.yaml"):
        old.unlink()
    entries: dict[str, list[EvalResultEntry]] = {}
    for entry in [*_held_out_entry(facts.record), *_benchmark_entries(facts.benchmarks)]:
        entries.setdefault(entry.dataset_id, []).append(entry)
    files = []
    for dataset, found in entries.items():
        place.mkdir(exist_ok=True)
        files.append(place / f"{_OWN_PREFIX}{dataset.replace('/', '--')}.yaml")
        content = yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True, width=1000)
        files[-1].write_text(content, encoding="utf-8")
    return files


def _held_out_entry(record: CheckpointRecord) -> list[EvalResultEntry]:
    datasets, values = hub_datasets(record), record.evaluation
    accuracy = number(values.get("accuracy"))
    if accuracy is None or len(datasets) != 1:
        return []
    parts = _interval_notes([values.get("accuracy_ci_low"), values.get("accuracy_ci_high")], values.get("num_pairs"))
    prompts, length = whole_number(values.get("num_prompts")), number(values.get("length_baseline"))
    parts += [counted(prompts, "prompt")] if prompts is not None else []
    parts += [f"length baseline {length:.4f}"] if length is not None else []
    notes = "; ".join(["pairwise accuracy on held-out pairs, a tie is wrong", *parts])
    return [EvalResultEntry(dataset_id=datasets[0], task_id="default", value=round(accuracy, 4), notes=notes)]


def _benchmark_entries(benchmarks: list[dict[str, Any]]) -> list[EvalResultEntry]:
    entries = []
    for each in benchmarks:
        dataset, overall = hub_id(each.get("dataset_id")), number(each.get("overall"))
        if dataset is None or overall is None or each.get("partial"):
            continue
        parts = [one_line(each.get("benchmark") or ""), *_interval_notes(as_list(each.get("ci")), each.get("n"))]
        ties, task = whole_number(each.get("ties")), one_line(each.get("task_id") or "default")
        parts += [counted(ties, "tie")] if ties is not None else []
        notes = "; ".join(part for part in parts if part) or None
        entries.append(EvalResultEntry(dataset_id=dataset, task_id=task, value=round(overall, 4), notes=notes))
    return entries


def _interval_notes(bounds: list[Any], count: Any) -> list[str]:
    known, pairs = rounded_bounds(bounds), whole_number(count)
    parts = [f"95% interval {known[0]:.4f} to {known[1]:.4f}"] if known else []
    return parts + ([counted(pairs, "pair")] if pairs is not None else [])
