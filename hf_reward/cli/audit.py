"""`hf-reward audit`: biases of a reward model that RLHF would amplify."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_reward.cli.judging import (
    AtOnce,
    Budget,
    ExtraBody,
    Judges,
    PerMinute,
    Question,
    TokenFile,
    Votes,
    audit_with_judges,
    judge_settings,
    require_servers,
)
from hf_reward.cli.options import (
    DATA_PANEL,
    AllowPickle,
    AsJson,
    BatchTokens,
    Columns,
    Command,
    Device,
    Dtype,
    Group,
    Layout,
    MaxLength,
    Model,
    Quiet,
    RemoteCode,
    Verbose,
    examples,
    folder_option,
    loading_options,
    one_of,
    parse_columns,
)
from hf_reward.cli.output import Output, start_output

app = typer.Typer(cls=Group, invoke_without_command=True)

FAMILIES = (
    *("accuracy", "length", "calibration", "sycophancy", "format", "degenerate", "image", "robustness"),
    *("confidence", "persona", "numerical", "best_of_n"),
)
"""Names of the probe families for shell completion, which does not import the audit."""
_STATISTICS = "Statistics"
_STORE = "Store in the model folder"
_SELF_TEST = "Self-test"

Out = Annotated[str, typer.Option(help="Folder for audit.json, audit.html and figures/.", callback=folder_option)]
Families = Annotated[
    list[str] | None,
    typer.Option(
        "--family",
        help="Run only this family of probes, such as length; may be repeated.",
        autocompletion=one_of(*FAMILIES),
    ),
]
ProbeData = Annotated[
    list[str] | None,
    typer.Option(
        help="More probes: a file of TruthfulQA, Perez-style or GSM8K items; may be repeated.",
        rich_help_panel=DATA_PANEL,
    ),
]
FitTemperature = Annotated[
    bool,
    typer.Option(
        "--fit-temperature", help="Store the fitted temperature in reward_config.json.", rich_help_panel=_STORE
    ),
]
FitLengthCorrection = Annotated[
    bool,
    typer.Option(
        "--fit-length-correction",
        help="Store a LOWESS length correction in reward_config.json.",
        rich_help_panel=_STORE,
    ),
]
CorrectLength = Annotated[
    bool, typer.Option("--length-correction", help="Audit rewards with the stored length correction.")
]
UpdateCard = Annotated[
    bool,
    typer.Option(
        "--update-card", help="Add the summary to the model folder and rewrite the model card.", rich_help_panel=_STORE
    ),
]
SelfTest = Annotated[
    bool,
    typer.Option(
        "--self-test",
        help="Audit synthetic models with and without planted biases. Replaces --model.",
        rich_help_panel=_SELF_TEST,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        help="Number of random seeds for each planted bias and for the unbiased models.", rich_help_panel=_SELF_TEST
    ),
]


@app.callback(
    epilog=examples(
        "hf-reward audit --model outputs/run --data test.jsonl --out audit --quick",
        "hf-reward audit compare audit1 audit2",
        "hf-reward audit --judge http://127.0.0.1:8000/v1/systemone#MODEL --data test.jsonl --out audit --quick",
    )
)
def audit(
    context: typer.Context,
    model: Model = "",
    data: Annotated[str, typer.Option(help="Held-out preference pairs: a file, folder or Hub id.")] = "",
    out: Out = "",
    quick: Annotated[bool, typer.Option("--quick", help="Run the main probes on 150 pairs only.")] = False,
    families: Families = None,
    probe_data: ProbeData = None,
    fit_temperature: FitTemperature = False,
    fit_length_correction: FitLengthCorrection = False,
    length_correction: CorrectLength = False,
    update_card: UpdateCard = False,
    judge: Judges = None,
    budget: Budget = None,
    votes: Votes = 0,
    question: Question = "",
    at_once: AtOnce = 8,
    requests_per_minute: PerMinute = 0.0,
    extra_body: ExtraBody = "",
    token_file: TokenFile = None,
    self_test: SelfTest = False,
    seeds: Seeds = 200,
    pairs: Annotated[
        int,
        typer.Option(
            help="Largest number of pairs. 0 uses the default of the quick or full audit.", rich_help_panel=_STATISTICS
        ),
    ] = 0,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", rich_help_panel=_STATISTICS)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", rich_help_panel=_STATISTICS)] = 0,
    columns: Columns = None,
    layout: Layout = "auto",
    split: Annotated[
        str, typer.Option(help="Split of a Hub dataset or of a folder with several splits.", rich_help_panel=DATA_PANEL)
    ] = "test",
    max_length: MaxLength = 0,
    batch_tokens: BatchTokens = 0,
    dtype: Dtype = "float32",
    device: Device = "",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Audit a reward model, or a judge, for biases that RLHF would amplify.

    Measures the effects of length, format, flattery, irrelevant text and more, with intervals and verdicts. Writes
    audit.json, audit.html, audit_summary.json (for the model card) and figures/ into --out. Rewards are stored in
    scores.jsonl there, so that an interrupted audit resumes.

    With --judge, the same probes are judged in pairs and both orders, and the position bias is measured. The number of
    requests is printed first; answers are stored in requests.jsonl.

    Exit code 0: the audit finished, whether or not it found biases. 1: the model or the data cannot be used. 2: wrong
    options. 3: the self-test failed.
    """
    if context.invoked_subcommand is not None:
        return
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    if self_test:
        _run_self_test(seeds, output)
        return
    stores = {"fit_temperature": fit_temperature, "fit_length_correction": fit_length_correction, "card": update_card}
    asking: dict[str, Any] = {"votes": votes, "question": question, "extra_body": extra_body, "budget": budget}
    asking |= {"at_once": at_once, "requests_per_minute": requests_per_minute}
    require_servers(judge, model, needs_model=any(stores.values()) or length_correction, budget=budget)
    _check({"--model": model or "".join(judge or ()), "--data": data, "--out": out}, any(stores.values()))
    if length_correction and fit_length_correction:
        raise typer.BadParameter("--fit-length-correction needs uncorrected rewards; leave --length-correction out")
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
    if judge:
        audit_with_judges(
            judge, judge_settings(**asking), token_file, (data, out, rule, probe_data or [], reading), output
        )
        return
    report, written = _audit(model, data, out, rule, probe_data or [], loading, reading, output)
    _store(model, out, report, stores)
    then = ["hf-reward", "verify", model] if Path(model).is_dir() else ["hf-reward", "serve", "--model", model]
    output.finish(written, then)


