"""The batcher under arbitrary interleavings: each call ends with exactly its rows or one error, and nothing is left."""

import asyncio
import random
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.batcher import Batcher, BatchReport, Limits, RowCache
from serving.batching.waiting import LaneCounts, Missing, Request, Waiting
from serving.protocols import Lane, ModelUnavailable, Overloaded, TextRefused
from tests.serving.length_model import LengthModel, rows_of

POISON = 13
DEADLY = 14
LIMITS = Limits(
    max_batch_s=1e9, max_batch_tokens=60, max_batch_texts=4, sorting_window=6, recovery_pause_s=0.001
)


@dataclass
class SteppedModel(LengthModel):
    """Each batch waits for a permit; a length of 13 fails its batch, one of 14 kills the thread."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    stepped: bool = False

    def forward(self, collated: list[tuple[int, int]]) -> Any:
        if self.stepped:
            assert self.permits.acquire(timeout=10)
        lengths = [length for length, _ in collated]
        if POISON in lengths:
            raise RuntimeError
        if DEADLY in lengths:
            raise SystemExit
        return super().forward(collated)


@dataclass(frozen=True)
class Arrive:
    lengths: list[int]
    lane: Lane
    salt: str


@dataclass(frozen=True)
class Depart:
    which: int


@dataclass(frozen=True)
class RunBatches:
    count: int


LENGTHS = st.integers(1, 40).map(lambda length: 12 if length == DEADLY else length)
STEPS = st.one_of(
    st.builds(
        Arrive,
        lengths=st.lists(LENGTHS, max_size=10),
        lane=st.sampled_from([*Lane]),
        salt=st.sampled_from(["", "other"]),
    ),
    st.builds(Depart, which=st.integers(0, 20)),
    st.builds(RunBatches, count=st.integers(1, 4)),
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEPS, max_size=25),
    replicas=st.integers(1, 3),
    has_express=st.booleans(),
    remember=st.booleans(),
    deadly=st.booleans(),
)
def test_each_call_ends_with_exactly_its_rows_or_one_error(
    steps: list[Arrive | Depart | RunBatches], replicas: int, has_express: bool, remember: bool, deadly: bool
) -> None:
    asyncio.run(_play(steps, replicas, has_express=has_express, remember=remember, deadly=deadly))


async def _play(
    steps: list[Arrive | Depart | RunBatches],
    replicas: int,
    *,
    has_express: bool,
    remember: bool,
    deadly: bool,
) -> None:
    permits = threading.Semaphore(0)
    models = [SteppedModel(permits=permits) for _ in range(replicas + has_express)]
    express = models[-1] if has_express else None
    calls: list[tuple[list[str], asyncio.Task[Any]]] = []
    cache = RowCache(5_000) if remember else None
    async with Batcher(models[:replicas], probe="1", express=express, limits=LIMITS, cache=cache) as batcher:
        for model in models:
            model.batches.clear()
            model.stepped = True
        for step in steps:
            match step:
                case Arrive(lengths, lane, salt):
                    texts = [
                        f"{DEADLY if deadly and length == 7 else length}#{length % 3}" for length in lengths
                    ]
                    call = batcher.run(texts, lane=lane, cache_salt=salt)
                    calls.append((texts, asyncio.create_task(call)))
                case Depart(which) if which < len(calls):
                    calls[which][1].cancel()
                case RunBatches(count):
                    permits.release(count)
                    await asyncio.sleep(0.0005)
            await asyncio.sleep(0)
        for model in models:
            model.stepped = False
        permits.release(100)
        done = await asyncio.wait_for(
            asyncio.gather(*(task for _, task in calls), return_exceptions=True), 20
        )
        for (texts, _), result in zip(calls, done, strict=True):
            _check(texts, result, deadly=deadly)
        await _until_nothing_is_in_flight(batcher)
        assert all(batcher.waiting_texts(lane) == 0 for lane in Lane)
        assert batcher.idle_since < float("inf")
    for model in models:
        for lengths in model.batches:
            assert len(lengths) <= LIMITS.max_batch_texts
            assert len(lengths) == 1 or len(lengths) * max(lengths) <= LIMITS.max_batch_tokens


async def _until_nothing_is_in_flight(batcher: Batcher[str]) -> None:
    """Texts of callers who left may still run."""
    async with asyncio.timeout(10):
        while batcher._waiting._in_flight:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


def _check(texts: list[str], result: Any, *, deadly: bool) -> None:
    lengths = [int(text.partition("#")[0]) for text in texts]
    if isinstance(result, asyncio.CancelledError):
        return
    if isinstance(result, ModelUnavailable):
        assert deadly
    elif isinstance(result, TextRefused):
        assert lengths[result.index] == POISON
    else:
        assert POISON not in lengths
        assert DEADLY not in lengths
        assert isinstance(result, np.ndarray)
        assert result.tolist() == (rows_of(texts) if texts else [])


async def test_many_callers_at_random_times_on_real_threads() -> None:
    """Three replicas, one for people alone, that take random times; departures, deadlines, poison, repeated texts."""
    source = random.Random(5)

    def work(lengths: list[int]) -> None:
        time.sleep(source.random() * 0.002)
        if POISON in lengths:
            raise RuntimeError

    models = [LengthModel(on_forward=work) for _ in range(3)]
    reports: list[BatchReport] = []
    limits = replace(LIMITS, max_batch_tokens=400, max_batch_texts=16, sorting_window=32)
    async with Batcher(
        models[:2],
        probe="1",
        express=models[2],
        limits=limits,
        cache=RowCache(20_000),
        on_batch=reports.append,
    ) as batcher:

        async def call(number: int) -> str:
            chosen = random.Random(number)
            await asyncio.sleep(chosen.random() * 0.5)
            texts = [f"{chosen.randint(1, 60)}#{chosen.randint(0, 2)}" for _ in range(chosen.randint(0, 20))]
            running = asyncio.create_task(
                batcher.run(
                    texts,
                    lane=chosen.choice([*Lane]),
                    deadline_s=chosen.choice([None, None, 0.02, 1.0]),
                    cache_salt=chosen.choice(["", "other"]),
                )
            )
            if chosen.random() < 0.2:
                await asyncio.sleep(chosen.random() * 0.01)
                running.cancel()
            try:
                rows = await running
            except asyncio.CancelledError:
                return "departed"
            except Overloaded:
                return "overloaded"
            except TextRefused as refusal:
                return "refused" if texts[refusal.index].startswith(f"{POISON}#") else "blamed"
            assert rows.tolist() == (rows_of(texts) if texts else [])
            return "served"

        outcomes = await asyncio.wait_for(asyncio.gather(*(call(number) for number in range(400))), 30)
        assert batcher.fault is None
        await _until_nothing_is_in_flight(batcher)
    assert outcomes.count("served") > 100
    assert {"served", "departed", "refused"} <= set(outcomes)
    assert "blamed" not in outcomes
    assert {report.replica for report in reports} == {0, 1, 2}


class WaitingMachine:
    """Random steps on the state alone, with its invariants checked after each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.counts = {lane: LaneCounts() for lane in Lane}
        self.waiting = Waiting(self.counts)
        self.requests: list[Request] = []
        self.batches: list[list[Any]] = []

    def arrive(self, source: random.Random) -> None:
        texts = sorted({str(source.randint(1, 9)) for _ in range(source.randint(1, 5))})
        lane = source.choice([*Lane])
        rows = np.empty((len(texts), 2), np.float32)
        request = Request(lane, "", True, 1e9, 0.0, self.loop.create_future(), rows, len(texts))
        request.expected_texts, request.expected_tokens = len(texts), 10.0 * len(texts)
        self.waiting.add(request)
        tokens = LengthModel().encode(texts)
        request.encoded = [
            (Missing(text, [index], None), one)
            for index, (text, one) in enumerate(zip(texts, tokens, strict=True))
        ]
        if source.random() < 0.8:
            self.waiting.enqueue_encoded(request, 0.0)
        self.requests.append(request)

    def leave(self, source: random.Random) -> None:
        alive = [request for request in self.requests if not request.over]
        if alive:
            self.waiting.forget(source.choice(alive), 0.0)

    def take(self, source: random.Random) -> None:
        queue = self.waiting.lanes[source.choice([*Lane])]
        texts = [text for text in queue.texts if source.random() < 0.6]
        if texts:
            queue.take(texts, 0.0)
            self.batches.append(texts)

    def put_back(self, source: random.Random) -> None:
        if self.batches:
            self.waiting.put_back(self.batches.pop(source.randrange(len(self.batches))), 0.0)

    def land(self, source: random.Random) -> None:
        if self.batches:
            for text in self.batches.pop(source.randrange(len(self.batches))):
                self.waiting.land(text)
                for request in list(text.callers):
                    self.waiting.settle(text, request)

    def check(self) -> None:
        in_flight = set(self.waiting._in_flight.values())
        queued = {text for queue in self.waiting.lanes.values() for text in queue.texts}
        in_batches = [text for batch in self.batches for text in batch]
        assert len(in_batches) == len(set(in_batches))
        assert in_flight == queued | set(in_batches)
        assert not queued & set(in_batches)
        for lane, queue in self.waiting.lanes.items():
            assert all(text.queued and text.callers and text.lane is lane for text in queue.texts)
            assert queue.tokens == sum(map(len, queue.texts))
            assert (queue.passed_over_since < float("inf")) == bool(queue.texts)
            expected = sum(
                request.expected_texts
                for request in self.requests
                if request.lane is lane and not request.over
            )
            assert queue.expected_texts == expected
        for request in self.requests:
            assert request.texts == {text for text in in_flight if request in text.callers}
            assert request.over or request.texts or request.expected_texts
            if not request.over:
                assert request.unfinished == len(request.texts) + request.expected_texts


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(["arrive", "leave", "take", "put_back", "land"]), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_a_text_in_flight_is_always_in_one_place_with_those_who_want_it(names: list[str], seed: int) -> None:
    loop = asyncio.new_event_loop()
    machine, source = WaitingMachine(loop), random.Random(seed)
    for name in names:
        getattr(machine, name)(source)
        machine.check()
    loop.close()
