"""Joins concurrent requests into batches that a model can run at once, people first.

Policy is `choice` (what runs next), `cost` and `forecast` (how long it takes); state is `waiting` (who waits for what)
and `replica`; mechanism is here. A text is tokenised in one of two threads, waits in its lane, and runs on whichever
replica is free first. A replica has two threads: the worker runs forward passes; the preparer chooses and collates the
next batch meanwhile, and hands out the rows of the last one. Batches wait for no timer, and nothing polls.

    run ── admit ── tokenise ──> lane ── choose, collate ──> prefetched ── forward ──> deliver ──> run
           (loop)   (2 threads)          (preparer)                        (worker)    (preparer)

A batch is prefetched as soon as it is full: until then, whoever comes may still join it. The worker looks again when
it takes it: if somebody of a higher lane came, or nobody wants one of its texts any more, the texts go back to the
front of their queue. So a person waits for one running batch at most, unless a lower lane's turn is due; and for none
where an express replica computes for people alone, beside the others.

Tokenising first, budgets in tokens with padding counted, one batch prefetched, and dropping departed callers are
ideas of Hugging Face's text-embeddings-inference.

One lock guards all state. Encode, collate, forward, the copying of rows and `on_batch` run without it. Every call
ends: what it waits for is being tokenised, or in flight (see `waiting`), or its rows are being copied. Texts in flight
get on as long as the threads live; a thread that dies fails the batch it holds first, and another takes over.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Self, cast

import numpy as np

from serving.batching.choice import Limits, choose_batch, choose_lane, lanes_above
from serving.batching.cost import CostModel
from serving.batching.forecast import Forecast
from serving.batching.model import BatchModel, InputT, Rows, Tokens
from serving.batching.replica import Batch, Replica
from serving.batching.row_cache import RowCache, row_key
from serving.batching.waiting import LaneCounts, LaneQueue, Missing, Request, Text, Waiting, tell
from serving.protocols import Lane, ModelUnavailable, Overloaded, TextRefused, TextTooLong

__all__ = ["BatchModel", "BatchReport", "Batcher", "LaneCounts", "Limits", "RowCache", "Rows", "Tokens"]


@dataclass(frozen=True)
class BatchReport:
    """One batch that ran, for metrics."""

    lane: Lane
    texts: int
    tokens: int
    padded_tokens: int
    seconds: float
    longest_wait_s: float
    """From a request's admission until its batch started."""
    replica: int


