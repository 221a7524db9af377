"""Train a reward model: `accelerate launch recipes/train.py --config recipes/quickstart.yaml [--seed 1 ...]`.

`hf-reward train` runs this file too. It shows the steps of a run from top to bottom.
"""

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import IterableDataset, concatenate_datasets
from rich.table import Table
from transformers import AutoTokenizer, PrinterCallback

from hf_reward import (
    AutoModelForRewardScoring,
    RewardConfig,
    RewardTrainer,
    accuracy_reading,
    length_rule,
    save_merged,
    split_by_prompt,
    tfidf_bradley_terry,
)
from hf_reward.cli.console import make_console
from hf_reward.cli.output import Output, set_log_level, silence_progress_bars
from hf_reward.data.extras import optional
from hf_reward.data.interface import setting, used_through
from hf_reward.data.path_safety import require_folder_or_hub_id, require_writable
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.data.split_files import readable_rows
from hf_reward.preprocessing.tokenizer import require_same_template
from hf_reward.publishing.card.text import without_tokens
from hf_reward.training.dry_run import dry_run
from hf_reward.training.run_arguments import RunArguments, interface_of, parse_run_arguments
from hf_reward.training.run_lock import LOCK_FILE

console = make_console()


def main(argv: list[str]) -> None:
    """Run; errors name settings in the syntax of the options or of the YAML file."""
    with used_through(interface_of(argv)):
        run_training(argv)


def run_training(argv: list[str]) -> None:
    """Load, train, evaluate, save, and report the results."""
    run, args = parse_run_arguments(argv)
    set_verbosity(args)
    if run.dry_run:
        rehearse(run, args, argv)
    require_empty_output(run, args)

    train_sources, eval_sources = load_data(run, args)
    trainer = build_trainer(run, args, train_sources, eval_sources)
    baselines = score_baselines(run, args, train_sources, eval_sources) if PartialState().is_main_process else []

    trainer.baselines = [baseline.to_dict() for baseline in baselines]
    trainer.command = command_line(argv)

    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    metrics = result.metrics | (trainer.evaluate() if eval_sources else {})
    metrics |= {f"baseline_{baseline.key}": baseline.accuracy for baseline in baselines}

    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    save_model(trainer, args)
    report(trainer, metrics, baselines, args)
    trainer.accelerator.end_training()


