"""Train a reward model against the biases that an audit found, audit it again, and compare both audits.

First everything is checked that can fail early. Then the stages follow: build rows, train, audit, measure the second
domain, compare. A finished stage is not repeated; training and audits resume from their own files.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from hf_reward.data.atomic_folder import require_free
from hf_reward.data.file_rows import from_rows
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_writable
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.data.tables.row_writers import json_line
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, PROFILES, Pair, build_inputs
from hf_reward.evaluation.audit.inputs.probe_data import read_probe_data
from hf_reward.evaluation.audit.report.evidence import EVIDENCE_FILE, write_evidence
from hf_reward.evaluation.audit.report.files import JSON_NAME, SUMMARY_NAME, read_audit, read_inputs, write_audit
from hf_reward.evaluation.audit.running import AuditRule, run_audit
from hf_reward.evaluation.audit.steps import read_rows
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.evaluation.mitigation.builders import Row, build_rows
from hf_reward.evaluation.mitigation.outcome import compare_outcomes
from hf_reward.evaluation.mitigation.plan import DECISIVE, MitigationPlan, plan_mitigation, require_same_model
from hf_reward.evaluation.mitigation.report import write_outcome
from hf_reward.evaluation.mitigation.training_pairs import require_held_out
from hf_reward.evaluation.page import as_json, write_files
from hf_reward.modeling.checkpoint_record import FILE_NAME, CheckpointRecord
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.publishing.card.render import write_model_card
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.training.mitigation_training import MitigationRule, train_on

FOLDER = "mitigation"
"""Folder of a mitigation's files in the folder of the trained model."""
_PLAN, _ROWS = "plan.json", "rows.jsonl"
_PAIRS_ONLY = replace(FULL, answers=1, questions=0, opinions=0, lists=0, doses=(2.0,), positions=("end",))
"""Profile for accuracies, with as few edited texts as possible."""


@dataclass(frozen=True, kw_only=True)
class MitigationInputs:
    """The inputs of a mitigation."""

    model: str
    """Folder or Hub id of the audited model."""
    audit: Path
    """Folder of its audit."""
    data: Any
    """Training data, as accepted by `as_sources`: one source."""
    reading: dict[str, Any]
    """`split`, `columns` and `layout` of the training data."""
    second_domain: Any = None
    """Held-out preference data of another domain."""
    audit_data: str | None = None
    """Data of the audit; by default those that the audit's `inputs.json` names."""


@dataclass(frozen=True, kw_only=True)
class _Repeat:
    """How to repeat the audit."""

    data: str
    reading: dict[str, Any]
    loading: dict[str, Any]
    probe_files: list[str]
    rule: AuditRule


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The training rows."""

    sources: list[Source]
    built: list[Row]
    counts: dict[str, Any]
    digest: str


def mitigate(
    inputs: MitigationInputs,
    out: str | Path,
    rule: MitigationRule | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a model against the biases that an audit found, and audit it again.

    The trained model, with the adapter merged, is written to `out`, and everything else to `out/mitigation`: the built
    rows, the audit, the second domain, `mitigation.json` and `mitigation.html`.

    Args:
        inputs: Model, audit and data.
        out: Folder of the trained model: new, empty, or that of an interrupted mitigation with equal inputs.
        rule: Settings of rows and training.
        progress: Called with a line at the start of each stage; with it, training shows a progress bar on a terminal.

    Returns:
        The content of `mitigation.json`: the result of `compare_outcomes`, `rows`, `plan`, `rule` and names. Empty if
        no probe of the audit is biased; nothing is then written.

    Raises:
        FileNotFoundError: If there is no audit or no data.
        FileExistsError: If `out` has other files.
        ValueError: If the audit is of another model or cannot be repeated, no rows exist against its biases, the data
            share prompts with held-out data, or an interrupted mitigation had other inputs.
    """
    rule, out = rule or MitigationRule(), Path(out)
    report = read_audit(inputs.audit)
    plan = plan_mitigation(report)
    if not (plan.kinds or plan.not_addressed):
        return {}
    _require_rows(report, plan)
    _require_output(out)
    repeat = _repeat(inputs, report)
    rows = _training_rows(inputs, plan, repeat, rule)
    scorer = RewardScorer.from_pretrained(inputs.model, **repeat.loading)
    fingerprint = scorer.fingerprint()
    require_same_model(report, fingerprint, inputs.model)
    text = FormatRule(**{name: value for name, value in fingerprint["format"].items() if name != "rows"})
    _record_plan(out, report, rows, rule)
    _write_rows(out, rows.built)
    say = progress or _silent
    second = _second_domain(inputs, scorer, out / FOLDER, "before", repeat, say)
    del scorer
    if not (out / FILE_NAME).is_file():
        say(f"Training on {rows.counts['usable']:,} rows of the data and {len(rows.built):,} rows against biases")
        work, shown = out / FOLDER / "training", progress is not None
        train_on(inputs.model, rows.sources, out, work, rule, text, repeat.loading, show_progress=shown)
    trained = RewardScorer.from_pretrained(out, **repeat.loading)
    audit = _audit(trained, repeat, out, say)
    after = _second_domain(inputs, trained, out / FOLDER, "after", repeat, say)
    found = compare_outcomes(inputs.audit, audit, None if second is None or after is None else (second, after))
    names = {"model": inputs.model, "audit": str(inputs.audit), "data": rows.counts.pop("data")}
    content = {**names, **found, "rows": rows.counts, "plan": asdict(plan), "rule": asdict(rule)}
    write_outcome(content, out / FOLDER)
    return content