class Batcher(Generic[InputT]):
    """Runs one model for many callers. An async context manager: entered, it has warmed the model up."""

    def __init__(
        self,
        replicas: Sequence[BatchModel[InputT]],
        *,
        probe: InputT,
        express: BatchModel[InputT] | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] | None = None,
        cache: RowCache | None = None,
        fingerprint: str = "",
        counts: Mapping[Lane, LaneCounts] | None = None,
    ) -> None:
        """`probe` is an input known to be good: it warms the model up and tells bad texts from a bad model.

        `express` is a replica for people alone, which the operating system lets go before the others: they compute
        with what it leaves of the cores.

        `on_batch` is called in a replica's thread once the batch's callers have been told. `fingerprint` tells the
        model apart in a `cache` that others use too. `counts` go on from those of a batcher before this one.
        """
        self.counts: Mapping[Lane, LaneCounts] = counts or {lane: LaneCounts() for lane in Lane}
        self._model = replicas[0]
        self._limits = limits or Limits()
        self._clock = clock
        self._on_batch = on_batch
        self._cache = cache
        self._fingerprint = fingerprint
        self._probe = probe
        self._probe_tokens: list[Tokens] = []
        self._lock = threading.Lock()
        self._waiting = Waiting(self.counts)
        self._forecast = Forecast(self._limits)
        self._replicas = [Replica(index, model, self._lock) for index, model in enumerate(replicas)]
        self._express: Replica[InputT] | None = None
        if express is not None:
            self._express = Replica(len(replicas), express, self._lock)
            self._replicas.append(self._express)
        self._open = False
        self._last_call_ended = clock()
        # A person's text is tokenised at once, however much bulk text is being tokenised beside it.
        self._people = ThreadPoolExecutor(1, thread_name_prefix="tokenize-interactive")
        self._machines = ThreadPoolExecutor(1, thread_name_prefix="tokenize-bulk")

    @property
    def fault(self) -> str | None:
        """Why the model cannot answer now; None while a replica of it can."""
        if not self._open:
            return "the model is not running"
        faults = self.replica_faults
        return faults[0] if all(faults) else None

    @property
    def replica_faults(self) -> tuple[str | None, ...]:
        """Why a replica cannot answer now; None for one that can."""
        return tuple(replica.fault for replica in self._replicas)

    def waiting_texts(self, lane: Lane) -> int:
        """Texts of the lane that no batch has taken yet."""
        return len(self._waiting.lanes[lane])

    @property
    def idle_since(self) -> float:
        """When the last call ended, by the clock; infinite while one goes on."""
        return math.inf if self._waiting.requests else self._last_call_ended

    async def __aenter__(self) -> Self:
        """Raises ModelUnavailable when a replica fails on the probe."""
        try:
            self._probe_tokens = await asyncio.to_thread(self._model.encode, [self._probe])
        except Exception as error:
            raise ModelUnavailable(f"The model failed on its first text: {error}") from error
        self._open = True
        for replica in self._replicas:
            self._start_worker(replica)
            self._start_preparer(replica)
        try:
            for replica in self._replicas:
                await asyncio.to_thread(replica.tried.wait)
                if replica.fault is not None:
                    raise ModelUnavailable(f"The model failed on its first text: {replica.fault}")
        except BaseException:
            await self.__aexit__()
            raise
        self._last_call_ended = self._clock()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for the running batches; every other caller gets ModelUnavailable."""
        with self._lock:
            self._open = False
            for replica in self._replicas:
                replica.worker_wakes.notify()
                replica.preparer_wakes.notify()
        for replica in self._replicas:
            await asyncio.to_thread(replica.worker.join)
            await asyncio.to_thread(replica.preparer.join)
        self._fail(list(self._waiting.requests), ModelUnavailable("The model was stopped."))
        for executor in (self._people, self._machines):
            await asyncio.to_thread(executor.shutdown)

    async def run(
        self,
        inputs: Sequence[InputT],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> Rows:
        """float32 (len(inputs), width) in input order. Cancelling the call takes its texts out of the queue.

        Equal inputs with the same `cache_salt` are computed once. Raises Overloaded: at once, when the queue is full
        or the deadline cannot be met, and when it passed all the same. Raises TextTooLong, unless the text may be
        cut (`truncate`), before any text of the call is computed; TextRefused; ModelUnavailable.
        """
        request, missing = self._admit(inputs, lane, deadline_s, cache_salt, truncate=truncate)
        try:
            async with asyncio.timeout(deadline_s):
                await self._tokenise(request, missing)
                return await request.result
        except TimeoutError:
            with self._lock:
                raise self._overloaded(lane) from None
        finally:
            self._end(request)

    # The door.

    def _admit(
        self,
        inputs: Sequence[InputT],
        lane: Lane,
        deadline_s: float | None,
        cache_salt: str,
        *,
        truncate: bool,
    ) -> tuple[Request, list[Missing]]:
        """Before any work is done: rows that are remembered or in flight are taken, and the rest must fit."""
        now = self._clock()
        request = Request(
            lane=lane,
            cache_salt=cache_salt,
            truncate=truncate,
            deadline=math.inf if deadline_s is None else now + deadline_s,
            admitted_at=now,
            result=asyncio.get_running_loop().create_future(),
            rows=np.empty((len(inputs), self._model.width), np.float32),
            unfinished=len(inputs),
        )
        wanted: dict[InputT, list[int]] = {}
        for index, text in enumerate(inputs):
            wanted.setdefault(text, []).append(index)
        every = [Missing(text, indices, self._key(cache_salt, text)) for text, indices in wanted.items()]
        joined: list[tuple[Text, list[int]]] = []
        missing: list[Missing] = []
        with self._lock:
            if not self._open:
                raise ModelUnavailable("The model is not running.")
            for one in every:
                # In flight first: a row is remembered before its text stops being in flight.
                if (text_in_flight := self._waiting.find(cache_salt, one.text)) is not None:
                    self._check_length(request, one, text_in_flight.tokens.whole_length)
                    joined.append((text_in_flight, one.indices))
                elif one.key and self._cache is not None and (found := self._cache.get(one.key)):
                    self._check_length(request, one, found.whole_length)
                    request.rows[one.indices] = found.row
                    request.unfinished -= len(one.indices)
                else:
                    missing.append(one)
            self._check_room(request, missing, deadline_s)
            self.counts[lane].remembered_texts += len(inputs) - request.unfinished
            self._waiting.add(request)
            for text_in_flight, indices in joined:
                self._waiting.join(request, text_in_flight, indices, now)
            if joined:
                self._wake_preparers()
        if not request.unfinished:
            request.result.set_result(request.rows)
        return request, missing

    def _key(self, cache_salt: str, text: InputT) -> bytes | None:
        return None if self._cache is None else row_key(self._fingerprint, cache_salt, text)

    def _check_room(self, request: Request, missing: list[Missing], deadline_s: float | None) -> None:
        """Raises Overloaded for a request that has no place to wait or cannot be done in time."""
        queue = self._waiting.lanes[request.lane]
        request.expected_texts = len(missing)
        request.expected_tokens = sum(
            queue.expected_tokens_of(one.text, self._model.max_tokens) for one in missing
        )
        # A request larger than the whole queue is served once nothing waits: refused, it could never be.
        if missing and len(queue) and len(queue) + len(missing) > self._limits.max_waiting_texts:
            self.counts[request.lane].refused_requests += 1
            raise self._overloaded(request.lane)
        if missing and deadline_s is not None:
            finish_s = self._forecast.caution * self._finish_s(
                request.lane, texts=len(missing), tokens=request.expected_tokens
            )
            if finish_s > deadline_s:
                self.counts[request.lane].refused_requests += 1
                raise Overloaded(max(finish_s - deadline_s, 0.1))
            request.promised = True

    def _finish_s(self, lane: Lane, *, texts: int = 0, tokens: float = 0.0) -> float:
        """Seconds from now until so much more of the lane would be done."""
        working = [replica for replica in self._replicas if replica.fault is None]
        at_once = [replica for replica in working if replica is not self._express] or working
        batches = [(replica.running, replica.prefetched) for replica in at_once]
        if lane is Lane.INTERACTIVE and self._express in working:
            batches = [
                (_if_of(lane, replica.running), _if_of(lane, replica.prefetched)) for replica in working
            ]
        return self._forecast.finish_s(
            lane,
            texts=texts,
            tokens=tokens,
            lanes=self._waiting.lanes,
            running=[running for running, _ in batches],
            prefetched=[prefetched for _, prefetched in batches],
            at_once=len(at_once),
            now=self._clock(),
        )

    def _overloaded(self, lane: Lane) -> Overloaded:
        """To be tried again when what waits now is done."""
        return Overloaded(max(self._finish_s(lane), 1.0))

    def _check_length(self, request: Request, one: Missing, whole_length: int) -> None:
        if whole_length > self._model.max_tokens and not request.truncate:
            raise TextTooLong(one.indices[0], tokens=whole_length, max_tokens=self._model.max_tokens)

    def _end(self, request: Request) -> None:
        """The call is over, however it ended. Of its texts only those that run now are still computed."""
        with self._lock:
            now = self._clock()
            if not request.over:
                self._waiting.forget(request, now)
            self._waiting.requests.discard(request)
            self._last_call_ended = now
            if request.promised and (request.deadline <= now or not request.unfinished):
                self._forecast.learn_promise(kept=request.deadline > now)
        if not request.result.cancel() and not request.result.cancelled():
            # A caller cancelled after its request failed never looks at the error; asyncio would log it.
            request.result.exception()

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        """Tells the callers now, whatever becomes of their texts."""
        with self._lock:
            now = self._clock()
            ended = [request for request in requests if not request.over]
            for request in ended:
                self._waiting.forget(request, now)
        tell((request, error) for request in ended)

    # Tokenising, in its two threads.

    async def _tokenise(self, request: Request, missing: list[Missing]) -> None:
        """In slices, so that no request holds the thread for long."""
        executor = self._people if request.lane is Lane.INTERACTIVE else self._machines
        loop = asyncio.get_running_loop()
        size = self._limits.sorting_window
        for start in range(0, len(missing), size):
            if not self._open:
                raise ModelUnavailable("The model was stopped.")
            last = start + size >= len(missing)
            await loop.run_in_executor(
                executor, self._tokenise_slice, request, missing[start : start + size], last
            )

    def _tokenise_slice(self, request: Request, part: list[Missing], last: bool) -> None:
        """Texts that may not be cut are enqueued once all of the request are known to have the right length."""
        if request.over:
            return
        encoded = self._encode(part)
        for one, tokens in zip(part, encoded, strict=True):
            self._check_length(request, one, tokens.whole_length)
        request.encoded.extend(zip(part, encoded, strict=True))
        if last or request.truncate:
            with self._lock:
                self._waiting.enqueue_encoded(request, self._clock())
                self._wake_preparers()

    def _encode(self, part: list[Missing]) -> list[Tokens]:
        """Raises TextRefused naming the first input that cannot be tokenised."""
        try:
            return self._model.encode([cast("InputT", one.text) for one in part])
        except Exception as error:
            # A tokeniser may raise anything. One by one, so that the caller learns which text it was.
            for one in part:
                try:
                    self._model.encode([cast("InputT", one.text)])
                except Exception as cause:
                    reason = f"it cannot be tokenised ({type(cause).__name__})"
                    raise TextRefused(one.indices[0], reason) from cause
            raise ModelUnavailable(f"The tokeniser failed ({type(error).__name__}).") from error
        except BaseException as error:
            # SystemExit, handed on to the caller's task, would end its event loop.
            raise ModelUnavailable(f"The tokeniser died ({type(error).__name__}).") from error

    # A preparer's thread: what runs next, and the outcomes of what ran.

    def _start_preparer(self, replica: Replica[InputT]) -> None:
        name = f"model-preparer-{replica.index}"
        replica.preparer = threading.Thread(target=self._prepare, args=(replica,), name=name, daemon=True)
        replica.preparer.start()

    def _prepare(self, replica: Replica[InputT]) -> None:
        try:
            while (batch := self._next_to_prepare(replica)) is not None:
                if batch.outcomes:
                    self._deliver(replica, batch)
                else:
                    self._collate(replica, batch)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: its batch was failed, another takes over
            self._replace(replica, self._start_preparer, error)

    def _next_to_prepare(self, replica: Replica[InputT]) -> Batch | None:
        """One that ran, else one newly chosen that is to be collated. Waits for either; None when closing."""
        with self._lock:
            while True:
                if replica.ran:
                    return replica.ran.popleft()
                if not self._open and replica.running is None:
                    return None
                if self._open and self._may_choose(replica):
                    replica.prefetched = self._choose(replica)
                    if replica.prefetched is not None:
                        # Those that let this replica, being idle, go first.
                        self._wake_preparers()
                        return replica.prefetched
                replica.preparer_wakes.wait()

    def _wake_preparers(self) -> None:
        """There may be something to choose."""
        for replica in self._replicas:
            if replica.prefetched is None:
                replica.preparer_wakes.notify()

    def _may_choose(self, replica: Replica[InputT]) -> bool:
        """One batch ahead, and not before a replica that would run it at once."""
        if replica.fault is not None or replica.prefetched is not None:
            return False
        others = (other for other in self._replicas if other is not self._express)
        return replica.running is None or not any(other.idle for other in others)

    def _may_take(self, replica: Replica[InputT], lane: Lane) -> bool:
        """While it keeps up the express replica has all people to itself, and while others work no machines."""
        if self._express is None:
            return True
        if replica is self._express:
            others = (other for other in self._replicas if other is not replica)
            return lane is Lane.INTERACTIVE or all(other.fault is not None for other in others)
        if lane is not Lane.INTERACTIVE or self._express.fault is not None:
            return True
        is_more = replica.idle or self._forecast.fills_a_batch(self._waiting.lanes[lane])
        return is_more and not self._express.idle

    def _choose(self, replica: Replica[InputT]) -> Batch | None:
        lanes = self._waiting.lanes
        while True:
            now = self._clock()
            since = {
                lane: queue.passed_over_since if self._may_take(replica, lane) else math.inf
                for lane, queue in lanes.items()
            }
            turn = choose_lane(since, now=now, patience_s=self._limits.patience_s)
            if turn is None:
                if replica.running is None and self._put_back_for(replica):
                    continue
                return None
            queue = lanes[turn.lane]
            if replica.running is not None and not self._forecast.fills_a_batch(queue):
                return None
            window = list(islice(queue.texts, self._limits.sorting_window))
            if self._drop_expired(window):
                continue
            return self._take_from(queue, window, Batch(turn.lane, [], turn.due, since[turn.lane]), now)

    def _take_from(self, queue: LaneQueue, window: list[Text], batch: Batch, now: float) -> Batch:
        chosen = choose_batch(
            [len(text) for text in window],
            token_budget=self._forecast.token_budget(),
            max_texts=self._limits.max_batch_texts,
        )
        batch.texts = [window[position] for position in chosen]
        queue.take(batch.texts, now)
        return batch

    def _put_back_for(self, idle: Replica[InputT]) -> bool:
        """Whether another replica, still busy, had prefetched texts that can run at once on this one."""
        for other in self._replicas:
            if (
                other.prefetched is not None
                and other.running is not None
                and self._may_take(idle, other.prefetched.lane)
            ):
                self._put_back(other)
                return True
        return False

    def _put_back(self, replica: Replica[InputT]) -> None:
        """The prefetched batch does not run; what was collated is thrown away."""
        batch = replica.prefetched
        assert batch is not None
        replica.prefetched = None
        self._waiting.put_back(batch.texts, batch.passed_over_since)
        self._wake_preparers()

    def _drop_expired(self, texts: Sequence[Text]) -> bool:
        """Whether the deadline of somebody who waits for one of the texts has passed; those are told."""
        expired = self._waiting.forget_expired(texts, self._clock())
        tell([(request, self._overloaded(request.lane)) for request in expired])
        return bool(expired)

    def _collate(self, replica: Replica[InputT], batch: Batch) -> None:
        try:
            batch.collated = replica.collate([text.tokens for text in batch.texts])
        except Exception as error:  # noqa: BLE001 - a model may raise anything; the worker finds which text it was
            batch.collate_error = error
        except BaseException as error:
            with self._lock:
                held = replica.prefetched is batch
                if held:
                    replica.prefetched = None
            if held:
                self._fail_batch(batch, error)
            raise
        with self._lock:
            batch.ready = True
            replica.worker_wakes.notify()

    def _deliver(self, replica: Replica[InputT], batch: Batch) -> None:
        try:
            self._hand_out(batch)
        except BaseException as error:
            self._fail_batch(batch, error)
            raise
        if self._on_batch is not None:
            report = BatchReport(
                lane=batch.lane,
                texts=len(batch.texts),
                tokens=batch.tokens,
                padded_tokens=batch.padded_tokens,
                seconds=batch.seconds,
                longest_wait_s=batch.started - min(text.since for text in batch.texts),
                replica=replica.index,
            )
            self._on_batch(report)

    def _hand_out(self, batch: Batch) -> None:
        """Rows and errors to those who wait for them."""
        outcomes = list(zip(batch.texts, batch.outcomes, strict=True))
        for text, outcome in outcomes:
            if self._cache is not None and text.key and not isinstance(outcome, Exception):
                self._cache.put(text.key, outcome, whole_length=text.tokens.whole_length)
        told: list[tuple[Request, Rows | Exception]] = []
        computed: list[tuple[Text, Request, list[int], Rows]] = []
        with self._lock:
            for text, outcome in outcomes:
                if isinstance(outcome, ModelUnavailable) and self._put_elsewhere(text):
                    continue
                self._waiting.land(text)
                for request, indices in list(text.callers.items()):
                    if isinstance(outcome, Exception):
                        told.append((request, _refusal(outcome, indices[0])))
                        self._waiting.forget(request, self._clock())
                    else:
                        computed.append((text, request, indices, outcome))
        for _, request, indices, row in computed:
            request.rows[indices] = row
        with self._lock:
            for text, request, _, _ in computed:
                if self._waiting.settle(text, request):
                    told.append((request, request.rows))
        tell(told)

    def _put_elsewhere(self, text: Text) -> bool:
        """A text whose replica failed waits for another, if one works and not all have failed on it."""
        text.failed_replicas += 1
        works = any(replica.fault is None for replica in self._replicas)
        if not self._open or not works or text.failed_replicas >= len(self._replicas):
            return False
        self._waiting.put_back([text], self._clock())
        self._wake_preparers()
        return True

    def _fail_batch(self, batch: Batch, error: BaseException) -> None:
        """A thread dies of it."""
        with self._lock:
            requests = self._waiting.land_failed(batch.texts)
        self._fail(requests, ModelUnavailable(f"The model's thread died ({type(error).__name__})."))

    # A worker's thread: the forward pass.

    def _start_worker(self, replica: Replica[InputT]) -> None:
        name = f"model-worker-{replica.index}"
        replica.worker = threading.Thread(target=self._work, args=(replica,), name=name, daemon=True)
        replica.worker.start()

    def _work(self, replica: Replica[InputT]) -> None:
        try:
            while self._open:
                if replica.fault is not None:
                    self._recover(replica)
                elif (batch := self._take(replica)) is not None:
                    self._run_batch(replica, batch)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: its batch was failed, another takes over
            self._replace(replica, self._start_worker, error)

    def _take(self, replica: Replica[InputT]) -> Batch | None:
        """The prefetched batch, once it is to run. None when there is something else to do than to run one."""
        with self._lock:
            while self._open and replica.fault is None:
                batch = replica.prefetched
                if batch is None or not batch.ready:
                    replica.worker_wakes.wait()
                elif self._is_overtaken(replica, batch) or self._is_partly_unwanted(batch):
                    self._put_back(replica)
                else:
                    replica.prefetched, replica.running = None, batch
                    batch.started = self._clock()
                    replica.preparer_wakes.notify()
                    return batch
            return None

    def _is_overtaken(self, replica: Replica[InputT], batch: Batch) -> bool:
        return not batch.due and any(
            self._waiting.lanes[lane].texts and self._may_take(replica, lane)
            for lane in lanes_above(batch.lane)
        )

    def _is_partly_unwanted(self, batch: Batch) -> bool:
        """Some of its callers left, or their deadline has passed."""
        self._drop_expired(batch.texts)
        return not all(text.callers for text in batch.texts)

    def _run_batch(self, replica: Replica[InputT], batch: Batch) -> None:
        try:
            batch.outcomes = replica.outcomes(batch, self._probe_tokens)
        except BaseException as error:
            with self._lock:
                replica.running = None
            self._fail_batch(batch, error)
            raise
        with self._lock:
            batch.seconds = self._clock() - batch.started
            replica.running = None
            self._learn(replica, batch)
            # Delivering may not hold up the next batch; when there is none yet, its preparer is not held up.
            deliver_here = replica.prefetched is None
            if not deliver_here:
                replica.ran.append(batch)
            replica.preparer_wakes.notify()
        if deliver_here:
            self._deliver(replica, batch)

    def _learn(self, replica: Replica[InputT], batch: Batch) -> None:
        """What the batch tells of the model's speed, and of its health."""
        self._waiting.lanes[batch.lane].learn_padding(batch.tokens, batch.padded_tokens)
        down = next((outcome for outcome in batch.outcomes if isinstance(outcome, ModelUnavailable)), None)
        if down is not None:
            replica.failed_attempts = 1
            self._mark_faulty(replica, str(down))
        elif not any(isinstance(outcome, Exception) for outcome in batch.outcomes):
            self._forecast.cost.learn(batch.padded_tokens, batch.seconds)

    # Faults.

    def _mark_faulty(self, replica: Replica[InputT], reason: str) -> None:
        replica.fault = reason
        if replica.prefetched is not None:
            self._put_back(replica)
        self._wake_preparers()
        replica.worker_wakes.notify()

    def _recover(self, replica: Replica[InputT]) -> None:
        """Tries the probe: at once after a death, else after a pause. Callers wait for the outcome, not longer."""
        with self._lock:
            if replica.failed_attempts:
                replica.worker_wakes.wait_for(lambda: not self._open, self._limits.recovery_pause_s)
            if not self._open:
                return
        try:
            if replica.tried.is_set():
                replica.compute(self._probe_tokens)
            else:
                self._warm_up(replica)
        except BaseException as error:
            with self._lock:
                replica.failed_attempts += 1
                if not replica.tried.is_set():
                    replica.fault = str(error)
                nobody_works = all(self.replica_faults)
                told = list(self._waiting.requests) if nobody_works else []
            self._fail(told, ModelUnavailable(f"The model failed ({type(error).__name__})."))
            if not isinstance(error, Exception):
                raise
        else:
            with self._lock:
                replica.failed_attempts = 0
                replica.fault = None
                self._wake_preparers()
        finally:
            replica.tried.set()

    def _warm_up(self, replica: Replica[InputT]) -> None:
        """The first forward pass is slow and the likeliest to fail: it is made before anybody waits.

        Two more, of one text and of several, tell what a batch costs.
        """
        replica.compute(self._probe_tokens)
        length = len(self._probe_tokens[0])
        several = min(8, self._limits.max_batch_texts, self._limits.max_batch_tokens // length)
        one_s = self._timed(replica, 1)
        several_s = self._timed(replica, several) if several > 1 else 2 * one_s
        with self._lock:
            self._forecast.cost = CostModel.from_two((length, one_s), (max(several, 2) * length, several_s))

    def _timed(self, replica: Replica[InputT], texts: int) -> float:
        started = self._clock()
        replica.compute(self._probe_tokens * texts)
        return self._clock() - started

    def _replace(
        self, replica: Replica[InputT], start: Callable[[Replica[InputT]], None], error: BaseException
    ) -> None:
        """A thread of the replica died. The replica is not used until the probe has passed again."""
        with self._lock:
            self._mark_faulty(replica, f"a thread of the model died ({type(error).__name__})")
            if self._open:
                start(replica)


def _if_of(lane: Lane, batch: Batch | None) -> Batch | None:
    return batch if batch is not None and batch.lane is lane else None


def _refusal(outcome: Exception, index: int) -> Exception:
    if isinstance(outcome, ModelUnavailable):
        return outcome
    return TextRefused(index, f"the model failed on it ({type(outcome).__name__})")
