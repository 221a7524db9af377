"""Name of a judge -> the judge."""

import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from hf_reward.scoring.judging.cache import AnswerCache
from hf_reward.scoring.judging.endpoints import HttpEndpoint, PipelineEndpoint
from hf_reward.scoring.judging.judge import AverageJudge, Judge, RequestJudge
from hf_reward.scoring.judging.protocols import PROTOCOLS
from hf_reward.scoring.judging.requests import JudgeError, JudgeSettings, Ledger, Requests
from hf_reward.scoring.judging.rewards import RewardJudge, ScorerRewards, ServerRewards
from hf_reward.scoring.reward_scorer import RewardScorer

KINDS = (*PROTOCOLS, "reward", "decision")
"""Kinds of judges, which can be written before a name: `systemone:https://host/path`."""
_KIND = re.compile(rf"({'|'.join(KINDS)}):(?!//)(.+)", re.DOTALL)
FORMS = (
    "http://HOST/v1/chat/completions#MODEL, http://HOST/v1/decisions#MODEL, http://HOST/v1/systemone#MODEL, "
    "http://HOST of `hf-reward serve`, a folder or Hub id of a reward model, or decision:MODEL for the decision "
    "pipeline of transformers"
)


class OpenedJudge:
    """An open judge with its cache; closes both at the end of a `with` block."""

    def __init__(self, judge: Judge, cache: AnswerCache, ledger: Ledger) -> None:
        self.judge, self.ledger = judge, ledger
        self._cache = cache

    def __enter__(self) -> "OpenedJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self.judge.close()
        self._cache.close()


def open_judge(
    names: str | Sequence[str],
    settings: JudgeSettings | None = None,
    *,
    cache: str | Path | None = None,
    token: str | None = None,
) -> OpenedJudge:
    """Open a judge, or the average of several.

    Args:
        names: A name or several; see `FORMS`. A kind before a URL replaces the kind that its path implies.
        settings: Settings of the requests.
        cache: File of the answers, with which an interrupted run resumes.
        token: Bearer token for the server of the judges.

    Returns:
        The judge, to be used in a `with` block.

    Raises:
        JudgeError: If a judge cannot be opened, or a setting does not apply to it.
        ValueError: If there is no name, a name occurs twice, a URL contains a password, or a token would be
            sent to several servers.
    """
    names = [names] if isinstance(names, str) else list(names)
    settings = settings or JudgeSettings()
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Judges must be one or more different names, but are {names}. A judge is {FORMS}.")
    if settings.prices is not None and len(names) > 1:
        raise ValueError(f"Prices are those of one judge, but there are {len(names)}. Leave the prices out.")
    kinds = [_kind(name) for name in names]
    if any("@" in urllib.parse.urlsplit(name).netloc for _, name in kinds):
        raise ValueError(
            "The URL of a judge must not contain a password, which reports would show. Use the token file."
        )
    hosts = {urllib.parse.urlsplit(name).netloc for _, name in kinds if name.startswith(("http://", "https://"))}
    if token is not None and len(hosts) > 1:
        raise ValueError(
            f"One token would be sent to several servers ({', '.join(sorted(hosts))}). Ask them one after another, or "
            "without a token."
        )
    if settings.votes and not any(kind == "chat" for kind, _ in kinds):
        raise JudgeError("Votes are for chat judges (http://HOST/v1/chat/completions#MODEL). Leave `votes` out.")
    answers, ledger = AnswerCache(None if cache is None else Path(cache)), Ledger(settings.budget)
    try:
        judges = [_open(kind, name, settings, (answers, ledger), token) for kind, name in kinds]
    except BaseException:
        answers.close()
        raise
    return OpenedJudge(judges[0] if len(judges) == 1 else AverageJudge(judges, ledger), answers, ledger)


def _kind(name: str) -> tuple[str, str]:
    """Return the kind of a judge, and its name without the kind."""
    stated = _KIND.fullmatch(name)
    if stated is not None:
        return stated[1], stated[2]
    if not name.startswith(("http://", "https://")):
        return "reward", name
    path = urllib.parse.urlsplit(name).path.rstrip("/")
    return next((kind for kind, each in PROTOCOLS.items() if path.endswith(each.path)), "reward"), name


def _open(
    kind: str, name: str, settings: JudgeSettings, shared: tuple[AnswerCache, Ledger], token: str | None
) -> Judge:
    cache, ledger = shared
    if kind == "reward":
        if name.startswith(("http://", "https://")):
            return RewardJudge(ServerRewards(name, settings, ledger, token), cache, ledger)
        return RewardJudge(ScorerRewards(RewardScorer.from_pretrained(name)), cache, ledger)
    if kind == "decision":
        endpoint = PipelineEndpoint(name, settings)
    else:
        url, _, model = name.partition("#")
        endpoint = HttpEndpoint(url.rstrip("/"), kind, model=model, token=token, settings=settings)
    return RequestJudge(Requests(endpoint, cache, settings, ledger), settings.prices)