def set_verbosity(args: RewardConfig) -> None:
    """Log hf_reward's messages; `--quiet` logs errors only, `--verbose` the messages of all libraries too."""
    if args.disable_tqdm:
        silence_progress_bars()
    if args.log_level in ("error", "critical", "info", "debug"):
        set_log_level(logging.getLevelName(args.log_level.upper()))
    else:
        logging.basicConfig(format="%(message)s", level=logging.INFO)
        for noisy in ("httpx", "httpx2", "datasets", "matplotlib"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    if not PartialState().is_main_process:
        logging.getLogger().setLevel(logging.ERROR)


def is_quiet(args: RewardConfig) -> bool:
    """Whether only results and errors are printed."""
    return args.log_level in ("error", "critical")


def rehearse(run: RunArguments, args: RewardConfig, argv: list[str]) -> None:
    """Test every stage of the run, print the results, and end."""
    found = dry_run(
        args,
        load=lambda: load_data(run, args),
        build=lambda settings, train, held_out: build_trainer(run, settings, train, held_out),
        first=lambda: require_empty_output(run, args),
    )
    console.print(found.table())
    if found.passed:
        Output(quiet=is_quiet(args)).finish(then=["hf-reward", "train", *words_of_real_run(words_without_token(argv))])
    raise SystemExit(0 if found.passed else 1)


def words_of_real_run(words: list[str]) -> list[str]:
    """Return the command line without the switch `--dry_run`, or with `--dry_run false` if the switch is not there."""
    for place, word in enumerate(words):
        if word in ("--dry_run", "--dry-run") and [*words, "--"][place + 1].startswith("--"):
            return [*words[:place], *words[place + 1 :]]
    return [*words, "--dry_run", "false"]


def command_line(argv: list[str]) -> str:
    """Return the command that repeats this run, without tokens, for the model card."""
    return without_tokens(shlex.join(["accelerate", "launch", "recipes/train.py", *words_without_token(argv)]))


def words_without_token(argv: list[str]) -> list[str]:
    """Return the command line without `--hub_token`."""
    words, after_token = [], False
    for word in argv:
        is_token = word.split("=")[0].replace("-", "_") == "__hub_token"
        if not (is_token or after_token):
            words.append(word)
        after_token = is_token and "=" not in word
    return words


def require_empty_output(run: RunArguments, args: RewardConfig) -> None:
    """Refuse an output folder with files: two runs in one folder would delete each other's checkpoints."""
    folder = Path(args.output_dir or "")
    require_writable(folder / "config.json")
    if checkpoint_to_resume(args) or run.overwrite_output_dir or not folder.is_dir():
        return
    if all(path.name == LOCK_FILE for path in folder.iterdir()):  # left by a run that was killed before its first save
        return
    raise SystemExit(
        f"The output folder {folder} is not empty. Set another `{setting('output_dir')}`, resume with "
        f"`{setting('resume_from_checkpoint', True)}`, or allow it with `{setting('overwrite_output_dir', True)}`."
    )


def checkpoint_to_resume(args: RewardConfig) -> str | bool | None:
    """Return a checkpoint's folder, or whether to resume from the latest; the parser gives 'true' as text."""
    word = str(args.resume_from_checkpoint or "").lower()
    return word == "true" if word in ("true", "false") else args.resume_from_checkpoint


def load_data(run: RunArguments, args: RewardConfig) -> tuple[list[Source], list[Source]]:
    """Load the raw training and evaluation rows; with `test_size`, hold out rows by prompt."""
    options: dict[str, Any] = {"columns": run.column_mapping(), "layout": run.layout, "min_gap": run.min_gap}
    train = [read(source, run) for source in as_sources(run.train_data, split=run.train_split, **options)]
    if run.max_train_rows is not None:
        train = [replace(source, data=first_rows(source.data, run.max_train_rows, args.seed)) for source in train]
    if run.eval_data is not None:
        return train, [read(source) for source in as_sources(run.eval_data, split=run.eval_split, **options)]
    if run.test_size is None:
        return train, []
    parts = [hold_out(source, run.test_size, args) for source in train]
    kept = [replace(source, data=part[0]) for source, part in zip(train, parts, strict=True)]
    return kept, [replace(source, data=part[1]) for source, part in zip(train, parts, strict=True)]


def hold_out(source: Source, test_size: float, args: RewardConfig) -> tuple[object, object]:
    """Return training and held-out rows; unreadable rows stay in the training rows, where they are counted."""
    rows, bad = readable_rows(source.data, source) if args.skip_bad_rows else (source.data, None)
    train, held_out = split_by_prompt(
        rows, test_size=test_size, seed=args.seed, layout=source.layout, columns=source.columns
    )
    return (concatenate_datasets([train, bad]) if bad is not None and len(bad) else train), held_out


def read(source: Source, run: RunArguments | None = None) -> Source:
    """Return the source with its rows loaded."""
    return replace(source, data=load_source(source, streaming=run is not None and run.streaming))


def first_rows(data: object, count: int, seed: int) -> object:
    """Return a random sample of the rows, or the first rows of a stream."""
    if isinstance(data, IterableDataset):
        return data.take(count)
    return data.shuffle(seed=seed).select(range(min(count, len(data))))  # type: ignore[attr-defined]


def build_trainer(
    run: RunArguments, args: RewardConfig, train_sources: list[Source], eval_sources: list[Source]
) -> RewardTrainer:
    """Load tokenizer and model, and create the trainer."""
    asked = {"revision": run.model_revision, "trust_remote_code": args.trust_remote_code}
    hub: dict[str, Any] = {name: value for name, value in asked.items() if value}
    gguf: dict[str, Any] = {"gguf_file": run.gguf_file} if run.gguf_file else {}
    require_folder_or_hub_id(run.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(run.model_name_or_path, **hub, **gguf)
    if run.require_chat_template:
        require_same_template(run.model_name_or_path, tokenizer, args.chat_template_path)
    attention: dict[str, Any] = {"attn_implementation": run.attn_implementation} if run.attn_implementation else {}
    model = AutoModelForRewardScoring.from_pretrained(
        run.model_name_or_path,
        freeze_backbone=run.freeze_backbone,
        quantization_config=run.quantization_config(),
        dtype=run.dtype,
        allow_pickle=run.allow_pickle,
        **attention,
        **hub,
        **gguf,
    )
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=train_sources,
        eval_dataset=eval_sources or None,
        processing_class=tokenizer,
        peft_config=run.lora_config(layers),
    )
    if is_quiet(args):
        trainer.remove_callback(PrinterCallback)  # which transformers adds where there is no progress bar
    return trainer


def score_baselines(
    run: RunArguments, args: RewardConfig, train_sources: list[Source], eval_sources: list[Source]
) -> list:
    """Score trivial baselines on the same held-out rows."""
    if not (run.baselines and eval_sources):
        return []
    train, held_out = (canonical_rows(sources, args.skip_bad_rows) for sources in (train_sources, eval_sources))
    learned = optional("sklearn", "data", "The TF-IDF baseline is skipped.")
    return [*([tfidf_bradley_terry(train, held_out)] if learned else []), length_rule(held_out)]


def canonical_rows(sources: list[Source], skip_bad_rows: bool) -> list[PreferenceRow]:
    """Return the rows of the sources in canonical form, without the rows that training skips as unreadable."""
    rows = []
    for source in sources:
        for index, row in enumerate(source.data):
            try:
                rows.append(to_preference_row(row, layout=source.layout, columns=source.columns, row_index=index))
            except PreferenceFormatError:
                if not skip_bad_rows:
                    raise
    return rows


def save_model(trainer: RewardTrainer, args: RewardConfig) -> None:
    """Save the model with LoRA merged in float32, and the adapter in `adapter/`."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model()  # sharded: no process has all weights, so LoRA cannot be merged here
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        save_merged(model, trainer.processing_tokenizer, args.output_dir or ".", record=trainer.record())
    trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()


def report(trainer: RewardTrainer, metrics: dict, baselines: list, args: RewardConfig) -> None:
    """Print the metrics, their interpretation, the files written and a command to try next."""
    if not trainer.is_world_process_zero():
        return
    sources = trainer.data_summaries["eval"].sources if "eval" in trainer.data_summaries else []
    of_sources = tuple(f"eval_{source}_" for source in sources if len(sources) > 1)
    table = Table("measure", "value", title="Reward model", title_justify="left")
    for name, value in metrics.items():
        if not name.startswith(("baseline_", *of_sources)):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    for baseline in baselines:
        table.add_row(f"baseline: {baseline.name}", str(baseline).split(": ", 1)[1])
    console.print(table)
    if of_sources:
        console.print(source_table(metrics, sources))
    shown = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    if "length_baseline" in shown:
        console.print(accuracy_reading(shown))
    for warning in trainer.health_warnings:
        console.print(
            "[bold]{kind}[/bold] at step {step}: {seen} Likely cause: {cause} Remedy: {cure}".format(**warning)
        )
    folder = Path(args.output_dir or ".")
    written = [f"{path}{'/' if path.is_dir() else ''}" for path in sorted(folder.iterdir())]
    Output(quiet=is_quiet(args)).finish(written, ["hf-reward", "verify", folder])


def source_table(metrics: dict, sources: list[str]) -> Table:
    """Return a table of the accuracy and the length baseline of each source."""
    table = Table("source", "accuracy", "95% interval", "pairs", "longer preferred", title="By source")
    table.title_justify = "left"
    for source in sources:
        found = {
            key: metrics.get(f"eval_{source}_{key}") for key in ("accuracy", "accuracy_ci_low", "accuracy_ci_high")
        }
        if found["accuracy"] is None:  # a source with ties only has no accuracy
            continue
        interval = f"{found['accuracy_ci_low']:.1%} to {found['accuracy_ci_high']:.1%}"
        pairs, rule = metrics[f"eval_{source}_num_pairs"], metrics[f"eval_{source}_length_baseline"]
        table.add_row(source, f"{found['accuracy']:.1%}", interval, str(pairs), f"{rule:.1%}")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
