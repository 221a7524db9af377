"""Any raw row -> one canonical preference row.

Every accepted layout is turned into `PreferenceRow` here and nowhere else. This station knows nothing of tokens or
models, and imports nothing else from hf_reward.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import combinations
from typing import Any

Message = dict[str, Any]
Prompt = str | list[Message]
Response = str | list[Message]

LAYOUTS = ("pairs", "hh", "ranked", "votes", "tokenized")
"""The layouts that `layout` takes, beside `auto`. Rated rows (one response each) go through `to_pairs` first."""


class PreferenceFormatError(ValueError):
    """A row that fits no layout: says which row, which field, and what to do."""

    def __init__(self, message: str, row_index: int | None = None, field: str | None = None) -> None:
        where = "" if row_index is None else f"Row {row_index}: "
        super().__init__(where + message)
        self.message, self.row_index, self.field = message, row_index, field

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in worker processes of `datasets.map`, so it has to pickle with its arguments.
        return type(self), (self.message, self.row_index, self.field)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One human preference: for this prompt, `chosen` is better than `rejected`."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float | None = None
    probability: float | None = None
    """P(chosen preferred) where it is known."""
    weight: float | None = None
    group: str | None = None
    source: str | None = None


@dataclass(kw_only=True)
class PreferenceRow:
    """The canonical row: one prompt, its responses, and how they rank."""

    prompt: Prompt
    responses: list[Response]
    """Text, or the messages that follow the prompt; all of the prompt's kind."""
    ranks: list[int]
    """Rank of each response, 0 is best, equal ranks are a tie."""
    margin: float | None = None
    probability: float | None = None
    """P(first response preferred); only rows of two responses state one."""
    weight: float = 1.0
    id: str | None = None
    group: str | None = None
    """Rows of one group never fall on both sides of a split; the prompt's hash unless the row says otherwise."""
    source: str | None = None
    prompts_differed: bool = False
    """Whether the two sides came with different prompts, of which only the shared turns were kept."""
    token_ids: list[list[int]] | None = None
    """Whole sequences, where the row came already tokenised; `prompt` and `responses` are then empty."""
    template: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Every other column."""

    def is_conversational(self) -> bool:
        """Whether prompt and responses are messages rather than text."""
        return not isinstance(self.prompt, str)


def as_mapping(row: Any) -> Mapping[str, Any]:
    """See a `PreferencePair` (or another dataclass) as the dict of its fields that are set.

    Args:
        row: A mapping or a dataclass instance.

    Returns:
        The row's columns.

    Raises:
        PreferenceFormatError: If the row is neither.
    """
    if is_dataclass(row) and not isinstance(row, type):
        return {name: value for name, value in asdict(row).items() if value is not None}
    if isinstance(row, Mapping):
        return row
    raise PreferenceFormatError(f"A row must be a dict or a `PreferencePair`, but is a {type(row).__name__}.")


def detect_layout(columns: Iterable[str]) -> str:
    """Name the layout that a set of columns has.

    Args:
        columns: Column names, after any `columns` mapping.

    Returns:
        One of `LAYOUTS`; never `hh`, which has to be asked for.

    Raises:
        PreferenceFormatError: If the columns fit no layout.
    """
    names = set(columns)
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
            "The rows hold one rated response each. Turn them into pairs first: "
            "`to_pairs(rows, min_gap=1.0)` from hf_reward."
        )
    raise PreferenceFormatError(
        "The columns fit no layout. Needed: `chosen` and `rejected` (with or without `prompt`); or `prompt`, `responses` "
        "and `ranks` or `scores`; or `prompt`, `response_a`, `response_b` and one of "
        f"{', '.join(sorted(_VERDICTS))}; or `chosen_ids` and `rejected_ids`. Found: {', '.join(sorted(names))}. "
        "Name your columns with columns={'chosen': 'your_column', ...}."
    )


def to_preference_row(
    row: Any, *, layout: str = "auto", columns: Mapping[str, str] | None = None, row_index: int | None = None
) -> PreferenceRow:
    """Turn one raw row into the canonical row.

    Args:
        row: A mapping or a `PreferencePair`; it is not changed.
        layout: One of `LAYOUTS`, or `auto`.
        columns: Our name -> the row's own column name.
        row_index: Position in the data, for error messages.

    Returns:
        The canonical row.

    Raises:
        PreferenceFormatError: If the row fits no layout or a field is unusable.
    """
    try:
        named = rename_columns(as_mapping(row), columns)
        layout = detect_layout(named) if layout == "auto" else layout
        if layout not in _READERS:
            raise PreferenceFormatError(f"`layout` must be 'auto' or one of {', '.join(LAYOUTS)}, but is {layout!r}.")
        result = _READERS[layout](named)
        _read_common_fields(result, named)
    except PreferenceFormatError as error:
        raise PreferenceFormatError(error.message, row_index, error.field) from None
    if result.group is None:
        result.group = prompt_group(result)
    if result.id is None and row_index is not None:
        result.id = str(row_index)
    return result


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Give a row's columns our names.

    Args:
        row: The raw row.
        columns: Our name -> the row's own column name.

    Returns:
        A new dict; columns that are not mapped keep their names, unless a mapped one takes the name.

    Raises:
        PreferenceFormatError: If a mapped column is missing.
    """
    if not columns:
        return dict(row)
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise PreferenceFormatError(
            f"`columns` names {', '.join(map(repr, missing))}, which the data lacks. "
            f"Found: {', '.join(map(str, row))}. Correct the mapping.",
            field=missing[0],
        )
    kept = {name: value for name, value in row.items() if name not in columns.values() and name not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}


