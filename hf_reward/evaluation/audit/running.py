"""Run an audit: collect the texts of all probes, score each once, and analyse the rewards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_reward.data.path_safety import shown_name, with_shown_model
from hf_reward.evaluation.audit.families.numerical import NUMERICAL, numerical_result
from hf_reward.evaluation.audit.family import AuditReport, Family, FamilyResult
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.probe_data import ProbeData
from hf_reward.evaluation.audit.rule import AuditRule
from hf_reward.evaluation.audit.score_cache import CACHE_FILE, RewardFunction, ScoreCache, score_texts, takes_prompts
from hf_reward.evaluation.audit.steps import measured_by_rewards, prepare_audit, report_audit
from hf_reward.preprocessing.response_encoding import CONVERSATIONS
from hf_reward.scoring.reward_scorer import RewardScorer


def run_audit(
    scorer: RewardScorer | RewardFunction | str | Path,
    rows: Any,
    *,
    out: str | Path | None = None,
    rule: AuditRule | None = None,
    probe_data: Sequence[ProbeData] = (),
    **source_defaults: Any,
) -> AuditReport:
    """Audit a reward model for biases that RLHF would amplify.

    Args:
        scorer: A `RewardScorer`, a folder or Hub id of a model, or a function `f(prompts, responses)` that returns a
            reward for each response, or `f(texts)` of `Text`s. A prompt is text or messages; a message with images has
            references in its content and their `ImageSource`s under `image_sources`. Rewards of a function are
            cached in a file only if it has an attribute `fingerprint`, a dict that identifies it.
        rows: Held-out preference data: any input of `check_data`, or canonical rows.
        out: Folder of the cache `scores.jsonl`, with which an interrupted audit resumes; None for no cache. The report
            is written by `write_audit`.
        rule: Profile, families and bootstrap.
        probe_data: Your own questions, opinions and lists, in addition to the bundled ones.
        **source_defaults: `split`, `columns` and `layout` for `rows`.

    Returns:
        The report.

    Raises:
        TypeError: If `scorer` is a function with other arguments.
        ValueError: If the model cannot score, the rows have no usable pair, or a setting is invalid.
    """
    scorer = _checked(scorer)
    takes_messages = not isinstance(scorer, RewardScorer) or scorer.rows == CONVERSATIONS
    takes_images = not isinstance(scorer, RewardScorer) or (takes_messages and scorer.takes_images)
    takes = {"takes_messages": takes_messages, "takes_images": takes_images}
    prepared = prepare_audit(rows, rule, probe_data, **takes, **source_defaults)
    fingerprint = _fingerprint(scorer)
    cache = ScoreCache(None if out is None or fingerprint is None else Path(out) / CACHE_FILE, fingerprint or {})
    rewards = score_texts(prepared.texts(), scorer, cache)
    measured = measured_by_rewards(prepared, rewards, cache.cut)
    measured.counts["from_cache"] = min(cache.from_file, len(rewards))
    measured.model = shown_name(scorer.name) if isinstance(scorer, RewardScorer) else _name(scorer)
    measured.fingerprint = with_shown_model(fingerprint or {})

    def extend(inference: Inference) -> dict[Family, FamilyResult]:
        if not isinstance(scorer, RewardScorer) or NUMERICAL not in prepared.cases:
            return {}
        return {NUMERICAL: numerical_result(scorer, prepared.inputs, inference)}

    return report_audit(prepared, measured, extend)


def _checked(scorer: RewardScorer | RewardFunction | str | Path) -> RewardScorer | RewardFunction:
    """Return the scorer, loaded if it is a name; reject functions with other arguments before texts are collected."""
    if isinstance(scorer, (str, Path)):
        return RewardScorer.from_pretrained(scorer)
    if not isinstance(scorer, RewardScorer):
        takes_prompts(scorer)
    return scorer


def _fingerprint(scorer: RewardScorer | RewardFunction) -> dict[str, Any] | None:
    if isinstance(scorer, RewardScorer):
        return scorer.fingerprint()
    own = getattr(scorer, "fingerprint", None)
    return own if isinstance(own, dict) else None


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
