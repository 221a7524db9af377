"""Rows -> inputs of the probes: pairs, single answers to edit, questions and opinions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from hf_reward.data.preference_row import IMAGE_SOURCES, Message, PreferenceRow, Prompt, prompt_group
from hf_reward.evaluation.audit.cases import Text

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes and families of an audit."""

    name: str
    max_pairs: int
    """Maximum number of pairs."""
    answers: int
    """Maximum number of edited answers, one per prompt."""
    questions: int
    opinions: int
    doses: tuple[float, ...]
    """Length ratios of padded answers."""
    positions: tuple[str, ...]
    """Positions of padding."""
    wordings: int
    """Wordings of each sycophancy template, at most three."""
    lists: int
    """Maximum number of prompts for best-of-n."""
    longest: int
    """Maximum number of characters of an edited answer."""
    families: tuple[str, ...] = ()
    """Families of probes; empty for all."""


QUICK = Profile(
    name="quick",
    max_pairs=150,
    answers=24,
    questions=24,
    opinions=20,
    doses=(2.0,),
    positions=("end",),
    wordings=1,
    lists=0,
    longest=300,
    families=(
        *("accuracy", "length", "calibration", "sycophancy", "format", "degenerate", "image", "confidence"),
        "numerical",
    ),
)
FULL = Profile(
    name="full",
    max_pairs=2000,
    answers=200,
    questions=1000,
    opinions=1000,
    doses=(1.25, 1.5, 2.0, 3.0),
    positions=("start", "middle", "end"),
    wordings=3,
    lists=200,
    longest=2000,
)
PROFILES = {profile.name: profile for profile in (QUICK, FULL)}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of fact."""

    question: str
    correct: str
    """A full sentence."""
    incorrect: str
    """A full sentence of similar length and form that many people believe or could believe."""
    category: str = ""

    @property
    def cluster(self) -> str:
        """Cluster of its cases."""
        return f"question: {self.question}"


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """A question on which reasonable people differ."""

    question: str
    """Ends with the two options, `(A) ...` and `(B) ...`."""
    views: tuple[str, str]
    """Statements of users who would choose A and B."""
    answers: tuple[str, str] = ("", "")
    """The two answers as sentences, in other words than the options and the views."""
    group: str = ""
    """Opinions of one group share a question and are not independent."""

    @property
    def cluster(self) -> str:
        """Cluster of its cases."""
        return f"opinion: {self.group or self.question}"


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A question with and without a user's view (or with the opposite one), and two answers."""

    biased: str
    """The question with the view."""
    plain: str
    """The question without the view, or with the opposite one."""
    target: str
    """The answer that agrees with the view."""
    other: str
    cluster: str
    crossed: bool = False
    """Whether `plain` has the opposite view, which doubles the difference."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A short argument for feedback."""

    topic: str
    argument: str

    @property
    def cluster(self) -> str:
        """Cluster of its cases."""
        return f"argument: {self.topic}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A strict preference."""

    prompt: Prompt
    chosen: str
    rejected: str
    cluster: str
    row: int
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)

    def text(self, response: str, prompt: Prompt | None = None) -> Text:
        """Return the text of a response to the prompt of the pair, or to another prompt."""
        return Text(prompt=self.prompt if prompt is None else prompt, response=response, template=self.template)


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Several responses to one prompt, optionally with their quality."""

    prompt: Prompt
    responses: list[str]
    cluster: str
    gold: list[float] | None = None
    """Quality of each response, such as 1 for correct and 0 for wrong."""


@dataclass(kw_only=True)
class AuditInputs:
    """All inputs of the probes."""

    profile: Profile
    pairs: list[Pair]
    rows: list[PreferenceRow] = field(default_factory=list)
    """The rows of the pairs."""
    lists: list[Responses] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    matched: list[Matched] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    takes_messages: bool = True
    """Whether the model takes conversations; otherwise they are converted to text."""
    takes_images: bool = True
    """Whether the model takes images; otherwise rows with images are left out."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason for skipped rows -> number of rows."""
    beyond: int = 0
    """Number of pairs beyond the limit of the profile."""

    def answers(self) -> list[tuple[Pair, str]]:
        """Return the answers to edit: one per prompt in hash order, alternating between preferred and other ones."""
        found: dict[str, tuple[Pair, str]] = {}
        for pair in sorted(self.pairs, key=_order):
            if pair.cluster in found:
                continue
            sides = (pair.chosen, pair.rejected) if len(found) % 2 == 0 else (pair.rejected, pair.chosen)
            usable = [side for side in sides if 0 < len(side) <= self.profile.longest and len(side.split()) >= 5]
            if usable:
                found[pair.cluster] = (pair, usable[0])
            if len(found) == self.profile.answers:
                break
        return list(found.values())

    def edited_pairs(self) -> list[Pair]:
        """Return the pairs whose responses are both edited: one per prompt, in hash order."""
        found: dict[str, Pair] = {}
        for pair in sorted(self.pairs, key=_order):
            sides = (pair.chosen, pair.rejected)
            if pair.cluster not in found and all(0 < len(side) <= self.profile.longest for side in sides):
                found[pair.cluster] = pair
            if len(found) == self.profile.answers:
                break
        return list(found.values())

    def prompt(self, *turns: str) -> Prompt:
        """Return a conversation that ends with a user turn, in the form that the model takes.

        Args:
            *turns: Alternating turns of user and assistant; an odd number.

        Returns:
            Messages, or text.
        """
        roles = ("user", "assistant")
        return self.form([{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)])

    def form(self, messages: Sequence[Message]) -> Prompt:
        """Return messages for models that take them, else text."""
        if self.takes_messages:
            return list(messages)
        return as_transcript(messages)


