"""An audit -> the kinds of training rows against its biases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_reward.evaluation.audit.edits.padding import KINDS
from hf_reward.evaluation.audit.report.wording import verdict_of
from hf_reward.evaluation.mitigation.builders import BUILDERS

_LENGTH = ("padding",)
_FLIPPED = ("bold", "bullets", "certainly")
_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "length": {
        **{f"padding_{name}": _LENGTH for name in (*KINDS, "effect", "slope", "flip_excess", "at_start", "at_middle")},
        "deletion_effect": _LENGTH,
        "length_inversion": _LENGTH,
    },
    "format": {
        **{f"format_{name}": (name,) for family, name in BUILDERS if family == "format"},
        "format_flip_excess": _FLIPPED,
    },
    "sycophancy": {
        "flattery_opener": ("flattery",),
        "agreement_opener": ("agreement",),
        "sycophancy_factual": ("beliefs",),
        "sycophantic_flip_excess": ("beliefs",),
        "sycophancy_matched": ("beliefs", "opinions"),
        "are_you_sure": ("doubts",),
        **dict.fromkeys(("feedback_liking", "feedback_ownership"), ("feedback",)),
        **{f"sycophancy_{name}": ("opinions",) for name in ("opinion", "opinion_sentences", "identity", "expertise")},
    },
    "degenerate": {
        **{f"junk_{name}": (name,) for family, name in BUILDERS if family == "degenerate"},
        "prompt_ignored": ("exchanged_prompts",),
    },
}
"""Family -> probe -> kinds of rows against its bias."""

DECISIVE = ("weights", "computation", "template_hash", "tokenizer_hash", "format")
"""Entries of a fingerprint that two audits of one model share on every machine."""


@dataclass(frozen=True, kw_only=True)
class MitigationPlan:
    """The biases of an audit, and the rows against them."""

    biased: tuple[str, ...]
    """Biased probes with training rows against them."""
    not_addressed: tuple[str, ...]
    """Biased probes without such rows."""
    kinds: dict[str, tuple[str, ...]]
    """Family -> kinds of rows, for `build_rows`."""


def plan_mitigation(report: Mapping[str, Any]) -> MitigationPlan:
    """Choose the training rows against the biases of an audit.

    Args:
        report: The result of `read_audit`.

    Returns:
        The plan; without kinds if no probe is biased, or none has rows against it.
    """
    biased = [probe for probe in report["probes"] if verdict_of(probe) == "biased"]
    kinds: dict[str, dict[str, None]] = {}
    addressed = []
    for probe in biased:
        found = _KINDS.get(probe["family"], {}).get(probe["name"], ())
        if found:
            addressed.append(probe["name"])
            kinds.setdefault(probe["family"], {}).update(dict.fromkeys(found))
    return MitigationPlan(
        biased=tuple(addressed),
        not_addressed=tuple(probe["name"] for probe in biased if probe["name"] not in addressed),
        kinds={family: tuple(names) for family, names in kinds.items()},
    )


def require_same_model(report: Mapping[str, Any], fingerprint: Mapping[str, Any], model: str) -> None:
    """Refuse the audit of another model.

    Args:
        report: The result of `read_audit`.
        fingerprint: `RewardScorer.fingerprint()` of the model.
        model: Its name, for the message.

    Raises:
        ValueError: If the audit has no fingerprint, or that of another model or format, or corrected rewards.
    """
    known = report["fingerprint"]
    remedy = f"Audit this model: `hf-reward audit --model {model} ...`."
    if not known.get("weights"):
        raise ValueError(
            f"The audit does not identify its model ({report['model']}): it has no hash of the weights. {remedy}"
        )
    if known.get("length_correction") or known.get("lower_bound") is not None:
        raise ValueError(
            "Training changes the rewards of the model itself, but the audit is of rewards with a length correction or "
            "of lower bounds. Audit the model without `--length-correction`."
        )
    differing = [name for name in DECISIVE if known.get(name) != fingerprint.get(name)]
    if differing:
        raise ValueError(
            f"The audit must be of the model to train, but its {_listed(differing)} differ from those of {model}: it "
            f"is of another model ({report['model']}), or the model was loaded with other options. {remedy}"
        )


def _listed(names: Sequence[str]) -> str:
    words = {"template_hash": "chat template", "tokenizer_hash": "tokenizer", "format": "text format"}
    return ", ".join(words.get(name, name) for name in names)
