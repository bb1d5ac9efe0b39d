"""The batcher, on a model whose batches end when the test says so."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from serving.batching.batcher import Batcher, BatchReport, Limits, Rows, Tokens, choose_batch, choose_lane
from serving.protocols import Lane, ModelUnavailable, Overloaded, TextRefused


@dataclass
class LengthModel:
    """Answers each text with its length. A text of digits is read as that many tokens."""

    width: int = 1
    batches: list[list[int]] = field(default_factory=list)
    on_forward: Callable[[list[int]], None] = lambda _: None
    """Called with the batch's lengths; what it raises, the batch fails with."""

    def encode(self, inputs: Sequence[str]) -> list[Tokens]:
        if "untokenisable" in inputs:
            raise UnicodeError
        lengths = [int(text) if text.isdigit() else len(text) for text in inputs]
        return [Tokens(np.zeros(length, np.int64), np.zeros(length, np.int64)) for length in lengths]

    def forward(self, batch: Sequence[Tokens]) -> Rows:
        lengths = [len(tokens) for tokens in batch]
        self.batches.append(lengths)
        self.on_forward(lengths)
        return np.array(lengths, np.float32).reshape(-1, 1)


class Gate:
    """Holds the model's worker in a batch until it is opened, so that a test can fill the queue behind it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, _: list[int]) -> None:
        self.reached.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


PROBE = "1"

# As many tokens as these tests like: the time of a batch is tested by itself.
ROOMY = Limits(max_batch_s=1e9)


def batcher_of(model: LengthModel, limits: Limits = ROOMY, **options: object) -> Batcher[str]:
    return Batcher(model, probe=PROBE, limits=limits, **options)  # type: ignore[arg-type]


async def held(batcher: Batcher[str], model: LengthModel) -> tuple[Gate, "asyncio.Task[Rows]"]:
    """A batch of one text that runs until the gate is opened."""
    gate = Gate()
    model.on_forward = gate
    task = asyncio.create_task(batcher.run(["9999"], lane=Lane.BULK))
    assert await asyncio.to_thread(gate.reached.wait, 10)
    model.batches.clear()
    return gate, task


async def queued(batcher: Batcher[str], texts: list[str], lane: Lane) -> "asyncio.Task[Rows]":
    """A call whose texts wait in the queue."""
    before = sum(len(request.waiting) for request in batcher._lanes[lane].requests)
    task = asyncio.create_task(batcher.run(texts, lane=lane))
    async with asyncio.timeout(10):
        while sum(len(request.waiting) for request in batcher._lanes[lane].requests) < before + len(texts):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return task


async def test_every_caller_gets_its_own_rows_in_its_own_order() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        calls = [[str(1 + (7 * caller + text) % 50) for text in range(caller)] for caller in range(40)]
        results = await asyncio.gather(*(batcher.run(texts, lane=Lane.BULK) for texts in calls))
    for texts, rows in zip(calls, results, strict=True):
        assert rows.shape == (len(texts), 1)
        assert rows.dtype == np.float32
        assert rows[:, 0].tolist() == [float(text) for text in texts]


async def test_no_texts_give_no_rows() -> None:
    async with batcher_of(LengthModel()) as batcher:
        assert (await batcher.run([], lane=Lane.INTERACTIVE)).shape == (0, 1)


async def test_texts_of_several_callers_share_a_batch_within_the_token_budget() -> None:
    model = LengthModel()
    async with batcher_of(model, Limits(max_batch_tokens=100, max_batch_s=1e9)) as batcher:
        gate, first = await held(batcher, model)
        calls = [await queued(batcher, ["30"], Lane.BULK) for _ in range(4)]
        gate.open()
        await asyncio.gather(first, *calls)
    assert model.batches == [[30, 30, 30], [30]]


async def test_people_go_before_bulk_that_came_earlier_and_wait_for_the_running_batch_only() -> None:
    model = LengthModel()
    async with batcher_of(model, Limits(max_batch_texts=2, max_batch_s=1e9)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await queued(batcher, ["50"] * 6, Lane.BULK)
        background = await queued(batcher, ["40"], Lane.BACKGROUND)
        person = await queued(batcher, ["7"], Lane.INTERACTIVE)
        gate.open()
        await asyncio.gather(first, bulk, person, background)
    assert model.batches == [[7], [50, 50], [50, 50], [50, 50], [40]]


async def test_a_departed_callers_texts_are_never_computed() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        departing = await queued(batcher, ["50"] * 6, Lane.BULK)
        staying = await queued(batcher, ["20"], Lane.BULK)
        departing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await departing
        assert batcher.waiting_texts(Lane.BULK) == 1
        gate.open()
        await asyncio.gather(first, staying)
    assert model.batches == [[20]]


async def test_a_passed_deadline_is_told_at_once_and_its_texts_are_not_computed() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        with pytest.raises(Overloaded):
            await batcher.run(["20"], lane=Lane.INTERACTIVE, deadline_s=0.05)
        gate.open()
        await first
    assert model.batches == []


async def test_the_request_beyond_a_full_queue_is_refused_with_a_time_to_come_again() -> None:
    model = LengthModel()
    async with batcher_of(model, Limits(max_waiting_texts=4)) as batcher:
        gate, first = await held(batcher, model)
        waiting = await queued(batcher, ["5"] * 3, Lane.BULK)
        with pytest.raises(Overloaded) as refusal:
            await batcher.run(["5"] * 2, lane=Lane.BULK)
        assert refusal.value.retry_after_s >= 1
        person = await queued(batcher, ["5"] * 2, Lane.INTERACTIVE)
        gate.open()
        await asyncio.gather(first, waiting, person)
        assert batcher.waiting_texts(Lane.BULK) == 0
        await batcher.run(["5"] * 9, lane=Lane.BULK)


async def test_a_poison_text_fails_alone() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        good = [await queued(batcher, [str(length)] * 3, Lane.BULK) for length in (10, 11, 12)]
        bad = await queued(batcher, ["9", "13", "9"], Lane.BULK)

        def poisoned(lengths: list[int]) -> None:
            if 13 in lengths:
                raise RuntimeError("a text that must not be repeated to anybody")

        model.on_forward = poisoned
        gate.open()
        results = await asyncio.gather(first, *good, bad, return_exceptions=True)
    assert [rows[:, 0].tolist() for rows in results[1:4] if not isinstance(rows, BaseException)] == [
        [10.0] * 3,
        [11.0] * 3,
        [12.0] * 3,
    ]
    refusal = results[4]
    assert isinstance(refusal, TextRefused)
    assert refusal.index == 1
    assert "must not be repeated" not in str(refusal)


async def test_a_text_that_cannot_be_tokenised_is_named() -> None:
    async with batcher_of(LengthModel()) as batcher:
        with pytest.raises(TextRefused) as refusal:
            await batcher.run(["1", "2", "untokenisable"], lane=Lane.BULK)
    assert refusal.value.index == 2


async def test_a_model_that_fails_on_every_text_is_unavailable_and_blames_no_text() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:

        def broken(lengths: list[int]) -> None:
            raise RuntimeError

        model.on_forward = broken
        with pytest.raises(ModelUnavailable):
            await batcher.run(["5"], lane=Lane.BULK)
        assert batcher.fault is not None
        model.on_forward = lambda _: None
        await batcher.run(["5"], lane=Lane.BULK)
        assert batcher.fault is None


async def test_rows_of_another_shape_are_refused() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        model.width = 2
        with pytest.raises(ModelUnavailable):
            await batcher.run(["5"], lane=Lane.BULK)


async def test_the_death_of_the_worker_is_told_to_all_who_wait_and_another_takes_over() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, running = await held(batcher, model)
        waiting = [await queued(batcher, ["5"], lane) for lane in Lane]

        def deadly(lengths: list[int]) -> None:
            gate(lengths)
            raise SystemExit

        gate.reached.clear()
        model.on_forward = deadly
        gate.open()
        results = await asyncio.wait_for(asyncio.gather(running, *waiting, return_exceptions=True), 5)
        assert [type(result) for result in results[1:]] == [ModelUnavailable] * 3
        model.on_forward = lambda _: None
        assert (await batcher.run(["5"], lane=Lane.BULK)).tolist() == [[5.0]]


async def test_closing_answers_whoever_still_waits() -> None:
    model = LengthModel()
    batcher = batcher_of(model)
    await batcher.__aenter__()
    gate, running = await held(batcher, model)
    waiting = await queued(batcher, ["5"], Lane.BULK)
    closing = asyncio.create_task(batcher.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    gate.open()
    await closing
    assert (await running).tolist() == [[9999.0]]
    with pytest.raises(ModelUnavailable):
        await waiting
    with pytest.raises(ModelUnavailable):
        await batcher.run(["5"], lane=Lane.BULK)


async def test_a_model_that_fails_on_the_probe_does_not_start() -> None:
    def broken(lengths: list[int]) -> None:
        raise RuntimeError("no kernel image")

    with pytest.raises(ModelUnavailable, match="no kernel image"):
        async with batcher_of(LengthModel(on_forward=broken)):
            pass


async def test_batches_shrink_to_the_time_that_a_person_may_wait() -> None:
    """100 tokens take 10 ms here, so .1 s has room for about 1000 and not for 16,000."""
    model = LengthModel(on_forward=lambda lengths: time.sleep(max(lengths) * len(lengths) * 1e-4))
    reports: list[BatchReport] = []
    async with batcher_of(model, Limits(max_batch_s=0.1), on_batch=reports.append) as batcher:
        await batcher.run(["100"] * 80, lane=Lane.BULK)
    assert all(report.seconds < 0.2 for report in reports)
    assert max(report.texts for report in reports) > 4


async def test_a_report_tells_padding_and_waiting() -> None:
    model = LengthModel()
    reports: list[BatchReport] = []
    async with batcher_of(model, on_batch=reports.append) as batcher:
        gate, first = await held(batcher, model)
        call = await queued(batcher, ["10", "8"], Lane.INTERACTIVE)
        await asyncio.sleep(0.05)
        gate.open()
        await asyncio.gather(first, call)
    report = reports[-1]
    assert (report.lane, report.texts, report.tokens, report.padded_tokens) == (Lane.INTERACTIVE, 2, 18, 20)
    assert report.longest_wait_s >= 0.05


def test_the_first_text_runs_with_those_nearest_in_length() -> None:
    assert choose_batch([50, 200, 52, 7, 49], token_budget=160, max_texts=9) == [0, 4, 2]


def test_padding_counts_in_the_token_budget() -> None:
    assert choose_batch([10, 11], token_budget=21, max_texts=9) == [0]
    assert choose_batch([10, 11], token_budget=22, max_texts=9) == [0, 1]


def test_a_text_longer_than_the_budget_runs_alone() -> None:
    assert choose_batch([500, 500], token_budget=100, max_texts=9) == [0]


NEVER = float("inf")
PATIENCE = {Lane.INTERACTIVE: NEVER, Lane.BULK: 1.0, Lane.BACKGROUND: 5.0}


def test_people_go_first_and_an_empty_box_has_no_lane() -> None:
    waiting = {Lane.INTERACTIVE: 9.9, Lane.BULK: 9.5, Lane.BACKGROUND: 6.0}
    assert choose_lane(waiting, now=10.0, patience_s=PATIENCE) is Lane.INTERACTIVE
    assert choose_lane(dict.fromkeys(Lane, NEVER), now=10.0, patience_s=PATIENCE) is None


def test_a_lane_that_was_passed_over_for_long_gets_one_batch() -> None:
    waiting = {Lane.INTERACTIVE: 9.9, Lane.BULK: 9.0, Lane.BACKGROUND: 6.0}
    assert choose_lane(waiting, now=10.0, patience_s=PATIENCE) is Lane.BULK
    assert choose_lane(waiting, now=11.0, patience_s=PATIENCE) is Lane.BACKGROUND


async def test_bulk_does_not_starve_behind_a_stream_of_people() -> None:
    model = LengthModel(on_forward=lambda _: time.sleep(0.01))
    patience = {**PATIENCE, Lane.BULK: 0.1}
    async with batcher_of(model, Limits(max_batch_s=1e9, max_batch_texts=1, patience_s=patience)) as batcher:

        async def person() -> None:
            while True:
                await batcher.run(["3"], lane=Lane.INTERACTIVE)

        people = [asyncio.create_task(person()) for _ in range(4)]
        await asyncio.wait_for(batcher.run(["50"] * 5, lane=Lane.BULK), 5)
        for task in people:
            task.cancel()
        await asyncio.gather(*people, return_exceptions=True)
    assert model.batches.count([3]) > 20
