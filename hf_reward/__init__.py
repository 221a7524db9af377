"""Train, measure and publish reward models with the Hugging Face Trainer.

Names are imported when they are first used, so that `import hf_reward` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_reward.library_warnings import silence_missing_kernel

if TYPE_CHECKING:
    from hf_reward.architectures import register_classifier as register_classifier
    from hf_reward.averaging import average_reward_models as average_reward_models
    from hf_reward.baselines import length_rule as length_rule
    from hf_reward.baselines import tfidf_bradley_terry as tfidf_bradley_terry
    from hf_reward.benchmarks.comparing import compare as compare
    from hf_reward.benchmarks.reporting import results_from_scores as results_from_scores
    from hf_reward.benchmarks.running import run_all as run_all
    from hf_reward.benchmarks.running import run_benchmark as run_benchmark
    from hf_reward.checkpoint_record import CheckpointRecord as CheckpointRecord
    from hf_reward.data_check import check_data as check_data
    from hf_reward.data_collator import DataCollatorForPreference as DataCollatorForPreference
    from hf_reward.evaluate_modules import load_metric as load_metric
    from hf_reward.export import ExportRule as ExportRule
    from hf_reward.export import export_reward_model as export_reward_model
    from hf_reward.export import save_merged as save_merged
    from hf_reward.importers.stock_folder import import_reward_model as import_reward_model
    from hf_reward.length_correction import LengthCorrection as LengthCorrection
    from hf_reward.length_correction import cross_fitted_correction as cross_fitted_correction
    from hf_reward.length_correction import fit_length_correction as fit_length_correction
    from hf_reward.losses import PreferenceLoss as PreferenceLoss
    from hf_reward.metrics import accuracy_reading as accuracy_reading
    from hf_reward.metrics import preference_metrics as preference_metrics
    from hf_reward.modeling import AutoModelForRewardScoring as AutoModelForRewardScoring
    from hf_reward.modeling import merge_adapter as merge_adapter
    from hf_reward.overfit import overfit_one_batch as overfit_one_batch
    from hf_reward.preference_row import PreferenceFormatError as PreferenceFormatError
    from hf_reward.preference_row import PreferencePair as PreferencePair
    from hf_reward.preparation import PreparationRule as PreparationRule
    from hf_reward.preparation import prepare_preferences as prepare_preferences
    from hf_reward.push import PushError as PushError
    from hf_reward.push import PushRule as PushRule
    from hf_reward.push import push_reward_model as push_reward_model
    from hf_reward.ratings import to_pairs as to_pairs
    from hf_reward.record_edits import store_length_correction as store_length_correction
    from hf_reward.record_edits import store_temperature as store_temperature
    from hf_reward.reward_scorer import Ranking as Ranking
    from hf_reward.reward_scorer import RewardScorer as RewardScorer
    from hf_reward.reward_scorer import ScoringError as ScoringError
    from hf_reward.rewards import compute_rewards as compute_rewards
    from hf_reward.scoring import score_rows as score_rows
    from hf_reward.sources import Source as Source
    from hf_reward.splits import split_by_prompt as split_by_prompt
    from hf_reward.tokenization import FormatRule as FormatRule
    from hf_reward.tokenizer_setup import prepare_tokenizer as prepare_tokenizer
    from hf_reward.trainer import RewardTrainer as RewardTrainer
    from hf_reward.training_args import RewardConfig as RewardConfig
    from hf_reward.verify import VerificationError as VerificationError
    from hf_reward.verify import verify_checkpoint as verify_checkpoint

__version__ = "0.1.0"

silence_missing_kernel()  # before PEFT is imported

_STATIONS = {
    "AutoModelForRewardScoring": "modeling",
    "CheckpointRecord": "checkpoint_record",
    "DataCollatorForPreference": "data_collator",
    "ExportRule": "export",
    "FormatRule": "tokenization",
    "LengthCorrection": "length_correction",
    "PreferenceFormatError": "preference_row",
    "PreferenceLoss": "losses",
    "PreferencePair": "preference_row",
    "PreparationRule": "preparation",
    "PushError": "push",
    "PushRule": "push",
    "Ranking": "reward_scorer",
    "RewardConfig": "training_args",
    "RewardScorer": "reward_scorer",
    "RewardTrainer": "trainer",
    "ScoringError": "reward_scorer",
    "Source": "sources",
    "VerificationError": "verify",
    "accuracy_reading": "metrics",
    "average_reward_models": "averaging",
    "check_data": "data_check",
    "compare": "benchmarks.comparing",
    "compute_rewards": "rewards",
    "cross_fitted_correction": "length_correction",
    "export_reward_model": "export",
    "fit_length_correction": "length_correction",
    "import_reward_model": "importers.stock_folder",
    "length_rule": "baselines",
    "load_metric": "evaluate_modules",
    "merge_adapter": "modeling",
    "overfit_one_batch": "overfit",
    "preference_metrics": "metrics",
    "prepare_preferences": "preparation",
    "prepare_tokenizer": "tokenizer_setup",
    "push_reward_model": "push",
    "register_classifier": "architectures",
    "results_from_scores": "benchmarks.reporting",
    "run_all": "benchmarks.running",
    "run_benchmark": "benchmarks.running",
    "save_merged": "export",
    "score_rows": "scoring",
    "split_by_prompt": "splits",
    "store_length_correction": "record_edits",
    "store_temperature": "record_edits",
    "tfidf_bradley_terry": "baselines",
    "to_pairs": "ratings",
    "verify_checkpoint": "verify",
}

__all__ = sorted(_STATIONS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _STATIONS:
        raise AttributeError(f"module 'hf_reward' has no attribute {name!r}")
    return getattr(import_module(f"hf_reward.{_STATIONS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
