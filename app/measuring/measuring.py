"""Measures a running Strongroom from outside, as its clients see it: one function for each part of the report."""

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from app.commands.adding import add_files
from app.commands.remote import Remote, RemoteRefused
from app.commands.status import samples_of
from app.evaluation.runs import now_utc
from app.measuring.figures import (
    Chats,
    Figures,
    Ingested,
    Lanes,
    Load,
    Overload,
    Prefixes,
    Spread,
    spread,
)
from app.measuring.material import Material
from retrieval.together import together

SEARCHERS = (1, 4, 16)
ANSWER_TOKENS = 64
BULK_TEXTS = 64
PREFIX_SENTENCES = 60
PREFIX_ASKED = 5
OVERLOAD = 4
"""Times the most clients."""


class Measurement:
    """One run against a server whose key may write. `most` is the highest number of clients that chat at once."""

    def __init__(
        self, remote: Remote, *, seconds: float, documents: int, most: int, console: Console
    ) -> None:
        self._remote = remote
        self._seconds = seconds
        self._documents = documents
        self._most = most
        self._console = console
        self._salt = f"bench{time.time_ns():x}"
        self._material = Material(seed=7, salt=self._salt)

    async def run(self, server: str) -> Figures:
        """Leaves nothing behind. Raises RemoteRefused."""
        generating = await self._generation_model()
        async with self._collection() as (collection_id, ingested):
            searches = [await self._searches(collection_id, clients) for clients in SEARCHERS]
            lanes = await self._lanes()
            grounded = (
                await self._chats(1, model=f"rag/{collection_id}", ask=self._material.query)
                if generating
                else None
            )
        chats: list[Chats] = []
        prefixes = overload = None
        if generating:
            clients = 1
            while clients <= self._most:
                chats.append(await self._chats(clients, model=generating, ask=self._material.prompt))
                clients *= 2
            prefixes = await self._prefixes(generating)
            overload = await self._overload(generating, OVERLOAD * self._most)
        else:
            self._console.print("No generation engine is ready: chats are left out.")
        return Figures(
            measured_at=now_utc(),
            version=version("strongroom"),
            server=server,
            machine=f"{platform.node()}: {platform.processor() or platform.machine()}",
            models=await self._remote.models(),
            ingested=ingested,
            searches=searches,
            lanes=lanes,
            grounded=grounded,
            chats=chats,
            prefixes=prefixes,
            overload=overload,
        )

    @asynccontextmanager
    async def _collection(self) -> AsyncIterator[tuple[str, Ingested]]:
        """Of made-up documents; gone with its files at the end."""
        collection_id = await self._remote.collection(self._salt)
        try:
            with TemporaryDirectory() as folder:
                paths, characters = [], 0
                for name, text in self._material.documents(self._documents):
                    paths.append(Path(folder) / name)
                    paths[-1].write_text(text)
                    characters += len(text)
                begun = time.perf_counter()
                outcome = await add_files(self._remote, paths, self._salt, console=self._console)
                seconds = time.perf_counter() - begun
            failed = len(outcome.failures)
            yield (
                collection_id,
                Ingested(
                    documents=len(paths) - failed,
                    characters=characters,
                    seconds=round(seconds, 3),
                    failed=failed,
                ),
            )
        finally:
            for file_id in await self._remote.documents(collection_id):
                await self._remote.remove(file_id)
            await self._remote.remove_collection(collection_id)

    async def _generation_model(self) -> str | None:
        try:
            served = await self._remote.engine_models()
        except RemoteRefused as error:
            if error.status == 403:
                raise RemoteRefused("`strongroom bench` needs an admin's key.", 403) from error
            raise
        return next(iter(served), None)

    async def _searches(self, collection_id: str, clients: int) -> Load:
        async def search() -> None:
            await self._remote.search(collection_id, {"query": self._material.query()})

        load, _ = await self._asked(clients, search)
        self._say(f"{clients} searching", f"{load.per_second:.1f} a second", load.time)
        return load

    async def _lanes(self) -> Lanes:
        """By embeddings: bulk is what has the tier for it."""

        model = await self._remote.embedding_model()

        async def small() -> None:
            await self._remote.embed(model, [self._material.query()], tier="default")

        texts, is_over = 0, False

        async def fill() -> None:
            nonlocal texts
            while not is_over:
                sentences = [self._material.sentence() for _ in range(BULK_TEXTS)]
                await self._remote.embed(model, sentences, tier="flex")
                texts += BULK_TEXTS

        alone, _ = await self._asked(1, small)
        begun = time.perf_counter()
        async with together() as tasks:
            for _ in range(2):
                tasks.create_task(fill())
            beside, _ = await self._asked(1, small)
            is_over = True
        seconds = time.perf_counter() - begun
        assert alone.time is not None
        assert beside.time is not None
        self._say("a small request beside bulk", f"bulk {texts / seconds:.0f} texts/s", beside.time)
        return Lanes(alone=alone.time, beside_bulk=beside.time, bulk_texts_per_s=round(texts / seconds, 2))

    async def _chats(self, clients: int, *, model: str, ask: Callable[[], str]) -> Chats:
        first: list[float] = []
        between: list[float] = []
        tokens = 0

        async def chat() -> None:
            nonlocal tokens
            times = await self._remote.token_times(model, ask(), ANSWER_TOKENS)
            tokens += len(times)
            if times:
                first.append(times[0])
                between.extend(later - sooner for sooner, later in pairwise(times))

        load, seconds = await self._asked(clients, chat)
        measured = Chats(
            **load.model_dump(), first_token=spread(first), between_tokens=spread(between), tokens=tokens
        )
        self._say(f"{clients} chatting", f"{tokens / seconds:.0f} tokens/s", measured.first_token)
        return measured

    async def _prefixes(self, model: str) -> Prefixes | None:
        new: list[float] = []
        known: list[float] = []
        before = await self._prefix_counts()
        for _ in range(PREFIX_ASKED):
            beginning = self._material.long_beginning(PREFIX_SENTENCES)
            for times in (new, known, known):
                prompt = f"{beginning}\n{self._material.query()}"
                if told := await self._remote.token_times(model, prompt, 1):
                    times.append(told[0])
        after = await self._prefix_counts()
        asked, hits = after[0] - before[0], after[1] - before[1]
        first, again = spread(new), spread(known)
        if first is None or again is None:
            return None
        self._say("a long beginning that is known", "", again)
        return Prefixes(new=first, known=again, hit_share=round(hits / asked, 4) if asked > 0 else None)

    async def _prefix_counts(self) -> tuple[float, float]:
        try:
            samples = samples_of(await self._remote.metrics())
        except RemoteRefused as refused:
            if refused.status != 403:
                raise
            return 0.0, 0.0  # They are told to keys of the server's own tenant alone.
        names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
        queries, hits = (sum(value for (each, _), value in samples.items() if each == name) for name in names)
        return queries, hits

    async def _overload(self, model: str, clients: int) -> Overload:
        """All at once, once: who is refused should know at once, and when to come again."""
        times: list[float] = []
        refusals: list[tuple[float, bool]] = []

        async def chat() -> None:
            begun = time.perf_counter()
            try:
                await self._remote.token_times(model, self._material.prompt(), ANSWER_TOKENS)
            except RemoteRefused as error:
                if error.status not in (429, 503):
                    raise
                refusals.append((time.perf_counter() - begun, error.retry_after is not None))
            else:
                times.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(chat() for _ in range(clients)))
        seconds = time.perf_counter() - begun
        return Overload(
            clients=clients,
            requests=clients,
            refused=len(refusals),
            seconds=round(seconds, 3),
            time=spread(times),
            told_when=sum(is_told for _, is_told in refusals),
            slowest_refusal_ms=round(1000 * max((took for took, _ in refusals), default=0.0), 1),
        )

    async def _asked(self, clients: int, ask: Callable[[], Awaitable[None]]) -> tuple[Load, float]:
        """For the time of one step, by so many clients; what was begun in it is waited for."""
        await ask()  # What is loaded or compiled at the first request is no part of it.
        times: list[float] = []
        refused = 0
        begun = time.perf_counter()

        async def client() -> None:
            nonlocal refused
            while time.perf_counter() - begun < self._seconds:
                started = time.perf_counter()
                try:
                    await ask()
                except RemoteRefused as error:
                    if error.status != 429:
                        raise
                    refused += 1
                    await asyncio.sleep(error.retry_after or 1.0)
                else:
                    times.append(time.perf_counter() - started)

        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - begun
        load = Load(
            clients=clients,
            requests=len(times) + refused,
            refused=refused,
            seconds=round(seconds, 3),
            time=spread(times),
        )
        return load, seconds

    def _say(self, what: str, rate: str, times: Spread | None) -> None:
        told = f"p50 {times.p50_ms:.1f} ms, p95 {times.p95_ms:.1f} ms" if times else "no answer"
        self._console.print(f"{what}: {told}{', ' if rate else ''}{rate}", highlight=False)
