"""A report -> the lines that its table and its page show."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hf_reward.data.row_remarks import remark_clauses
from hf_reward.evaluation.baselines import Baseline
from hf_reward.evaluation.data_check.duplicates import TextRepeats
from hf_reward.evaluation.data_check.imbalance import Imbalance
from hf_reward.evaluation.data_check.report import DataReport, RowCounts
from hf_reward.metrics.preference import Interval


@dataclass(frozen=True)
class Line:
    """One finding for reading."""

    name: str
    value: str
    note: str = ""
    bar: tuple[float, float, float] | None = None
    """A share and its interval, each in [0, 1], where a picture of it helps."""


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    title: str
    intro: str
    lines: list[Line]


def sections(report: DataReport) -> list[Section]:
    """All findings in reading order.

    Args:
        report: The report.

    Returns:
        Sections that have something to say.
    """
    found: list[tuple[str, str, Iterable[Line]]] = [
        (
            "Rows",
            "What was read. Lines count from 1, as in an editor; row numbers count from 0.",
            [*_rows(report.data, "data"), *_rows(report.eval_data, "evaluation data")],
        ),
        ("Repetition", _REPEATED, _repetition(report)),
        ("Contradictions", "Within one prompt, by the responses' texts.", _contradictions(report)),
        ("Leakage", "Evaluation rows that are known from training; a row may be of several kinds.", _leaks(report)),
        ("Distance from training", _SHIFT, _shift(report)),
        ("Length and format", _STYLE, map(_style, _styles(report))),
        (
            "Rules that never read",
            "Accuracy on pairs, ties half, 95% interval with prompts as clusters.",
            _rules(report),
        ),
        ("Votes", "Rows that more than one person judged.", _votes(report)),
        ("Tokens", "All usable rows, as training tokenises them.", _tokens(report)),
    ]
    complete = [Section(title, intro, list(lines)) for title, intro, lines in found]
    return [section for section in complete if section.lines]


_REPEATED = (
    "Equal texts differ in nothing but white space. Near duplicates share 80% of their 5-grams of words with another "
    "text (Jaccard); responses are compared for that from 20 words on."
)
_STYLE = (
    "Share of strict pairs whose preferred response has more; pairs in which both have as much are left out and "
    "counted. 95% intervals have prompts as clusters. Balanced: the interval is within 0.05 of one half; imbalanced: "
    "it is on one side of one half, the share is further off than 0.05, and p, corrected for the number of features "
    "(Holm), is below 0.05."
)


def _rows(counts: RowCounts | None, kind: str) -> Iterable[Line]:
    if counts is None:
        return
    usable = f"{counts.usable:,} of {counts.rows:,} rows usable"
    yield Line(kind, usable, f"{counts.name}; {counts.strict_pairs:,} strict pairs")
    for layout, count in counts.layouts.items():
        yield Line("layout", f"{count:,}", layout)
    for reason, count in counts.unusable.items():
        shown = ", ".join(counts.places[row] for row in counts.unusable_rows[reason])
        yield Line("unusable", f"{count:,}", f"{reason} ({shown}{', ...' if count > 5 else ''})")
    if counts.tied_rows:
        yield Line("tied", f"{counts.tied_rows:,}", "rows without a strict preference")
    if counts.prompts_differed:
        shown = ", ".join(counts.places[row] for row in counts.prompts_differed_rows)
        yield Line(
            "prompt mismatch", f"{counts.prompts_differed:,}", f"rows whose sides have different prompts ({shown})"
        )
    yield from _remarks(counts.remarks, counts.remark_rows, counts.places)
    if counts.transcripts:
        yield Line("transcripts", f"{counts.transcripts:,}", "text rows that look like Human: / Assistant: transcripts")


def _remarks(counts: Mapping[str, int], rows: Mapping[str, list[int]], places: Mapping[int, str]) -> Iterable[Line]:
    for remark, count in counts.items():
        (clause,) = remark_clauses({remark: count}, {remark: [places[row] for row in rows[remark]]})
        value, _, note = clause.partition(" ")
        yield Line(remark.replace("_", " "), value, f"rows {note}")


def _repetition(report: DataReport) -> list[Line]:
    found = report.duplicates
    return [
        Line(
            "prompt groups",
            f"{found.prompt_groups:,}",
            f"the largest has {found.largest_group:,} rows; "
            f"{found.rows_sharing_a_group:,} rows share theirs with another",
        ),
        Line("responses of pairs", f"{found.pair_responses:,} different", _sharing(report)),
        Line("duplicate rows", f"{found.duplicate_rows:,}", "same prompt, responses and ranks as an earlier row"),
        Line("identical pairs", f"{found.identical_pairs:,}", "the preferred response is the other one"),
        Line("prompts", f"{found.prompts.distinct:,} different", _near(found.prompts, report)),
        Line("responses", f"{found.responses.distinct:,} different", _near(found.responses, report)),
    ]


def _sharing(report: DataReport) -> str:
    found, pairs = report.duplicates, report.data.strict_pairs
    if found.pair_responses == 2 * pairs:
        return f"in {pairs:,} strict pairs: no pair shares a response with another"
    each = 2 * pairs / max(found.pair_responses, 1)
    return (
        f"in {pairs:,} strict pairs, {each:.1f} pairs a response and at most {found.most_pairs_of_a_response:,}: pairs "
        "that share a response are not independent; intervals by prompt allow for it, those by pair do not"
    )


def _near(found: TextRepeats, report: DataReport) -> str:
    if report.settings["near_duplicate_jaccard"] is None:
        return f"of {found.texts:,}; near duplicates were not looked for"
    return (
        f"of {found.texts:,}; {found.near_texts:,} of {found.compared:,} compared are near duplicates, "
        f"in {found.near_clusters:,} clusters"
    )


def _contradictions(report: DataReport) -> list[Line]:
    found = report.contradictions
    return [
        Line(
            "contradictory pairs",
            f"{found.contradictory_pairs:,}",
            f"preferred both ways, in {found.contradictory_rows:,} rows",
        ),
        Line("3-cycles", f"{found.cycles:,}", f"A over B over C over A, in {found.cycle_rows:,} rows"),
    ]


def _leaks(report: DataReport) -> Iterable[Line]:
    found = report.leakage
    if found is None:
        return []
    total = Line("any", f"{found.leaked_rows:,} of {found.eval_rows:,}", "evaluation rows")
    return [total, *(Line(kind, f"{count:,}", _KINDS[kind]) for kind, count in found.kinds.items())]


_KINDS = {
    "whole row": "the prompt and both responses are in training, whichever is preferred",
    "prompt group": "the group column, or the prompt where there is none",
    "prompt": "the same text but for white space",
    "near prompt": "a near duplicate, or equal",
    "response": "the same text, of 20 words or more",
    "near response": "a near duplicate, or equal, of 20 words or more",
}


_SHIFT = (
    "How far the evaluation texts (prompt and response) are from the training texts, on random rows of both. Prompts "
    "are held out whole. A high separability alone also comes from another subject of the same kind; with unknown "
    "words or other lengths it says that the sets are of different kinds."
)
_SHIFT_VERDICTS = {
    "shifted": "shifted: texts of another kind",
    "apart": "told apart, but words and lengths are like those of training",
    "not shown": "not shown to be told apart",
    "not assessed": "needs two prompt groups on both sides, and scikit-learn",
}


def _shift(report: DataReport) -> Iterable[Line]:
    found = report.shift
    if found is None:
        return
    few = "; fewer than 20 prompts" if found.interval is not None and found.interval.too_few_clusters else ""
    if found.separability is not None:
        value = f"{found.separability:.1%} ({interval_text(found.interval)})"
        note = f"{_SHIFT_VERDICTS[found.verdict]}; a classifier of words tells the set of a text, 50% is chance; "
        note += f"{found.texts:,} texts of each{few}"
        yield Line("separability", value, note, _bar(found.separability, found.interval))
    else:
        yield Line("separability", "not assessed", _SHIFT_VERDICTS[found.verdict])
    if found.known_words is not None:
        within = found.known_words_within
        compared = "" if within is None else f"; {within:.1%} for prompts that are held out of training"
        yield Line("known words", f"{found.known_words:.1%}", f"of the evaluation words occur in training{compared}")
    for name, lengths in (("words of a prompt", found.prompt_words), ("words of a response", found.response_words)):
        train, held = lengths["data"], lengths["evaluation data"]
        value = f"median {held['median']:,.0f}, training {train['median']:,.0f}"
        spans = [f"{each['p05']:,.0f} to {each['p95']:,.0f}" for each in (held, train)]
        yield Line(name, value, f"5% to 95%: {spans[0]}, training {spans[1]}")


def _styles(report: DataReport) -> list[Imbalance]:
    tokens = [report.tokens.length] if report.tokens is not None else []
    return [found for found in [*tokens, *report.imbalances] if found.pairs]


def _style(found: Imbalance) -> Line:
    assert found.share is not None
    value = f"{found.share:.1%} ({interval_text(found.interval)})"
    few = "; fewer than 20 prompts" if found.interval is not None and found.interval.too_few_clusters else ""
    p_value = "" if found.adjusted_p_value is None else f", corrected p {_p_text(found.adjusted_p_value)}"
    note = f"{found.verdict}{p_value}; {found.pairs:,} pairs, {found.ties:,} equal{few}; counts {found.unit}"
    return Line(found.feature, value, note, _bar(found.share, found.interval))


def _p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _rules(report: DataReport) -> Iterable[Line]:
    rules = report.shallow_rules
    if rules is None:
        return
    scope = f"on {rules.rows:,} rows" + (", a random part" if rules.sampled else "")
    for rule in (rules.length, rules.by_prompt, rules.by_row):
        if rule is not None:
            yield _rule(rule, scope)
    for rule in (rules.eval_length, rules.on_eval):
        if rule is not None:
            yield _rule(rule, "on the evaluation data")
    if rules.leak is not None:
        yield Line(
            "leak of a random split",
            f"{100 * rules.leak:+.1f} points",
            "accuracy that a split by row adds to one by prompt",
        )


def _rule(rule: Baseline, scope: str) -> Line:
    value = f"{rule.accuracy:.1%} ({interval_text(rule.interval)})"
    return Line(rule.name, value, f"{rule.num_pairs:,} pairs, {scope}", _bar(rule.accuracy, rule.interval))


def _votes(report: DataReport) -> Iterable[Line]:
    found = report.votes
    if found is None:
        return
    yield Line("rows", f"{found.rows:,}", f"{found.votes:,} votes; {found.unanimous:.1%} of rows unanimous")
    if found.rater_vs_rest is not None:
        value = f"{found.rater_vs_rest:.1%} ({interval_text(found.rater_vs_rest_interval)})"
        note = (
            f"a vote equals the majority of the others; {found.num_rater_vs_rest:,} votes, others without one left out"
        )
        yield Line("rater and rest", value, note, _bar(found.rater_vs_rest, found.rater_vs_rest_interval))
    if found.rater_vs_label is not None:
        yield Line(
            "rater and label", f"{found.rater_vs_label:.1%}", "a vote is for the preferred response; `neither` is not"
        )
    if found.ceiling is not None:
        note = "mean of max(p, 1 - p): the most a model can score on single votes; too high with few votes a row"
        yield Line("human ceiling", f"{found.ceiling:.1%}", f"{note}; {found.num_ceiling:,} rows")


def _tokens(report: DataReport) -> Iterable[Line]:
    fit = report.tokens
    if fit is None:
        return
    lengths = ", ".join(f"{name} {value:,}" for name, value in fit.quantiles.items())
    yield Line("longest sequence", lengths, f"tokens of {fit.tokenizer}, before anything is cut")
    limit = f"max_length={fit.max_length}, over_length={fit.over_length}"
    yield Line("cut prompts", f"{fit.cut_rows:,} of {fit.rows:,}", f"{fit.cut_tokens:,} tokens; {limit}")
    for reason, count in fit.dropped.items():
        yield Line("dropped", f"{count:,}", reason)
    yield from _remarks(fit.remarks, fit.remark_rows, fit.places)


def interval_text(interval: Interval | None) -> str:
    """An interval in per cent, or why there is none."""
    if interval is None or interval.method == "none":
        return "no interval from one prompt"
    return f"{interval.low:.1%} to {interval.high:.1%}"


def _bar(share: float, interval: Interval | None) -> tuple[float, float, float] | None:
    if interval is None or interval.method == "none":
        return None
    return share, interval.low, interval.high
