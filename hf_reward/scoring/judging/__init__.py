"""Judges: other models that compare two responses, as a source of labels and as a target of audits and benchmarks."""

from hf_reward.scoring.judging.judge import AverageJudge, Judge, Judgement, JudgeReport
from hf_reward.scoring.judging.opening import open_judge
from hf_reward.scoring.judging.pairs import JudgedPair
from hf_reward.scoring.judging.requests import BudgetError, JudgeError, JudgeSettings

__all__ = [
    "AverageJudge",
    "BudgetError",
    "Judge",
    "JudgeError",
    "JudgeReport",
    "JudgeSettings",
    "JudgedPair",
    "Judgement",
    "open_judge",
]
