"""Convert raw rows of every accepted layout to canonical preference rows.

This is the only module that converts layouts. It does not depend on tokenizers or models.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hf_reward.data.fields import (
    column_example,
    missing_column,
    prompt_of,
    read_conversation,
    read_list,
    read_number,
    read_probability,
    read_ranks,
    read_template_options,
    read_text,
    require_no_images,
    require_same_length,
    with_image_references,
)
from hf_reward.data.interface import setting
from hf_reward.data.preference_row import (
    UNREADABLE,
    Message,
    PreferenceFormatError,
    PreferenceRow,
    Response,
    as_mapping,
    dense_ranks,
    prompt_group,
    rename_columns,
)
from hf_reward.data.python_values import columns_to_python
from hf_reward.data.repeated_prompts import Sides, read_sides, shared_turns

LAYOUTS = ("pairs", "hh", "ranked", "votes", "tokenized")
"""Values of `layout` other than `auto`. Rated rows (one response each) are converted by `to_pairs` first."""


def detect_layout(columns: Iterable[str]) -> str:
    """Return the layout of a set of columns.

    Args:
        columns: Column names, after any `columns` mapping.

    Returns:
        One of `LAYOUTS`, except `hh`, which must be set explicitly.

    Raises:
        PreferenceFormatError: If the columns do not match any layout.
    """
    names = set(columns) - {UNREADABLE}
    if {"chosen_ids", "rejected_ids"} <= names or {"chosen_input_ids", "rejected_input_ids"} <= names:
        return "tokenized"
    if {"chosen", "rejected"} <= names:
        return "pairs"
    if "responses" in names and names & {"ranks", "scores"}:
        return "ranked"
    if {"prompt", "response_a", "response_b"} <= names and names & _VERDICTS:
        return "votes"
    if {"prompt", "response"} <= names and names & {"score", "rating"}:
        raise PreferenceFormatError(
            "A preference row needs two or more responses, but these rows have one rated response each. To make pairs "
            f"of responses with scores that differ by at least 1.0, set `{setting('min_gap', 1.0)}` (or use "
            "`to_pairs` in Python)."
        )
    raise PreferenceFormatError(
        "The columns do not match any layout. Needed: `chosen` and `rejected` (with or without `prompt`); or `prompt`, "
        "`responses` and `ranks` or `scores`; or `prompt`, `response_a`, `response_b` and one of "
        f"{', '.join(sorted(_VERDICTS))}; or `chosen_ids` and `rejected_ids`. "
        f"Found: {', '.join(sorted(map(str, names)))}. If yours have different names, map each with "
        f"{column_example('chosen')}."
    )


def to_preference_row(
    row: Any, *, layout: str = "auto", columns: Mapping[str, str] | None = None, row_index: int | None = None
) -> PreferenceRow:
    """Convert one raw row to a canonical row.

    Args:
        row: A mapping or a `PreferencePair`; it is not changed.
        layout: One of `LAYOUTS`, or `auto`.
        columns: Field -> name of its column in the row.
        row_index: Number of the row, for error messages.

    Returns:
        The canonical row.

    Raises:
        PreferenceFormatError: If the row fits no layout or a field is unusable.
    """
    try:
        named = with_image_references(rename_columns(as_mapping(row), columns), local_files=True)
        named = columns_to_python(named, _LAYOUT_COLUMNS)
        layout = detect_layout(named) if layout == "auto" else layout
        if layout not in _READERS:
            raise PreferenceFormatError(
                f"`{setting('layout')}` must be 'auto' or one of {', '.join(LAYOUTS)}, but is {layout!r}."
            )
        result = _READERS[layout](named)
        _read_common_fields(result, named)
    except PreferenceFormatError as error:
        raise PreferenceFormatError(error.message, row_index, error.field) from None
    if result.group is None:
        result.group = prompt_group(result)
    if result.id is None and row_index is not None:
        result.id = str(row_index)
    return result


_VERDICTS = {"winner", "score", "probability", "votes_a", "annotators"}


def _read_pairs(row: Mapping[str, Any]) -> PreferenceRow:
    for name in ("chosen", "rejected"):
        if name not in row:
            raise missing_column(name, row)
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is None:
        return _read_implicit_prompt(chosen, rejected)
    return _of_sides(read_sides(row["prompt"], [chosen, rejected], ["chosen", "rejected"]), [0, 1])


def _of_sides(sides: Sides, ranks: list[int]) -> PreferenceRow:
    return PreferenceRow(
        prompt=sides.prompt,
        responses=sides.responses,
        ranks=ranks,
        prompts_differed=sides.differed,
        repeated_prompt=sides.repeated,
        blank_prompt=sides.blank,
    )


def _read_implicit_prompt(chosen: Any, rejected: Any) -> PreferenceRow:
    if isinstance(chosen, str) and isinstance(rejected, str):
        responses: list[Response] = [read_text(chosen, "chosen"), read_text(rejected, "rejected")]
        return PreferenceRow(prompt="", responses=responses, ranks=[0, 1])
    chosen, rejected = read_conversation(chosen, "chosen"), read_conversation(rejected, "rejected")
    return _split_turns(chosen, rejected)


def _split_turns(chosen: list[Message], rejected: list[Message]) -> PreferenceRow:
    """Split two conversations: the prompt is their common turns, without the last turn of the shorter one."""
    prompt, responses = shared_turns([chosen, rejected])
    require_no_images(responses)
    return PreferenceRow(
        prompt=prompt,
        responses=list(responses),
        ranks=[0, 1],
        prompts_differed=any(len(response) != 1 for response in responses),
    )


def _read_hh(row: Mapping[str, Any]) -> PreferenceRow:
    return _split_turns(*(parse_hh_transcript(row.get(name), name) for name in ("chosen", "rejected")))


def parse_hh_transcript(text: Any, name: str = "text") -> list[Message]:
    r"""Parse a transcript of `\n\nHuman:` and `\n\nAssistant:` turns.

    Args:
        text: The transcript.
        name: Its column, for error messages.

    Returns:
        The turns as messages, in order.

    Raises:
        PreferenceFormatError: If the text is not such a transcript, or its last turn is not a nonempty assistant turn.
    """
    parts = re.split(r"\n\n(Human|Assistant):", read_text(text, name))
    if len(parts) < 3 or parts[0].strip():
        raise PreferenceFormatError(
            f"With `{setting('layout', 'hh')}`, `{name}` must be a transcript of '\\n\\nHuman:' and '\\n\\nAssistant:' "
            f"turns, but it is not. For plain text, set `{setting('layout', 'pairs')}`.",
            field=name,
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise PreferenceFormatError(
            f"`{name}` must end with a nonempty Assistant turn, but does not. Correct or drop the row.", field=name
        )
    return turns


def _read_ranked(row: Mapping[str, Any]) -> PreferenceRow:
    responses = read_list(row.get("responses"), "responses")
    if len(responses) < 2:
        raise PreferenceFormatError(
            f"`responses` must have two or more entries, but has {len(responses)}. Correct or drop the row.",
            field="responses",
        )
    if row.get("ranks") is not None:
        ranks = read_ranks(row["ranks"], responses)
    else:
        scores = [read_number(score, "scores") for score in read_list(row.get("scores"), "scores")]
        require_same_length(scores, responses, "scores")
        ranks = dense_ranks([-score for score in scores])
    return _of_sides(read_sides(prompt_of(row), responses, ["responses"] * len(responses)), ranks)


def _read_votes(row: Mapping[str, Any]) -> PreferenceRow:
    names = ("response_a", "response_b")
    result = _of_sides(read_sides(prompt_of(row), [row.get(name) for name in names], names), [0, 1])
    lead, probability = _verdict(row)
    result.ranks = [0, 0] if lead == 0 else [0, 1] if lead > 0 else [1, 0]
    result.probability = probability
    return result


def _verdict(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return a number whose sign is the preference (positive for A), and P(A preferred) if the row has one."""
    if row.get("probability") is not None:
        probability = read_probability(row["probability"])
        return probability - 0.5, probability
    if row.get("winner") is not None:
        return _winner(row["winner"]), None
    if row.get("annotators") is not None:
        return sum(_winner(vote) for vote in read_list(row["annotators"], "annotators")), None
    if row.get("score") is not None:
        return read_number(row["score"], "score"), None
    if row.get("votes_a") is not None and row.get("votes_b") is not None:
        votes_a, votes_b = read_number(row["votes_a"], "votes_a"), read_number(row["votes_b"], "votes_b")
        return votes_a - votes_b, None
    raise PreferenceFormatError(
        f"One of {', '.join(sorted(_VERDICTS))} must have a value, but all are null. Correct or drop the row.",
        field="winner",
    )


