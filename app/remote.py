"""A client of a running Strongroom, for the command line: uploads, progress, questions."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

Json = dict[str, Any]
LOOK_S = 0.25


class RemoteRefused(Exception):
    """The server answered with an error; the message is for a person."""


class RemoteUnreachable(RemoteRefused):
    """Nothing answers at the address."""


class Remote:
    """An async context manager around one connection pool."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=None)
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
                f"{self._url}/ready", timeout=aiohttp.ClientTimeout(total=10)
            ) as reply:
                told: Json = orjson.loads(await reply.read())
                return told
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return None

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

    async def upload(self, path: Path, collection_id: str) -> str:
        """Uploads a file and attaches it. Returns its id."""
        with path.open("rb") as content:
            form = aiohttp.FormData({"purpose": "assistants"})
            form.add_field("file", content, filename=path.name)
            file = await self._call("POST", "/v1/files", data=form)
        try:
            await self._call("POST", f"/v1/vector_stores/{collection_id}/files", json={"file_id": file["id"]})
        except RemoteRefused:
            await self._call("DELETE", f"/v1/files/{file['id']}")
            raise
        return str(file["id"])

    async def wait_ingested(self, collection_id: str, file_id: str) -> Json:
        """The document once it is completed, failed or cancelled."""
        while True:
            document = await self._call("GET", f"/v1/vector_stores/{collection_id}/files/{file_id}")
            if document["status"] != "in_progress":
                return document
            await asyncio.sleep(LOOK_S)

    async def ask(self, question: str, model: str) -> AsyncIterator[Json]:
        """The chunks of a streamed answer. Raises RemoteRefused, also when the stream ends before its end."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "temperature": 0,
        }
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as reply:
                if reply.status != 200:
                    raise RemoteRefused(_message(reply.status, await reply.read()))
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
            raise RemoteUnreachable(f"{self._url} does not answer: {error}") from error
        raise RemoteRefused("The answer ended before it was complete.")

    async def verify(self) -> list[str]:
        """What differs between the server's indexes, its tables and its blobs."""
        found: list[str] = (await self._call("GET", "/v1/verify"))["differences"]
        return found

    async def _all(self, path: str) -> AsyncIterator[Json]:
        after: dict[str, str] = {}
        while True:
            page = await self._call("GET", path, params={"limit": "1000", **after})
            for row in page["data"]:
                yield row
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    async def _call(self, method: str, path: str, **options: Any) -> Json:
        try:
            async with self._session.request(method, self._url + path, **options) as reply:
                content = await reply.read()
                if reply.status >= 400:
                    raise RemoteRefused(_message(reply.status, content))
                answer: Json = orjson.loads(content)
                return answer
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteUnreachable(f"{self._url} does not answer: {error}") from error


def _message(status: int, content: bytes) -> str:
    try:
        return str(orjson.loads(content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"The server answered {status}."
