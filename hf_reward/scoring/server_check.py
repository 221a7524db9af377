"""A server's URL + the model that it should serve -> does it give that model's rewards?

Servers put a sigmoid or softmax on what they take for a probability, add BOS a second time, or start with a random
bias. Nothing breaks; a policy is trained on other numbers. So the same rows are scored here and there.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from hf_reward.data.score_request import ScoreRequest, requests_of_row
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.modeling.probes import COARSE_TOLERANCE
from hf_reward.preprocessing.rendered_turns import TurnEnds
from hf_reward.preprocessing.tokenizer import render_chat
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.server_client import SentRow, ServerClient

SAME_TOLERANCE = 1e-3
"""Rewards are the same if none differs by more than this times max(1, |reward|)."""
HALF_TOLERANCE = COARSE_TOLERANCE
"""The same for servers that compute in a half precision, if the order of the rewards is kept too."""
HALF_SPEARMAN = 0.99
MAX_ROWS = 256

SAME, HALF, SHIFTED = "same", "half precision", "shifted by a constant"
SIGMOID, SOFTMAX, CONSTANT, DIFFERENT = "sigmoid", "softmax", "constant", "different"

_MEANING = {
    SAME: "The server gives this model's rewards.",
    HALF: "The server gives this model's rewards, as a half precision rounds them.",
    SHIFTED: "Every reward is shifted by the same amount: differences, and so rankings, are right, levels are not. "
    "SGLang does this to Qwen heads, to which it adds a random bias whenever it loads one.",
    SIGMOID: "The server puts a sigmoid on the reward, which flattens good answers into one another. Give the model "
    '`problem_type: "regression"` in config.json, or send `"use_activation": false` (vLLM).',
    SOFTMAX: "The server puts a softmax on the only label, which is 1 whatever the text. Ask for the raw output: on "
    "SGLang `/classify` instead of `/v1/classify`.",
    CONSTANT: "The server gives every text the same number, so it does not read them, or not to the end.",
    DIFFERENT: "The server gives other rewards: another model, another template, doubled special tokens, or a reward "
    "read at another token.",
}


@dataclass(frozen=True, kw_only=True)
class ServerCheck:
    """What the comparison found."""

    url: str
    kind: str
    verdict: str
    """One of "same", "half precision", "shifted by a constant", "sigmoid", "softmax", "constant" and "different"."""
    rows: int
    pearson: float | None
    """None where either side is constant."""
    spearman: float | None
    largest_difference: float
    largest_relative_difference: float
    """Of max(1, |reward|)."""
    mean_shift: float
    """Mean of (server - here)."""
    difference_after_shift: float
    """Largest relative difference once the mean shift is taken away."""
    difference_from_sigmoid: float
    """Largest difference of the server's values from the logistic function of the rewards here."""
    spread: float
    """Standard deviation of the rewards here."""
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the server gives the model's rewards, rounding of a half precision aside."""
        return self.verdict in (SAME, HALF)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"passed": self.passed, **asdict(self), "meaning": _MEANING[self.verdict]}

    def __str__(self) -> str:
        spearman = "undefined" if self.spearman is None else f"{self.spearman:.4f}"
        pearson = "undefined" if self.pearson is None else f"{self.pearson:.4f}"
        lines = [
            f"{self.url} ({self.kind}), {self.rows} rows: {self.verdict}. {_MEANING[self.verdict]}",
            f"Largest difference {self.largest_difference:.2e} ({self.largest_relative_difference:.2e} of "
            f"max(1, |reward|); same up to {SAME_TOLERANCE:.0e}, half precision up to {HALF_TOLERANCE:.1e}), mean "
            f"shift {self.mean_shift:+.2e}, beyond it {self.difference_after_shift:.2e}. "
            f"Pearson {pearson}, Spearman {spearman}.",
        ]
        return "\n".join([*lines, *self.notes])