_WINNERS = {
    **dict.fromkeys(("a", "A", "model_a", "response_a", "1", "first"), 1),
    **dict.fromkeys(("b", "B", "model_b", "response_b", "2", "second"), -1),
    **dict.fromkeys(("tie", "both", "0", "equal", "tie (bothbad)"), 0),
}


def _winner(value: Any) -> int:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    key = f"{read_number(value, 'winner'):g}" if is_number else value  # 1.0 is 1
    key = key.removesuffix(".0") if isinstance(key, str) else key  # ... also as text
    if isinstance(key, str) and key in _WINNERS:
        return _WINNERS[key]
    raise PreferenceFormatError(
        f"`winner` must be 'a', 'b' or 'tie' (or 1, 2, 0), but is {value!r}. Correct or drop the row.", field="winner"
    )


def _read_tokenized(row: Mapping[str, Any]) -> PreferenceRow:
    ids = []
    for side in ("chosen", "rejected"):
        name = f"{side}_ids" if f"{side}_ids" in row else f"{side}_input_ids"
        value = read_list(row.get(name), name)
        if not value or not all(isinstance(token, int) for token in value):
            raise PreferenceFormatError(
                f"`{name}` must be a nonempty list of token ids (integers), but is not. Correct or drop the row.",
                field=name,
            )
        ids.append(value)
    return PreferenceRow(prompt="", responses=["", ""], ranks=[0, 1], token_ids=ids)


