"""`hf-reward mitigate`: train a reward model against the biases that its audit found."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_reward.cli.options import (
    DATA_PANEL,
    AsJson,
    Columns,
    Layout,
    Model,
    Quiet,
    Verbose,
    folder_option,
    parse_columns,
)
from hf_reward.cli.output import start_output

_TRAINING = "Training"


def mitigate(
    audit: Annotated[Path, typer.Option("--audit", help="Folder of the model's audit, from `hf-reward audit`.")],
    model: Model,
    data: Annotated[str, typer.Option("--data", help="Training pairs: a file, folder or Hub id.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of the new model; tables are in mitigation/.", callback=folder_option),
    ],
    second_domain: Annotated[
        str,
        typer.Option(
            help="Held-out pairs of another domain, on which accuracy should not fall.", rich_help_panel=DATA_PANEL
        ),
    ] = "",
    audit_data: Annotated[
        str,
        typer.Option(
            help="Data of the audit, if they have moved or the audit was run from Python.", rich_help_panel=DATA_PANEL
        ),
    ] = "",
    columns: Columns = None,
    layout: Layout = "auto",
    split: Annotated[
        str, typer.Option(help="Split of a Hub dataset or of a folder with several splits.", rich_help_panel=DATA_PANEL)
    ] = "train",
    share: Annotated[
        float,
        typer.Option(
            help="Built rows of each biased family, as a fraction of the training pairs.", rich_help_panel=_TRAINING
        ),
    ] = 0.5,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights instead of a LoRA adapter.", rich_help_panel=_TRAINING)
    ] = False,
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Peak learning rate; 0 is 5e-4, or 2e-5 with --full.", rich_help_panel=_TRAINING, show_default=False
        ),
    ] = 0.0,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.", rich_help_panel=_TRAINING)] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.", rich_help_panel=_TRAINING)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of rows and training.", rich_help_panel=_TRAINING)] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a reward model against the biases in its audit, and audit it again.

    Builds rows against biases in length, format, sycophancy and degenerate answers: edited versions of answers as
    ties, and junk as rejected responses, in other wordings than those of the audit. Trains the model on them and on
    --data, repeats the audit, and prints each bias and the accuracy before and after. An interrupted run resumes if
    the command is repeated.

    Exit code 0: finished, or no probe is biased. 1: audit, model or data cannot be used. 2: wrong options.
    """
    output = start_output(quiet=quiet, verbose=verbose, as_json=as_json)
    from hf_reward.cli.console import make_console
    from hf_reward.evaluation.mitigation.report import print_outcome
    from hf_reward.training.mitigation import FOLDER, MitigationInputs, mitigate
    from hf_reward.training.mitigation_training import MitigationRule

    try:
        rule = MitigationRule(
            share=share,
            use_lora=not full,
            learning_rate=learning_rate or None,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    inputs = MitigationInputs(
        model=model,
        audit=audit,
        data=data,
        reading={"columns": parse_columns(columns), "layout": layout, "split": split},
        second_domain=second_domain or None,
        audit_data=audit_data or None,
    )
    silent = output.quiet or output.as_json
    found = mitigate(inputs, out, rule, progress=None if silent else lambda line: typer.echo(f"{line} ...", err=True))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo("No probe of the audit is biased, so there is nothing to mitigate. No file was written.")
        return
    print_outcome(found, make_console())
    folder = out / FOLDER
    written = [f"{out}/", folder / "mitigation.html", folder / "mitigation.json", folder / "audit" / "audit.html"]
    output.finish(written, ["hf-reward", "audit", "compare", audit, folder / "audit"])
