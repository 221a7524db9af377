"""Train, evaluate and publish reward models with the Hugging Face Trainer.

Names are imported on first use, so that `import hf_reward` is fast.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_reward.data.off_prompt import off_prompt_rows as off_prompt_rows
    from hf_reward.data.preference_row import PreferenceFormatError as PreferenceFormatError
    from hf_reward.data.preference_row import PreferencePair as PreferencePair
    from hf_reward.data.ratings import to_pairs as to_pairs
    from hf_reward.data.sources import Source as Source
    from hf_reward.data.splits import split_by_prompt as split_by_prompt
    from hf_reward.evaluation.baselines import length_rule as length_rule
    from hf_reward.evaluation.baselines import tfidf_bradley_terry as tfidf_bradley_terry
    from hf_reward.evaluation.benchmarks.comparing import compare as compare
    from hf_reward.evaluation.benchmarks.reporting import results_from_scores as results_from_scores
    from hf_reward.evaluation.benchmarks.running import run_all as run_all
    from hf_reward.evaluation.benchmarks.running import run_benchmark as run_benchmark
    from hf_reward.evaluation.data_check import check_data as check_data
    from hf_reward.evaluation.evaluate_modules import load_metric as load_metric
    from hf_reward.evaluation.monitoring.monitor import RewardMonitor as RewardMonitor
    from hf_reward.evaluation.monitoring.trl_reward import MonitoredReward as MonitoredReward
    from hf_reward.losses.preference_loss import PreferenceLoss as PreferenceLoss
    from hf_reward.metrics.length_correction import LengthCorrection as LengthCorrection
    from hf_reward.metrics.length_correction import cross_fitted_correction as cross_fitted_correction
    from hf_reward.metrics.length_correction import fit_length_correction as fit_length_correction
    from hf_reward.metrics.preference import accuracy_reading as accuracy_reading
    from hf_reward.metrics.preference import preference_metrics as preference_metrics
    from hf_reward.modeling.adapters import merge_adapter as merge_adapter
    from hf_reward.modeling.architectures import register_classifier as register_classifier
    from hf_reward.modeling.auto_model import AutoModelForRewardScoring as AutoModelForRewardScoring
    from hf_reward.modeling.checkpoint_record import CheckpointRecord as CheckpointRecord
    from hf_reward.modeling.checkpoint_record import store_length_correction as store_length_correction
    from hf_reward.modeling.checkpoint_record import store_temperature as store_temperature
    from hf_reward.modeling.rewards import compute_rewards as compute_rewards
    from hf_reward.preprocessing.data_collator import DataCollatorForPreference as DataCollatorForPreference
    from hf_reward.preprocessing.preparation import PreparationRule as PreparationRule
    from hf_reward.preprocessing.preparation import prepare_preferences as prepare_preferences
    from hf_reward.preprocessing.tokenization import FormatRule as FormatRule
    from hf_reward.preprocessing.tokenizer import prepare_tokenizer as prepare_tokenizer
    from hf_reward.publishing.averaging import average_reward_models as average_reward_models
    from hf_reward.publishing.export import ExportRule as ExportRule
    from hf_reward.publishing.export import export_reward_model as export_reward_model
    from hf_reward.publishing.export import save_merged as save_merged
    from hf_reward.publishing.importers.stock_folder import import_reward_model as import_reward_model
    from hf_reward.publishing.push import PushError as PushError
    from hf_reward.publishing.push import PushRule as PushRule
    from hf_reward.publishing.push import push_model as push_model
    from hf_reward.publishing.push import push_reward_model as push_reward_model
    from hf_reward.publishing.verify import VerificationError as VerificationError
    from hf_reward.publishing.verify import verify_checkpoint as verify_checkpoint
    from hf_reward.scoring.prepared_rows import score_rows as score_rows
    from hf_reward.scoring.results import Ranking as Ranking
    from hf_reward.scoring.results import ScoringError as ScoringError
    from hf_reward.scoring.reward_scorer import RewardScorer as RewardScorer
    from hf_reward.training.overfit import overfit_one_batch as overfit_one_batch
    from hf_reward.training.trainer import RewardTrainer as RewardTrainer
    from hf_reward.training.training_args import RewardConfig as RewardConfig

__version__ = "0.2.0"

_MODULES = {
    "AutoModelForRewardScoring": "modeling.auto_model",
    "CheckpointRecord": "modeling.checkpoint_record",
    "DataCollatorForPreference": "preprocessing.data_collator",
    "ExportRule": "publishing.export",
    "FormatRule": "preprocessing.tokenization",
    "LengthCorrection": "metrics.length_correction",
    "MonitoredReward": "evaluation.monitoring.trl_reward",
    "PreferenceFormatError": "data.preference_row",
    "PreferenceLoss": "losses.preference_loss",
    "PreferencePair": "data.preference_row",
    "PreparationRule": "preprocessing.preparation",
    "PushError": "publishing.push",
    "PushRule": "publishing.push",
    "Ranking": "scoring.results",
    "RewardConfig": "training.training_args",
    "RewardMonitor": "evaluation.monitoring.monitor",
    "RewardScorer": "scoring.reward_scorer",
    "RewardTrainer": "training.trainer",
    "ScoringError": "scoring.results",
    "Source": "data.sources",
    "VerificationError": "publishing.verify",
    "accuracy_reading": "metrics.preference",
    "average_reward_models": "publishing.averaging",
    "check_data": "evaluation.data_check",
    "compare": "evaluation.benchmarks.comparing",
    "compute_rewards": "modeling.rewards",
    "cross_fitted_correction": "metrics.length_correction",
    "export_reward_model": "publishing.export",
    "fit_length_correction": "metrics.length_correction",
    "import_reward_model": "publishing.importers.stock_folder",
    "length_rule": "evaluation.baselines",
    "load_metric": "evaluation.evaluate_modules",
    "merge_adapter": "modeling.adapters",
    "off_prompt_rows": "data.off_prompt",
    "overfit_one_batch": "training.overfit",
    "preference_metrics": "metrics.preference",
    "prepare_preferences": "preprocessing.preparation",
    "prepare_tokenizer": "preprocessing.tokenizer",
    "push_model": "publishing.push",
    "push_reward_model": "publishing.push",
    "register_classifier": "modeling.architectures",
    "results_from_scores": "evaluation.benchmarks.reporting",
    "run_all": "evaluation.benchmarks.running",
    "run_benchmark": "evaluation.benchmarks.running",
    "save_merged": "publishing.export",
    "score_rows": "scoring.prepared_rows",
    "split_by_prompt": "data.splits",
    "store_length_correction": "modeling.checkpoint_record",
    "store_temperature": "modeling.checkpoint_record",
    "tfidf_bradley_terry": "evaluation.baselines",
    "to_pairs": "data.ratings",
    "verify_checkpoint": "publishing.verify",
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_reward' has no attribute {name!r}")
    return getattr(import_module(f"hf_reward.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# Import paths of version 0.1, for programs and pickles (`training_args.bin` of a checkpoint). Removed in version 0.3.
_MOVED = {
    "cli": "audit:cli_audit benchmark:cli_benchmark data:cli_data output:cli_output scoring:cli_scoring",
    "data": "atomic_folder fields file_identity file_rows interface json_files:json_rows near_duplicates "
    "path_safety python_values:plain_values preference_row preferences ratings near_duplicates:row_clusters "
    "row_locations:row_places row_remarks row_text score_request sources split_files splits tables text_files "
    "training_texts repeated_prompts:whole_conversations",
    "evaluation": "audit baselines benchmarks data_check evaluate_modules",
    "metrics": "best_of_n calibration equal_bins intervals leakage:leaks length_correction shared_responses "
    "uncertainty",
    "modeling": "adapters architectures checkpoint_record custom_code end_tokens head_ensemble library_warnings "
    "packed_attention packing packing_check position_limits probes checkpoint_record:record_edits "
    "reward_head rewards row_check sharding weight_safety",
    "preprocessing": "data_collator length_balance preparation rendered_turns response_encoding row_encoding "
    "samplers samplers:streams template_clock text_limits:text_bounds text_encoding tokenization "
    "tokenizer:tokenizer_setup",
    "publishing": "averaging card card.render:model_card compatibility:consumers export importers push "
    "staged_files:publishable stock_scoring verify",
    "scoring": "bulk loading:scorer_loading pipeline:reward_pipeline reward_scorer sequence_scorer:sequence_scoring "
    "server_check server_client server_token serving",
    "training": "background_push:hub_trainer callbacks checkpoints:checkpoint_folders data_loading:preference_data "
    "dry_run ensemble_loss:ensemble_trainer evaluation_table feature_cache "
    "health_callback:health_monitor health_checks:health memory:memory_use overfit "
    "resume:resumable_trainer run_arguments run_fingerprint run_lock "
    "running_statistics:training_statistics settings_file setup:training_setup stop_signal trainer "
    "training_args",
}
"""Modules that were directly in `hf_reward`, by new package: `name`, or `new:old` if the name also changed."""
_MOVED_NAMES = {
    "modeling": {
        "AutoModelForRewardScoring": "modeling.auto_model",
        "RewardPeftModel": "modeling.adapters",
        "add_adapter": "modeling.adapters",
        "load_tokenizer": "modeling.model_tokenizer",
        "merge_adapter": "modeling.adapters",
    },
    "scoring": {"score_rows": "scoring.prepared_rows"},
}
"""Modules that have become packages: name in the old module -> module that defines it now."""


def _new_paths() -> dict[str, str]:
    """Old module path in `hf_reward` -> new module path in `hf_reward`."""
    paths = {}
    for package, modules in _MOVED.items():
        for module in modules.split():
            new, _, old = module.partition(":")
            paths[old or new] = f"{package}.{new}"
    return paths


class _MovedModules(MetaPathFinder, Loader):
    """Import a moved module by its old path: the same module object, with a DeprecationWarning."""

    def __init__(self) -> None:
        self._paths = _new_paths()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if self._new_name(fullname):
            return ModuleSpec(fullname, self)
        package, _, name = fullname.partition(".")
        if package == __name__ and name in _MOVED_NAMES:
            return _with_moved_names(PathFinder.find_spec(fullname, __path__))
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = self._new_name(module.__name__)
        assert new is not None
        _warn_moved(module.__name__, new)
        sys.modules[module.__name__] = import_module(new)

    def _new_name(self, name: str) -> str | None:
        package, _, rest = name.partition(".")
        head, dot, tail = rest.partition(".")
        return f"{__name__}.{self._paths[head]}{dot}{tail}" if package == __name__ and head in self._paths else None


class _WithMovedNames(Loader):
    """Load a package that was a module in version 0.1, with the names of the old module."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        new_modules = _MOVED_NAMES[module.__name__.partition(".")[2]]

        def find(name: str) -> Any:
            if name not in new_modules:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            new_module = f"{__name__}.{new_modules[name]}"
            _warn_moved(f"{module.__name__}.{name}", f"{new_module}.{name}")
            found = getattr(import_module(new_module), name)
            setattr(module, name, found)  # `from ... import` looks the name up twice
            return found

        module.__dict__["__getattr__"] = find


def _with_moved_names(spec: ModuleSpec | None) -> ModuleSpec | None:
    if spec is not None:
        spec.loader = _WithMovedNames(spec.loader)
    return spec


def _warn_moved(old: str, new: str) -> None:
    message = f"{old} has moved to {new}; the old path will be removed in version 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


sys.meta_path.insert(0, _MovedModules())
import_module("hf_reward.modeling.library_warnings").silence_missing_kernel()  # before PEFT is imported
