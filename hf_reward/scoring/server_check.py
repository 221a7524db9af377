"""Check that a server returns the rewards of a model.

Some servers apply a sigmoid or softmax, add a second BOS, or load a head with a random bias. No error is raised,
and the policy is trained on wrong rewards. The check scores the same rows locally and on the server and compares them.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from hf_reward.data.score_request import ScoreRequest, requests_of_row
from hf_reward.metrics.counts import counted
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.modeling.probes import COARSE_TOLERANCE
from hf_reward.preprocessing.rendered_turns import TurnEnds
from hf_reward.preprocessing.tokenizer import render_chat
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.server_client import SentRow, ServerClient

SAME_TOLERANCE = 1e-3
"""Rewards are the same if none differs by more than this times max(1, |reward|)."""
HALF_TOLERANCE = COARSE_TOLERANCE
"""The same for servers in half precision, if the order of the rewards is preserved too."""
HALF_SPEARMAN = 0.99
MAX_ROWS = 256

SAME, HALF, SHIFTED = "same", "half precision", "shifted by a constant"
SIGMOID, SOFTMAX, CONSTANT, DIFFERENT = "sigmoid", "softmax", "constant", "different"

_MEANING = {
    SAME: "The server returns this model's rewards.",
    HALF: "The server returns this model's rewards, rounded to half precision.",
    SHIFTED: "All rewards are shifted by the same amount: differences and rankings are right, absolute values are not. "
    "SGLang adds a random bias to the heads of Qwen models each time it loads one.",
    SIGMOID: "The server applies a sigmoid to the reward, which compresses differences between good responses. Set "
    '`problem_type: "regression"` in config.json, or send `"use_activation": false` (vLLM).',
    SOFTMAX: "The server applies a softmax to the single label, which always gives 1. Request the raw output: on "
    "SGLang `/classify` instead of `/v1/classify`.",
    CONSTANT: "The server returns the same number for every text, so it ignores the text or a part of it.",
    DIFFERENT: "The server returns other rewards: another model, another template, doubled special tokens, or a reward "
    "read at another token.",
}


@dataclass(frozen=True, kw_only=True)
class ServerCheck:
    """Result of the comparison."""

    url: str
    kind: str
    verdict: str
    """One of "same", "half precision", "shifted by a constant", "sigmoid", "softmax", "constant" and "different"."""
    rows: int
    pearson: float | None
    """None if either side is constant."""
    spearman: float | None
    largest_difference: float
    largest_relative_difference: float
    """Relative to max(1, |reward|)."""
    mean_shift: float
    """Mean of (server - local)."""
    difference_after_shift: float
    """Largest relative difference after subtracting the mean shift."""
    difference_from_sigmoid: float
    """Largest difference between the server's values and the sigmoid of the local rewards."""
    spread: float
    """Standard deviation of the local rewards."""
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the server returns the model's rewards, up to rounding to half precision."""
        return self.verdict in (SAME, HALF)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"passed": self.passed, **asdict(self), "meaning": _MEANING[self.verdict]}

    def __str__(self) -> str:
        spearman = "undefined" if self.spearman is None else f"{self.spearman:.4f}"
        pearson = "undefined" if self.pearson is None else f"{self.pearson:.4f}"
        lines = [
            f"{self.url} ({self.kind}), {counted(self.rows, 'row')}: {self.verdict}. {_MEANING[self.verdict]}",
            f"Largest difference {self.largest_difference:.2e} ({self.largest_relative_difference:.2e} of "
            f"max(1, |reward|); same up to {SAME_TOLERANCE:.0e}, half precision up to {HALF_TOLERANCE:.1e}), mean "
            f"shift {self.mean_shift:+.2e}, largest difference without the shift {self.difference_after_shift:.2e}. "
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
    """Score rows locally in float32 and on a server, and compare the rewards.

    Args:
        url: The server's address, with or without the endpoint, and with `#NAME` if it serves several models.
        model: Folder or Hub id of the model that the server should serve, or a scorer with that model.
        rows: Rows in a layout of `requests_of_row`; the first 256 responses are used. By default every prompt of the
            probe conversations with every response of them.
        kind: "hf_reward" (`/score`), "vllm" (`/classify`), "sglang" (`/classify`), "openrlhf" (`/get_reward`), or
            "auto", which asks the server.
        token: Bearer token for the server.
        **loading: For a folder or Hub id: options of `RewardScorer.from_pretrained`.

    Returns:
        The comparison.

    Raises:
        ServerClientError: If the server cannot be reached, returns an error, or an invalid answer.
        ValueError: If fewer than two rows can be scored, or the kind is unknown.
    """
    if isinstance(model, RewardScorer) and loading:
        raise ValueError(f"`{'`, `'.join(loading)}`: loading options need a folder or Hub id, but got a scorer.")
    with closing(ServerClient(url, kind=kind, token=token)) as client:
        scorer = model if isinstance(model, RewardScorer) else RewardScorer.from_pretrained(model, **loading)
        requests = probe_requests() if rows is None else [each for row in rows for each in requests_of_row(row)]
        sent, notes = _sendable(requests[:MAX_ROWS], scorer, client)
        here = scorer.score_encoded([each.encoded for each in sent], show_progress=False).rewards.astype(np.float64)
        there, counted = client.rewards(sent)
    tokens = sum(len(each.encoded.input_ids) for each in sent)
    if counted is not None and counted != tokens:
        notes.append(
            f"The server counts {counted} tokens, the local model {tokens}: the server has another tokenizer or "
            "template, or adds special tokens."
        )
    return _compare(here, np.asarray(there, dtype=np.float64), url=client.name, kind=client.kind, notes=notes)


def probe_requests() -> list[ScoreRequest]:
    """Combine every prompt of the probe conversations with every response.

    Returns:
        64 requests of various lengths.
    """
    answers = [messages[-1:] for messages in PROBES.values()]
    return [ScoreRequest(prompt=messages[:-1], response=answer) for messages in PROBES.values() for answer in answers]


def _sendable(
    requests: Sequence[ScoreRequest], scorer: RewardScorer, client: ServerClient
) -> tuple[list[SentRow], list[str]]:
    """Select the rows that can be scored locally and sent so that the server gets the same token ids."""
    rows = []
    for request, encoded in zip(requests, scorer.encode(requests, allow_empty=True), strict=True):
        if encoded.problem or (encoded.cut_tokens and not client.takes_requests):  # other servers would not truncate it
            continue
        text = "" if client.takes_requests else text_for(request, encoded.input_ids, scorer, client)
        if text is not None:
            rows.append(SentRow(request, encoded, text))
    left_out = len(requests) - len(rows)
    if len(rows) < 2:
        raise ValueError(
            "A comparison needs at least two rows with a local reward and the same token ids on the server. "
            f"Only {len(rows)} of {len(requests)} rows qualify. Pass other rows."
        )
    notes = [f"{counted(left_out, 'row')} left out: not scorable locally, or not sendable as text."] if left_out else []
    return rows, notes


def text_for(request: ScoreRequest, ids: list[int], scorer: RewardScorer, client: ServerClient) -> str | None:
    """Return the text that a server tokenises to the token ids of a request.

    Args:
        request: The request.
        ids: Its token ids.
        scorer: A scorer with the server's tokenizer.
        client: The client; servers differ in the special tokens that they add.

    Returns:
        The formatted text, without BOS or EOS if the server adds them; None if no text gives these ids.
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
    from_sigmoid = float(np.abs(there - special.expit(here)).max())
    spread = float(here.std())
    pearson, spearman = (_correlation(measure, here, there) for measure in (stats.pearsonr, stats.spearmanr))
    if spread < 10 * SAME_TOLERANCE:
        notes = [
            *notes,
            f"The local rewards are almost equal (standard deviation {spread:.1e}), so the comparison is weak.",
        ]
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
    """Return the first explanation that fits; exact ones are tried before those that allow for rounding."""
    is_constant = np.ptp(there) < 1e-6 < np.ptp(here)
    bent = float(np.abs(there - special.expit(here)).max())
    keeps_order = spearman is not None and spearman > HALF_SPEARMAN
    is_probability = there.min() >= 0 and there.max() <= 1
    explanations = [
        (SAME, relative <= SAME_TOLERANCE),
        (SOFTMAX, is_constant and abs(float(there[0]) - 1) < 1e-6),
        (CONSTANT, is_constant),
        (SIGMOID, bent <= SAME_TOLERANCE),
        (SHIFTED, after_shift <= SAME_TOLERANCE),
        (HALF, keeps_order and relative <= HALF_TOLERANCE),
        # The slope of a sigmoid is at most 1/4, which also scales the rounding errors.
        (SIGMOID, keeps_order and is_probability and bent <= HALF_TOLERANCE / 4),
        (SHIFTED, keeps_order and after_shift <= HALF_TOLERANCE),
    ]
    return next((verdict for verdict, fits in explanations if fits), DIFFERENT)


def _correlation(measure: Any, here: np.ndarray, there: np.ndarray) -> float | None:
    return float(measure(here, there).statistic) if np.ptp(here) > 0 and np.ptp(there) > 0 else None
