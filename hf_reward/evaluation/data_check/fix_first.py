"""Turn findings into a list of the problems to fix first, worst first.

Problems are ordered by `harm`, the fraction of affected rows times a weight for the severity:

- 10: an evaluation row also occurs in training, so its result is not valid for new prompts;
- 8: the text of a row is parsed in the wrong layout;
- 4: preferences contradict each other;
- 3: the responses belong to different prompts, or the prompt is blank;
- 2: a row is lost or loses text.

The weights only order the list.
"""

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from hf_reward.data.row_remarks import BLANK_PROMPT, LOST_TEXT
from hf_reward.evaluation.data_check.example_rows import DataSide
from hf_reward.evaluation.data_check.imbalance import Imbalance, is_length
from hf_reward.evaluation.data_check.label_fixes import label_fixes
from hf_reward.evaluation.data_check.leakage import KIND_NAMES
from hf_reward.evaluation.data_check.report import DataReport, Fix
from hf_reward.evaluation.data_check.style_features import MARKS
from hf_reward.metrics.counts import counted
from hf_reward.metrics.preference import FEW_CLUSTERS

DUPLICATES_ALLOWED = 0.01
"""Share of repeated rows up to which they are not listed."""
LEAK_SHOWN = 0.03
"""Accuracy that a split by row must add before it is listed."""
STRONG_BASELINE = 0.70
"""Accuracy from which a trivial baseline is listed."""
CUT_ALLOWED = 0.05
"""Share of rows whose prompt may be cut before it is listed."""
FORMAT_PAIRS = 0.05
"""Share of pairs in which a mark must differ before its imbalance is listed."""
_FEATURES_SHOWN = 5
"""Imbalanced features that one finding lists at most."""

Fixes = Iterator[Fix]


def fix_first(report: DataReport, train: DataSide, held: DataSide | None) -> list[Fix]:
    """List the problems to fix, worst first.

    Args:
        report: All findings.
        train: The data.
        held: The evaluation data.

    Returns:
        The list; empty if nothing stands out.
    """
    checks = (_leaks, _shift, _reading, _sides, _prompts, _preferences, _repeats, _split, _styles, _baselines)
    fixes = [fix for check in (*checks, label_fixes, _tokens) for fix in check(report, train, held)]
    return sorted(fixes, key=lambda fix: -fix.harm)


