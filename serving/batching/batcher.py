"""Joins concurrent requests into batches that a model can run at once, people first.

State is `_Lane` and `_Request`: who waits for which texts. Policy is `Limits`, `choose_lane` and
`choose_batch`: what runs next. Mechanism is `Batcher`: two tokenising threads, one worker thread that runs
the model, and the futures that callers wait on. The worker takes the next batch when the device is free, so
there are no timers, and an interactive text waits for one running batch at most. Tokenising first, budgets in
tokens with padding counted, and dropping departed callers are ideas of Hugging Face's
text-embeddings-inference.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.protocols import Lane, ModelUnavailable, Overloaded, TextRefused

Rows = NDArray[np.float32]
InputT = TypeVar("InputT")
InputT_contra = TypeVar("InputT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it: int64 arrays of equal length, without padding."""

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


class BatchModel(Protocol[InputT_contra]):
    """What the batcher runs: `encode` in the tokenising threads, `forward` in the worker thread only."""

    width: int
    """Columns of the result."""

    def encode(self, inputs: Sequence[InputT_contra]) -> list[Tokens]: ...

    def forward(self, batch: Sequence[Tokens]) -> Rows:
        """float32 (len(batch), width). Any exception means that at least one text cannot be processed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much runs at once and how much may wait."""

    max_batch_tokens: int = 16_384
    """Padding counted. It bounds the device's memory."""
    max_batch_texts: int = 256
    max_batch_s: float = 0.1
    """The longest batch, as far as the measured speed foretells: what a person waits for at most.

    It is short because that is free on a CPU, where batches of 2 cost as much a text as batches of 32, and a
    GPU fills its token budget in less.
    """
    sorting_window: int = 256
    """Texts among which those of like length are sought: choosing stays below a millisecond."""
    max_waiting_texts: int = 8_192
    """In each lane. The request that would go beyond it is refused at once."""
    patience_s: Mapping[Lane, float] = field(
        default_factory=lambda: {Lane.INTERACTIVE: math.inf, Lane.BULK: 1.0, Lane.BACKGROUND: 5.0}
    )
    """A lane that was passed over for so long gets the next batch, so that none starves behind people."""


@dataclass(frozen=True)
class BatchReport:
    """One batch that ran, for metrics."""

    lane: Lane
    texts: int
    tokens: int
    padded_tokens: int
    seconds: float
    longest_wait_s: float


@dataclass(eq=False)
class _Request:
    """One caller's texts. `waiting` holds what has not been taken into a batch."""

    lane: Lane
    texts: int
    deadline: float
    admitted_at: float
    result: "asyncio.Future[Rows]"
    rows: Rows
    waiting: dict[int, Tokens] = field(default_factory=dict)
    unfinished: int = 0
    untaken: int = 0
    """Texts that count as waiting: all of them from admission on, less those that a batch took."""
    departed: bool = False


@dataclass(eq=False)
class _Lane:
    """A first-in-first-out queue of requests."""

    requests: dict[_Request, None] = field(default_factory=dict)
    untaken: int = 0
    passed_over_since: float = math.inf
    """When the lane last got a batch or, if that is later, stopped being empty. Infinite while empty."""


@dataclass(frozen=True, slots=True)
class _Text:
    """One waiting text of a request."""

    request: _Request
    index: int
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens)


def choose_lane(
    passed_over_since: Mapping[Lane, float], *, now: float, patience_s: Mapping[Lane, float]
) -> Lane | None:
    """The lane passed over for longest beyond its patience, else the first with work; None without work.

    A lane's time counts from its last batch and not from its oldest text: bulk texts are always old, so by
    their age they would go first for ever.
    """
    ready = [lane for lane in Lane if passed_over_since[lane] < math.inf]
    impatient = [lane for lane in ready if now - passed_over_since[lane] >= patience_s[lane]]
    if impatient:
        return min(impatient, key=lambda lane: passed_over_since[lane])
    return ready[0] if ready else None