def check_server(
    url: str,
    model: str | Path | RewardScorer,
    rows: Sequence[Mapping[str, Any]] | None = None,
    kind: str = "auto",
    token: str | None = None,
    **loading: Any,
) -> ServerCheck:
    """Score rows here in float32 and on a server, and say how the two differ.

    Args:
        url: The server's address, with or without the endpoint.
        model: Folder or Hub id of the model that it should serve, or a scorer that has it.
        rows: Rows as `requests_of_row` reads them, of which the first 256 responses are used; by default every
            prompt of the probe conversations with every response of them.
        kind: "hf_reward" (`/score`), "vllm" (`/classify`), "sglang" (`/classify`), "openrlhf" (`/get_reward`), or
            "auto", which asks the server.
        token: Sent as a bearer token.
        **loading: For a folder or Hub id, as for `RewardScorer.from_pretrained`: `allow_pickle`, ...

    Returns:
        The comparison.

    Raises:
        ServerClientError: If the server cannot be reached, refuses, or answers something else.
        ValueError: If there are fewer than two rows that can be scored, or the kind is unknown.
    """
    if isinstance(model, RewardScorer) and loading:
        raise ValueError(f"`{'`, `'.join(loading)}` are for models that are loaded here; this one is loaded already.")
    with closing(ServerClient(url, kind=kind, token=token)) as client:
        scorer = model if isinstance(model, RewardScorer) else RewardScorer.from_pretrained(model, **loading)
        requests = probe_requests() if rows is None else [each for row in rows for each in requests_of_row(row)]
        sent, notes = _sendable(requests[:MAX_ROWS], scorer, client)
        here = scorer.score_encoded([each.encoded for each in sent], show_progress=False).rewards.astype(np.float64)
        there, counted = client.rewards(sent)
    tokens = sum(len(each.encoded.input_ids) for each in sent)
    if counted is not None and counted != tokens:
        notes.append(
            f"The server counts {counted} tokens, here there are {tokens}: it has another tokenizer or template, or "
            "adds special tokens."
        )
    return _compare(here, np.asarray(there, dtype=np.float64), url=client.url, kind=client.kind, notes=notes)


def probe_requests() -> list[ScoreRequest]:
    """Every prompt of the probe conversations with every response of them: 64 rows of all lengths.

    Returns:
        Requests.
    """
    answers = [messages[-1:] for messages in PROBES.values()]
    return [ScoreRequest(prompt=messages[:-1], response=answer) for messages in PROBES.values() for answer in answers]


def _sendable(
    requests: Sequence[ScoreRequest], scorer: RewardScorer, client: ServerClient
) -> tuple[list[SentRow], list[str]]:
    """The rows that can be scored here and said to the server so that it gets the same token ids."""
    rows = []
    for request, encoded in zip(requests, scorer.encode(requests, allow_empty=True), strict=True):
        if encoded.problem or (encoded.cut_tokens and not client.takes_requests):  # others would not cut it
            continue
        text = "" if client.takes_requests else text_for(request, encoded.input_ids, scorer, client)
        if text is not None:
            rows.append(SentRow(request, encoded, text))
    left_out = len(requests) - len(rows)
    if len(rows) < 2:
        raise ValueError(
            f"Only {len(rows)} of {len(requests)} rows can be scored here and sent so that the server gets the same "
            "token ids, and a comparison needs two. Give other rows."
        )
    notes = [f"{left_out} rows were left out: they cannot be scored here, or not be sent as text."] if left_out else []
    return rows, notes


