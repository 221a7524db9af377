"""Protocols of rerankers: `/rerank` of Jina, Cohere and vLLM, and `/rerank` and `/predict` of TEI.

The query is the prompt, a document is a response, and the score is the raw reward; the chat template is applied. Bodies
and answers are those of cohere 7.0.9 (raw_base_client.py, v2/raw_client.py), JinaRerank of langchain-community, vLLM
(pooling/scoring/protocol.py, commit 055e47c) and text-embeddings-inference 1.9.3 (router/src/http/types.rs).
"""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag, model_validator

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import StrictJSON
from hf_reward.scoring.serving.protocols import answers
from hf_reward.scoring.serving.protocols.base import (
    TAG,
    Anything,
    Body,
    Listed,
    Refused,
    RefusingBody,
    requests_of_pairs,
    requests_of_texts,
    score,
    service_of,
    usage,
)

router = APIRouter(tags=["Rerankers"])


class _Document(Body):
    """A document as an object."""

    text: str


class RerankBody(RefusingBody):
    """Body of Jina, Cohere and vLLM."""

    query: str
    documents: Listed[str | _Document] | str = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=0)
    """None and 0 return all documents."""
    return_documents: bool = True
    rank_fields: Refused = None
    max_chunks_per_doc: Refused = None
    max_tokens_per_doc: Refused = None
    max_tokens_per_query: Refused = None
    truncate_prompt_tokens: Refused = None
    truncation_side: Refused = None
    instruction: Refused = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: Anything = None
    """Ignored: the oldest part of a prompt is cut, as in training; responses never are."""
    use_activation: Anything = None
    priority: Anything = None
    user: Anything = None
    request_id: Anything = None

    def texts(self) -> list[str]:
        """Return the texts of the documents."""
        given = [self.documents] if isinstance(self.documents, str) else self.documents
        return [each if isinstance(each, str) else each.text for each in given]


class TeiRerankBody(Body):
    """Body of TEI's `/rerank`."""

    query: str
    texts: Listed[str] = Field(min_length=1)
    raw_scores: bool = True
    return_text: bool = False
    truncate: Anything = None
    """Ignored, like the direction: the oldest part of a prompt is cut, as in training; responses never are."""
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None

    @model_validator(mode="after")
    def _wants_rewards(self) -> "TeiRerankBody":
        return _require_raw_scores(self)


class PredictBody(Body):
    """Body of TEI's `/predict`: a text, a pair, or a list of one-entry lists (texts) and two-entry lists (pairs)."""

    inputs: str | Listed[str] | Listed[Listed[str]]
    raw_scores: bool = True
    truncate: Anything = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> "PredictBody":
        if any(len(each) not in (1, 2) for each in self.sequences()):
            raise ValueError("`inputs` must be a text, a pair [prompt, response], or a list of [text] and such pairs")
        return _require_raw_scores(self)

    def sequences(self) -> list[list[str]]:
        """Return the texts and pairs."""
        given: Any = self.inputs
        if isinstance(given, str):
            return [[given]]
        return [given] if not given or isinstance(given[0], str) else given

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list for each input."""
        return isinstance(self.inputs, list) and bool(self.inputs) and isinstance(self.inputs[0], list)

    def requests(self) -> list[ScoreRequest]:
        """Return one request for each input. A text is formatted; a pair is a prompt and a response."""
        return [
            (requests_of_texts(each) if len(each) == 1 else requests_of_pairs([(each[0], each[1])]))[0]
            for each in self.sequences()
        ]


def _require_raw_scores(body: Any) -> Any:
    if not body.raw_scores:
        raise ValueError(
            "`raw_scores` false asks for a sigmoid of the reward, which is no probability. Send `raw_scores` true, or "
            "leave it out"
        )
    return body


# --- routes ----------------------------------------------------------------------------------------------------------


def _protocol(given: Any) -> str:
    is_tei = isinstance(given, dict) and given.keys() & {"texts", "raw_scores", "return_text"}
    return f"{TAG}tei" if is_tei and "documents" not in given else f"{TAG}jina"


EitherRerankBody = Annotated[
    Annotated[RerankBody, Tag(f"{TAG}jina")] | Annotated[TeiRerankBody, Tag(f"{TAG}tei")], Discriminator(_protocol)
]


@router.post(
    "/rerank", summary="Jina, Cohere, vLLM and TEI", response_model=answers.RankedDocuments | list[answers.RankedText]
)
async def rerank(body: EitherRerankBody, request: Request) -> StrictJSON:
    """Rank documents, best first, in the format of Jina, Cohere and vLLM (`documents`) or of TEI (`texts`)."""
    if isinstance(body, RerankBody):
        return await rerank_documents(body, request)
    pairs = [(body.query, text) for text in body.texts]
    rewards = (await score(service_of(request), request, requests_of_pairs(pairs))).rewards
    shown = [{"text": text} if body.return_text else {} for text in body.texts]
    return StrictJSON([{"index": place, **shown[place], "score": rewards[place]} for place in _order(rewards)])


@router.post("/v1/rerank", summary="Jina, Cohere and vLLM", response_model=answers.RankedDocuments)
@router.post("/v2/rerank", summary="Jina, Cohere and vLLM", response_model=answers.RankedDocuments)
async def rerank_documents(body: RerankBody, request: Request) -> StrictJSON:
    """Rank documents, best first, in the format of Jina, Cohere and vLLM."""
    service = service_of(request, body.model)
    texts = body.texts()
    pairs = [(body.query, text) for text in texts]
    scored = await score(service, request, requests_of_pairs(pairs, body.chat_template_kwargs))
    shown = [{"document": {"text": text}} if body.return_documents else {} for text in texts]
    results = [
        {"index": place, **shown[place], "relevance_score": scored.rewards[place]}
        for place in _order(scored.rewards)[: body.top_n or None]
    ]
    content = {"id": f"rerank-{uuid.uuid4().hex}", "model": service.name}
    return StrictJSON({**content, "usage": usage(scored.tokens), "results": results})


@router.post("/predict", summary="TEI", response_model=list[answers.Prediction] | list[list[answers.Prediction]])
async def predict(body: PredictBody, request: Request) -> StrictJSON:
    """Score texts and pairs in the format of TEI."""
    service = service_of(request)
    rewards = (await score(service, request, body.requests())).rewards
    answers = [[{"score": reward, "label": service.label}] for reward in rewards]
    return StrictJSON(answers if body.is_batch else answers[0])


def _order(rewards: list[float]) -> list[int]:
    """Return the indices, best first; equal rewards keep their order."""
    return sorted(range(len(rewards)), key=lambda place: -rewards[place])
