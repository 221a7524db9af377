"""Reward functions with known biases, and probe families run on them: cases -> rewards -> findings."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import xxhash

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.audit.cases import ScoredCase, Text
from hf_reward.evaluation.audit.families.sycophancy_wordings import DENIALS
from hf_reward.evaluation.audit.family import Family, FamilyResult
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inference import Inference, assign_verdicts
from hf_reward.evaluation.audit.inputs.audit_inputs import (
    Argument,
    AuditInputs,
    Matched,
    Opinion,
    Profile,
    Question,
    build_inputs,
)
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_arguments, bundled_opinions, bundled_questions
from hf_reward.metrics.bootstrap import Bootstrap, median_margin

Reward = Callable[[Text], float]
QUESTIONS, OPINIONS = bundled_questions(), bundled_opinions()
_CORRECT = {each.question: each.correct for each in QUESTIONS}
_INCORRECT = {each.question: each.incorrect for each in QUESTIONS}


def inputs(
    profile: Profile,
    *,
    rows: int = 60,
    questions: Sequence[Question] = tuple(QUESTIONS),
    opinions: Sequence[Opinion] = tuple(OPINIONS),
    arguments: Sequence[Argument] | None = None,
    matched: Sequence[Matched] = (),
    takes_messages: bool = True,
) -> AuditInputs:
    """Return inputs with pairs whose preferred response contains `useful`, and the bundled items."""
    pairs = [
        PreferenceRow(
            prompt=[{"role": "user", "content": f"Please tell me: what do you know about subject {number}?"}],
            responses=[f"This is a useful answer about {number}.", f"This is an empty answer about {number}."],
            ranks=[0, 1],
        )
        for number in range(rows)
    ]
    return build_inputs(
        pairs,
        profile,
        takes_messages=takes_messages,
        questions=questions,
        opinions=opinions,
        matched=matched,
        arguments=bundled_arguments() if arguments is None else arguments,
    )


def run(family: Family, probed: AuditInputs, reward: Reward, seed: int = 0) -> FamilyResult:
    """Run a family on a reward function; its findings have verdicts."""
    bootstrap = Bootstrap(resamples=1000, seed=seed)
    gaps = [reward(pair.text(pair.chosen)) - reward(pair.text(pair.rejected)) for pair in probed.pairs]
    inference = Inference(bootstrap, median_margin(bootstrap, gaps, [pair.cluster for pair in probed.pairs]))
    known: dict[str, float] = {}
    scored = []
    for case in family.cases(probed):
        for text in case.texts.values():
            if text.key not in known:
                known[text.key] = reward(text)
        scored.append(ScoredCase(case=case, rewards={role: known[text.key] for role, text in case.texts.items()}))
    result = family.analyse(scored, probed, inference)
    result.findings = assign_verdicts(result.findings)
    return result


def finding(result: FamilyResult, name: str) -> Finding:
    """Return the only finding with a name."""
    (found,) = [each for each in result.findings if each.name == name]
    return found


def noise(text: Text, seed: int = 0) -> float:
    """Return a standard normal number that depends only on the text."""
    digest = xxhash.xxh3_64_intdigest(text.key.encode(), seed=seed)
    return float(np.random.default_rng(digest).standard_normal())


def quality(text: Text) -> float:
    """Return 1 for useful and for correct answers, else 0; the typical margin is 1."""
    return float("useful" in text.response) + float(correct(text))


def correct(text: Text) -> bool:
    """Return whether the answer contains the correct sentence of the first question."""
    return _CORRECT.get(_asked(first_turn(text)), "\0") in text.response


def first_turn(text: Text) -> str:
    """Return the first turn of a prompt."""
    return text.prompt if isinstance(text.prompt, str) else text.prompt[0]["content"]


def last_turn(text: Text) -> str:
    """Return the last turn of a prompt."""
    return text.prompt if isinstance(text.prompt, str) else text.prompt[-1]["content"]


def clean(size: float = 0.1, seed: int = 0) -> Reward:
    """Return a reward of quality and a little noise, without bias."""
    return lambda text: quality(text) + size * noise(text, seed)


def plus(bias: Reward, size: float = 0.1, seed: int = 0) -> Reward:
    """Return the sum of a clean reward and a bias."""
    base = clean(size, seed)
    return lambda text: base(text) + bias(text)


def agrees(text: Text) -> float:
    """Return 1 if the answer is the claim of the user, or the opposite of a denied claim; else 0."""
    turn = last_turn(text)
    for opinion in OPINIONS:
        for view, letter in zip(opinion.views, ("(A)", "(B)"), strict=True):
            if view in turn:
                return float(text.response in (letter, opinion.answers[letter == "(B)"]))
    denies = any(form.split("{statement}")[0] in turn for forms in DENIALS.values() for form in forms)
    question = _asked(turn)
    for claimed, opposite in ((_CORRECT, _INCORRECT), (_INCORRECT, _CORRECT)):
        if question in claimed and claimed[question].rstrip(".") in turn[len(question) :]:
            return float(text.response == (opposite if denies else claimed)[question])
    return 0.0


def _asked(turn: str) -> str:
    """The question at the start of a turn."""
    return turn.partition("?")[0] + "?"


def without(probed: AuditInputs, **changes: object) -> AuditInputs:
    """Return the inputs with changed fields."""
    return replace(probed, **changes)  # pyright: ignore[reportArgumentType]