def text_for(request: ScoreRequest, ids: list[int], scorer: RewardScorer, client: ServerClient) -> str | None:
    """The text from which a server gets the token ids of a request.

    Args:
        request: The request.
        ids: Its token ids.
        scorer: Has the model's tokenizer, as the server has.
        client: Whether the server adds special tokens.

    Returns:
        The formatted text, without its BOS or EOS where the server adds that; None if no text gives these ids.
    """
    tokenizer = scorer.tokenizer
    text = _formatted(request, tokenizer, "" if scorer.record is None else scorer.record.format.get("separator", ""))
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    starts = dict.fromkeys([text, text.removeprefix(bos), bos + text])
    for candidate in dict.fromkeys(form for start in starts for form in (start, start + eos)):
        found: Any = tokenizer(candidate, add_special_tokens=client.adds_special_tokens, verbose=False)
        if found["input_ids"] == ids:
            return candidate
    return None


def _formatted(request: ScoreRequest, tokenizer: Any, separator: str) -> str:
    if request.formatted:
        return str(request.response)
    if tokenizer.chat_template is not None:
        row: Any = request.as_row(conversational=True)
        messages, _ = TurnEnds(tokenizer).single([*row.prompt, *row.responses[0]])
        return render_chat(tokenizer, messages, **row.template)
    parts: list[Any] = [request.prompt, request.response]
    texts = [part if isinstance(part, str) else "".join(str(turn["content"] or "") for turn in part) for part in parts]
    return separator.join(texts)


def _compare(here: np.ndarray, there: np.ndarray, *, url: str, kind: str, notes: list[str]) -> ServerCheck:
    scale = np.maximum(1.0, np.abs(here))
    difference = there - here
    shift = float(difference.mean())
    relative = float((np.abs(difference) / scale).max())
    after_shift = float((np.abs(difference - shift) / scale).max())
    from_sigmoid = float(np.abs(there - _sigmoid(here)).max())
    spread = float(here.std())
    pearson, spearman = (_correlation(measure, here, there) for measure in (stats.pearsonr, stats.spearmanr))
    if spread < 10 * SAME_TOLERANCE:
        notes = [*notes, f"The rewards here hardly differ (standard deviation {spread:.1e}), so this says little."]
    verdict = _verdict(here, there, relative=relative, after_shift=after_shift, spearman=spearman)
    return ServerCheck(
        url=url,
        kind=kind,
        verdict=verdict,
        rows=len(here),
        pearson=pearson,
        spearman=spearman,
        largest_difference=float(np.abs(difference).max()),
        largest_relative_difference=relative,
        mean_shift=shift,
        difference_after_shift=after_shift,
        difference_from_sigmoid=from_sigmoid,
        spread=spread,
        notes=notes,
    )


def _verdict(
    here: np.ndarray, there: np.ndarray, *, relative: float, after_shift: float, spearman: float | None
) -> str:
    """The first explanation that fits, the exact ones before those that allow for rounding."""
    is_constant = np.ptp(there) < 1e-6 < np.ptp(here)
    bent = float(np.abs(there - _sigmoid(here)).max())
    keeps_order = spearman is not None and spearman > HALF_SPEARMAN
    is_probability = there.min() >= 0 and there.max() <= 1
    explanations = [
        (SAME, relative <= SAME_TOLERANCE),
        (SOFTMAX, is_constant and abs(float(there[0]) - 1) < 1e-6),
        (CONSTANT, is_constant),
        (SIGMOID, bent <= SAME_TOLERANCE),
        (SHIFTED, after_shift <= SAME_TOLERANCE),
        (HALF, keeps_order and relative <= HALF_TOLERANCE),
        # A sigmoid is at most a quarter as steep as its argument, and so are the roundings behind it.
        (SIGMOID, keeps_order and is_probability and bent <= HALF_TOLERANCE / 4),
        (SHIFTED, keeps_order and after_shift <= HALF_TOLERANCE),
    ]
    return next((verdict for verdict, fits in explanations if fits), DIFFERENT)


def _correlation(measure: Any, here: np.ndarray, there: np.ndarray) -> float | None:
    return float(measure(here, there).statistic) if np.ptp(here) > 0 and np.ptp(there) > 0 else None


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))  # without the overflow of exp