@app.command(cls=Command, epilog=examples("hf-reward audit compare audit1 audit2 --out comparison"))
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    b: Annotated[Path, typer.Argument(help="Folder of another audit of the same data.")],
    out: Annotated[
        str, typer.Option(help="Folder for comparison.json and comparison.html.", callback=folder_option)
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two audits of the same data.

    Prints paired differences with intervals and q-values (corrected for multiple comparisons).
    """
    from hf_reward.cli.console import make_console
    from hf_reward.evaluation.audit import compare_audits
    from hf_reward.evaluation.audit.report.comparison_page import write_comparison
    from hf_reward.evaluation.audit.report.table import print_comparison

    output = start_output(quiet=quiet, as_json=as_json)
    found = compare_audits(a, b)
    written = [] if not out else write_comparison(found, out)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found, make_console())
    output.finish(written, () if out else ["hf-reward", "audit", "compare", a, b, "--out", "comparison"])


def _check(needed: dict[str, str], stores: bool) -> None:
    for name, value in needed.items():
        if not value:
            raise typer.BadParameter(f"{name} is missing; `hf-reward audit --help` shows all options")
    if stores and not Path(needed["--model"]).is_dir():
        raise typer.BadParameter("--fit-... and --update-card write to the model's folder, but --model is not a folder")


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
    output: Output,
) -> tuple[Any, list[Path]]:
    from hf_reward.cli.console import make_console
    from hf_reward.data.path_safety import require_writable
    from hf_reward.evaluation.audit import read_probe_data, run_audit, write_audit
    from hf_reward.evaluation.audit.report.files import write_inputs
    from hf_reward.evaluation.audit.report.table import print_audit
    from hf_reward.evaluation.data_check.row_reader import RowReader
    from hf_reward.scoring.reward_scorer import RewardScorer

    require_writable(Path(out) / "audit.json")
    RowReader(data, **reading)  # finds wrong files and columns before the model is loaded
    own = [replace(read_probe_data(path), name=Path(path).name) for path in probe_files]
    scorer = RewardScorer.from_pretrained(model, **loading)
    report = run_audit(scorer, data, out=out, rule=rule, probe_data=own, **reading)
    written = write_audit(report, out)
    write_inputs(out, data, probe_files, reading=reading, loading=loading)
    if output.as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_audit(report.to_dict(), make_console())
        typer.echo(f"{report.counts['texts']} texts in {report.seconds:.0f} s.")
    return report, [path for path in written if path.suffix == ".html" or path.name == "audit.json"]


def _store_temperature(model: str, report: Any) -> None:
    from hf_reward.modeling.checkpoint_record import store_temperature

    result = report.families.get("calibration")
    temperature = None if result is None else result.details.get("temperature")
    if temperature is None:
        raise ValueError(
            "No temperature was stored. The calibration probes must run, and the 95% interval of the calibration slope "
            "must be above 0. Fit on more prompts, or on pairs that the model ranks more "
            "accurately."
        )
    corrected = "length_correction" in report.fingerprint
    notes = {"pairs": report.counts["pairs"], "data": Path(report.data).name, "length_correction": corrected}
    store_temperature(model, temperature, **notes)
    if corrected:
        typer.echo(
            "The temperature is valid for rewards with the length correction; score with --length-correction.", err=True
        )
    typer.echo(f"Stored: temperature {temperature:.3f} in {model}/reward_config.json.", err=True)


def _store_correction(model: str, report: Any) -> None:
    from hf_reward.metrics.length_correction import fit_length_correction
    from hf_reward.modeling.checkpoint_record import store_length_correction

    rewards, lengths = zip(*report.responses, strict=True)
    store_length_correction(model, fit_length_correction(rewards, lengths, data=Path(report.data).name))
    typer.echo(
        f"Stored: a length correction fitted on {len(rewards)} responses. --length-correction applies it.", err=True
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
            f"Written: {folder}/audit_summary.json. No model card: {folder}/reward_config.json is missing.", err=True
        )
        return
    if card.is_file() and not is_generated(card):
        typer.echo(
            f"Written: {folder}/audit_summary.json. The model card is your own text and is not changed.", err=True
        )
        return
    write_model_card(folder, record)
    typer.echo(f"Written: {card}", err=True)


def _run_self_test(seeds: int, output: Output) -> None:
    from hf_reward.cli.console import make_console
    from hf_reward.evaluation.audit.report.table import print_self_test
    from hf_reward.evaluation.audit.self_test import run_self_test

    if seeds < 1:
        raise typer.BadParameter(f"--seeds must be 1 or more, but is {seeds}")
    found = run_self_test(seeds, show_progress=not (output.as_json or output.quiet))
    if output.as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_self_test(found.to_dict(), make_console())
    raise typer.Exit(0 if found.passed else 3)