_READERS: dict[str, Callable[[Mapping[str, Any]], PreferenceRow]] = {
    "pairs": _read_pairs,
    "hh": _read_hh,
    "ranked": _read_ranked,
    "votes": _read_votes,
    "tokenized": _read_tokenized,
}

_LAYOUT_COLUMNS = {
    *("prompt", "chosen", "rejected", "responses", "ranks", "scores", "response_a", "response_b"),
    *("chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids", *_VERDICTS, "votes_b"),
    *("margin", "weight", "id", "group", "source", "tools", "chat_template_kwargs"),
}


def _read_common_fields(result: PreferenceRow, row: Mapping[str, Any]) -> None:
    """Read the optional fields, which every layout may have."""
    if row.get("margin") is not None:
        result.margin = read_number(row["margin"], "margin")
    if row.get("weight") is not None:
        result.weight = read_number(row["weight"], "weight")
        if result.weight < 0:
            raise PreferenceFormatError(
                f"`weight` must be 0 or more, but is {result.weight}. Correct or drop the row.", field="weight"
            )
    if row.get("probability") is not None:
        if len(result.responses) != 2:
            raise PreferenceFormatError(
                f"`probability` requires exactly two responses, but the row has {len(result.responses)}. Remove "
                "`probability` from the row.",
                field="probability",
            )
        result.probability = read_probability(row["probability"])
        # Metrics use ranks and the loss uses the probability, so they must agree.
        lead = result.probability - 0.5
        result.ranks = [0, 0] if lead == 0 else [0, 1] if lead > 0 else [1, 0]
    for name in ("id", "group", "source"):
        if row.get(name) is not None:
            setattr(result, name, str(row[name]))
    result.template |= read_template_options(row)
    result.meta = {name: value for name, value in row.items() if name not in _LAYOUT_COLUMNS}
