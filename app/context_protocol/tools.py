"""The tools that a model may call over MCP, each a function of the caller's scope: what the routes do, in words."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from app.answers.chat import RAG_MODEL
from app.context_protocol.places import DocumentPlace
from app.context_protocol.reading import MOST_CHARS, link_to, read_place
from app.errors import BadRequest
from app.routes.body import Body, read_model
from app.routes.chat import generation_model, grounding_of, note_answer
from app.routes.documents import AttachFile, attach_file
from app.routes.files import FileForm, store_upload
from app.routes.filters import HALF_PAIR
from app.routes.vector_stores import list_stores
from app.services import Services
from retrieval.catalog import PageRequest, find_collection
from retrieval.scope import Scope
from retrieval.search import FoundChunk, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import AuditEvent, new_id
from retrieval.together import in_thread
from serving.protocols import Lane

Json = dict[str, Any]

MOST_FOUND = 20
LEAD_CHARS = 2_000
"""A result of a long document without pages is fetched from so far before what was found."""
MOST_LISTED = 1_000

Words = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]
Collection = Annotated[
    str | None,
    Field(description="Name or id of the one collection that is meant; all that may be read if left out."),
]


class SearchArguments(Body):
    query: Words = Field(description="What to look for, in words. Identifiers are found whole.")
    collection: Collection = None
    max_results: int = Field(10, ge=1, le=MOST_FOUND)


class FetchArguments(Body):
    id: str = Field(max_length=200, description="An id of a result of `search`, or `following` of a `fetch`.")


class AskArguments(Body):
    question: Words = Field(description="A question in whole words.")
    collection: Collection = None


class ListArguments(Body):
    pass


class AddArguments(Body):
    collection: str = Field(min_length=1, max_length=256, description="Name or id of the collection.")
    filename: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^/\x00]+$",
        description="Such as minutes.md: text, or Markdown.",
    )
    text: str = Field(min_length=1, description="What the document says.")


@dataclass(frozen=True)
class Tool:
    """`run` gets the services, the scope and the checked arguments, and gives what the model reads as JSON."""

    name: str
    title: str
    description: str
    arguments: type[Body]
    result: Json
    """The JSON Schema of what `run` gives."""
    run: Callable[[Services, Scope, Any], Awaitable[Json]]
    writes: bool = False

    async def call(self, services: Services, scope: Scope, arguments: Mapping[str, Any]) -> Json:
        """Raises BadRequest that names the argument, and what the routes raise."""
        for name, value in arguments.items():
            if isinstance(value, str) and HALF_PAIR.search(value):
                raise BadRequest(f"{name}: it must not contain half of a surrogate pair.", param=name)
        return await self.run(services, scope, read_model(self.arguments, arguments))


async def search(services: Services, scope: Scope, asked: SearchArguments) -> Json:
    collection_ids = await in_thread(_collection_ids, services, scope, asked.collection)
    options = SearchOptions(limit=asked.max_results, dense_weight=services.settings.search.dense_weight)
    found = await services.searcher.search(scope, asked.query, collection_ids=collection_ids, options=options)
    services.activity.note(scope, collection_ids)
    read = (*(collection_ids or ()), *dict.fromkeys(chunk.file_id for chunk in found.chunks))
    asked_for = services.audit.keyed_hash(asked.query)
    services.audit.note(scope, AuditEvent.SEARCH, read, query=asked_for)
    results = dict[str, Json]()
    for chunk in found.chunks:
        place = _place_of(chunk)
        # Of a page, or of a document without pages, the best chunk stands for all.
        results.setdefault(
            replace(place, start_char=None).id,
            {
                "id": place.id,
                "title": _title(chunk.filename, place),
                "url": link_to(services.links, scope, place, chunk.start_char, chunk.end_char),
                "text": chunk.text,
                "score": round(min(max(chunk.score, 0.0), 1.0), 6),
            },
        )
    return {"results": list(results.values())}


async def fetch(services: Services, scope: Scope, asked: FetchArguments) -> Json:
    place = DocumentPlace.read(asked.id, param="id")

    def read() -> Json:
        with services.database.read() as session:
            found = read_place(session, scope, place)
        following = {"following": found.following.id} if found.following is not None else {}
        return {
            "id": place.id,
            "title": _title(found.file.filename, place),
            "text": found.text,
            "url": link_to(services.links, scope, place, found.start_char, found.end_char),
            "metadata": {
                "file_id": place.file_id,
                "collection_id": place.collection_id,
                "media_type": found.file.media_type,
                "start_char": str(found.start_char),
                "end_char": str(found.end_char),
                **following,
            },
        }

    told = await in_thread(read)
    services.audit.note(scope, AuditEvent.DOCUMENT_READ, (place.collection_id, place.file_id))
    return told


async def ask(services: Services, scope: Scope, asked: AskArguments) -> Json:
    named = RAG_MODEL if asked.collection is None else f"{RAG_MODEL}/{asked.collection}"
    grounding = grounding_of(named, [])
    assert grounding is not None
    model = await generation_model(services, scope, named)
    stages = Stages()
    prepared = await services.chat.prepare(
        scope,
        {"messages": [{"role": "user", "content": asked.question}]},
        grounding,
        model=model,
        lane=Lane.INTERACTIVE,
        stages=stages,
    )
    file_ids = {passage.file_id for passage in prepared.passages}
    note_answer(services, scope, new_id("mcp-"), asked.question, file_ids)
    completion = await services.chat.complete(prepared, deadline_s=services.settings.engine.timeout_s)
    services.metrics.told(stages)
    used = completion.get("usage") or {}
    read, written = used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
    await services.limiter.spend(services.keys.bounds_of(scope), read=read, written=written)
    message = completion["choices"][0]["message"]
    return {
        "answer": message["content"],
        "grounded": completion["grounded"],
        "citations": [
            {
                "number": cited["number"],
                "title": cited["filename"],
                "page": cited["page"],
                "quote": cited["quote"],
                "url": cited["url_citation"]["url"],
            }
            for cited in message.get("annotations") or ()
        ],
    }


async def list_collections(services: Services, scope: Scope, _: ListArguments) -> Json:
    listed = await in_thread(list_stores, services, scope, PageRequest(limit=MOST_LISTED))
    return {
        "collections": [
            {
                "id": each["id"],
                "name": each["name"],
                "description": each["description"],
                "documents": each["file_counts"]["completed"],
            }
            for each in listed["data"]
        ]
    }


async def add_document(services: Services, scope: Scope, asked: AddArguments) -> Json:
    collection_id = await in_thread(_collection_id, services, scope, asked.collection)

    def upload() -> str:
        limit_bytes = services.settings.storage.max_upload_bytes
        with services.blobs.receive(limit_bytes=limit_bytes) as receiver:
            receiver.write(asked.text.encode())
            return store_upload(services, scope, receiver, asked.filename, FileForm()).id

    async with services.uploads:
        file_id = await in_thread(upload)
    added = await attach_file(collection_id, AttachFile(file_id=file_id), services, scope)
    place = DocumentPlace(collection_id, file_id)
    return {"id": place.id, "title": asked.filename, "status": added["status"]}


def _collection_id(services: Services, scope: Scope, named: str) -> str:
    with services.database.read() as session:
        return find_collection(session, scope, named).id


def _collection_ids(services: Services, scope: Scope, named: str | None) -> list[str] | None:
    return None if named is None else [_collection_id(services, scope, named)]


def _place_of(chunk: FoundChunk) -> DocumentPlace:
    place = DocumentPlace(chunk.collection_id, chunk.file_id)
    page = next((each.page for each in chunk.places if each.page is not None), None)
    if page is not None:
        return replace(place, page=page)
    if chunk.end_char <= MOST_CHARS:
        return place
    return replace(place, start_char=chunk.start_char - min(LEAD_CHARS, chunk.start_char))


def _title(filename: str, place: DocumentPlace) -> str:
    return filename if place.page is None else f"{filename}, page {place.page}"


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
MAYBE_TEXT, MAYBE_COUNT = {"type": ["string", "null"]}, {"type": ["integer", "null"]}

TOOLS = (
    Tool(
        "search",
        "Search documents",
        "Finds places in the private documents of this Strongroom, by meaning and by words, best first. Each result "
        "has an id for `fetch`, its text, and a url that opens the place.",
        SearchArguments,
        _object(results=_list(_object(id=TEXT, title=TEXT, url=TEXT, text=TEXT, score={"type": "number"}))),
        search,
    ),
    Tool(
        "fetch",
        "Read a document",
        f"The text of a document or of one of its pages, by an id from `search`; at most {MOST_CHARS} characters at "
        "once: metadata.following is the id of what comes next.",
        FetchArguments,
        _object(
            id=TEXT,
            title=TEXT,
            text=TEXT,
            url=TEXT,
            metadata={"type": "object", "additionalProperties": TEXT},
        ),
        fetch,
    ),
    Tool(
        "ask",
        "Ask the documents",
        "Answers a question from the documents, by the server's own language model. Each citation's quote stands "
        "verbatim in its document; `grounded` is false when the documents do not say.",
        AskArguments,
        _object(
            answer=TEXT,
            grounded=FLAG,
            citations=_list(_object(number=MAYBE_COUNT, title=TEXT, page=MAYBE_COUNT, quote=TEXT, url=TEXT)),
        ),
        ask,
    ),
    Tool(
        "list_collections",
        "List collections",
        "The collections of documents that may be searched.",
        ListArguments,
        _object(collections=_list(_object(id=TEXT, name=TEXT, description=MAYBE_TEXT, documents=COUNT))),
        list_collections,
    ),
    Tool(
        "add_document",
        "Add a document",
        "Adds a text as a document to a collection. It can be searched once its status is completed.",
        AddArguments,
        _object(id=TEXT, title=TEXT, status=TEXT),
        add_document,
        writes=True,
    ),
)


def tools_for(scope: Scope) -> dict[str, Tool]:
    """By name: a key that may not write does not see what writes."""
    return {tool.name: tool for tool in TOOLS if scope.may_write or not tool.writes}
