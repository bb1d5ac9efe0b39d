"""A client of a running Strongroom, for the command line: uploads, progress, questions."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from app.access.owner import OWNER_HEADER
from app.edge.filenames import safe_filename

Json = dict[str, Any]
EVENTS_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=60)
"""A server that lives says so every 15 s."""
RETRY_S = 1.0
PATIENCE_S = 60.0
"""How long a server that is followed may be away, as when it starts again."""


class RemoteRefused(Exception):
    """The server answered with an error; the message is for a person. `status` is None when none came.

    `retry_after`: the seconds after which it is to be asked again, if it said so.
    """

    def __init__(self, message: str, status: int | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class RemoteUnreachable(RemoteRefused):
    """Nothing answers at the address."""


class Remote:
    """An async context manager around one connection pool."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            # The server says when it is too much.
            connector=aiohttp.TCPConnector(limit=0),
        )
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self._session.close()

    async def readiness(self) -> Json | None:
        """What /ready says; None while nothing answers."""
        try:
            async with self._session.get(
                f"{self.url}/ready", timeout=aiohttp.ClientTimeout(total=10)
            ) as reply:
                told: Json = orjson.loads(await reply.read())
                return told
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return None

    async def sign_in_link(self) -> str:
        """Opens the console once, without the key."""
        return str((await self._call("POST", "/console/invitations"))["url"])

    async def metrics(self) -> str:
        """Of the server's roles, in Prometheus form."""
        return (await self._raw("GET", "/metrics"))[0].decode()

    async def collection(self, name: str) -> str:
        """The id of the collection of that name, which is made if there is none."""
        async for store in self._all("/v1/vector_stores"):
            if name in (store["name"], store["id"]):
                return str(store["id"])
        return str((await self._call("POST", "/v1/vector_stores", json={"name": name}))["id"])

    async def filenames(self, collection_id: str) -> set[str]:
        """Names of the files in a collection that are in or on their way in."""
        ids = {
            document["id"]
            async for document in self._all(f"/v1/vector_stores/{collection_id}/files")
            if document["status"] in ("completed", "in_progress")
        }
        return {file["filename"] async for file in self._all("/v1/files") if file["id"] in ids}

    async def upload(self, path: Path, *, password: str | None = None) -> str:
        """Uploads a file. Returns its id."""
        with path.open("rb") as content:
            # Quoted, a name would arrive with %20 for its spaces; a line's end in one would end the header.
            form = aiohttp.FormData({"purpose": "assistants"}, quote_fields=False)
            if password is not None:
                form.add_field("password", password)
            form.add_field("file", content, filename=safe_filename(path.name))
            file = await self._call("POST", "/v1/files", data=form)
        return str(file["id"])

    async def remove(self, file_id: str) -> None:
        await self._call("DELETE", f"/v1/files/{file_id}")

    async def attach(self, collection_id: str, file_ids: Sequence[str]) -> str:
        """Queues the files for ingestion. Returns the id of their batch."""
        path = f"/v1/vector_stores/{collection_id}/file_batches"
        return str((await self._call("POST", path, json={"file_ids": list(file_ids)}))["id"])

    async def batch_events(self, collection_id: str, batch_id: str) -> AsyncIterator[Json]:
        """The batch whenever something changed, at last when it is done. Outlives a restart of the server."""
        path = f"/v1/vector_stores/{collection_id}/file_batches/{batch_id}/events"
        silent_since = time.monotonic()
        while True:
            try:
                async with aclosing(self._events(path)) as events:
                    async for name, told in events:
                        if name == "error":
                            break  # Asked again, the server says whether it is for good.
                        yield told
                        if name == "done":
                            return
                        silent_since = time.monotonic()
            except RemoteUnreachable:
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
            await asyncio.sleep(RETRY_S)

    async def documents_in(self, collection_id: str, status: str) -> AsyncIterator[Json]:
        """Those of a collection that are in this state."""
        async for document in self._all(f"/v1/vector_stores/{collection_id}/files", filter=status):
            yield document

    async def cancel_document(self, collection_id: str, file_id: str) -> None:
        await self._call("POST", f"/v1/vector_stores/{collection_id}/files/{file_id}/cancel")

    async def attach_again(self, collection_id: str, document: Json) -> None:
        """A document that failed or was cancelled, as it was attached before."""
        body = {"file_id": document["id"], "attributes": document["attributes"]}
        if document["chunking_strategy"]["type"] == "static":
            body["chunking_strategy"] = document["chunking_strategy"]
        await self._call("POST", f"/v1/vector_stores/{collection_id}/files", json=body)

    async def unfinished(self, collection_id: str, batch_id: str) -> AsyncIterator[Json]:
        """The documents of a batch that failed or were cancelled."""
        for status in ("failed", "cancelled"):
            path = f"/v1/vector_stores/{collection_id}/file_batches/{batch_id}/files"
            async for document in self._all(path, filter=status):
                yield document

    async def converse(self, said: Sequence[Json], model: str, **options: Any) -> AsyncIterator[Json]:
        """The chunks of a streamed answer. Raises RemoteRefused, also when the stream ends before its end."""
        body = {
            "model": model,
            "messages": list(said),
            "stream": True,
            "temperature": 0,
            **options,
        }
        try:
            async with self._session.post(f"{self.url}/v1/chat/completions", json=body) as reply:
                if reply.status != 200:
                    raise _refusal(reply, await reply.read())
                async for line in reply.content:
                    told = line.strip().removeprefix(b"data:").strip()
                    if told == b"[DONE]":
                        return
                    if told:
                        chunk = orjson.loads(told)
                        if "error" in chunk:
                            raise RemoteRefused(chunk["error"]["message"])
                        yield chunk
        except aiohttp.ClientError as error:
            raise _unreachable(self.url, error) from error
        raise RemoteRefused("The answer ended before it was complete.")

    async def add_source(self, content: bytes, *, owner_proof: str | None) -> Json:
        """`content` is the request's JSON as bytes, which the proof is over."""
        return await self._owned("/v1/sources", content, owner_proof)

    async def sources(self) -> list[Json]:
        found: list[Json] = (await self._call("GET", "/v1/sources"))["data"]
        return found

    async def source(self, source_id: str) -> Json:
        """With its last sweeps and refused files."""
        return await self._call("GET", f"/v1/sources/{source_id}")

    async def ask_sweep(self, source_id: str, *, dry_run: bool, allow_empty: bool) -> Json:
        body = {"dry_run": dry_run, "allow_empty": allow_empty}
        return await self._call("POST", f"/v1/sources/{source_id}/sweep", json=body)

    async def set_source_options(self, source_id: str, content: bytes, *, owner_proof: str | None) -> Json:
        return await self._owned(f"/v1/sources/{source_id}/options", content, owner_proof)

    async def pause_source(self, source_id: str) -> Json:
        return await self._call("POST", f"/v1/sources/{source_id}/pause")

    async def resume_source(self, source_id: str) -> Json:
        return await self._call("POST", f"/v1/sources/{source_id}/resume")

    async def remove_source(self, source_id: str, *, keep_files: bool) -> Json:
        params = {"keep_files": str(keep_files).lower()}
        return await self._call("DELETE", f"/v1/sources/{source_id}", params=params)

    async def find_collection(self, name: str) -> str:
        """The id of the collection of that name or id. Raises RemoteRefused."""
        async for store in self._all("/v1/vector_stores"):
            if name in (store["name"], store["id"]):
                return str(store["id"])
        raise RemoteRefused(f"There is no collection '{name}'.")

    async def generations(self, collection_id: str) -> list[Json]:
        found: list[Json] = (await self._call("GET", f"/v1/vector_stores/{collection_id}/generations"))[
            "data"
        ]
        return found

    async def begin_generation(self, collection_id: str, body: Json) -> Json:
        return await self._call("POST", f"/v1/vector_stores/{collection_id}/generations", json=body)

    async def switch_generation(self, collection_id: str, number: int, *, force: bool) -> Json:
        path = f"/v1/vector_stores/{collection_id}/generations/{number}/switch"
        return await self._call("POST", path, json={"force": force})

    async def discard_generation(self, collection_id: str, number: int) -> None:
        await self._call("DELETE", f"/v1/vector_stores/{collection_id}/generations/{number}")

    async def collections(self) -> list[Json]:
        return [store async for store in self._all("/v1/vector_stores")]

    async def collection_now(self, collection_id: str) -> Json:
        """With its counts of files."""
        return await self._call("GET", f"/v1/vector_stores/{collection_id}")

    async def documents(self, collection_id: str) -> dict[str, str]:
        """The names of the files of a collection that can be searched, by their ids."""
        path = f"/v1/vector_stores/{collection_id}/files"
        ids = {document["id"] async for document in self._all(path, filter="completed")}
        return {file["id"]: file["filename"] async for file in self._all("/v1/files") if file["id"] in ids}

    async def text(self, collection_id: str, file_id: str) -> str:
        """The text that offsets of citations index."""
        path = f"/v1/vector_stores/{collection_id}/files/{file_id}/content"
        return "".join(part["text"] for part in (await self._call("GET", path))["data"])

    async def search(self, collection_id: str, body: Json) -> tuple[Json, str]:
        """The results, and the Server-Timing header of the reply."""
        return await self._timed("POST", f"/v1/vector_stores/{collection_id}/search", json=body)

    async def complete(self, body: Json) -> tuple[Json, str]:
        """A whole chat completion, and the Server-Timing header of the reply."""
        return await self._timed("POST", "/v1/chat/completions", json=body)

    async def token_times(self, model: str, question: str, most_tokens: int) -> list[float]:
        """Seconds from the request until each piece of a streamed answer came."""
        said = [{"role": "user", "content": question}]
        begun = time.perf_counter()
        return [
            time.perf_counter() - begun
            async for chunk in self.converse(said, model, max_tokens=most_tokens)
            if any(choice["delta"].get("content") for choice in chunk["choices"])
        ]

    async def embedding_model(self) -> str:
        """The default one."""
        models = (await self._call("GET", "/v1/models"))["data"]
        return next(str(model["id"]) for model in models if "embeddings" in model["capabilities"])

    async def embed(self, model: str, texts: Sequence[str], *, tier: str) -> None:
        body = {"model": model, "input": list(texts), "service_tier": tier, "encoding_format": "base64"}
        await self._raw("POST", "/v1/embeddings", json=body)

    async def models(self) -> list[str]:
        """Those that run. The others are ways to search, named after collections, which not everybody may know of."""
        listed = (await self._call("GET", "/v1/models"))["data"]
        return [str(model["id"]) for model in listed if "file_search" not in model["capabilities"]]

    async def keys(self) -> list[Json]:
        """Of the key's tenant. For an admin's key, as are the next ones."""
        return [key async for key in self._all("/v1/keys")]

    async def add_key(self, body: Json) -> Json:
        """With its text as `value`, this once."""
        return await self._call("POST", "/v1/keys", json=body)

    async def change_key(self, key_id: str, body: Json) -> Json:
        return await self._call("POST", f"/v1/keys/{key_id}", json=body)

    async def rotate_key(self, key_id: str, *, grace_s: int) -> Json:
        """With its new text as `value`, this once."""
        return await self._call("POST", f"/v1/keys/{key_id}/rotate", json={"grace_seconds": grace_s})

    async def revoke_key(self, key_id: str) -> None:
        await self._call("DELETE", f"/v1/keys/{key_id}")

    async def remove_collection(self, collection_id: str) -> None:
        await self._call("DELETE", f"/v1/vector_stores/{collection_id}")

    async def engine_models(self) -> list[str]:
        """The generation models of ready engines. For an admin's key."""
        engines = (await self._call("GET", "/v1/engines"))["data"]
        return list(
            dict.fromkeys(model for engine in engines if engine["ready"] for model in engine["models"])
        )

    async def verify(self, *, repairs: bool = False) -> list[str]:
        """What differs between the server's indexes, its tables and its blobs; with `repairs`, once it is healed."""
        call = ("POST", "/v1/verify/repair") if repairs else ("GET", "/v1/verify")
        found: list[str] = (await self._call(*call))["differences"]
        return found

    async def _events(self, path: str) -> AsyncGenerator[tuple[str, Json]]:
        """Server-sent events: the name and what it tells. Raises RemoteRefused."""
        try:
            async with self._session.get(self.url + path, timeout=EVENTS_TIMEOUT) as reply:
                if reply.status != 200:
                    refused = RemoteUnreachable if reply.status == 503 else RemoteRefused
                    raise refused(_message(reply.status, await reply.read()))
                name = ""
                # Not by lines, which aiohttp bounds: an event tells of many files.
                async for event in _blocks(reply.content):
                    for line in event.split(b"\n"):
                        field, _, value = line.partition(b": ")
                        if field == b"event":
                            name = value.decode()
                        elif field == b"data":
                            yield name, orjson.loads(value)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self.url, error) from error

    async def _all(self, path: str, **query: str) -> AsyncIterator[Json]:
        after: dict[str, str] = {}
        while True:
            page = await self._call("GET", path, params={"limit": "1000", **query, **after})
            for row in page["data"]:
                yield row
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    async def _owned(self, path: str, content: bytes, proof: str | None) -> Json:
        headers = {"Content-Type": "application/json"}
        if proof is not None:
            headers[OWNER_HEADER] = proof
        return await self._call("POST", path, data=content, headers=headers)

    async def _call(self, method: str, path: str, **options: Any) -> Json:
        return (await self._timed(method, path, **options))[0]

    async def _timed(self, method: str, path: str, **options: Any) -> tuple[Json, str]:
        content, timing = await self._raw(method, path, **options)
        answer: Json = orjson.loads(content)
        return answer, timing

    async def _raw(self, method: str, path: str, **options: Any) -> tuple[bytes, str]:
        """The reply, and its Server-Timing header."""
        try:
            async with self._session.request(method, self.url + path, **options) as reply:
                content = await reply.read()
                if reply.status >= 400:
                    raise _refusal(reply, content)
                return content, reply.headers.get("Server-Timing", "")
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(self.url, error) from error


async def _blocks(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """What stands between empty lines."""
    held = b""
    async for piece in content.iter_any():
        *whole, held = (held + piece).split(b"\n\n")
        for block in whole:
            yield block


def _unreachable(url: str, error: Exception) -> RemoteRefused:
    match error:
        case aiohttp.InvalidURL():
            return RemoteRefused(f"{url} is no address of a server: it begins with http:// or https://.")
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number > 0:
            # aiohttp's own words name its TLS settings.
            reason = os.strerror(number).lower()
        case _:
            reason = str(error) or type(error).__name__
    return RemoteUnreachable(f"{url} does not answer: {reason}")


def _refusal(reply: aiohttp.ClientResponse, content: bytes) -> RemoteRefused:
    told = reply.headers.get("Retry-After", "")
    return RemoteRefused(
        _message(reply.status, content),
        reply.status,
        retry_after=float(told) if told.isdigit() else None,
    )


def _message(status: int, content: bytes) -> str:
    try:
        return str(orjson.loads(content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"The server answered {status}."
