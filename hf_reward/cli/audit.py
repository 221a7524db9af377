"""`hf-reward audit`: what would RLHF amplify?"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.options import (
    AllowPickle,
    BatchTokens,
    Columns,
    Device,
    Dtype,
    Layout,
    MaxLength,
    Model,
    RemoteCode,
    folder_option,
    loading_options,
    parse_columns,
)
from hf_reward.cli.output import quiet, quiet_data

app = typer.Typer(add_completion=False, invoke_without_command=True)


Out = Annotated[str, typer.Option(help="Folder for audit.json, audit.html and figures/.", callback=folder_option)]
Families = Annotated[
    list[str] | None, typer.Option("--family", help="Only this family of probes, such as length; may be repeated.")
]
ProbeData = Annotated[
    list[str] | None,
    typer.Option(help="More items: a TruthfulQA, Perez-style or GSM8K solutions file; may be repeated."),
]
FitTemperature = Annotated[
    bool, typer.Option("--fit-temperature", help="Store the temperature in the model's reward_config.json.")
]
FitLengthCorrection = Annotated[
    bool, typer.Option("--fit-length-correction", help="Store a LOWESS correction for length in reward_config.json.")
]
CorrectLength = Annotated[
    bool, typer.Option("--length-correction", help="Audit the rewards with the stored correction applied.")
]
UpdateCard = Annotated[
    bool, typer.Option("--update-card", help="Put the summary into the model's folder and write its card anew.")
]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Instead: audit synthetic models with planted faults, and clean ones.")
]
Seeds = Annotated[int, typer.Option(help="Data sets of the self-test, for each fault and for the clean model.")]


@app.callback()
def audit(
    context: typer.Context,
    model: Model = "",
    data: Annotated[str, typer.Option(help="Held-out preference pairs: a file, folder or Hub id.")] = "",
    out: Out = "",
    quick: Annotated[bool, typer.Option("--quick", help="A first look: 150 pairs, the main families.")] = False,
    families: Families = None,
    probe_data: ProbeData = None,
    fit_temperature: FitTemperature = False,
    fit_length_correction: FitLengthCorrection = False,
    length_correction: CorrectLength = False,
    update_card: UpdateCard = False,
    self_test: SelfTest = False,
    seeds: Seeds = 200,
    pairs: Annotated[int, typer.Option(help="Most pairs to look at; 0 is the profile's own number.")] = 0,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    columns: Columns = None,
    layout: Layout = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub id or of a folder that has several.")] = "test",
    max_length: MaxLength = 0,
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")] = False,
) -> None:
    """Look for what RLHF would amplify: length, flattery, format, junk and more, with intervals and verdicts.

    Writes audit.json, audit.html (one page that needs nothing else),
    audit_summary.json (for the model card) and figures/ into --out. Rewards are
    kept in scores.jsonl there, so a stopped audit goes on.

    Exit code 0: done, whatever was found. 1: the model or the data cannot be
    used. 2: wrong options. 3: the self-test failed.
    """
    if context.invoked_subcommand is not None:
        return
    quiet()
    if self_test:
        _run_self_test(seeds, as_json=as_json)
        return
    stores = {"fit_temperature": fit_temperature, "fit_length_correction": fit_length_correction, "card": update_card}
    _check({"--model": model, "--data": data, "--out": out}, any(stores.values()))
    if length_correction and fit_length_correction:
        raise typer.BadParameter("--fit-length-correction needs rewards as they are; leave --length-correction out")
    loading = loading_options(
        dtype,
        device=device,
        max_length=max_length,
        batch_tokens=batch_tokens,
        length_correction=length_correction,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    reading = {"columns": parse_columns(columns), "layout": layout, "split": split}
    rule = _rule("quick" if quick else "full", pairs, tuple(families or ()), resamples, seed)
    report = _audit(model, data, out, rule, probe_data or [], loading, reading, as_json=as_json)
    _store(model, out, report, stores)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one audit.")],
    b: Annotated[Path, typer.Argument(help="Folder of another audit, on the same data.")],
    out: Annotated[
        str, typer.Option(help="Write comparison.json and comparison.html into this folder.", callback=folder_option)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Set two audits side by side: paired differences with intervals, corrected for their number."""
    from hf_reward.evaluation.audit import compare_audits
    from hf_reward.evaluation.audit.report.comparison_page import write_comparison
    from hf_reward.evaluation.audit.report.table import print_comparison

    quiet()
    found = compare_audits(a, b)
    if out:
        write_comparison(found, out)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found)


