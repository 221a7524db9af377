"""M-RewardBench: RewardBench translated into 23 languages, and an optional set of translations.

Source: Gureja et al. (2025), arXiv 2410.15522; github.com/for-ai/m-rewardbench, `scripts/run_rewardbench.py`,
`analysis/plot_utils.py:get_scores` and `analysis/_plot_leaderboard.py:get_leaderboard`. A tie is wrong. The weights are
those of `get_scores` for sequence classifiers. They are the numbers of rows that the authors kept, and differ slightly
from RewardBench's.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.evaluation.benchmarks.base import (
    Benchmark,
    Comparison,
    HubSource,
    Means,
    Outcome,
    RowCredits,
    average,
    pair_credit,
    present,
)
from hf_reward.evaluation.benchmarks.rewardbench import section_scores
from hf_reward.evaluation.benchmarks.row_fields import one_of, text
from hf_reward.metrics.arrays import FloatArray

LANGUAGES = (
    *("arb_Arab", "ces_Latn", "deu_Latn", "ell_Grek", "fra_Latn", "heb_Hebr", "hin_Deva", "ind_Latn", "ita_Latn"),
    *("jpn_Jpan", "kor_Hang", "nld_Latn", "pes_Arab", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "spa_Latn"),
    *("tur_Latn", "ukr_Cyrl", "vie_Latn", "zho_Hans", "zho_Hant"),
)
"""Language and script of FLORES-200, the configurations on the Hub."""
TRANSLATION = "translation"
WEIGHTS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 79,
        "alpacaeval-length": 79,
        "alpacaeval-hard": 76,
        "mt-bench-easy": 24,
        "mt-bench-med": 38,
    },
    "Chat Hard": {
        "mt-bench-hard": 35,
        "llmbar-natural": 76,
        "llmbar-adver-neighbor": 124,
        "llmbar-adver-GPTInst": 87,
        "llmbar-adver-GPTOut": 42,
        "llmbar-adver-manual": 43,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 247,
        "donotanswer": 135,
    },
    "Reasoning": {
        "math-prm": 983,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 163,
        "hep-rust": 164,
    },
}
"""Section -> subset -> weight: the number of rows, except for math-prm (447 rows)."""
ROWS = 2869
"""Rows of each language."""
_SUBSETS = tuple(name for section in WEIGHTS.values() for name in section)
_REPO = "CohereLabsCommunity/multilingual-reward-bench"


class MRewardBench(Benchmark):
    """M-RewardBench."""

    name = "m_rewardbench"
    title = "M-RewardBench"
    checked = "sections, languages and their mean: equal to the original code's outputs, ties included"
    not_verified = "data and published scores (neither was available); columns and arithmetic of the translation set"
    order = "chosen, rejected; id is `language/source/id`"
    hub = tuple(HubSource(_REPO, split="test", config=name, subset=name) for name in LANGUAGES)
    extra = (HubSource(_REPO, split="test", config=TRANSLATION, subset=TRANSLATION),)
    local = (
        f"a folder with a folder or file of rows for each language, such as deu_Latn, as in {_REPO}; or rows with the "
        "column `language`"
    )
    patterns = ("*/*.parquet", "*/*.jsonl", "*/*.json", "*.jsonl", "*.json", "*.parquet", "*.csv")
    columns = ("id", "prompt", "chosen", "rejected", "source")
    counts = dict.fromkeys(LANGUAGES, ROWS)
    optional = (TRANSLATION,)

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison:
        """See `Benchmark.read`. The language is the Hub's configuration, the column, or the first part of the path."""
        given = row.get("subset") or row.get("language") or file.partition("/")[0]
        language = one_of(given, "language", (*LANGUAGES, TRANSLATION))
        source = text(row, "source")
        if language != TRANSLATION:
            source = one_of(source, "source", _SUBSETS)
        return Comparison(
            id=f"{language}/{source}/{row['id']}",
            prompt=text(row, "prompt"),
            responses=[text(row, "chosen"), text(row, "rejected")],
            ranks=[0, 1],
            subset=language,
            # Translations of one prompt are not independent.
            cluster=f"{source}/{row['id']}",
            facts={"source": source},
        )

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """See `Benchmark.credit`."""
        earned = pair_credit(rewards[0], rewards[1], tie)
        own = {f"{comparison.subset} {comparison.facts['source']}": earned}
        return own | {TRANSLATION: earned} if comparison.subset == TRANSLATION else own

    def combine(self, means: Means) -> Outcome:
        """Each language is the mean of its four sections; overall and each section are means over the languages."""
        tables = {name: _sections(means, name) for name in LANGUAGES}
        languages = {name: average(found.values()) for name, found in tables.items() if found}
        measures = {
            section: average(found[section] for found in tables.values() if section in found)
            for section in WEIGHTS
            if any(section in found for found in tables.values())
        }
        measures |= {name: mean for name, mean in means.items() if name.partition(" ")[0] == TRANSLATION}
        return Outcome(average(languages.values()), languages, measures=measures)


def _sections(means: Means, language: str) -> dict[str, FloatArray]:
    """Return the sections of a language that have rows."""
    found = {name: means[f"{language} {name}"] for name in _SUBSETS if f"{language} {name}" in means}
    scores = section_scores(found, WEIGHTS)
    return {section: scores[section] for section, weights in WEIGHTS.items() if present(found, weights)}
