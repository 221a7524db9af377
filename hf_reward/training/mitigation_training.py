"""The training stage of a mitigation: a model and a mixture of rows -> a trained model in a folder."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback

from hf_reward.data.interface import setting
from hf_reward.data.sources import Source
from hf_reward.modeling.auto_model import AutoModelForRewardScoring
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.model_tokenizer import load_tokenizer
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.publishing.export import save_merged
from hf_reward.training.run_arguments import RunArguments
from hf_reward.training.run_record import write_card
from hf_reward.training.trainer import RewardTrainer
from hf_reward.training.training_args import RewardConfig


@dataclass(frozen=True, kw_only=True)
class MitigationRule:
    """Settings of a mitigation."""

    share: float = 0.5
    """Built rows of each biased family, as a fraction of the number of training pairs."""
    use_lora: bool = True
    """Train a LoRA adapter, which is merged at the end; otherwise all weights are trained."""
    learning_rate: float | None = None
    """Peak learning rate; None for 5e-4 with LoRA and 2e-5 without."""
    epochs: float = 1.0
    batch_size: int = 8
    """Rows of a batch."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("share", 0), ("epochs", 0), ("learning_rate", 0), ("batch_size", 0)):
            value = getattr(self, name)
            if value is not None and not value > smallest:
                raise ValueError(f"`{setting(name)}` must be above {smallest}, but is {value}.")

    @property
    def peak_rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or (5e-4 if self.use_lora else 2e-5)


def train_on(
    model: str,
    sources: Sequence[Source],
    out: Path,
    work: Path,
    rule: MitigationRule,
    text: FormatRule,
    loading: Mapping[str, Any],
    *,
    show_progress: bool = False,
) -> None:
    """Train a reward model further, and write it to a folder.

    An adapter is trained further; to other models a LoRA adapter is added. In both cases the result is also merged.

    Args:
        model: Folder or Hub id of the reward model.
        sources: The training rows.
        out: Folder of the trained model; other files in it stay.
        work: Folder of the checkpoints, from which an interrupted training resumes; removed at the end.
        rule: Settings.
        text: Text format of the model.
        loading: `allow_pickle` and `trust_remote_code`; other options for loading are ignored, because training needs
            weights in float32 on its own device.
        show_progress: Whether to show a progress bar on a terminal.

    Raises:
        ValueError: If the data or the settings are not valid.
    """
    trust = bool(loading.get("trust_remote_code"))
    loaded = AutoModelForRewardScoring.from_pretrained(
        model, trust_remote_code=trust, allow_pickle=bool(loading.get("allow_pickle"))
    )
    lora = None
    if rule.use_lora and not isinstance(loaded, PeftModel):
        lora = RunArguments(model_name_or_path=model, train_data=[], use_lora=True).lora_config(0)
    trainer = RewardTrainer(
        model=loaded,
        args=_settings(
            CheckpointRecord.find(model),
            text,
            work,
            rule,
            trust_remote_code=trust,
            disable_tqdm=not (show_progress and sys.stderr.isatty()),
        ),
        train_dataset=list(sources),
        processing_class=load_tokenizer(model, trust_remote_code=trust),
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.command = shlex.join(["hf-reward", "mitigate", "--model", model])
    with redirect_stdout(sys.stderr):  # the progress bar writes the log to the standard output, which may be JSON
        trainer.train(resume_from_checkpoint="auto")
    record = trainer.record()
    save_merged(trainer.unwrapped_model(), trainer.processing_tokenizer, out, record=record)
    write_card(out, CheckpointRecord.load(out) or record)
    trainer.accelerator.end_training()
    shutil.rmtree(work, ignore_errors=True)


def _settings(
    record: CheckpointRecord | None, text: FormatRule, work: Path, rule: MitigationRule, **more: Any
) -> RewardConfig:
    """Return the settings of the run, with the text format and the number of heads of the model."""
    return RewardConfig(
        output_dir=str(work),
        learning_rate=rule.peak_rate,
        num_train_epochs=rule.epochs,
        per_device_train_batch_size=rule.batch_size,
        max_length=text.max_length,
        over_length=text.over_length,
        separator=text.separator,
        num_reward_heads=1 if record is None else record.reward_heads,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        save_strategy="steps",
        save_steps=0.25,
        save_total_limit=1,
        eval_strategy="no",
        report_to="none",
        plot_curves=False,
        skip_bad_rows=True,
        seed=rule.seed,
        **more,
    )
