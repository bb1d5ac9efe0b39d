"""/v1/embeddings, /v1/rerank and /v2/rerank: the models role in OpenAI's, Jina's and Cohere's shapes."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer

from app.errors import BadRequest, UnknownModel
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, deadline_of, lane_of
from app.routes.models import embedding_aliases, reranker_aliases
from app.services import Services
from retrieval.scope import Scope
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


def _as_list(sent: Any) -> Any:
    """One text is a list of one, and so are one text's token ids."""
    if isinstance(sent, str) or (isinstance(sent, list) and sent and _is_id(sent[0])):
        return [sent]
    return sent


def _is_id(sent: Any) -> bool:
    return isinstance(sent, int) and not isinstance(sent, bool)


def _ids_or_text(sent: Any, as_text: ValidatorFunctionWrapHandler) -> Any:
    """A text, or as it is a list of token ids: what they stand for only the model's tokenizer knows."""
    if not isinstance(sent, list):
        return as_text(sent)
    if not sent or not all(_is_id(each) and each >= 0 for each in sent):
        raise PydanticCustomError("token_ids", "Input should be a valid string, or a list of token ids")
    return sent


def _text_of(sent: Any) -> Any:
    return sent["text"] if isinstance(sent, dict) and "text" in sent else sent


Text = Annotated[str, Field(min_length=1)]
Input = Annotated[Text, WrapValidator(_ids_or_text, json_schema_input_type=str | list[int])]
"""May be token ids yet, which `_as_texts` makes a text of."""
Inputs = Annotated[
    list[Input],
    Field(min_length=1, max_length=MOST_TEXTS),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
RankedText = Annotated[Text, BeforeValidator(_text_of, json_schema_input_type=str | dict[str, str])]


class ModelBody(Body):
    model: str
    truncate: bool = False
    """Ours: whether a text that is longer than the model reads is cut or refused."""
    service_tier: str | None = None
    user: str | None = None


class EmbeddingsBody(ModelBody):
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class RankBody(ModelBody):
    query: Text
    documents: list[RankedText] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=1, le=MOST_TEXTS)


class RerankBody(RankBody):
    return_documents: bool = False


class CohereBody(RankBody):
    truncate: bool = True
    """Cohere cuts documents unasked."""
    max_tokens_per_doc: int = Field(4096, ge=1)


