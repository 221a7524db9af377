"""Findings -> a short list of what to mend first, worst first.

The harm of a finding is the share of rows that it concerns, times how far such a row misleads: an evaluation row that
was seen in training says nothing of new prompts (10); a text read in the wrong layout is another text (8); preferences
that contradict each other teach both (4); sides with different prompts compare other things, and a blank prompt hides
what was asked (3); a row that is lost teaches nothing, and one that loses text teaches something else (2). The weights
only order the list.
"""

from collections.abc import Iterator

from hf_reward.data.row_remarks import BLANK_PROMPT, LOST_TEXT
from hf_reward.data.row_text import prompt_text, response_text
from hf_reward.evaluation.data_check.facts import EXAMPLES
from hf_reward.evaluation.data_check.imbalance import Imbalance, is_length
from hf_reward.evaluation.data_check.report import DataReport, Example, Fix
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.evaluation.data_check.style_features import MARKS
from hf_reward.metrics.preference import FEW_CLUSTERS

DUPLICATES_ALLOWED = 0.01
"""Share of repeated rows below which they are not worth mending."""
LEAK_SHOWN = 0.03
"""Accuracy that a split by row has to add before it is named."""
SHALLOW = 0.70
"""Accuracy from which on a rule that never reads is named."""
NOISY = 0.65
"""Agreement of one rater with the rest below which labels are called noisy."""
CUT_ALLOWED = 0.05
"""Share of rows whose prompt may be cut before that is named."""
FORMAT_PAIRS = 0.05
"""Share of pairs in which a mark must differ before its imbalance is named."""

_SHOWN = 200
"""Characters of a text in an example."""


