"""/v1/embeddings and /v1/rerank: the models role in OpenAI's and Cohere's shapes."""

import asyncio
import base64
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from app.errors import BadRequest, UnknownModel
from app.routes.caller import Reader, UseServices
from app.routes.models import embedding_name, model_names, reranker_name
from app.services import Services
from app.streaming import unless_departed
from retrieval.scope import Scope
from serving.protocols import Lane

router = APIRouter()

MOST_TEXTS = 2048
PERSON_SENDS_AT_MOST = 8
"""More texts than this in one call come from a program, which can wait."""

Text = Annotated[str, Field(min_length=1)]


class EmbeddingsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    service_tier: str | None = None
    user: str | None = None


class RerankDocument(BaseModel):
    text: str


class RerankBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    query: Text
    documents: list[str | RerankDocument] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


@router.post("/v1/embeddings")
async def embeddings(
    request: Request, body: EmbeddingsBody, services: UseServices, scope: Reader
) -> dict[str, Any]:
    await _must_be(services, scope, body.model, embedding_name(services))
    texts = [body.input] if isinstance(body.input, str) else body.input
    model = await services.models.describe()
    if body.dimensions not in (None, model.dimensions):
        raise BadRequest(f"dimensions must be {model.dimensions} for {model.name}.", param="dimensions")
    counts = await asyncio.to_thread(_count_tokens, model.tokenizer_json, texts)
    for index, count in enumerate(counts):
        if count > model.max_tokens:
            raise BadRequest(
                f"input[{index}] has {count} tokens; {model.name} reads at most {model.max_tokens}.",
                param="input",
            )
    vectors = await unless_departed(request, services.models.embed(texts, lane=lane_of(body, len(texts))))
    as_wanted = _base64 if body.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": as_wanted(vector)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
    }


@router.post("/v1/rerank")
async def rerank(request: Request, body: RerankBody, services: UseServices, scope: Reader) -> dict[str, Any]:
    if not services.settings.models.reranker:
        raise BadRequest("No reranking model is configured: set models.reranker.", param="model")
    await _must_be(services, scope, body.model, reranker_name(services))
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    scores = await unless_departed(request, services.models.score(body.query, texts, lane=Lane.INTERACTIVE))
    best = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n]
    return {
        "object": "list",
        "model": body.model,
        "results": [
            {"index": index, "relevance_score": round(float(scores[index]), 6)}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for index in best
        ],
    }


def lane_of(body: EmbeddingsBody, count: int) -> Lane:
    if body.service_tier == "flex":
        return Lane.BULK
    if body.service_tier is None and count > PERSON_SENDS_AT_MOST:
        return Lane.BULK
    return Lane.INTERACTIVE


async def _must_be(services: Services, scope: Scope, asked: str, served: str) -> None:
    if asked != served:
        raise UnknownModel(asked, await model_names(services, scope))


def _floats(vector: NDArray[np.float32]) -> list[float]:
    floats: list[float] = vector.tolist()
    return floats


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _count_tokens(tokenizer_json: str, texts: list[str]) -> list[int]:
    return [len(encoding.ids) for encoding in _tokenizer(tokenizer_json).encode_batch(texts)]


@lru_cache(maxsize=4)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
