"""How measures talk to the stack: one bare connection for timings, a pooled client for everything else."""

import asyncio
import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
import orjson

from tests.bench.figures import MeasureFailed

CLIENTS = 4
"""Clients of uploads and of searches that run at once, unless a measure says otherwise."""
REPLY_S = 120.0

Input = TypeVar("Input")
Output = TypeVar("Output")


class Wire:
    """One kept connection. http.client adds some tenths of a millisecond, the same to whatever it talks to."""

    def __init__(self, url: str, key: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=REPLY_S)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def __enter__(self) -> Self:
        self._connection.connect()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._connection.close()

    def post(self, path: str, body: bytes) -> bytes:
        """The whole reply. Raises MeasureFailed when it is not a 200."""
        return self._open(path, body).read()

    def first_token_s(self, path: str, body: bytes) -> float:
        """Seconds from the request to the first event with text; reads on to the end, so that the wire is kept."""
        started = time.perf_counter()
        reply = self._open(path, body)
        for line in reply:
            if line.startswith(b"data: {") and _has_text(line):
                elapsed_s = time.perf_counter() - started
                reply.read()
                return elapsed_s
        raise MeasureFailed("The stream ended without a token.")

    def _open(self, path: str, body: bytes) -> http.client.HTTPResponse:
        self._connection.request("POST", path, body, self._headers)
        reply = self._connection.getresponse()
        if reply.status != 200:
            raise MeasureFailed(f"{path} answered {reply.status}: {reply.read(500)!r}")
        return reply


class Api:
    """The product's vector store routes. Safe to use from several threads. Methods raise httpx.HTTPError."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def create_store(self, name: str) -> str:
        return str(self._call("POST", "/v1/vector_stores", json={"name": name})["id"])

    def upload(self, filename: str, content: bytes) -> str:
        """The new file's id."""
        form = {"files": {"file": (filename, content)}, "data": {"purpose": "assistants"}}
        return str(self._call("POST", "/v1/files", **form)["id"])

    def attach(self, store_id: str, file_id: str, chunking: dict[str, Any] | None = None) -> None:
        body: dict[str, Any] = {"file_id": file_id}
        if chunking is not None:
            body["chunking_strategy"] = chunking
        self._call("POST", f"/v1/vector_stores/{store_id}/files", json=body)

    def add(self, store_id: str, files: Iterable[tuple[str, bytes]], *, clients: int = 1) -> None:
        """Uploads and attaches each, so many at once. Raises MeasureFailed.

        By aiohttp: what a client computes is taken from the machine that is measured, and httpx would take a tenth of
        it.
        """
        asyncio.run(self._add(store_id, iter(files), clients))

    async def _add(self, store_id: str, files: Iterator[tuple[str, bytes]], clients: int) -> None:
        base, headers = str(self._client.base_url), dict(self._client.headers)
        timeout = aiohttp.ClientTimeout(total=REPLY_S)
        async with aiohttp.ClientSession(
            base, headers=headers, timeout=timeout, raise_for_status=True
        ) as session:

            async def one_by_one() -> None:
                for name, content in files:
                    form = aiohttp.FormData({"purpose": "assistants"})
                    form.add_field("file", content, filename=name)
                    try:
                        async with session.post("v1/files", data=form) as reply:
                            file_id = orjson.loads(await reply.read())["id"]
                        attached = {"file_id": file_id}
                        async with session.post(f"v1/vector_stores/{store_id}/files", json=attached) as reply:
                            await reply.read()
                    except (aiohttp.ClientError, TimeoutError) as error:
                        raise MeasureFailed(f"{name} was not taken: {error}") from error

            await asyncio.gather(*(one_by_one() for _ in range(clients)))

    def attach_all(self, store_id: str, file_ids: Sequence[str]) -> str:
        """As one batch. Returns its id."""
        body = {"file_ids": list(file_ids)}
        return str(self._call("POST", f"/v1/vector_stores/{store_id}/file_batches", json=body)["id"])

    def batch_counts(self, store_id: str, batch_id: str) -> dict[str, int]:
        """Documents of a batch by status, and `total`."""
        path = f"/v1/vector_stores/{store_id}/file_batches/{batch_id}"
        counted: dict[str, int] = self._call("GET", path)["file_counts"]
        return counted

    def cancel_batch(self, store_id: str, batch_id: str) -> None:
        self._call("POST", f"/v1/vector_stores/{store_id}/file_batches/{batch_id}/cancel")

    def counts(self, store_id: str) -> dict[str, int]:
        """Documents by status, and `total`."""
        counted: dict[str, int] = self._call("GET", f"/v1/vector_stores/{store_id}")["file_counts"]
        return counted

    def failures(self, store_id: str) -> Counter[str]:
        """How many of up to 1,000 failed documents have each reason."""
        path = f"/v1/vector_stores/{store_id}/files"
        rows = self._call("GET", path, params={"filter": "failed", "limit": "1000"})["data"]
        return Counter(row["last_error"]["reason"] for row in rows)

    def search(self, store_id: str, query: str, *, limit: int = 10) -> list[str]:
        """The files of the found chunks, best first, each once."""
        found = self.found(store_id, {"query": query, "max_num_results": limit})
        return list(dict.fromkeys(chunk["file_id"] for chunk in found))

    def found(self, store_id: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a search gives, best first."""
        chunks: list[dict[str, Any]] = self.page(store_id, body)["data"]
        return chunks

    def page(self, store_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """All that a search replies."""
        return self._call("POST", f"/v1/vector_stores/{store_id}/search", json=body)

    def route_seconds(self, route: str) -> tuple[float, int]:
        """What the api role itself saw of a route so far: summed seconds to the first byte, and requests."""
        reply = self._client.get("/metrics").raise_for_status()
        name, label = "strongroom_first_byte_seconds", f'{{route="{route}"}}'
        found = dict.fromkeys((f"{name}_sum{label}", f"{name}_count{label}"), 0.0)
        for line in reply.text.splitlines():
            series, _, value = line.rpartition(" ")
            if series in found:
                found[series] = float(value)
        seconds, requests = found.values()
        return seconds, int(requests)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        reply = self._client.request(method, path, **options).raise_for_status()
        answer: dict[str, Any] = orjson.loads(reply.content)
        return answer


def wait_ingested(
    api: Api, store_id: str, *, within_s: float, on_progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Documents by status once none is on its way in. Raises MeasureFailed."""
    deadline = time.monotonic() + within_s
    while True:
        counts = api.counts(store_id)
        on_progress(counts["total"] - counts["in_progress"], counts["total"])
        if counts["in_progress"] == 0:
            return counts
        if time.monotonic() > deadline:
            raise MeasureFailed(f"Ingestion did not end within {within_s:.0f} s: {counts}")
        time.sleep(0.5)


def in_parallel(
    function: Callable[[Input], Output], inputs: Iterable[Input], *, clients: int = CLIENTS
) -> Iterator[Output]:
    """Results in the order of the inputs. Left early, it starts no further call."""
    pool = ThreadPoolExecutor(clients)
    try:
        yield from pool.map(function, inputs)
    finally:
        pool.shutdown(cancel_futures=True)


def _has_text(line: bytes) -> bool:
    choices = orjson.loads(line.removeprefix(b"data: "))["choices"]
    return bool(choices and choices[0]["delta"].get("content"))
