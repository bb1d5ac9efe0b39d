"""/v1/embeddings and /v1/rerank: the models role in OpenAI's and Cohere's shapes."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer

from app.errors import BadRequest, UnknownModel
from app.routes.caller import Reader, UseServices, deadline_of, lane_of
from app.routes.models import embedding_aliases, reranker_aliases
from serving.departure import unless_departed
from serving.protocols import Lane, TextRefused

router = APIRouter()

MOST_TEXTS = 2048
"""OpenAI's bound."""
PERSON_SENDS_AT_MOST = 8
"""More texts than this in one call come from a program, which can wait."""
PERSON_RANKS_AT_MOST = 100
"""The same for documents: what a person's search has found is ranked in one call."""
LONGEST_S = 600.0
"""For clients that name no time of their own."""


def _as_texts(sent: Any) -> Any:
    """One text is a list of one. Token ids are refused: OpenAI's tokenizer is not the model's."""
    if isinstance(sent, str):
        return [sent]
    if isinstance(sent, list) and sent and isinstance(sent[0], (int, list)):
        raise PydanticCustomError(
            "token_ids",
            "token ids are not taken, send text (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
        )
    return sent


def _text_of(sent: Any) -> Any:
    return sent["text"] if isinstance(sent, dict) and "text" in sent else sent


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=MOST_TEXTS),
    BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
]
RankedText = Annotated[Text, BeforeValidator(_text_of, json_schema_input_type=str | dict[str, str])]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    truncate: bool = False
    """Ours: whether a text that is longer than the model reads is cut or refused."""
    service_tier: str | None = None
    user: str | None = None


class EmbeddingsBody(Body):
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class RerankBody(Body):
    query: Text
    documents: list[RankedText] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=1, le=MOST_TEXTS)
    return_documents: bool = False


@router.post("/v1/embeddings")
async def embeddings(
    request: Request, body: EmbeddingsBody, services: UseServices, scope: Reader
) -> Response:
    _must_be_one_of(embedding_aliases(services), body.model)
    embedder = services.models.embedder(body.model)
    model = await embedder.describe()
    if body.dimensions not in (None, model.dimensions):
        raise BadRequest(f"dimensions must be {model.dimensions} for {model.name}.", param="dimensions")
    counts = await asyncio.to_thread(_count_tokens, model.tokenizer_json, body.input)
    if not body.truncate:
        _must_fit(counts, model.max_tokens, field="input", reader=model.name)
    embedding = embedder.embed(
        body.input,
        lane=_lane(body.service_tier, len(body.input), person_at_most=PERSON_SENDS_AT_MOST),
        deadline_s=deadline_of(request, longest_s=LONGEST_S),
        cache_salt=scope.tenant_id,
        truncate=body.truncate,
    )
    try:
        vectors = await unless_departed(request.receive, embedding)
    except TextRefused as refused:
        raise _named(refused, field="input") from refused
    read = _tokens_read(counts, model.max_tokens)
    usage = {"prompt_tokens": read, "total_tokens": read}
    if body.truncate:
        usage["truncated"] = _number_cut(counts, model.max_tokens)
    as_base64 = body.encoding_format == "base64"
    return _reply(
        {
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
                for index, vector in enumerate(vectors)
            ],
            "usage": usage,
        }
    )


@router.post("/v1/rerank")
async def rerank(request: Request, body: RerankBody, services: UseServices, scope: Reader) -> Response:
    aliases = reranker_aliases(services)
    if not aliases:
        raise BadRequest("No reranking model is configured: set models.reranker.", param="model")
    _must_be_one_of(aliases, body.model)
    reranker = services.models.reranker(body.model)
    model = await reranker.describe()
    pairs = [(body.query, text) for text in body.documents]
    counts = await asyncio.to_thread(_count_tokens, model.tokenizer_json, pairs)
    if not body.truncate:
        _must_fit(counts, model.max_tokens, field="documents", reader=model.name, beside=" with the query")
    scoring = reranker.score(
        body.query,
        body.documents,
        lane=_lane(body.service_tier, len(body.documents), person_at_most=PERSON_RANKS_AT_MOST),
        deadline_s=deadline_of(request, longest_s=LONGEST_S),
        cache_salt=scope.tenant_id,
        truncate=body.truncate,
    )
    try:
        scores = await unless_departed(request.receive, scoring)
    except TextRefused as refused:
        raise _named(refused, field="documents") from refused
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: body.top_n]
    return _reply(
        {
            "object": "list",
            "model": body.model,
            "results": [
                {"index": index, "relevance_score": round(float(scores[index]), 6)}
                | ({"document": {"text": body.documents[index]}} if body.return_documents else {})
                for index in best
            ],
            "usage": {
                "total_tokens": _tokens_read(counts, model.max_tokens),
                "truncated": _number_cut(counts, model.max_tokens),
            },
        }
    )


def _lane(service_tier: str | None, count: int, *, person_at_most: int) -> Lane:
    """The tier decides; without one, the number of texts tells a program from a person."""
    if service_tier is None and count > person_at_most:
        return Lane.BULK
    return lane_of(service_tier)


def _must_be_one_of(aliases: Sequence[str], asked: str) -> None:
    if asked not in aliases:
        raise UnknownModel(asked, aliases)


def _must_fit(counts: Sequence[int], max_tokens: int, *, field: str, reader: str, beside: str = "") -> None:
    for index, count in enumerate(counts):
        if count > max_tokens:
            raise BadRequest(
                f"{field}[{index}]{beside} has {count} tokens; {reader} reads at most {max_tokens}. "
                "Send less, or `truncate`: true to have it cut.",
                param=field,
            )


def _named(refused: TextRefused, *, field: str) -> BadRequest:
    return BadRequest(f"{field}[{refused.index}] cannot be processed: {refused.reason}.", param=field)


def _tokens_read(counts: Sequence[int], max_tokens: int) -> int:
    return sum(min(count, max_tokens) for count in counts)


def _number_cut(counts: Sequence[int], max_tokens: int) -> int:
    return sum(count > max_tokens for count in counts)


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _reply(body: Mapping[str, Any]) -> Response:
    # Not FastAPI's own: its encoder looks at each of a million floats, and holds up the process for seconds.
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _count_tokens(tokenizer_json: str, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[int]:
    return [len(encoding) for encoding in _tokenizer(tokenizer_json).encode_batch_fast(list(texts))]


@lru_cache(maxsize=16)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
