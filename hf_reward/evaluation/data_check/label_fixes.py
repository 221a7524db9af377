"""Findings about labels: people who disagree, and labels that a model contradicts."""

from collections.abc import Iterator

from hf_reward.evaluation.data_check.example_rows import DataSide
from hf_reward.evaluation.data_check.report import DataReport, Fix
from hf_reward.metrics.counts import counted

NOISY = 0.65
"""Agreement of one rater with the others below which labels are called noisy."""
SUSPECTS_ALLOWED = 0.01
"""Share of rows with a suspect label up to which they are not listed."""


def label_fixes(report: DataReport, train: DataSide, held: DataSide | None) -> Iterator[Fix]:
    """Yield the findings; arguments as for `fix_first`."""
    votes, noise = report.votes, report.label_noise
    if votes is not None and votes.rater_vs_rest is not None and votes.rater_vs_rest < NOISY:
        yield Fix(
            finding="noisy labels",
            harm=1 - votes.rater_vs_rest,
            affected=votes.rows - round(votes.unanimous * votes.rows),
            total=votes.rows,
            found=f"A rater agrees with the majority of the other raters in only {votes.rater_vs_rest:.1%} of "
            f"{counted(votes.num_rater_vs_rest, 'vote')}. The rows counted here are not unanimous.",
            remedy="Train on the share of votes (`probability`) instead of the winner, or collect more votes.",
            examples=train.by_disagreement(),
        )
    if noise is not None and noise.suspect_rows > SUSPECTS_ALLOWED * noise.rows:
        yield Fix(
            finding="suspect labels",
            harm=noise.suspect_rows / noise.rows,
            affected=noise.suspect_rows,
            total=noise.rows,
            found="A word-count model that was fitted on other prompts gives the label a probability of at most "
            f"{noise.limit:.0%}. `label_noise` in the JSON report lists the rows.",
            remedy="Read these rows first when you look for wrong labels, and correct those that are wrong. Do not "
            "drop them unread: some are hard pairs with a right label.",
            examples=train.examples(each.row for each in noise.suspects),
        )