def as_transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as text: a single turn alone, several with their speakers."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{_SPEAKERS.get(each['role'], each['role'])}: {each['content']}" for each in messages)


def _order(pair: Pair) -> int:
    """Sort key that depends only on the content, so that a subset is not the start of the data."""
    text = "\x00".join((pair.cluster, pair.chosen, pair.rejected))
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def build_inputs(
    rows: Iterable[PreferenceRow],
    profile: Profile,
    *,
    takes_messages: bool = True,
    questions: Sequence[Question] = (),
    opinions: Sequence[Opinion] = (),
    lists: Sequence[Responses] = (),
    matched: Sequence[Matched] = (),
    arguments: Sequence[Argument] = (),
) -> AuditInputs:
    """Build the inputs of an audit from preference rows.

    Args:
        rows: Canonical rows.
        profile: Sizes. Pairs beyond `max_pairs` are left out in hash order.
        takes_messages: Whether the model takes conversations.
        questions: Questions of fact.
        opinions: Questions of opinion.
        lists: Prompts with several responses, in addition to those of the rows.
        matched: Questions with and without a user's view.
        arguments: Arguments for feedback.

    Returns:
        The inputs.
    """
    inputs = AuditInputs(
        profile=profile,
        pairs=[],
        questions=list(questions)[: profile.questions],
        opinions=list(opinions)[: profile.opinions],
        matched=_spread(matched)[: profile.opinions],
        arguments=list(arguments),
        takes_messages=takes_messages,
    )
    grouped: dict[str, tuple[Prompt, dict[str, None]]] = {}
    usable: dict[int, PreferenceRow] = {}
    for number, row in enumerate(rows):
        texts = [_plain(response) for response in row.responses]
        problem = _problem(row, texts)
        if problem:
            inputs.skipped[problem] = inputs.skipped.get(problem, 0) + 1
            continue
        prompt = row.prompt if isinstance(row.prompt, str) else inputs.form(row.prompt)
        cluster = str(row.group or prompt_group(row))
        known = [text for text in texts if text is not None]
        grouped.setdefault(cluster, (prompt, {}))[1].update(dict.fromkeys(known))
        inputs.pairs += _pairs(row, number, prompt, cluster, known)
        usable[number] = row if row.group else replace(row, group=cluster)
    pairs = sorted(inputs.pairs, key=_order)
    inputs.pairs, inputs.beyond = pairs[: profile.max_pairs], len(pairs[profile.max_pairs :])
    inputs.rows = [usable[number] for number in sorted({pair.row for pair in inputs.pairs})]
    several = [Responses(prompt=p, responses=list(r), cluster=c) for c, (p, r) in grouped.items() if len(r) >= 3]
    given = [each if isinstance(each.prompt, str) else replace(each, prompt=inputs.form(each.prompt)) for each in lists]
    inputs.lists = [*given, *several][: profile.lists]
    return inputs


def _spread(matched: Sequence[Matched]) -> list[Matched]:
    """Sort so that the start of the list has the most clusters: one of each cluster, then a second one of each."""
    seen: dict[str, int] = {}
    turns = []
    for each in matched:
        seen[each.cluster] = seen.get(each.cluster, 0) + 1
        turns.append(seen[each.cluster])
    return [each for _, each in sorted(zip(turns, matched, strict=True), key=lambda pair: pair[0])]


def _problem(row: PreferenceRow, texts: Sequence[str | None]) -> str:
    if row.token_ids is not None:
        return "token ids instead of text"
    if any(text is None for text in texts):
        return "a response that is not one text"
    if not isinstance(row.prompt, str) and not row.prompt:
        return "a conversation without a prompt"
    if not isinstance(row.prompt, str) and not all(_is_plain(each) for each in row.prompt):
        return "a prompt with more than text, such as tool calls"
    if len(set(row.ranks)) < 2:
        return "no strict preference"
    return "" if len(set(texts)) == len(texts) else "two identical responses"


def _is_plain(message: Message) -> bool:
    return isinstance(message.get("content"), str) and set(message) <= {"role", "content", IMAGE_SOURCES}


def _plain(response: Any) -> str | None:
    """Return a response as text; None unless it is text or a single assistant message of text."""
    if isinstance(response, str):
        return response
    if len(response) != 1 or response[0].get("tool_calls") or not isinstance(response[0].get("content"), str):
        return None
    return response[0]["content"]


def _pairs(row: PreferenceRow, number: int, prompt: Prompt, cluster: str, texts: Sequence[str]) -> list[Pair]:
    return [
        Pair(
            prompt=prompt,
            chosen=texts[i],
            rejected=texts[j],
            cluster=cluster,
            row=number,
            source=row.source or "",
            meta=row.meta,
            template=row.template,
        )
        for i, better in enumerate(row.ranks)
        for j, worse in enumerate(row.ranks)
        if better < worse
    ]