@router.post("/v1/embeddings")
async def embeddings(
    request: Request, body: EmbeddingsBody, services: UseServices, scope: Reader
) -> Response:
    _must_be_one_of(embedding_aliases(services), body.model)
    embedder = services.models.embedder(body.model)
    model = await embedder.describe()
    if body.dimensions not in (None, model.dimensions):
        raise BadRequest(f"dimensions must be {model.dimensions} for {model.name}.", param="dimensions")
    texts = await asyncio.to_thread(_as_texts, model.tokenizer_json, body.input, model.name)
    counts = await asyncio.to_thread(_count_tokens, model.tokenizer_json, texts)
    if not body.truncate:
        _must_fit(counts, model.max_tokens, field="input", reader=model.name)
    embedding = embedder.embed(
        texts,
        lane=_lane(body.service_tier, len(texts), person_at_most=PERSON_SENDS_AT_MOST),
        deadline_s=deadline_of(request, longest_s=LONGEST_S),
        cache_salt=scope.cache_salt,
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


@dataclass(frozen=True)
class Ranking:
    """Indexes of documents, best first, and what reading them took."""

    best: Sequence[int]
    scores: NDArray[np.float32]
    tokens: int
    cut: int

    def results(self) -> list[dict[str, Any]]:
        return [
            {"index": index, "relevance_score": round(float(self.scores[index]), 6)} for index in self.best
        ]


@router.post("/v1/rerank")
async def rerank(request: Request, body: RerankBody, services: UseServices, scope: Reader) -> Response:
    """Jina's shape, which was Cohere's first."""
    ranking = await _rank(request, services, scope, body, body.documents)
    results = ranking.results()
    if body.return_documents:
        results = [{**each, "document": {"text": body.documents[each["index"]]}} for each in results]
    usage = {"total_tokens": ranking.tokens, "truncated": ranking.cut}
    return _reply({"object": "list", "model": body.model, "results": results, "usage": usage})


@router.post("/v2/rerank")
async def rerank_v2(request: Request, body: CohereBody, services: UseServices, scope: Reader) -> Response:
    """Cohere's shape."""
    _must_rank(services, body.model)
    model = await services.models.reranker(body.model).describe()
    documents = await asyncio.to_thread(_cut, model.tokenizer_json, body.documents, body.max_tokens_per_doc)
    ranking = await _rank(request, services, scope, body, documents)
    meta = {"api_version": {"version": "2"}, "tokens": {"input_tokens": ranking.tokens, "output_tokens": 0}}
    return _reply({"id": str(uuid4()), "model": body.model, "results": ranking.results(), "meta": meta})


async def _rank(
    request: Request, services: Services, scope: Scope, body: RankBody, documents: Sequence[str]
) -> Ranking:
    _must_rank(services, body.model)
    reranker = services.models.reranker(body.model)
    model = await reranker.describe()
    pairs = [(body.query, text) for text in documents]
    counts = await asyncio.to_thread(_count_tokens, model.tokenizer_json, pairs)
    if not body.truncate:
        _must_fit(counts, model.max_tokens, field="documents", reader=model.name, beside=" with the query")
    scoring = reranker.score(
        body.query,
        documents,
        lane=_lane(body.service_tier, len(documents), person_at_most=PERSON_RANKS_AT_MOST),
        deadline_s=deadline_of(request, longest_s=LONGEST_S),
        cache_salt=scope.cache_salt,
        truncate=body.truncate,
    )
    try:
        scores = await unless_departed(request.receive, scoring)
    except TextRefused as refused:
        raise _named(refused, field="documents") from refused
    return Ranking(
        best=sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: body.top_n],
        scores=scores,
        tokens=_tokens_read(counts, model.max_tokens),
        cut=_number_cut(counts, model.max_tokens),
    )


def _lane(service_tier: str | None, count: int, *, person_at_most: int) -> Lane:
    """The tier decides; without one, the number of texts tells a program from a person."""
    if service_tier is None and count > person_at_most:
        return Lane.BULK
    return lane_of(service_tier)


def _must_rank(services: Services, asked: str) -> None:
    aliases = reranker_aliases(services)
    if not aliases:
        raise BadRequest("No reranking model is configured: set models.reranker.", param="model")
    _must_be_one_of(aliases, asked)


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


def _as_texts(tokenizer_json: str, inputs: Sequence[str | list[int]], reader: str) -> list[str]:
    """Token ids as the text that the model's own tokenizer makes them of.

    Ids of another tokenizer would be embedded as gibberish in silence. They are found out since their text is not cut
    into the same ids again. Raises BadRequest.
    """
    tokenizer = _tokenizer(tokenizer_json)
    texts: list[str] = []
    for index, told in enumerate(inputs):
        if isinstance(told, str):
            texts.append(told)
            continue
        known = max(told) < tokenizer.get_vocab_size()
        text = tokenizer.decode(told, skip_special_tokens=True) if known else ""
        ids = (tokenizer.encode(text, add_special_tokens=with_special).ids for with_special in (False, True))
        if not text or told not in ids:
            raise BadRequest(
                f"input[{index}]: these are no token ids of {reader}'s own tokenizer. Send text (LangChain's "
                "OpenAIEmbeddings: check_embedding_ctx_length=False).",
                param="input",
            )
        texts.append(text)
    return texts


def _cut(tokenizer_json: str, texts: Sequence[str], most: int) -> list[str]:
    """The first tokens of each."""
    encoded = _tokenizer(tokenizer_json).encode_batch(list(texts), add_special_tokens=False)
    return [
        text if len(each) <= most else text[: each.offsets[most - 1][1]]
        for text, each in zip(texts, encoded, strict=True)
    ]


@lru_cache(maxsize=16)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