def choose_batch(lengths: Sequence[int], *, token_budget: int, max_texts: int) -> list[int]:
    """Positions of the texts that run together: the first, and those nearest to it in length while they fit.

    The first always runs, so that none waits for ever; its neighbours in length waste the least padding.
    """
    nearest_first = sorted(range(len(lengths)), key=lambda position: abs(lengths[position] - lengths[0]))
    chosen: list[int] = []
    longest = 0
    for position in nearest_first[:max_texts]:
        longest = max(longest, lengths[position])
        if chosen and longest * (len(chosen) + 1) > token_budget:
            break
        chosen.append(position)
    return chosen


class Batcher(Generic[InputT]):
    """Runs one model for many callers. An async context manager: entered, it has warmed the model up."""

    def __init__(
        self,
        model: BatchModel[InputT],
        *,
        probe: InputT,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        """`probe` is an input known to be good: it warms the model up and tells bad texts from a bad model.

        `on_batch` is called in the worker thread.
        """
        self._model = model
        self._limits = limits or Limits()
        self._clock = clock
        self._on_batch = on_batch
        self._probe = probe
        self._probe_tokens: list[Tokens] = []
        self._lanes = {lane: _Lane() for lane in Lane}
        self._running: list[_Text] = []
        self._tokens_per_s = 1.0
        self._closing = False
        self._fault: str | None = "not opened"
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        # A person's text is tokenised at once, however much bulk text is being tokenised beside it.
        self._people = ThreadPoolExecutor(1, thread_name_prefix="tokenize-interactive")
        self._machines = ThreadPoolExecutor(1, thread_name_prefix="tokenize-bulk")

    @property
    def fault(self) -> str | None:
        """Why the model cannot answer now; None while it can."""
        return self._fault

    def waiting_texts(self, lane: Lane) -> int:
        """Texts of the lane that no batch has taken yet."""
        return self._lanes[lane].untaken

    async def __aenter__(self) -> Self:
        """Raises ModelUnavailable when the model fails on the probe."""
        await asyncio.to_thread(self._warm_up)
        self._start_worker()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for the running batch; every other caller gets ModelUnavailable."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)
        for executor in (self._people, self._machines):
            await asyncio.to_thread(executor.shutdown)

    async def run(self, inputs: Sequence[InputT], *, lane: Lane, deadline_s: float | None = None) -> Rows:
        """float32 (len(inputs), width) in input order. Cancelling the call takes its texts out of the queue.

        Raises Overloaded (queue full, or the deadline passed), TextRefused, ModelUnavailable.
        """
        request = self._admit(len(inputs), lane, deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                await self._tokenise(request, inputs)
                return await request.result
        except TimeoutError:
            raise Overloaded(self._retry_after_s(lane)) from None
        finally:
            self._depart(request)

    def _admit(self, texts: int, lane: Lane, deadline_s: float | None) -> _Request:
        """Counts the request's texts before any work is done for them."""
        loop = asyncio.get_running_loop()
        now = self._clock()
        request = _Request(
            lane=lane,
            texts=texts,
            deadline=math.inf if deadline_s is None else now + deadline_s,
            admitted_at=now,
            result=loop.create_future(),
            rows=np.empty((texts, self._model.width), np.float32),
            unfinished=texts,
            untaken=texts,
        )
        with self._changed:
            if self._closing or self._worker is None:
                raise ModelUnavailable("The model is not running.")
            queue = self._lanes[lane]
            # A request larger than the whole queue is served once nothing waits: refused, it could never be.
            if queue.untaken and queue.untaken + texts > self._limits.max_waiting_texts:
                raise Overloaded(self._retry_after_s(lane))
            queue.untaken += texts
        if not texts:
            request.result.set_result(request.rows)
        return request

    async def _tokenise(self, request: _Request, inputs: Sequence[InputT]) -> None:
        """In slices: the first texts run while others are tokenised, and none holds the thread for long."""
        executor = self._people if request.lane is Lane.INTERACTIVE else self._machines
        loop = asyncio.get_running_loop()
        for start in range(0, len(inputs), self._limits.sorting_window):
            part = inputs[start : start + self._limits.sorting_window]
            self._enqueue(request, start, await loop.run_in_executor(executor, self._encode, part, start))

    def _encode(self, inputs: Sequence[InputT], start: int) -> list[Tokens]:
        """Raises TextRefused naming the first input that cannot be tokenised; slices begin at `start`."""
        try:
            return self._model.encode(inputs)
        except Exception as error:
            # A tokeniser may raise anything. One by one, so that the caller learns which text it was.
            for index, single in enumerate(inputs, start):
                try:
                    self._model.encode([single])
                except Exception as cause:
                    raise TextRefused(index, f"it cannot be tokenised ({type(cause).__name__})") from cause
            raise ModelUnavailable(f"The tokeniser failed ({type(error).__name__}).") from error

    def _enqueue(self, request: _Request, start: int, encoded: list[Tokens]) -> None:
        with self._changed:
            if self._closing:
                raise ModelUnavailable("The model was stopped.")
            if request.departed:
                return
            queue = self._lanes[request.lane]
            if not queue.requests:
                queue.passed_over_since = self._clock()
            request.waiting.update(enumerate(encoded, start))
            queue.requests[request] = None
            self._changed.notify()

    def _depart(self, request: _Request) -> None:
        """Forgets the request, however it ended. Only what is running now is still computed."""
        with self._changed:
            self._remove(request)
        if not request.result.cancel() and not request.result.cancelled():
            # A caller cancelled after its request failed never looks at the error; asyncio would log it.
            request.result.exception()

    def _remove(self, request: _Request) -> None:
        request.departed = True
        queue = self._lanes[request.lane]
        queue.untaken -= request.untaken
        request.untaken = 0
        request.waiting.clear()
        queue.requests.pop(request, None)
        if not queue.requests:
            queue.passed_over_since = math.inf

    def _retry_after_s(self, lane: Lane) -> float:
        """When what waits in the lane should be done, at 128 tokens a text."""
        return max(1.0, self._lanes[lane].untaken * 128 / self._tokens_per_s)

    def _warm_up(self) -> None:
        """The first forward pass is slow and the likeliest to fail: it is made before anybody waits."""
        try:
            self._probe_tokens = self._model.encode([self._probe])
            self._forward(self._probe_tokens)
            started = self._clock()
            self._forward(self._probe_tokens)
        except Exception as error:
            raise ModelUnavailable(f"The model failed on its first text: {error}") from error
        self._tokens_per_s = len(self._probe_tokens[0]) / max(self._clock() - started, 1e-4)

    def _forward(self, batch: list[Tokens]) -> Rows:
        rows = self._model.forward(batch)
        if rows.shape != (len(batch), self._model.width):
            raise ValueError(f"the model gave an output of shape {rows.shape}")
        return rows

    # What follows runs in the worker thread.

    def _start_worker(self) -> None:
        self._fault = None
        self._worker = threading.Thread(target=self._work, name="model-worker", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        try:
            while batch := self._take_batch():
                self._run_batch(batch)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: all who wait are told
            self._fail_everyone(f"The model's worker died ({type(error).__name__}).")
            with self._changed:
                if not self._closing:
                    self._start_worker()
        else:
            self._fail_everyone("The model was stopped.")

    def _take_batch(self) -> list[_Text]:
        """Waits for work; empty when closing. Chosen as late as this, a batch regards the latest arrivals."""
        with self._changed:
            while not self._closing:
                self._drop_expired()
                now = self._clock()
                since = {lane: queue.passed_over_since for lane, queue in self._lanes.items()}
                lane = choose_lane(since, now=now, patience_s=self._limits.patience_s)
                if lane is not None:
                    self._running = self._take_from(lane, now)
                    return self._running
                self._changed.wait()
            return []

    def _drop_expired(self) -> None:
        now = self._clock()
        for queue in self._lanes.values():
            for request in [request for request in queue.requests if request.deadline <= now]:
                self._finish(request, Overloaded(self._retry_after_s(request.lane)))
                self._remove(request)

    def _take_from(self, lane: Lane, now: float) -> list[_Text]:
        queue = self._lanes[lane]
        window = self._first_texts(queue)
        chosen = choose_batch(
            [len(text) for text in window],
            token_budget=min(
                self._limits.max_batch_tokens, int(self._tokens_per_s * self._limits.max_batch_s)
            ),
            max_texts=self._limits.max_batch_texts,
        )
        taken = [window[position] for position in chosen]
        for text in taken:
            del text.request.waiting[text.index]
            text.request.untaken -= 1
            queue.untaken -= 1
            if not text.request.waiting:
                queue.requests.pop(text.request, None)
        queue.passed_over_since = now if queue.requests else math.inf
        return taken

    def _first_texts(self, queue: _Lane) -> list[_Text]:
        def oldest_first() -> Iterator[_Text]:
            for request in queue.requests:
                for index, tokens in request.waiting.items():
                    yield _Text(request, index, tokens)

        return [text for text, _ in zip(oldest_first(), range(self._limits.sorting_window), strict=False)]

    def _run_batch(self, batch: list[_Text]) -> None:
        started = self._clock()
        outcomes = self._outcomes([text.tokens for text in batch])
        report = BatchReport(
            lane=batch[0].request.lane,
            texts=len(batch),
            tokens=sum(len(text) for text in batch),
            padded_tokens=len(batch) * max(len(text) for text in batch),
            seconds=self._clock() - started,
            longest_wait_s=started - min(text.request.admitted_at for text in batch),
        )
        self._deliver(batch, outcomes)
        self._learn_speed(report)
        if self._on_batch is not None:
            self._on_batch(report)

    def _outcomes(self, batch: list[Tokens]) -> list[Rows | Exception]:
        """For each text its row or its error. A failed batch is halved until bad texts stand alone."""
        try:
            rows = self._forward(batch)
        except Exception as error:  # noqa: BLE001 - a model may raise anything; each text gets its outcome
            if not self._model_works():
                return [ModelUnavailable(f"The model failed ({type(error).__name__}).") for _ in batch]
            if len(batch) == 1:
                return [error]
            middle = len(batch) // 2
            return self._outcomes(batch[:middle]) + self._outcomes(batch[middle:])
        else:
            self._fault = None
            return list(rows)

    def _model_works(self) -> bool:
        """Whether the known good input still passes: a broken device is not blamed on a text."""
        try:
            self._forward(self._probe_tokens)
        except Exception as error:  # noqa: BLE001 - as above
            self._fault = f"the model fails on every text ({type(error).__name__})"
            return False
        return True

    def _learn_speed(self, report: BatchReport) -> None:
        """A moving average over about five batches, without tiny ones, which are all overhead."""
        if report.padded_tokens >= 64 and report.seconds > 0:
            self._tokens_per_s += 0.2 * (report.padded_tokens / report.seconds - self._tokens_per_s)

    def _deliver(self, batch: list[_Text], outcomes: list[Rows | Exception]) -> None:
        with self._changed:
            self._running = []
            for text, outcome in zip(batch, outcomes, strict=True):
                request = text.request
                if isinstance(outcome, ModelUnavailable):
                    self._finish(request, outcome)
                    self._remove(request)
                elif isinstance(outcome, Exception):
                    reason = f"the model failed on it ({type(outcome).__name__})"
                    self._finish(request, TextRefused(text.index, reason))
                    self._remove(request)
                else:
                    request.rows[text.index] = outcome
                    request.unfinished -= 1
                    if not request.unfinished:
                        self._finish(request, request.rows)

    def _fail_everyone(self, reason: str) -> None:
        with self._changed:
            self._fault = reason
            queued = [request for queue in self._lanes.values() for request in queue.requests]
            for request in {*queued, *(text.request for text in self._running)}:
                self._finish(request, ModelUnavailable(reason))
                self._remove(request)
            self._running = []

    def _finish(self, request: _Request, outcome: Rows | Exception) -> None:
        """Hands the outcome to the caller's event loop. Only the first outcome of a request counts."""

        def settle() -> None:
            if request.result.done():
                return
            if isinstance(outcome, Exception):
                request.result.set_exception(outcome)
            else:
                request.result.set_result(outcome)

        loop = request.result.get_loop()
        # A caller whose loop is closed waits for nothing any more.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)
