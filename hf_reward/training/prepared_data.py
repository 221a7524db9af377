"""Preference data in any accepted form -> the tokenised datasets of a run, with their summaries."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.data.training_texts import summarize_training_data
from hf_reward.preprocessing.data_collator import source_number
from hf_reward.preprocessing.data_summary import DataSummary
from hf_reward.preprocessing.preparation import PreparationRule, is_prepared, prepare_preferences
from hf_reward.training.settings_checks import refuse_to_sort_a_stream
from hf_reward.training.training_args import RewardConfig


class PreferenceData:
    """Prepares the datasets of a run.

    Args:
        args: Settings of the run; the loss decides which rows are kept.
        tokenizer: The prepared tokenizer.
        images: `RunImages` of a vision-language model.
    """

    def __init__(self, args: RewardConfig, tokenizer: PreTrainedTokenizerBase, images: Any = None) -> None:
        self.args, self.tokenizer, self.images = args, tokenizer, images
        self.summaries: dict[str, DataSummary] = {}
        self.training_texts: dict[str, Any] = {}
        """See `CheckpointRecord.training_texts`."""
        self.source_names: dict[int, str] = {}
        """Names of the sources of all datasets, by their number in a batch."""

    def prepare(self, data: Any, name: str) -> Any:
        """Tokenise a dataset unless it is already tokenised, and store its summary.

        Args:
            data: Data as for `prepare_preferences`, or None.
            name: "train", "eval", "eval_<name>" or "test".

        Returns:
            The prepared rows, None for None.

        Raises:
            ValueError: If rows cannot be read, or none is left.
        """
        if data is None:
            return None
        args, kind = self.args, self.args.loss.kind
        rule = PreparationRule(
            format=args.format_rule,
            models_ties=kind.models_ties,
            strict_order=kind.strict_order,
            skip_bad_rows=args.skip_bad_rows,
            balance_lengths=args.balance_lengths and name == "train",
            balance_seed=args.order_seed,
            images=None if self.images is None else self.images.processing,
        )
        with args.main_process_first(desc=f"tokenizing {name}"):
            prepared, summary = prepare_preferences(
                data, self.tokenizer, rule, name=name, num_proc=args.dataset_num_proc, seed=args.seed
            )
        refuse_to_sort_a_stream(args, prepared)
        self.summaries[name] = summary
        if name == "train" and args.should_save:
            self.training_texts = summarize_training_data(data, seed=args.seed)
        self.source_names |= {source_number(source): source for source in summary.sources}
        return prepared

    def prepare_evaluation(self, data: Any) -> Any:
        """Prepare an evaluation dataset, or each dataset of a dict; arguments as for `prepare`."""
        if isinstance(data, Mapping) and not data.keys() & {"path", "data"}:
            return {name: self.prepare(part, f"eval_{name}") for name, part in data.items()}
        return self.prepare(data, "eval")

    @property
    def rows(self) -> str | None:
        """Form of the training data: see `CheckpointRecord.rows`."""
        return self.summaries["train"].kind if "train" in self.summaries else None

    def prepared(self, data: Any, name: str) -> Any:
        """Return the rows passed to `evaluate` or `predict`, tokenised if they are raw."""
        return data if data is None or is_prepared(data) else self.prepare(data, name)
