"""vLLM's protocol: `/classify`, `/pooling`, `/score` with pairs, and the embeddings that verl reads from SGLang.

Fields and answers are those of vllm/frontend/entrypoints/pooling (commit 055e47c) and of the reward loop of verl
(0.10.dev, commit 1dda039). A pair is a prompt and a response: it gets the chat template, which vLLM does not apply.
"""

import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import model_validator

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import StrictJSON
from hf_reward.scoring.serving.protocols import answers
from hf_reward.scoring.serving.protocols.base import (
    Anything,
    Encoding,
    Listed,
    Messages,
    ModelBody,
    Refused,
    RefusingBody,
    requests_of_messages,
    requests_of_pairs,
    requests_of_texts,
    score,
    service_of,
    usage,
    vector,
)
from hf_reward.scoring.serving.service import RewardService, Scored

router = APIRouter(tags=["vLLM and OpenAI"])

Input = str | Listed[str] | Listed[int] | Listed[Listed[int]]
"""One or several texts or sequences of token ids."""


class _VllmBody(RefusingBody):
    """Fields of all requests of vLLM. Those of type `Anything` do not affect rewards and are ignored."""

    use_activation: bool | None = None
    """Ignored: with `problem_type` "regression" the activation is the identity, in vLLM too."""
    truncate_prompt_tokens: Refused = None
    truncation_side: Refused = None
    padding: Refused = None
    mm_processor_kwargs: Refused = None
    user: Anything = None
    priority: Anything = None
    request_id: Anything = None
    cache_salt: Anything = None


class _InputBody(_VllmBody):
    """Formatted texts, token ids or a conversation."""

    input: Input | None = None
    messages: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: Anything = None
    """Ignored: a text gets the BOS of training either way."""
    activation: Anything = None
    """The name of `use_activation` before vLLM 0.11.2, which verl 0.8 sends."""
    add_generation_prompt: Refused = False
    continue_final_message: Refused = False
    chat_template: Refused = None
    media_io_kwargs: Refused = None

    @model_validator(mode="after")
    def _has_one_input(self) -> "_InputBody":
        if (self.input is None) == (self.messages is None):
            raise ValueError("needs either `input` or `messages`")
        return self

    def token_ids(self) -> list[list[int]] | None:
        """Return the sequences if the input is token ids, else None."""
        if not isinstance(self.input, list) or not self.input or isinstance(self.input[0], str):
            return None
        given: Any = self.input
        return [given] if isinstance(given[0], int) else given

    def requests(self) -> list[ScoreRequest]:
        """Convert texts or messages to requests.

        Returns:
            One request for each text, or for the conversation.

        Raises:
            ApiError: If the messages do not end with an assistant turn.
        """
        if self.messages is not None:
            return requests_of_messages(self.messages, {"chat_template_kwargs": self.chat_template_kwargs})
        given: Any = self.input
        return requests_of_texts([given] if isinstance(given, str) else given)


class ClassifyBody(_InputBody):
    """Body of `/classify`."""


class PoolingBody(_InputBody):
    """Body of `/pooling`."""

    task: Literal["classify", "score"] | None = None
    encoding_format: Encoding = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"
    dimensions: None = None


class EmbeddingsBody(ModelBody):
    """Body of `/v1/embeddings`, as in OpenAI's protocol."""

    input: Input
    encoding_format: Encoding = "float"
    dimensions: None = None
    user: Anything = None

    def as_input(self) -> _InputBody:
        """Return the input in vLLM's form."""
        return _InputBody(input=self.input)


Sides = str | Listed[str]
_LAYOUTS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class PairsBody(_VllmBody):
    """vLLM's body of `/score`: prompts and responses, in one of four layouts."""

    text_1: Sides | None = None
    text_2: Sides | None = None
    queries: Sides | None = None
    documents: Sides | None = None
    items: Sides | None = None
    data_1: Sides | None = None
    data_2: Sides | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    instruction: Refused = None
    max_tokens_per_query: Refused = 0
    max_tokens_per_doc: Refused = 0

    @model_validator(mode="after")
    def _is_complete(self) -> "PairsBody":
        self.sides()
        return self

    def sides(self) -> tuple[list[str], list[str]]:
        """Return prompts and responses, equally many; one prompt is used for all responses.

        Returns:
            The prompts and the responses.

        Raises:
            ValueError: If the layout is incomplete, or the numbers differ.
        """
        given = {name for layout in _LAYOUTS for name in layout if getattr(self, name) is not None}
        layout = next((each for each in _LAYOUTS if given == set(each)), None)
        if layout is None:
            raise ValueError(f"needs {' or '.join(f'`{one}` and `{other}`' for one, other in _LAYOUTS)}")
        prompts, responses = (
            [side] if isinstance(side, str) else side for side in (getattr(self, name) for name in layout)
        )
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        if len(prompts) != len(responses) or not responses:
            raise ValueError(
                f"`{layout[0]}` must have one entry or as many as `{layout[1]}`, but they have {len(prompts)} and "
                f"{len(responses)}"
            )
        return prompts, responses

    def requests(self) -> list[ScoreRequest]:
        """Return one request for each pair."""
        return requests_of_pairs(list(zip(*self.sides(), strict=True)), self.chat_template_kwargs)


# --- routes ----------------------------------------------------------------------------------------------------------


@router.post("/classify", summary="vLLM: classification", response_model=answers.Classes)
async def classify(body: ClassifyBody, request: Request) -> StrictJSON:
    """Answer as vLLM does for a one-label regression model: the "probability" is the reward."""
    service = service_of(request, body.model)
    scored = await _scored(service, body, request)
    data = [{"label": service.label, "probs": [reward], "num_classes": 1} for reward in scored.rewards]
    return _listed("classify", data, scored, service)


@router.post("/pooling", summary="vLLM: pooling", response_model=answers.Pooling)
async def pooling(body: PoolingBody, request: Request) -> StrictJSON:
    """Answer as vLLM does for the task "classify": a vector with the reward for each input."""
    service = service_of(request, body.model)
    scored = await _scored(service, body, request)
    data = [{"object": "pooling", "data": vector(reward, body.encoding_format)} for reward in scored.rewards]
    return _listed("pool", data, scored, service)


@router.post("/v1/score", summary="vLLM: pairs", response_model=answers.PairScores)
async def score_pairs(body: PairsBody, request: Request) -> StrictJSON:
    """Score pairs of prompt and response, with the chat template."""
    service = service_of(request, body.model)
    scored = await score(service, request, body.requests())
    return _listed("score", [{"object": "score", "score": reward} for reward in scored.rewards], scored, service)


@router.post("/v1/embeddings", summary="OpenAI: embeddings", response_model=answers.Embeddings)
async def embeddings(body: EmbeddingsBody, request: Request) -> StrictJSON:
    """Return the reward as an embedding with one entry, which verl reads from its SGLang engine."""
    service = service_of(request, body.model)
    scored = await _scored(service, body.as_input(), request)
    data = [{"object": "embedding", "embedding": vector(reward, body.encoding_format)} for reward in scored.rewards]
    return _listed("embd", data, scored, service)


async def _scored(service: RewardService, given: _InputBody, request: Request) -> Scored:
    ids = given.token_ids()
    return await score(service, request, given.requests() if ids is None else [], ids)


def _listed(kind: str, data: list[dict[str, Any]], scored: Scored, service: RewardService) -> StrictJSON:
    """Return a list in the format of OpenAI."""
    content = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    numbered = [{"index": index, **each} for index, each in enumerate(data)]
    return StrictJSON({**content, "model": service.name, "data": numbered, "usage": usage(scored.tokens)})