def _check(needed: dict[str, str], stores: bool) -> None:
    for name, value in needed.items():
        if not value:
            raise typer.BadParameter(f"{name} is missing; `hf-reward audit --help` shows all options")
    if stores and not Path(needed["--model"]).is_dir():
        raise typer.BadParameter("what is fitted is stored in the model's folder, but --model is none")


def _store(model: str, out: str, report: Any, stores: dict[str, bool]) -> None:
    if stores["fit_temperature"]:
        _store_temperature(model, report)
    if stores["fit_length_correction"]:
        _store_correction(model, report)
    if stores["card"]:
        _update_card(model, out)


def _rule(profile: str, pairs: int, families: tuple[str, ...], resamples: int, seed: int) -> Any:
    from hf_reward.evaluation.audit import PROFILES, AuditRule

    chosen = PROFILES[profile]
    if pairs:
        chosen = replace(chosen, max_pairs=pairs)
    try:
        return AuditRule(profile=chosen, families=families, resamples=resamples, seed=seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _audit(
    model: str,
    data: str,
    out: str,
    rule: Any,
    probe_files: list[str],
    loading: dict[str, Any],
    reading: dict[str, Any],
    *,
    as_json: bool,
) -> Any:
    from hf_reward.data.path_safety import require_writable
    from hf_reward.evaluation.audit import read_probe_data, run_audit, write_audit
    from hf_reward.evaluation.audit.report.table import print_audit
    from hf_reward.evaluation.data_check.row_reader import RowReader
    from hf_reward.scoring.reward_scorer import RewardScorer

    quiet_data()
    require_writable(Path(out) / "audit.json")
    RowReader(data, **reading)  # files and columns that are wrong, before a model is loaded
    own = [replace(read_probe_data(path), name=Path(path).name) for path in probe_files]
    scorer = RewardScorer.from_pretrained(model, **loading)
    report = run_audit(scorer, data, out=out, rule=rule, probe_data=own, **reading)
    written = write_audit(report, out)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return report
    print_audit(report.to_dict())
    pages = ", ".join(str(path) for path in written if path.suffix == ".html" or path.name == "audit.json")
    typer.echo(f"{report.counts['texts']} texts in {report.seconds:.0f} s. Written: {pages}")
    return report


def _store_temperature(model: str, report: Any) -> None:
    from hf_reward.modeling.checkpoint_record import store_temperature

    result = report.families.get("calibration")
    temperature = None if result is None else result.details.get("temperature")
    if temperature is None:
        raise ValueError(
            "No temperature was stored: a slope whose whole 95% interval is above 0 is required, but these pairs give "
            "none (or the family calibration was not run). Fit on more prompts, or on pairs that the model can tell "
            "apart."
        )
    corrected = "length_correction" in report.fingerprint
    notes = {"pairs": report.counts["pairs"], "data": Path(report.data).name, "length_correction": corrected}
    store_temperature(model, temperature, **notes)
    if corrected:
        typer.echo("The temperature is for rewards with the length correction: score with it.", err=True)
    typer.echo(f"Stored: temperature {temperature:.3f} in {model}/reward_config.json, for compare.", err=True)


def _store_correction(model: str, report: Any) -> None:
    from hf_reward.metrics.length_correction import fit_length_correction
    from hf_reward.modeling.checkpoint_record import store_length_correction

    rewards, lengths = zip(*report.responses, strict=True)
    store_length_correction(model, fit_length_correction(rewards, lengths, data=Path(report.data).name))
    typer.echo(
        f"Stored: a length correction fitted on {len(rewards)} responses; `--length-correction` applies it.", err=True
    )


def _update_card(model: str, out: str) -> None:
    import shutil

    from hf_reward.modeling.checkpoint_record import CheckpointRecord
    from hf_reward.publishing.card.render import is_generated, write_model_card

    folder = Path(model)
    shutil.copyfile(Path(out) / "audit_summary.json", folder / "audit_summary.json")
    record, card = CheckpointRecord.load(folder), folder / "README.md"
    if record is None:
        typer.echo(
            f"{folder}/audit_summary.json is written; a card needs reward_config.json, which is missing.", err=True
        )
        return
    if card.is_file() and not is_generated(card):
        typer.echo(f"{folder}/audit_summary.json is written; its card is your own text and stays as it is.", err=True)
        return
    write_model_card(folder, record)
    typer.echo(f"Written: {card}", err=True)


def _run_self_test(seeds: int, *, as_json: bool) -> None:
    from hf_reward.evaluation.audit.report.table import print_self_test
    from hf_reward.evaluation.audit.self_test import run_self_test

    if seeds < 1:
        raise typer.BadParameter(f"--seeds must be 1 or more, but is {seeds}")
    found = run_self_test(seeds, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_self_test(found.to_dict())
    raise typer.Exit(0 if found.passed else 3)