def _silent(line: str) -> None:
    """Ignore a line."""


# --- checks -----------------------------------------------------------------------------------------------------------


def _require_rows(report: dict[str, Any], plan: MitigationPlan) -> None:
    """Refuse an audit whose biases have no training rows, with the audit's own advice."""
    if plan.kinds:
        return
    families = {probe["family"] for probe in report["probes"] if probe["name"] in plan.not_addressed}
    advice = " ".join(str(report["families"].get(name, {}).get("advice", "")) for name in sorted(families))
    raise ValueError(
        "A mitigation needs biases in length, format, sycophancy or degenerate answers, but the biased probes are only "
        f"{', '.join(plan.not_addressed)}. {advice}"
    )


def _require_output(out: Path) -> None:
    require_writable(out / FILE_NAME)
    if not (out / FOLDER / _PLAN).is_file():
        require_free(out, overwrite=False)


def _repeat(inputs: MitigationInputs, report: dict[str, Any]) -> _Repeat:
    """Return how to repeat an audit, from its settings and its `inputs.json`."""
    stored, settings = read_inputs(inputs.audit), report["settings"]
    data = inputs.audit_data or stored.get("data")
    if data is None:
        raise ValueError(
            f"The audit is repeated on its own data, but {inputs.audit} does not name them: it has no inputs.json. Set "
            f"`{setting('audit_data', 'FILE')}` to the data that was audited ({report['data']})."
        )
    profile = PROFILES.get(settings["profile"])
    if profile is None:
        raise ValueError(
            f"The audit's profile must be {' or '.join(PROFILES)}, but is {settings['profile']!r}. Audit the model "
            "again with `hf-reward audit`."
        )
    probe_files = list(stored.get("probe_data", ()))
    if [Path(path).name for path in probe_files] != settings["probe data"]:
        raise ValueError(
            f"The audit used probe data ({', '.join(settings['probe data'])}) whose files are unknown, because it was "
            "run from Python. Audit the model with `hf-reward audit`, or without probe data."
        )
    return _Repeat(
        data=data,
        reading=dict(stored.get("reading", {})),
        loading=dict(stored.get("loading", {})),
        probe_files=probe_files,
        rule=AuditRule(
            profile=replace(profile, max_pairs=settings["most pairs"]),
            families=tuple(settings["families"]),
            resamples=settings["resamples"],
            seed=settings["seed"],
        ),
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def _training_rows(inputs: MitigationInputs, plan: MitigationPlan, repeat: _Repeat, rule: MitigationRule) -> _Rows:
    """Read the data, check them against all held-out data, and build the rows."""
    (source,) = as_sources(inputs.data, **inputs.reading)
    raw: Any = load_source(source)
    reader = RowReader(raw, layout=source.layout, columns=source.columns)
    usable = [each for batch in reader.batches() for each in batch if each.row is not None]
    rows: list[PreferenceRow] = [each.row for each in usable if each.row is not None]
    held_out = [(repeat.data, repeat.reading)]
    held_out += [] if inputs.second_domain is None else [(inputs.second_domain, {"split": "test"})]
    for data, reading in held_out:
        name, read, _ = read_rows(data, **reading)
        require_held_out(rows, read, name)
    pairs = _pairs(rows)
    built = build_rows(pairs, plan.kinds, rule.share, rule.seed)
    numbers = [each.number for each in usable]
    original = replace(source, data=raw.select(numbers), name="training data")
    kinds = {kind: sum(row["kind"] == kind for row in built) for kind in dict.fromkeys(row["kind"] for row in built)}
    counts = {"data": source.name, "rows": len(reader), "usable": len(rows), "built": kinds}
    digest = xxhash.xxh3_128(json.dumps(numbers).encode())
    digest.update(b"".join(map(json_line, built)))
    return _Rows(sources=[original, *_sources(built)], built=built, counts=counts, digest=digest.hexdigest())


def _pairs(rows: Sequence[PreferenceRow]) -> list[Pair]:
    """Return the pairs to edit: of plain text, without options of the chat template, which built rows do not have."""
    plain = [row for row in rows if not row.template]
    return build_inputs(plain, replace(FULL, max_pairs=len(rows) * 10)).pairs


def _sources(built: Sequence[Row]) -> list[Source]:
    """Return the built rows as one source, or as two if some prompts are text and some messages."""
    parts = {
        name: [row for row in built if isinstance(row["prompt"], str) == is_text]
        for name, is_text in (("against biases, text", True), ("against biases, messages", False))
    }
    return [Source(data=from_rows(part), layout="votes", name=name) for name, part in parts.items() if part]


def _write_rows(out: Path, built: Sequence[Row]) -> None:
    write_files(out / FOLDER, {_ROWS: b"".join(map(json_line, built))})


def _record_plan(out: Path, report: dict[str, Any], rows: _Rows, rule: MitigationRule) -> None:
    """Record what the stages depend on, and refuse to resume with other inputs."""
    audited = {name: report["fingerprint"].get(name) for name in DECISIVE}
    content = {"model": audited, "probes": report["settings"], "rows": rows.digest, "rule": asdict(rule)}
    path, text = out / FOLDER / _PLAN, as_json(content)
    if not path.is_file():
        write_files(out / FOLDER, {_PLAN: text})
    elif path.read_text(encoding="utf-8") != text:
        known = json.loads(path.read_text(encoding="utf-8"))
        differing = ", ".join(name for name, value in json.loads(text).items() if known.get(name) != value)
        raise ValueError(
            f"{out} has a mitigation with other inputs ({differing} differ), and its stages cannot be reused. Name "
            "another output folder, or repeat the earlier command."
        )


# --- measuring --------------------------------------------------------------------------------------------------------


def _audit(trained: RewardScorer, repeat: _Repeat, out: Path, progress: Callable[[str], None]) -> Path:
    """Audit the trained model as the original was audited, and add the summary to its card."""
    folder = out / FOLDER / "audit"
    if not (folder / EVIDENCE_FILE).is_file():  # the last file of an audit
        progress("Auditing the trained model")
        probes = [replace(read_probe_data(path), name=Path(path).name) for path in repeat.probe_files]
        found = run_audit(trained, repeat.data, out=folder, rule=repeat.rule, probe_data=probes, **repeat.reading)
        write_audit(found, folder)
    record = CheckpointRecord.load(out)
    shutil.copyfile(folder / SUMMARY_NAME, out / SUMMARY_NAME)
    if record is not None:
        write_model_card(out, record)
    return folder


def _second_domain(
    inputs: MitigationInputs,
    scorer: RewardScorer,
    folder: Path,
    when: str,
    repeat: _Repeat,
    progress: Callable[[str], None],
) -> Path | None:
    """Measure the accuracy on the second domain; None without one."""
    if inputs.second_domain is None:
        return None
    target = folder / "second_domain" / when
    if not (target / EVIDENCE_FILE).is_file():
        progress(f"Measuring the second domain ({when} training)")
        rule = AuditRule(
            profile=_PAIRS_ONLY, families=("accuracy", "length"), resamples=repeat.rule.resamples, seed=repeat.rule.seed
        )
        found = run_audit(scorer, inputs.second_domain, out=target, rule=rule, split="test")
        write_files(target, {JSON_NAME: as_json(found.to_dict())})
        write_evidence(found.evidence, target)
    return target
