"""Lines of text for the table and the page of a report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hf_reward.data.row_remarks import remark_clauses
from hf_reward.evaluation.baselines import Baseline
from hf_reward.evaluation.data_check.duplicates import TextRepeats
from hf_reward.evaluation.data_check.facts import NAMED_ROWS
from hf_reward.evaluation.data_check.imbalance import Imbalance
from hf_reward.evaluation.data_check.leakage import KIND_NAMES
from hf_reward.evaluation.data_check.report import DataReport, RowCounts
from hf_reward.evaluation.data_check.token_sharing import BATCH_SIZE, TokenSharing
from hf_reward.metrics.counts import counted
from hf_reward.metrics.preference import FEW_CLUSTERS, Interval


@dataclass(frozen=True)
class Line:
    """One finding for reading."""

    name: str
    value: str
    note: str = ""
    bar: tuple[float, float, float] | None = None
    """A share and the bounds of its interval, each in [0, 1], to be drawn."""


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    title: str
    intro: str
    lines: list[Line]


def sections(report: DataReport) -> list[Section]:
    """Return all findings in reading order.

    Args:
        report: The report.

    Returns:
        The sections that have lines.
    """
    found: list[tuple[str, str, Iterable[Line]]] = [
        (
            "Rows",
            "Lines count from 1, as in an editor; row numbers count from 0.",
            [*_rows(report.data, "data"), *_rows(report.eval_data, "evaluation data")],
        ),
        ("Repetition", _REPEATED, _repetition(report)),
        ("Contradictions", "Preferences between responses to the same prompt.", _contradictions(report)),
        ("Leakage", "Evaluation rows that also occur in training; a row can be of several kinds.", _leaks(report)),
        ("Distance from training", _SHIFT, _shift(report)),
        ("Length and format", _STYLE, map(_style, _styles(report))),
        (
            "Trivial baselines",
            "Accuracy on pairs with half-credit for ties, and its 95% interval clustered by prompt.",
            _baselines(report),
        ),
        ("Suspect labels", _SUSPECT, _suspects(report)),
        ("Votes", "Rows with votes of more than one person.", _votes(report)),
        ("Tokens", "All usable rows, as training tokenises them.", _tokens(report)),
    ]
    complete = [Section(title, intro, list(lines)) for title, intro, lines in found]
    return [section for section in complete if section.lines]


_REPEATED = (
    "Equal texts differ only in white space. Near duplicates have a Jaccard similarity of at least 0.8 on 5-grams of "
    "words; responses of fewer than 20 words are not compared."
)
_STYLE = (
    "Share of pairs in which the preferred response has more of a feature. Pairs with equal counts are left out. 95% "
    "intervals are clustered by prompt. Balanced: the interval is within 0.05 of one half. Imbalanced: the interval "
    "excludes one half, the share differs from it by more than 0.05, and p, corrected for the number of features "
    "(Holm), is below 0.05."
)


def _rows(counts: RowCounts | None, kind: str) -> Iterable[Line]:
    if counts is None:
        return
    usable = f"{counts.usable:,} of {counted(counts.rows, 'row')} usable"
    yield Line(kind, usable, f"{counts.name}; {counted(counts.strict_pairs, 'strict pair')}")
    for layout, count in counts.layouts.items():
        yield Line("layout", counted(count, "row"), layout)
    for reason, count in counts.unusable.items():
        shown = ", ".join(counts.places[row] for row in counts.unusable_rows[reason])
        yield Line("unusable", counted(count, "row"), f"{reason} ({shown}{', ...' if count > NAMED_ROWS else ''})")
    if counts.tied_rows:
        yield Line("tied", counted(counts.tied_rows, "row"), "no strict preference")
    if counts.prompts_differed:
        shown = ", ".join(counts.places[row] for row in counts.prompts_differed_rows)
        more = ", ..." if counts.prompts_differed > NAMED_ROWS else ""
        note = f"the responses answer different prompts ({shown}{more})"
        yield Line("prompt mismatch", counted(counts.prompts_differed, "row"), note)
    yield from _remarks(counts.remarks, counts.remark_rows, counts.places)
    if counts.transcripts:
        note = "read as plain text, but like Human: / Assistant: transcripts"
        yield Line("transcripts", counted(counts.transcripts, "row"), note)


def _remarks(counts: Mapping[str, int], rows: Mapping[str, list[int]], places: Mapping[int, str]) -> Iterable[Line]:
    for remark, count in counts.items():
        (clause,) = remark_clauses({remark: count}, {remark: [places[row] for row in rows[remark]]})
        note = clause.partition(" ")[2]
        yield Line(remark.replace("_", " "), counted(count, "row"), f"rows that {note}")


def _repetition(report: DataReport) -> list[Line]:
    found = report.duplicates
    return [
        Line(
            "prompt groups",
            counted(found.prompt_groups, "group"),
            f"largest group: {counted(found.largest_group, 'row')}; rows that share their group: "
            f"{found.rows_sharing_a_group:,}",
        ),
        Line("responses of pairs", f"{found.pair_responses:,} different", _sharing(report)),
        Line(
            "duplicate rows",
            counted(found.duplicate_rows, "row"),
            "same prompt, responses and ranks as an earlier row",
        ),
        Line("identical pairs", counted(found.identical_pairs, "pair"), "chosen and rejected are the same text"),
        Line("prompts", f"{found.prompts.distinct:,} different", _near(found.prompts, report)),
        Line("responses", f"{found.responses.distinct:,} different", _near(found.responses, report)),
    ]


def _sharing(report: DataReport) -> str:
    found, pairs = report.duplicates, report.data.strict_pairs
    scope = f"in {counted(pairs, 'strict pair')}"
    if found.pair_responses == 2 * pairs:
        return f"{scope}; no two pairs share a response"
    each = 2 * pairs / max(found.pair_responses, 1)
    return (
        f"{scope}; pairs per response: {each:.1f} on average, {found.most_pairs_of_a_response:,} at most. Pairs that "
        "share a response are not independent; intervals by prompt account for this, intervals by pair do not"
    )


def _near(found: TextRepeats, report: DataReport) -> str:
    if report.settings["near_duplicate_jaccard"] is None:
        return f"of {found.texts:,}; near duplicates were not searched for"
    return (
        f"of {found.texts:,}; near duplicates: {found.near_texts:,} of {found.compared:,} compared, "
        f"in {counted(found.near_clusters, 'cluster')}"
    )


def _contradictions(report: DataReport) -> list[Line]:
    found = report.contradictions
    return [
        Line(
            "contradictory pairs",
            counted(found.contradictory_pairs, "pair"),
            f"each response is preferred by some row, in {counted(found.contradictory_rows, 'row')}",
        ),
        Line(
            "3-cycles", counted(found.cycles, "cycle"), f"A over B over C over A, in {counted(found.cycle_rows, 'row')}"
        ),
    ]


def _leaks(report: DataReport) -> Iterable[Line]:
    found = report.leakage
    if found is None:
        return []
    total = Line("any kind", f"{found.leaked_rows:,} of {counted(found.eval_rows, 'row')}", "")
    kinds = (Line(KIND_NAMES[kind], counted(count, "row"), _KINDS[kind]) for kind, count in found.kinds.items())
    return [total, *kinds]


_KINDS = {
    "whole row": "same prompt and same responses as a training row, with either preference",
    "prompt group": "same `group` column, or same prompt where there is none",
    "prompt": "same text except for white space",
    "near prompt": "near duplicate or equal",
    "response": "same text, 20 words or more",
    "near response": "near duplicate or equal, 20 words or more",
}


_SHIFT = (
    "Difference between evaluation texts and training texts (prompt and response), on random rows of both, with "
    "held-out prompts. A different subject alone also gives a high separability. Together with unknown words or "
    "different lengths it means that the sets are of different kinds."
)
_SHIFT_VERDICTS = {
    "shifted": "shifted: texts of a different kind",
    "apart": "distinguishable, but with the words and lengths of the training texts",
    "not shown": "not shown to be distinguishable",
    "not assessed": "needs two prompt groups on both sides, and scikit-learn",
}


def _shift(report: DataReport) -> Iterable[Line]:
    found = report.shift
    if found is None:
        return
    if found.separability is not None:
        value = f"{found.separability:.1%} ({interval_text(found.interval)})"
        note = f"{_SHIFT_VERDICTS[found.verdict]}; accuracy of a word-count classifier, 50% is chance; "
        note += f"{counted(found.texts, 'text')} of each set{_few(found.interval)}"
        yield Line("separability", value, note, _bar(found.separability, found.interval))
    else:
        yield Line("separability", "not assessed", _SHIFT_VERDICTS[found.verdict])
    if found.known_words is not None:
        within = found.known_words_within
        compared = "" if within is None else f"; {within:.1%} for held-out training prompts"
        yield Line("known words", f"{found.known_words:.1%}", f"of the evaluation words occur in training{compared}")
    for name, lengths in (("prompt words", found.prompt_words), ("response words", found.response_words)):
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
    p_value = "" if found.adjusted_p_value is None else f", corrected p {_p_text(found.adjusted_p_value)}"
    pairs = f"{counted(found.pairs, 'pair')}, {found.ties:,} equal"
    note = f"{found.verdict}{p_value}; {pairs}{_few(found.interval)}; counts {found.unit}"
    return Line(found.feature, value, note, _bar(found.share, found.interval))


def _few(interval: Interval | None) -> str:
    return f"; fewer than {FEW_CLUSTERS} prompts" if interval is not None and interval.too_few_clusters else ""


def _p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _baselines(report: DataReport) -> Iterable[Line]:
    found = report.shallow_rules
    if found is None:
        return
    scope = f"{counted(found.rows, 'row')} of the data" + (", drawn at random" if found.sampled else "")
    for baseline in (found.length, found.by_prompt, found.by_row):
        if baseline is not None:
            yield _baseline(baseline, scope)
    for baseline in (found.eval_length, found.on_eval):
        if baseline is not None:
            yield _baseline(baseline, "evaluation data")
    if found.leak is not None:
        note = "accuracy with a split by row minus accuracy with a split by prompt"
        yield Line("leak of a random split", f"{100 * found.leak:+.1f} points", note)


def _baseline(found: Baseline, scope: str) -> Line:
    value = f"{found.accuracy:.1%} ({interval_text(found.interval)})"
    note = f"{scope}; {counted(found.num_pairs, 'pair')}"
    return Line(found.name, value, note, _bar(found.accuracy, found.interval))


_SUSPECT = (
    "Rows whose label a word-count model contradicts. The model is fitted on other prompts, and its probabilities are "
    "calibrated on these data. A listed label can be right."
)


def _suspects(report: DataReport) -> Iterable[Line]:
    found = report.label_noise
    if found is None:
        return
    if not found.assessed:
        yield Line("rows", "not assessed", "the model does not predict these labels better than chance")
        return
    note = f"probability of the label at most {found.limit:.0%}"
    yield Line("rows", f"{found.suspect_rows:,} of {counted(found.rows, 'row')}", note)
    if found.suspects:
        shown = ", ".join(f"{each.place} ({each.label_probability:.0%})" for each in found.suspects[:NAMED_ROWS])
        more = ", ..." if found.suspect_rows > NAMED_ROWS else ""
        yield Line("least probable", counted(len(found.suspects[:NAMED_ROWS]), "row"), f"{shown}{more}")


def _votes(report: DataReport) -> Iterable[Line]:
    found = report.votes
    if found is None:
        return
    note = f"{counted(found.votes, 'vote')}; {found.unanimous:.1%} of rows unanimous"
    yield Line("rows", counted(found.rows, "row"), note)
    if found.rater_vs_rest is not None:
        value = f"{found.rater_vs_rest:.1%} ({interval_text(found.rater_vs_rest_interval)})"
        votes = counted(found.num_rater_vs_rest, "vote")
        note = f"share of votes that equal the majority of the row's other votes; {votes}, without ties of the others"
        yield Line("rater agreement", value, note, _bar(found.rater_vs_rest, found.rater_vs_rest_interval))
    if found.rater_vs_label is not None:
        yield Line(
            "rater and label",
            f"{found.rater_vs_label:.1%}",
            "share of votes for the preferred response; a vote for neither counts against it",
        )
    if found.ceiling is not None:
        note = "mean of max(p, 1 - p): highest accuracy of a model on single votes; too high with few votes per row"
        yield Line("human ceiling", f"{found.ceiling:.1%}", f"{note}; {counted(found.num_ceiling, 'row')}")


def _tokens(report: DataReport) -> Iterable[Line]:
    fit = report.tokens
    if fit is None:
        return
    lengths = ", ".join(f"{name} {value:,}" for name, value in fit.quantiles.items())
    yield Line("longest sequence", lengths, f"tokens of {fit.tokenizer}, before any cut")
    limit = f"max_length={fit.max_length}, over_length={fit.over_length}"
    cut = f"{fit.cut_rows:,} of {counted(fit.rows, 'row')}"
    yield Line("cut prompts", cut, f"{counted(fit.cut_tokens, 'token')}; {limit}")
    for reason, count in fit.dropped.items():
        yield Line("dropped", counted(count, "row"), reason)
    yield from _computed_tokens(fit.sharing)
    yield from _remarks(fit.remarks, fit.remark_rows, fit.places)


def _computed_tokens(sharing: TokenSharing) -> Iterable[Line]:
    if not sharing.rows:
        return
    yield Line("tokens given", f"{sharing.given:,}", f"all sequences of the first {counted(sharing.rows, 'row')}")
    yield Line(
        "tokens computed",
        f"{sharing.by_row:,}",
        f"packed, each row by itself; {sharing.by_prompt:,} with `group_by_prompt` in batches of {BATCH_SIZE}",
    )


def interval_text(interval: Interval | None) -> str:
    """Return an interval in per cent, or the reason why there is none."""
    if interval is None or interval.method == "none":
        return "no interval from one prompt"
    return f"{interval.low:.1%} to {interval.high:.1%}"


def _bar(share: float, interval: Interval | None) -> tuple[float, float, float] | None:
    if interval is None or interval.method == "none":
        return None
    return share, interval.low, interval.high
