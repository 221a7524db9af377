"""Answers of all endpoints, for `/openapi.json`. The endpoints build them as dictionaries; the tests compare both."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    """An answer with exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


# --- server ----------------------------------------------------------------------------------------------------------


class RowProblem(_Answer):
    """A row without a reward."""

    index: int
    response: int | None = None
    reason: str


class ErrorDetails(_Answer):
    """An error."""

    code: int
    type: str
    message: str
    rows: list[RowProblem] | None = None


class ErrorAnswer(_Answer):
    """Answer of every endpoint to a request that fails."""

    error: ErrorDetails


class Health(_Answer):
    """Answer of `/health`."""

    status: Literal["ok"]
    models: list[str]
    queued_rows: int


class ModelCard(_Answer):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["hf_reward"]


class Models(_Answer):
    """Answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


# --- hf_reward -------------------------------------------------------------------------------------------------------


class Rewards(_Answer):
    """Answer of `/score`: rewards of the responses; with `items`, a list for each item."""

    model: str
    rewards: list[float] | list[list[float]]
    tokens: int


class Ranking(_Answer):
    """Rewards of the responses to a prompt, and their indices, best first."""

    rewards: list[float]
    ranking: list[int]
    best: int


class OneRanking(Ranking):
    """Answer of `/rank` to one prompt."""

    model: str
    tokens: int


class Rankings(_Answer):
    """Answer of `/rank` to `items`."""

    model: str
    results: list[Ranking]
    tokens: int


# --- trainers --------------------------------------------------------------------------------------------------------


class OpenRlhfLogs(_Answer):
    """Values that OpenRLHF logs for each text."""

    reward_model_tokens: list[int]


class OpenRlhfRewards(_Answer):
    """Answer of `/get_reward`."""

    rewards: list[float]
    scores: list[float]
    extra_logs: OpenRlhfLogs


class Verified(BaseModel):
    """Answer of `/verify`: the body with its reward."""

    model_config = ConfigDict(extra="allow", strict=True)

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    reward: float


class RolloutMetrics(_Answer):
    """Answer of `/aggregate_metrics`: statistics such as `mean/reward`, by task and overall."""

    group_level_metrics: list[dict[str, float]]
    agent_metrics: dict[str, float]
    key_metrics: dict[str, float]


class Nothing(_Answer):
    """An empty answer."""


# --- vLLM and OpenAI -------------------------------------------------------------------------------------------------


class Usage(_Answer):
    """Number of tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class _Listed(_Answer):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class Class(_Answer):
    """The reward as the "probability" of the only label."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Classes(_Listed):
    """Answer of `/classify`."""

    data: list[Class]


class Pooled(_Answer):
    """The reward as a vector with one entry; as text if base64 was asked for."""

    index: int
    object: Literal["pooling"]
    data: list[float] | str


class Pooling(_Listed):
    """Answer of `/pooling`."""

    data: list[Pooled]


class Embedding(_Answer):
    """The reward as a vector with one entry; as text if base64 was asked for."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class Embeddings(_Listed):
    """Answer of `/v1/embeddings`."""

    data: list[Embedding]


class PairScore(_Answer):
    """The reward of a pair."""

    index: int
    object: Literal["score"]
    score: float


class PairScores(_Listed):
    """Answer of `/v1/score`."""

    data: list[PairScore]


# --- rerankers -------------------------------------------------------------------------------------------------------


class Document(_Answer):
    """A document."""

    text: str


class RankedDocument(_Answer):
    """A document and its reward."""

    index: int
    document: Document | None = None
    relevance_score: float


class RankedDocuments(_Answer):
    """Answer of `/rerank` to `documents`, best first."""

    id: str
    model: str
    usage: Usage
    results: list[RankedDocument]


class RankedText(_Answer):
    """An entry of TEI's answer of `/rerank`, best first."""

    index: int
    text: str | None = None
    score: float


class Prediction(_Answer):
    """An entry of TEI's answer of `/predict`."""

    score: float
    label: str | None


# --- decisions -------------------------------------------------------------------------------------------------------


class SystemOneAnswer(_Answer):
    """Answer to a choice question of `/v1/systemone`."""

    type: Literal["choice"]
    choice: str
    confidence: float
    probabilities: dict[str, float]


class SystemOneUsage(_Answer):
    """Number of tokens."""

    input_tokens: int
    output_tokens: int


class SystemOneAnswers(_Answer):
    """Answer of `/v1/systemone`."""

    model: str
    answers: dict[str, SystemOneAnswer]
    usage: SystemOneUsage


class ChoiceProbability(_Answer):
    """Probability of a choice."""

    value: str | bool
    probability: float


class DecisionAnswer(_Answer):
    """Answer to a choice question of `/v1/decisions`."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    probabilities: list[ChoiceProbability]
    confidence: float


class DecisionInputDetails(_Answer):
    """Cached tokens; always 0."""

    cached_tokens: int
    cache_write_tokens: int


class DecisionOutputDetails(_Answer):
    """Tokens of reasoning; always 0."""

    reasoning_tokens: int


class DecisionUsage(_Answer):
    """Number of tokens."""

    input_tokens: int
    input_tokens_details: DecisionInputDetails
    output_tokens: int
    output_tokens_details: DecisionOutputDetails
    total_tokens: int


class Decisions(_Answer):
    """Answer of `/v1/decisions`."""

    model: str
    answers: list[DecisionAnswer]
    usage: DecisionUsage