def _leaks(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    leakage = report.leakage
    if leakage is None or not leakage.leaked_rows or held is None:
        return
    kinds = ", ".join(f"{KIND_NAMES[kind]} {count:,}" for kind, count in leakage.kinds.items() if count)
    yield Fix(
        finding="leakage",
        harm=10 * leakage.leaked_rows / leakage.eval_rows,
        affected=leakage.leaked_rows,
        total=leakage.eval_rows,
        unit="evaluation row",
        found=f"Evaluation rows also occur in the training data, complete or in part: {kinds}. A row can be of several "
        "kinds.",
        remedy="Split again with `hf-reward split --near-duplicates`, or use the trainer's `accuracy_without_leaks`.",
        examples=held.examples(next(iter(leakage.examples.values()))),
    )


def _shift(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    shift = report.shift
    if shift is None or held is None or shift.verdict != "shifted" or shift.interval is None:
        return
    lengths = "; ".join(
        f"median {kind}: {counted(each['evaluation data']['median'], 'word')} (training: {each['data']['median']:,.0f})"
        for kind, each in (("prompt", shift.prompt_words), ("response", shift.response_words))
    )
    known = ""
    if shift.known_words is not None:
        within = shift.known_words_within
        compared = "" if within is None else f" ({within:.1%} for held-out training prompts)"
        known = f" {shift.known_words:.1%} of their words occur in training{compared};"
    yield Fix(
        finding="domain shift",
        harm=2 * (2 * (shift.separability or 0.5) - 1),
        affected=held.counts.usable,
        total=held.counts.usable,
        unit="evaluation row",
        found="The evaluation texts are of a different kind: a classifier separates them from training texts with "
        f"{shift.separability:.1%} accuracy ({shift.interval.low:.1%} to {shift.interval.high:.1%}; 50% is chance)."
        f"{known} {lengths}.",
        remedy="Treat an accuracy on these rows as out of domain, and measure on held-out training prompts too; or "
        "train on rows of this kind.",
        examples=held.examples(held.facts.number[:3]),
    )


def _reading(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    for side in (train, held):
        if side is None:
            continue
        counts = side.counts
        if counts.transcripts > counts.usable / 2:
            yield Fix(
                finding="transcripts",
                harm=8 * counts.transcripts / counts.rows,
                affected=counts.transcripts,
                total=counts.rows,
                found=f"Rows of {counts.name} look like `Human:` / `Assistant:` transcripts but were read as plain "
                "text.",
                remedy="Check, train and split with layout hh (`--layout hh`).",
                examples=side.examples(side.facts.transcript_rows),
            )
        if counts.unusable:
            lost = counts.rows - counts.usable
            reasons = "; ".join(f"{reason} ({counted(count, 'row')})" for reason, count in counts.unusable.items())
            yield Fix(
                finding="unusable rows",
                harm=2 * lost / counts.rows,
                affected=lost,
                total=counts.rows,
                found=f"Rows of {counts.name} cannot be used: {reasons}.",
                remedy="Correct or remove them. Training stops at the first one unless `skip_bad_rows` is set.",
                examples=side.raw_examples(_each_reason_first(counts.unusable_rows)),
            )


def _each_reason_first(rows: Mapping[str, list[int]]) -> list[int]:
    """Row numbers in an order that starts with one row of each reason."""
    return [row for turn in zip_longest(*rows.values()) for row in turn if row is not None]


def _sides(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    counts, same = report.data, report.duplicates
    if counts.prompts_differed:
        yield Fix(
            finding="prompt mismatch",
            harm=3 * counts.prompts_differed / counts.rows,
            affected=counts.prompts_differed,
            total=counts.rows,
            found="The two responses answer different prompts.",
            remedy="Remove these rows. Otherwise only the turns that both responses share become the prompt.",
            examples=train.examples(counts.prompts_differed_rows),
        )
    if same.identical_pairs:
        yield Fix(
            finding="identical pairs",
            harm=2 * same.identical_pairs / max(counts.strict_pairs, 1),
            affected=same.identical_pairs,
            total=counts.strict_pairs,
            unit="pair",
            found="The chosen and the rejected response are the same text.",
            remedy="Remove them; training drops them.",
            examples=train.examples(same.identical_examples),
        )


def _prompts(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    counts, fit = report.data, report.tokens
    if blank := counts.remarks.get(BLANK_PROMPT, 0):
        yield Fix(
            finding="blank prompts",
            harm=3 * blank / counts.rows,
            affected=blank,
            total=counts.rows,
            found="The prompt is blank.",
            remedy="Fill in the prompt, or remove these rows: the model never sees the question.",
            examples=train.examples(counts.remark_rows[BLANK_PROMPT]),
        )
    if fit is not None and (lost := fit.remarks.get(LOST_TEXT, 0)):
        yield Fix(
            finding="lost text",
            harm=2 * lost / counts.rows,
            affected=lost,
            total=counts.rows,
            found="The chat template leaves out part of the text.",
            remedy="Use a template that keeps it (`chat_template_path`), or remove the text from the rows on purpose.",
            examples=train.examples(fit.remark_rows[LOST_TEXT]),
        )


def _preferences(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    found, usable = report.contradictions, max(report.data.usable, 1)
    if found.contradictory_pairs:
        pairs = counted(found.contradictory_pairs, "pair of responses", "pairs of responses")
        yield Fix(
            finding="contradictory pairs",
            harm=4 * found.contradictory_rows / usable,
            affected=found.contradictory_rows,
            total=usable,
            found=f"Rows contradict each other about {pairs}: each response is preferred by some row.",
            remedy="Keep the preference with more votes, set a `probability`, or remove both rows.",
            examples=train.examples(row for pair in found.contradictory_examples for row in pair),
        )
    if found.cycles:
        yield Fix(
            finding="3-cycles",
            harm=found.cycle_rows / usable,
            affected=found.cycle_rows,
            total=usable,
            found=f"{counted(found.cycles, 'cycle')} of three responses to one prompt: A over B, B over C, C over A. "
            "At least one preference of each cycle is wrong.",
            remedy="Inspect these prompts and remove the preference with the fewest votes.",
            examples=train.examples(found.cycle_examples),
        )


def _repeats(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    found, usable = report.duplicates, max(report.data.usable, 1)
    if found.duplicate_rows > DUPLICATES_ALLOWED * usable:
        yield Fix(
            finding="duplicate rows",
            harm=found.duplicate_rows / usable,
            affected=found.duplicate_rows,
            total=usable,
            found="Rows repeat an earlier row: same prompt, responses and ranks.",
            remedy="Remove the repetitions, or keep one row with a `weight`.",
            examples=train.examples(row for row, _ in found.duplicate_examples),
        )


def _split(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    found, baselines = report.duplicates, report.shallow_rules
    leak = baselines.leak if baselines is not None and report.eval_data is None else None
    if leak is not None and leak >= LEAK_SHOWN and baselines is not None and baselines.by_row and baselines.by_prompt:
        yield Fix(
            finding="random split",
            harm=10 * leak,
            affected=found.rows_sharing_a_group,
            total=report.data.usable,
            found=f"A random split by row would overstate accuracy by {100 * leak:.1f} points, because rows share "
            f"their prompt: TF-IDF scores {baselines.by_row.accuracy:.1%} on held-out rows and "
            f"{baselines.by_prompt.accuracy:.1%} on held-out prompts.",
            remedy="Split with `hf-reward split --near-duplicates` (or `split_by_prompt`), never by row.",
            examples=train.of_largest_group(),
        )
    if 0 < found.prompt_groups < FEW_CLUSTERS:
        groups = counted(found.prompt_groups, "prompt group")
        yield Fix(
            finding="few prompts",
            harm=0.5,
            affected=report.data.usable,
            total=report.data.usable,
            found=f"The data have only {groups}. Intervals are unreliable with fewer than {FEW_CLUSTERS}.",
            remedy="Collect more prompts rather than more responses to these.",
            examples=train.of_largest_group(),
        )


def _styles(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    pairs = max(report.data.strict_pairs, 1)
    lengths = [each for each in report.imbalances if is_length(each) and each.verdict == "imbalanced"]
    if lengths:
        worst = lengths[0]
        sign = 1 if (worst.share or 0) > 0.5 else -1
        yield Fix(
            finding="length imbalance",
            harm=_skew(worst),
            affected=round(worst.pairs * (0.5 + _skew(worst) / 2)),
            total=pairs,
            unit="pair",
            found=f"The longer response is preferred in {_share_text(worst)}.",
            remedy="Report accuracy beside the length baseline and separately for pairs whose chosen response is "
            "longer and shorter. Balance the pairs.",
            examples=train.by_gap(worst.feature, sign),
        )
    for kind, (features, remedy) in _KINDS.items():
        found = [
            each
            for each in report.imbalances
            if each.feature in features and each.verdict == "imbalanced" and each.pairs > FORMAT_PAIRS * pairs
        ]
        if found:
            found.sort(key=lambda each: -_skew(each) * each.pairs)
            yield Fix(
                finding=kind,
                harm=_skew(found[0]) * found[0].pairs / pairs,
                affected=found[0].pairs,
                total=pairs,
                unit="pair",
                found="The response with more of a feature is preferred in "
                + "; ".join(_share_text(each) for each in found[:_FEATURES_SHOWN])
                + ".",
                remedy=remedy,
                examples=train.by_gap(found[0].feature, 1 if (found[0].share or 0) > 0.5 else -1),
            )


_KINDS = {
    "format imbalance": (
        MARKS,
        "A model can learn the format instead of the content. Test it with edits that change only the format "
        "(`hf-reward audit --family format`).",
    ),
    "opening imbalance": (
        ("agreeing opening",),
        "A model can learn the opening words. Test it with answers that differ only in them (`hf-reward audit --family "
        "sycophancy`).",
    ),
    "refusal imbalance": (
        ("apology or refusal",),
        "A model can learn to refuse always or never. Report its accuracy separately for prompts that should be "
        "refused and prompts that should be answered, and add pairs of the rarer kind.",
    ),
}
"""Finding -> its features, and what to do."""


def _baselines(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    baselines = report.shallow_rules
    if baselines is None:
        return
    scored = [each for each in (baselines.by_prompt, baselines.on_eval) if each is not None]
    best = max(scored, key=lambda each: each.accuracy, default=None)
    ceiling = report.votes.ceiling if report.votes is not None else None
    close = best is not None and ceiling is not None and best.accuracy > ceiling - 0.02
    if best is not None and (best.accuracy >= STRONG_BASELINE or close):
        people = f" People reach at most {ceiling:.1%} on single votes." if close else ""
        yield Fix(
            finding="trivial baseline",
            harm=2 * (best.accuracy - 0.5),
            affected=round(best.accuracy * best.num_pairs),
            total=best.num_pairs,
            unit="pair",
            found=f"Word counts alone reach this accuracy: {best}.{people}",
            remedy="Count only what a model scores above it.",
        )


def _tokens(report: DataReport, train: DataSide, held: DataSide | None) -> Fixes:
    fit = report.tokens
    if fit is None or not fit.rows:
        return
    if long := fit.dropped.get("too long", 0):
        yield Fix(
            finding="too long",
            harm=2 * long / fit.rows,
            affected=long,
            total=fit.rows,
            found=f"Rows exceed max_length={fit.max_length} and are dropped (over_length={fit.over_length!r}). 99% of "
            f"all rows have at most {counted(fit.quantiles['p99'], 'token')}.",
            remedy="Raise `max_length`, or accept that long responses are not learned.",
            examples=train.examples(fit.dropped_rows["too long"]),
        )
    if fit.cut_rows > CUT_ALLOWED * fit.rows:
        yield Fix(
            finding="cut prompts",
            harm=fit.cut_rows / fit.rows,
            affected=fit.cut_rows,
            total=fit.rows,
            found=f"The prompt is cut to fit max_length={fit.max_length}.",
            remedy="Raise `max_length` if the model allows it.",
            examples=train.examples(fit.cut_row_numbers),
        )


def _skew(found: Imbalance) -> float:
    return 2 * abs((found.share or 0.5) - 0.5)


def _share_text(found: Imbalance) -> str:
    low, high = (found.interval.low, found.interval.high) if found.interval is not None else (float("nan"),) * 2
    return (
        f"{found.share:.1%} of {counted(found.pairs, 'pair')} ({low:.1%} to {high:.1%}; {found.feature}; "
        f"{counted(found.ties, 'equal pair')} left out)"
    )