def fix_first(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> list[Fix]:
    """List what to mend, worst first.

    Args:
        report: All findings.
        reader: The data, for examples.
        eval_reader: The evaluation data, for examples.

    Returns:
        The list; empty if nothing stands out.
    """
    checks = (_leaks, _shift, _reading, _sides, _prompts, _preferences, _repeats, _split, _styles, _rules, _labels)
    fixes = [fix for check in (*checks, _tokens) for fix in check(report, reader, eval_reader)]
    return sorted(fixes, key=lambda fix: -fix.harm)


Fixes = Iterator[Fix]


def _leaks(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    leakage = report.leakage
    if leakage is None or not leakage.leaked_rows or eval_reader is None:
        return
    kinds = ", ".join(f"{count:,} by {kind}" for kind, count in leakage.kinds.items() if count)
    rows = next(iter(leakage.examples.values()))
    yield Fix(
        finding="leakage",
        harm=10 * leakage.leaked_rows / leakage.eval_rows,
        found=f"{_of(leakage.leaked_rows, leakage.eval_rows)} evaluation rows are known from training ({kinds}).",
        cure="Split again with `hf-reward split --near-duplicates`, or read `accuracy_without_leaks` of the trainer.",
        examples=_examples(eval_reader, rows),
    )


def _shift(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    shift = report.shift
    if shift is None or shift.verdict != "shifted" or shift.interval is None:
        return
    lengths = ", ".join(
        f"a {kind} has {each['evaluation data']['median']:,.0f} words (training {each['data']['median']:,.0f})"
        for kind, each in (("prompt", shift.prompt_words), ("response", shift.response_words))
    )
    known = "" if shift.known_words is None else f"{shift.known_words:.1%} of its words occur in training"
    if shift.known_words_within is not None:
        known += f" ({shift.known_words_within:.1%} for held-out training prompts)"
    yield Fix(
        finding="domain shift",
        harm=2 * (2 * (shift.separability or 0.5) - 1),
        found="The evaluation data are texts of another kind: a classifier tells them from training texts with an "
        f"accuracy of {shift.separability:.1%} ({shift.interval.low:.1%} to {shift.interval.high:.1%}), {known}, and "
        f"in the median {lengths}.",
        cure="Read an accuracy on them as one on another domain, and measure on held-out training prompts too; or "
        "train on rows of this kind.",
    )


def _reading(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    for counts, rows in ((report.data, reader), (report.eval_data, eval_reader)):
        if counts is None or rows is None:
            continue
        if counts.transcripts > counts.usable / 2:
            yield Fix(
                finding="transcripts",
                harm=8 * counts.transcripts / counts.rows,
                found=f"{_of(counts.transcripts, counts.rows)} rows of {counts.name} look like `Human:` / `Assistant:` "
                "transcripts but were read as plain text.",
                cure="Check, train and split with layout hh (`--layout hh`).",
            )
        if counts.unusable:
            lost = counts.rows - counts.usable
            reasons = "; ".join(f"{count:,} times {reason}" for reason, count in counts.unusable.items())
            numbers = [number for found in counts.unusable_rows.values() for number in found[:2]]
            yield Fix(
                finding="unusable rows",
                harm=2 * lost / counts.rows,
                found=f"{_of(lost, counts.rows)} rows of {counts.name} cannot be used ({reasons}), such as "
                f"{', '.join(counts.places[number] for number in numbers[:EXAMPLES])}.",
                cure="Correct or remove them; training stops at the first unless `skip_bad_rows` is set.",
            )


def _sides(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    counts = report.data
    if counts.prompts_differed:
        yield Fix(
            finding="prompt mismatch",
            harm=3 * counts.prompts_differed / counts.rows,
            found=f"{_of(counts.prompts_differed, counts.rows)} rows compare responses to different prompts.",
            cure="Remove them; else only the turns that both sides share are the prompt, and the rest is response.",
            examples=_examples(reader, counts.prompts_differed_rows),
        )
    same = report.duplicates
    if same.identical_pairs:
        yield Fix(
            finding="identical pairs",
            harm=2 * same.identical_pairs / max(counts.strict_pairs, 1),
            found=f"{_of(same.identical_pairs, counts.strict_pairs)} pairs prefer a text to itself.",
            cure="Remove them; training drops them.",
            examples=_examples(reader, same.identical_examples),
        )


def _prompts(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    counts = report.data
    if blank := counts.remarks.get(BLANK_PROMPT, 0):
        rows = counts.remark_rows[BLANK_PROMPT]
        yield Fix(
            finding="blank prompts",
            harm=3 * blank / counts.rows,
            found=f"{_of(blank, counts.rows)} rows have a blank prompt, such as {_listed(reader, rows)}.",
            cure="Fill the prompt in, or remove these rows: their responses answer a question that is not shown.",
            examples=_examples(reader, rows),
        )
    fit = report.tokens
    if fit is not None and (lost := fit.remarks.get(LOST_TEXT, 0)):
        rows = fit.remark_rows[LOST_TEXT]
        yield Fix(
            finding="lost text",
            harm=2 * lost / counts.rows,
            found=f"{_of(lost, counts.rows)} rows hold text that the chat template leaves out, such as "
            f"{_listed(reader, rows)}.",
            cure="Use a template that keeps it (`chat_template_path`), or take it out of the rows on purpose.",
            examples=_examples(reader, rows),
        )


def _preferences(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    found, usable = report.contradictions, max(report.data.usable, 1)
    if found.contradictory_pairs:
        yield Fix(
            finding="contradictory pairs",
            harm=4 * found.contradictory_rows / usable,
            found=f"{found.contradictory_pairs:,} pairs of responses are preferred both ways, in "
            f"{_of(found.contradictory_rows, usable)} rows.",
            cure="Keep the side with more votes, state a `probability`, or remove both rows.",
            examples=_examples(reader, [row for pair in found.contradictory_examples for row in pair]),
        )
    if found.cycles:
        yield Fix(
            finding="3-cycles",
            harm=found.cycle_rows / usable,
            found=f"{found.cycles:,} times three responses to a prompt are preferred in a circle, in "
            f"{_of(found.cycle_rows, usable)} rows; at least one preference of each circle is wrong.",
            cure="Look at these prompts; remove the preference with the fewest votes.",
            examples=_examples(reader, found.cycle_examples),
        )


def _repeats(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    found, usable = report.duplicates, max(report.data.usable, 1)
    if found.duplicate_rows > DUPLICATES_ALLOWED * usable:
        yield Fix(
            finding="duplicate rows",
            harm=found.duplicate_rows / usable,
            found=f"{_of(found.duplicate_rows, usable)} rows repeat an earlier one.",
            cure="Remove the repetitions, or give one row a `weight`.",
            examples=_examples(reader, [row for row, _ in found.duplicate_examples]),
        )


def _split(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    rules = report.shallow_rules
    leak = rules.leak if rules is not None and report.eval_data is None else None
    if leak is not None and leak >= LEAK_SHOWN and rules is not None and rules.by_row and rules.by_prompt:
        yield Fix(
            finding="random split",
            harm=10 * leak,
            found=f"A random split by row would invent {100 * leak:.1f} points of accuracy: TF-IDF scores "
            f"{rules.by_row.accuracy:.1%} there and {rules.by_prompt.accuracy:.1%} on prompts that it has not seen.",
            cure="Split with `hf-reward split --near-duplicates` (or `split_by_prompt`), never by row.",
        )
    groups = report.duplicates.prompt_groups
    if 0 < groups < FEW_CLUSTERS:
        yield Fix(
            finding="few prompts",
            harm=0.5,
            found=f"The rows have only {groups} prompt groups, so no interval of any number can be trusted.",
            cure="Collect more prompts rather than more responses to these.",
        )


def _styles(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    lengths = [found for found in report.imbalances if is_length(found) and found.verdict == "imbalanced"]
    if lengths:
        worst = lengths[0]
        side = "longer" if (worst.share or 0) > 0.5 else "shorter"
        yield Fix(
            finding="length imbalance",
            harm=_skew(worst),
            found=f"The {side} response is preferred: {_share_text(worst)} for the longer one.",
            cure="Report accuracy beside the length rule and for both lengths; balance the pairs, or add such as go "
            "the other way.",
        )
    pairs = max(report.data.strict_pairs, 1)
    for kind, (features, cure) in _KINDS.items():
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
                found="The response with more of these is preferred with a share of "
                + "; ".join(f"{_share_text(each)}" for each in found[:EXAMPLES])
                + ".",
                cure=cure,
            )


_KINDS = {
    "format imbalance": (
        MARKS,
        "A model can learn the marks instead of the content: test it with edits that only change format (`hf-reward "
        "audit --family format`).",
    ),
    "opening imbalance": (
        ("agreeing opening",),
        "A model can learn the opening words: test it with answers that differ in them alone (`hf-reward audit "
        "--family sycophancy`).",
    ),
    "refusal imbalance": (
        ("apology or refusal",),
        "A model can learn to refuse, or never to: report its accuracy on prompts that should be refused and on those "
        "that should be answered, and add pairs of the rarer kind.",
    ),
}
"""Finding -> the features that it is about, and what to do."""


def _rules(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    rules = report.shallow_rules
    if rules is None:
        return
    scored = [rule for rule in (rules.by_prompt, rules.on_eval) if rule is not None]
    best = max(scored, key=lambda rule: rule.accuracy, default=None)
    ceiling = report.votes.ceiling if report.votes is not None else None
    close = best is not None and ceiling is not None and best.accuracy > ceiling - 0.02
    if best is not None and (best.accuracy >= SHALLOW or close):
        yield Fix(
            finding="shallow rule",
            harm=2 * (best.accuracy - 0.5),
            found=f"Counting words is enough for this accuracy: {best}"
            + (f"; people reach at most {ceiling:.1%} on single votes" if close and ceiling is not None else "")
            + ".",
            cure="Count only what a model scores above it.",
        )


def _labels(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    votes = report.votes
    if votes is not None and votes.rater_vs_rest is not None and votes.rater_vs_rest < NOISY:
        yield Fix(
            finding="noisy labels",
            harm=1 - votes.rater_vs_rest,
            found=f"A rater agrees with the majority of the others in {votes.rater_vs_rest:.1%} of "
            f"{votes.num_rater_vs_rest:,} votes.",
            cure="Train on the share of votes (`probability`) instead of the winner, or collect more votes.",
        )


def _tokens(report: DataReport, reader: RowReader, eval_reader: RowReader | None) -> Fixes:
    fit = report.tokens
    if fit is None or not fit.rows:
        return
    long = fit.dropped.get("too long", 0)
    if long:
        yield Fix(
            finding="too long",
            harm=2 * long / fit.rows,
            found=f"{_of(long, fit.rows)} rows do not fit max_length={fit.max_length} and are dropped "
            f"(over_length={fit.over_length!r}; 99% of rows have at most {fit.quantiles['p99']:,} tokens).",
            cure="Raise `max_length`, or accept that long responses are not learned.",
        )
    if fit.cut_rows > CUT_ALLOWED * fit.rows:
        yield Fix(
            finding="cut prompts",
            harm=fit.cut_rows / fit.rows,
            found=f"{_of(fit.cut_rows, fit.rows)} prompts are cut to fit max_length={fit.max_length}.",
            cure="Raise `max_length` if the model allows it.",
        )


def _skew(found: Imbalance) -> float:
    return 2 * abs((found.share or 0.5) - 0.5)


def _share_text(found: Imbalance) -> str:
    low, high = (found.interval.low, found.interval.high) if found.interval is not None else (float("nan"),) * 2
    return (
        f"{found.share:.1%} ({low:.1%} to {high:.1%}; {found.feature}; {found.pairs:,} pairs, "
        f"{found.ties:,} equal ones left out)"
    )


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / max(total, 1):.1%})"


def _listed(reader: RowReader, numbers: list[int]) -> str:
    return ", ".join(map(reader.place, numbers[:EXAMPLES]))


def _examples(reader: RowReader, numbers: list[int]) -> list[Example]:
    shown = []
    for number in numbers[:EXAMPLES]:
        row = reader.row(number)
        texts = {"prompt": prompt_text(row)}
        # Responses by rank, so that the preferred one comes first.
        for rank, place in sorted((rank, place) for place, rank in enumerate(row.ranks)):
            texts[f"response of rank {rank}" + (f" ({place})" if len(row.ranks) > 2 else "")] = response_text(
                row, place
            )
        shown.append(
            Example(
                row=number, place=reader.place(number), texts={name: _shorten(text) for name, text in texts.items()}
            )
        )
    return shown


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "\u2026"