def prompt_group(row: PreferenceRow) -> str:
    """Hash what identifies the prompt of a row, so that rows of one prompt share it.

    Text rows without a prompt column share whatever their responses have in common up to the last line break or sentence
    end; give a `group` column where that is too coarse.

    Args:
        row: A canonical row.

    Returns:
        16 hexadecimal digits.
    """
    if row.token_ids is not None:
        key = json.dumps(common_prefix(row.token_ids)[:64] or row.token_ids)
    elif row.prompt:
        key = json.dumps(row.prompt, sort_keys=True, default=str)
    elif row.is_conversational():
        key = ""
    else:
        key = shared_text([str(response) for response in row.responses])
    # Nothing shared: a prompt of its own.
    key = key.strip() or json.dumps(row.responses, sort_keys=True, default=str)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def common_prefix(sequences: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Longest prefix that all sequences share, as a part of one of them: text of texts, a list of lists."""
    first, last = min(sequences), max(sequences)  # any other lies between these two, and shares what they share
    # Bisection: comparing slices is far faster than a loop over characters or tokens.
    same, differ = 0, min(len(first), len(last)) + 1
    while differ - same > 1:
        middle = (same + differ) // 2
        if first[same:middle] == last[same:middle]:
            same = middle
        else:
            differ = middle
    return first[:same]


def shared_text(texts: Sequence[str]) -> str:
    """What texts have in common, cut back to the last line break or sentence end."""
    shared = str(common_prefix(texts))
    end = max(shared.rfind(mark) for mark in "\n:.?!")
    return shared[: end + 1] if end >= 0 else shared


def to_pairs(
    rows: Iterable[Any],
    *,
    min_gap: float = 0.0,
    margin_from_scores: bool = False,
    max_pairs_per_prompt: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Make preference pairs from rated or ranked responses.

    Takes rows of one rated response (`prompt`, `response`, `score`), which are grouped by prompt, and rows of a list
    (`prompt`, `responses`, and `scores`, higher is better, or `ranks`, lower is better). A pair is made of every two
    responses of a prompt whose scores differ by at least `min_gap`, and by more than 0.

    Args:
        rows: Raw rows.
        min_gap: Smallest difference of scores (or ranks) that counts as a preference.
        margin_from_scores: Whether each pair carries that difference as its `margin`, in units of the score.
        max_pairs_per_prompt: Keep only this many pairs of a prompt, those of largest gap first.
        columns: Our name -> the rows' own column name.

    Returns:
        Rows `prompt`, `chosen`, `rejected`, `group`, and `margin` if asked for.

    Raises:
        PreferenceFormatError: If a score is missing or not a finite number, or the lists have unequal lengths.
        ValueError: If `min_gap` is negative or NaN, or `max_pairs_per_prompt` is below 1.
    """
    if not min_gap >= 0:
        raise ValueError(f"`min_gap={min_gap}` must be 0 or more, in units of the score.")
    if max_pairs_per_prompt is not None and max_pairs_per_prompt < 1:
        raise ValueError(f"`max_pairs_per_prompt={max_pairs_per_prompt}` must be 1 or more, or None for all.")
    rated = _gather_by_prompt(rows, columns)
    pairs: list[dict[str, Any]] = []
    for prompt_key, (prompt, responses, scores) in rated.items():
        gaps = []
        for i, j in combinations(range(len(responses)), 2):
            gap = scores[i] - scores[j]
            if gap != 0 and abs(gap) >= min_gap:
                gaps.append((abs(gap), (i, j) if gap > 0 else (j, i)))
        gaps.sort(key=lambda item: -item[0])
        for gap, (best, worst) in gaps[:max_pairs_per_prompt]:
            group = hashlib.sha256(prompt_key.encode()).hexdigest()[:16]
            pair = {"prompt": prompt, "chosen": responses[best], "rejected": responses[worst], "group": group}
            pairs.append(pair | {"margin": gap} if margin_from_scores else pair)
    return pairs


def _gather_by_prompt(
    rows: Iterable[Any], columns: Mapping[str, str] | None
) -> dict[str, tuple[Prompt, list[Response], list[float]]]:
    rated: dict[str, tuple[Prompt, list[Response], list[float]]] = {}
    for index, raw in enumerate(rows):
        try:
            row = rename_columns(as_mapping(raw), columns)
            prompt = _prompt(row.get("prompt"))
            if "response" in row:
                responses = [row["response"]]
                scores = [_finite(row.get("score", row.get("rating")), "score")]
            else:
                responses, scores = _scored_list(row)
            prompt = _prompt_of_kind(prompt, responses)
            responses = [_response(value, prompt, "responses") for value in responses]
        except PreferenceFormatError as error:
            raise PreferenceFormatError(error.message, index, error.field) from None
        key = json.dumps(prompt, sort_keys=True, default=str)
        _, all_responses, all_scores = rated.setdefault(key, (prompt, [], []))
        all_responses += responses
        all_scores += scores
    return rated


def _scored_list(row: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    responses = _list(row.get("responses"), "responses")
    if row.get("scores") is not None:
        scores = [_finite(score, "scores") for score in _list(row["scores"], "scores")]
        _same_length(scores, responses, "scores")
        return responses, scores
    ranks = _ranks(row.get("ranks"), responses)
    return responses, [-float(rank) for rank in ranks]


# --- one reader per layout -------------------------------------------------------------------------------------------

_VERDICTS = {"winner", "score", "probability", "votes_a", "annotators"}


def _read_pairs(row: Mapping[str, Any]) -> PreferenceRow:
    for name in ("chosen", "rejected"):
        if name not in row:
            raise PreferenceFormatError(
                f"`{name}` is missing. Found: {', '.join(row)}. "
                f"Name your columns with columns={{'{name}': 'your_column'}}.",
                field=name,
            )
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is None:
        return _read_implicit_prompt(chosen, rejected)
    prompt = _prompt_of_kind(_prompt(row["prompt"]), [chosen, rejected])
    responses = [_response(chosen, prompt, "chosen"), _response(rejected, prompt, "rejected")]
    return PreferenceRow(prompt=prompt, responses=responses, ranks=[0, 1])


def _read_implicit_prompt(chosen: Any, rejected: Any) -> PreferenceRow:
    if isinstance(chosen, str) and isinstance(rejected, str):
        responses: list[Response] = [_text(chosen, "chosen"), _text(rejected, "rejected")]
        return PreferenceRow(prompt="", responses=responses, ranks=[0, 1])
    chosen, rejected = _conversation(chosen, "chosen"), _conversation(rejected, "rejected")
    return _split_turns(chosen, rejected)


def _split_turns(chosen: list[Message], rejected: list[Message]) -> PreferenceRow:
    """The turns that both sides share, less the last of the shorter side, are the prompt."""
    shared = 0
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        shared += 1
    differed = len(chosen) - 1 != shared or len(rejected) - 1 != shared
    return PreferenceRow(
        prompt=chosen[:shared],
        responses=[chosen[shared:], rejected[shared:]],
        ranks=[0, 1],
        prompts_differed=differed,
    )


def _read_hh(row: Mapping[str, Any]) -> PreferenceRow:
    return _split_turns(*(parse_hh_transcript(row.get(name), name) for name in ("chosen", "rejected")))


def parse_hh_transcript(text: Any, name: str = "text") -> list[Message]:
    r"""Read a transcript of `\n\nHuman:` and `\n\nAssistant:` turns.

    Args:
        text: The transcript.
        name: Column it came from, for error messages.

    Returns:
        The turns as messages, in order.

    Raises:
        PreferenceFormatError: If it is no such transcript, or its last turn is not the assistant's or is empty.
    """
    parts = re.split(r"\n\n(Human|Assistant):", _text(text, name))
    if len(parts) < 3 or parts[0].strip():
        raise PreferenceFormatError(
            f"`{name}` is no transcript of '\\n\\nHuman:' and '\\n\\nAssistant:' turns. Use layout='pairs' for plain text.",
            field=name,
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise PreferenceFormatError(f"`{name}` must end with a non-empty Assistant turn.", field=name)
    return turns


def _read_ranked(row: Mapping[str, Any]) -> PreferenceRow:
    prompt = _prompt(row.get("prompt"))
    responses = _list(row.get("responses"), "responses")
    if len(responses) < 2:
        raise PreferenceFormatError(f"`responses` needs two or more, but has {len(responses)}.", field="responses")
    prompt = _prompt_of_kind(prompt, responses)
    if row.get("ranks") is not None:
        ranks = _ranks(row["ranks"], responses)
    else:
        scores = [_finite(score, "scores") for score in _list(row.get("scores"), "scores")]
        _same_length(scores, responses, "scores")
        ranks = dense_ranks([-score for score in scores])
    return PreferenceRow(
        prompt=prompt, responses=[_response(value, prompt, "responses") for value in responses], ranks=ranks
    )


def _read_votes(row: Mapping[str, Any]) -> PreferenceRow:
    names = ("response_a", "response_b")
    prompt = _prompt_of_kind(_prompt(row.get("prompt")), [row.get(name) for name in names])
    responses = [_response(row.get(name), prompt, name) for name in names]
    result = PreferenceRow(prompt=prompt, responses=responses, ranks=[0, 1])
    lead, probability = _verdict(row)
    result.ranks = [0, 0] if lead == 0 else [0, 1] if lead > 0 else [1, 0]
    result.probability = probability
    return result


def _verdict(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """How far A leads B (sign only matters), and P(A preferred) where the row states one."""
    if row.get("probability") is not None:
        probability = _probability(row["probability"])
        return probability - 0.5, probability
    if row.get("winner") is not None:
        return _winner(row["winner"]), None
    if row.get("annotators") is not None:
        return sum(_winner(vote) for vote in _list(row["annotators"], "annotators")), None
    if row.get("score") is not None:
        return _finite(row["score"], "score"), None
    if row.get("votes_a") is not None and row.get("votes_b") is not None:
        votes_a, votes_b = _finite(row["votes_a"], "votes_a"), _finite(row["votes_b"], "votes_b")
        return votes_a - votes_b, None
    raise PreferenceFormatError(f"None of {', '.join(sorted(_VERDICTS))} holds a verdict.", field="winner")


_WINNERS = {
    **dict.fromkeys(("a", "A", "model_a", "response_a", "1", "first"), 1),
    **dict.fromkeys(("b", "B", "model_b", "response_b", "2", "second"), -1),
    **dict.fromkeys(("tie", "both", "0", "equal", "tie (bothbad)"), 0),
}


def _winner(value: Any) -> int:
    key = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value  # 1.0 is 1
    if isinstance(key, str) and key in _WINNERS:
        return _WINNERS[key]
    raise PreferenceFormatError(f"`winner` must be 'a', 'b' or 'tie' (or 1, 2, 0), but is {value!r}.", field="winner")


def _read_tokenized(row: Mapping[str, Any]) -> PreferenceRow:
    ids = []
    for side in ("chosen", "rejected"):
        name = f"{side}_ids" if f"{side}_ids" in row else f"{side}_input_ids"
        value = _list(row.get(name), name)
        if not value or not all(isinstance(token, int) for token in value):
            raise PreferenceFormatError(f"`{name}` must be a non-empty list of token ids.", field=name)
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
    """Fill the optional fields that every layout may carry."""
    if row.get("margin") is not None:
        result.margin = _finite(row["margin"], "margin")
    if row.get("weight") is not None:
        result.weight = _finite(row["weight"], "weight")
        if result.weight < 0:
            raise PreferenceFormatError(f"`weight` must be 0 or more, but is {result.weight}.", field="weight")
    if row.get("probability") is not None:
        if len(result.responses) != 2:
            raise PreferenceFormatError("`probability` needs exactly two responses.", field="probability")
        result.probability = _probability(row["probability"])
    for name in ("id", "group", "source"):
        if row.get(name) is not None:
            setattr(result, name, str(row[name]))
    if row.get("tools") is not None:
        result.template["tools"] = _structure(row["tools"], "tools", list)
    if row.get("chat_template_kwargs") is not None:
        result.template |= _structure(row["chat_template_kwargs"], "chat_template_kwargs", dict)
    result.meta = {name: value for name, value in row.items() if name not in _LAYOUT_COLUMNS}


def dense_ranks(keys: Sequence[float]) -> list[int]:
    """Rank 0 for the smallest key, equal keys equal ranks, no gaps."""
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


# --- values ----------------------------------------------------------------------------------------------------------


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise PreferenceFormatError(
            f"`{name}` must be text, but is {type(value).__name__} {value!r}. Correct or drop the row.", field=name
        )
    if not value.strip():
        raise PreferenceFormatError(f"`{name}` is empty. Correct or drop the row.", field=name)
    return value


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise PreferenceFormatError(
            f"`{name}` must be text or a non-empty list of messages, but is {type(value).__name__} {value!r}.",
            field=name,
        )
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise PreferenceFormatError(
                f"`{name}` must hold messages with `role` and `content`, but holds {message!r}.", field=name
            )
    # Arrow fills fields that only some messages have with None; a chat template would print them.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _prompt(value: Any) -> Prompt:
    if value is None:
        raise PreferenceFormatError(
            "`prompt` is missing. Name your column with columns={'prompt': 'your_column'}.", field="prompt"
        )
    if isinstance(value, str):
        return value
    return _messages(value, "prompt") if value != [] else []


def _prompt_of_kind(prompt: Prompt, responses: Sequence[Any]) -> Prompt:
    """The prompt as its responses are: before messages, a text is one user turn."""
    if isinstance(prompt, str) and responses and all(isinstance(response, list) for response in responses):
        return [{"role": "user", "content": prompt}]
    return prompt


def _response(value: Any, prompt: Prompt, name: str) -> Response:
    """A response of its prompt's kind: text after a text prompt, messages after messages."""
    if isinstance(prompt, str):
        return _text(value, name)
    if isinstance(value, str):
        return [{"role": "assistant", "content": _text(value, name)}]
    messages = _conversation(value, name)
    # Some data repeats the prompt at the start of each side; the model must not read it twice.
    repeated = bool(prompt) and len(messages) > len(prompt) and messages[: len(prompt)] == prompt
    return messages[len(prompt) :] if repeated else messages


def _conversation(value: Any, name: str) -> list[Message]:
    """Messages of which the last says something."""
    messages = _messages(value, name)
    if not messages[-1].get("tool_calls"):
        _text(messages[-1].get("content"), name)
    return messages


def _structure(value: Any, name: str, kind: type) -> Any:
    """A list or dict, given as such or as JSON text."""
    with suppress(ValueError):  # text that is no JSON is refused below, with its field
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, kind):
        raise PreferenceFormatError(f"`{name}` must be a {kind.__name__} or its JSON, but is {value!r}.", field=name)
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise PreferenceFormatError(f"`{name}` must be a list, but is {value!r}.", field=name)
    return list(value)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PreferenceFormatError(f"`{name}` must be a finite number, but is {value!r}.", field=name)
    return float(value)


def _probability(value: Any) -> float:
    probability = _finite(value, "probability")
    if not 0 <= probability <= 1:
        raise PreferenceFormatError(f"`probability` must be in [0, 1], but is {probability}.", field="probability")
    return probability


def _same_length(values: Sequence[Any], responses: Sequence[Any], name: str) -> None:
    if len(values) != len(responses):
        raise PreferenceFormatError(
            f"`{name}` has {len(values)} entries but `responses` has {len(responses)}. Give one per response"
            + (" (0 = best, equal = tie)." if name == "ranks" else "."),
            field=name,
        )


def _ranks(value: Any, responses: Sequence[Any]) -> list[int]:
    ranks = _list(value, "ranks")
    _same_length(ranks, responses, "ranks")
    for rank in ranks:
        _finite(rank, "ranks")
    return dense_ranks(ranks)
