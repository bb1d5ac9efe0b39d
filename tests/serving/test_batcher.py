"""The batcher, on a model whose batches end when the test says so."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.batching.batcher import Batcher, BatchReport, Limits, RowCache, Rows
from serving.batching.cost import CostModel
from serving.protocols import Lane, ModelUnavailable, Overloaded, ServingError, TextRefused, TextTooLong
from tests.serving.length_model import Gate, LengthModel, rows_of

PROBE = "1"

ROOMY = Limits(max_batch_s=1e9, recovery_pause_s=0.01)
"""As many tokens as these tests like: the time of a batch is tested by itself."""


def batcher_of(*models: LengthModel, limits: Limits = ROOMY, **options: Any) -> Batcher[str]:
    return Batcher(models, probe=PROBE, limits=limits, **options)


async def until(condition: Callable[[], bool]) -> None:
    """For what other threads do and nobody tells."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def held(
    batcher: Batcher[str], model: LengthModel, text: str = "9999"
) -> tuple[Gate, "asyncio.Task[Rows]"]:
    """A batch of one text that runs until the gate is opened."""
    gate = Gate()
    model.on_forward = gate
    task = asyncio.create_task(batcher.run([text], lane=Lane.BULK, truncate=True))
    assert await asyncio.to_thread(gate.reached.wait, 10)
    model.batches.clear()
    model.collated.clear()
    return gate, task


def queued_texts(batcher: Batcher[str], lane: Lane) -> int:
    """Tokenised, and in no batch."""
    return len(batcher._waiting.lanes[lane].texts)


async def queued(batcher: Batcher[str], texts: list[str], lane: Lane, **options: Any) -> "asyncio.Task[Rows]":
    """A call whose texts wait for a batch."""
    before = queued_texts(batcher, lane)
    task = asyncio.create_task(batcher.run(texts, lane=lane, **options))
    await until(lambda: queued_texts(batcher, lane) >= before + len(set(texts)))
    return task


async def prefetched(batcher: Batcher[str], texts: list[str], lane: Lane) -> "asyncio.Task[Rows]":
    """A call whose texts fill a batch that is collated and waits for the device."""
    task = asyncio.create_task(batcher.run(texts, lane=lane))

    def is_ready() -> bool:
        batch = batcher._replicas[0].prefetched
        return batch is not None and batch.ready

    await until(is_ready)
    return task


def several(length: int, count: int, name: str = "") -> list[str]:
    """Different texts of one length."""
    return [f"{length}#{name}{number}" for number in range(count)]


# Rows, batches and lanes.


async def test_every_caller_gets_its_own_rows_in_its_own_order() -> None:
    calls = [[f"{1 + (7 * caller + text) % 50}#{caller}" for text in range(caller)] for caller in range(40)]
    async with batcher_of(LengthModel()) as batcher:
        results = await asyncio.gather(*(batcher.run(texts, lane=Lane.BULK) for texts in calls))
    for texts, rows in zip(calls, results, strict=True):
        assert rows.shape == (len(texts), 2)
        assert rows.dtype == np.float32
        assert rows.tolist() == rows_of(texts)


async def test_no_texts_give_no_rows() -> None:
    async with batcher_of(LengthModel()) as batcher:
        assert (await batcher.run([], lane=Lane.INTERACTIVE)).shape == (0, 2)


async def test_texts_of_several_callers_share_a_batch_within_the_token_budget() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_tokens=100)) as batcher:
        gate, first = await held(batcher, model)
        calls = [asyncio.create_task(batcher.run([text], lane=Lane.BULK)) for text in several(30, 4)]
        await until(lambda: batcher._replicas[0].prefetched is not None)
        gate.open()
        await asyncio.gather(first, *calls)
    # Three wait for room for a fourth, which there is not: once it came, they were a full batch.
    assert model.batches == [[30, 30, 30], [30]]


async def test_people_go_before_bulk_that_came_earlier_and_wait_for_the_running_batch_only() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await prefetched(batcher, several(50, 6), Lane.BULK)
        background = await queued(batcher, ["40"], Lane.BACKGROUND)
        person = await queued(batcher, ["7"], Lane.INTERACTIVE)
        gate.open()
        rows = await asyncio.gather(first, bulk, person, background)
    assert model.batches == [[7], [50, 50], [50, 50], [50, 50], [40]]
    assert rows[1].tolist() == rows_of(several(50, 6))


async def test_the_next_full_batch_is_collated_while_one_runs() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await prefetched(batcher, several(50, 4), Lane.BULK)
        assert model.collated == [[50, 50]]
        assert model.batches == []
        gate.open()
        await asyncio.gather(first, bulk)
    assert model.collated == model.batches == [[50, 50], [50, 50]]


async def test_a_batch_that_is_not_full_waits_for_those_who_may_still_join_it() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        calls = [await queued(batcher, [text], Lane.INTERACTIVE) for text in several(5, 3)]
        assert model.collated == []
        gate.open()
        await asyncio.gather(first, *calls)
    assert model.batches == [[5, 5, 5]]


async def test_rows_are_delivered_while_the_next_batch_runs() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await prefetched(batcher, several(50, 2), Lane.BULK)
        second_gate = Gate()
        model.on_forward = second_gate
        gate.open()
        assert await asyncio.to_thread(second_gate.reached.wait, 10)
        assert (await asyncio.wait_for(first, 10)).tolist() == rows_of(["9999"])
        second_gate.open()
        await bulk


async def test_replicas_pull_from_one_queue() -> None:
    models = [LengthModel(), LengthModel()]
    reports: list[BatchReport] = []
    limits = replace(ROOMY, max_batch_texts=1)
    async with batcher_of(*models, limits=limits, on_batch=reports.append) as batcher:
        both_run = threading.Barrier(2)

        def together(_: list[int]) -> None:
            both_run.wait(10)

        for model in models:
            model.on_forward = together
        rows = await batcher.run(several(5, 10), lane=Lane.BULK)
    assert rows.tolist() == rows_of(several(5, 10))
    assert {report.replica for report in reports} == {0, 1}


async def test_a_free_replica_runs_what_a_busy_one_had_prefetched() -> None:
    busy, free = LengthModel(), LengthModel()
    async with batcher_of(busy, free, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gates = [Gate(), Gate()]
        busy.on_forward, free.on_forward = gates
        calls = []
        for busy_replicas, text in enumerate(["9998", "9999"], 1):
            calls.append(asyncio.create_task(batcher.run([text], lane=Lane.BULK)))
            await until(lambda: sum(gate.reached.is_set() for gate in gates) == busy_replicas)  # noqa: B023
        waiting = asyncio.create_task(batcher.run(several(5, 2), lane=Lane.BULK))
        await until(lambda: any(replica.prefetched for replica in batcher._replicas))
        holder = next(replica.index for replica in batcher._replicas if replica.prefetched)
        gates[1 - holder].open()
        assert (await asyncio.wait_for(waiting, 10)).tolist() == rows_of(several(5, 2))
        gates[holder].open()
        await asyncio.gather(*calls)


async def test_people_have_the_express_replica_to_themselves_and_wait_for_no_batch_of_machines() -> None:
    model, express = LengthModel(), LengthModel()
    async with batcher_of(model, express=express, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await prefetched(batcher, several(50, 6), Lane.BULK)
        express.batches.clear()
        for number in range(3):
            rows = await asyncio.wait_for(batcher.run([f"7#{number}"], lane=Lane.INTERACTIVE), 10)
            assert rows.tolist() == rows_of([f"7#{number}"])
        assert express.batches == [[7], [7], [7]]
        assert model.batches == []
        gate.open()
        await asyncio.gather(first, bulk)
    assert express.batches == [[7], [7], [7]]
    assert model.batches == [[50, 50], [50, 50], [50, 50]]


async def test_what_is_more_than_the_express_replica_can_take_runs_on_the_others() -> None:
    model, express = LengthModel(), LengthModel()
    async with batcher_of(model, express=express, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate = Gate()
        express.on_forward = gate
        model.batches.clear()
        first = asyncio.create_task(batcher.run(["9999"], lane=Lane.INTERACTIVE))
        assert await asyncio.to_thread(gate.reached.wait, 10)
        rows = await asyncio.wait_for(batcher.run(["7"], lane=Lane.INTERACTIVE), 10)
        assert rows.tolist() == rows_of(["7"])
        assert model.batches == [[7]]
        gate.open()
        await first


async def test_who_has_no_express_replica_left_is_served_by_the_others_and_the_other_way_round() -> None:
    model, express = LengthModel(), LengthModel()
    async with batcher_of(model, express=express) as batcher:
        for failing, lane in ((express, Lane.INTERACTIVE), (model, Lane.BULK)):
            failing.on_forward = fails
            rows = await asyncio.wait_for(batcher.run(several(5, 3), lane=lane), 10)
            assert rows.tolist() == rows_of(several(5, 3))
            failing.on_forward = lambda _: None
            await until(lambda: batcher.replica_faults == (None, None))


async def test_a_person_with_a_deadline_is_not_refused_for_what_machines_compute() -> None:
    model, express = LengthModel(), LengthModel()
    async with batcher_of(model, express=express) as batcher:
        batcher._forecast.cost = CostModel(overhead_s=0.01, token_s=0.001)
        gate, first = await held(batcher, model)
        rows = await batcher.run(["7"], lane=Lane.INTERACTIVE, deadline_s=1.0)
        assert rows.tolist() == rows_of(["7"])
        with pytest.raises(Overloaded):
            await batcher.run(["7#bulk"], lane=Lane.BULK, deadline_s=1.0)
        gate.open()
        await first


async def test_bulk_gets_a_share_of_a_flood_of_people_and_people_still_go_first() -> None:
    model = LengthModel(on_forward=lambda _: time.sleep(0.002))
    patience = {**ROOMY.patience_s, Lane.BULK: 0.05, Lane.BACKGROUND: 0.1}
    limits = replace(ROOMY, max_batch_texts=1, patience_s=patience)
    async with batcher_of(model, limits=limits) as batcher:
        turn = 0

        async def person() -> None:
            nonlocal turn
            while True:
                turn += 1
                await batcher.run([f"3#{turn}"], lane=Lane.INTERACTIVE)

        people = [asyncio.create_task(person()) for _ in range(4)]
        bulk = batcher.run(several(50, 5), lane=Lane.BULK)
        background = batcher.run(several(60, 2), lane=Lane.BACKGROUND)
        await asyncio.wait_for(asyncio.gather(bulk, background), 10)
        for task in people:
            task.cancel()
        await asyncio.gather(*people, return_exceptions=True)
    assert model.batches.count([3]) > 20


# Departures, deadlines and admission.


async def test_a_departed_callers_texts_are_never_computed() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        departing = await queued(batcher, several(50, 6), Lane.BULK)
        staying = await queued(batcher, ["20"], Lane.BULK)
        departing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await departing
        assert batcher.waiting_texts(Lane.BULK) == 1
        gate.open()
        await asyncio.gather(first, staying)
    assert model.batches == [[20]]
    assert batcher.counts[Lane.BULK].departed_texts == 6


async def test_a_departed_callers_texts_are_dropped_from_a_prefetched_batch() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=2)) as batcher:
        gate, first = await held(batcher, model)
        departing = await queued(batcher, ["50"], Lane.BULK)
        staying = await prefetched(batcher, ["20"], Lane.BULK)
        assert model.collated == [[50, 20]]
        departing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await departing
        gate.open()
        assert (await staying).tolist() == rows_of(["20"])
        await first
    assert model.batches == [[20]]
    assert batcher.counts[Lane.BULK].departed_texts == 1


async def test_a_passed_deadline_is_told_at_once_and_its_texts_are_not_computed() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        with pytest.raises(Overloaded):
            await batcher.run(["20"], lane=Lane.INTERACTIVE, deadline_s=0.3)
        gate.open()
        await first
    assert model.batches == []


async def test_what_expired_by_the_clock_is_dropped_when_its_batch_is_chosen_or_taken() -> None:
    """The event loop's own timeout, which usually comes first, is far away here."""
    now = 0.0
    model = LengthModel()
    limits = replace(ROOMY, max_batch_texts=2)
    async with batcher_of(model, limits=limits, clock=lambda: now) as batcher:
        gate, first = await held(batcher, model)
        calls = [await queued(batcher, ["30#0"], Lane.BULK, deadline_s=50)]
        calls.append(await prefetched(batcher, ["30#1"], Lane.BULK))
        calls.append(await queued(batcher, ["30#2"], Lane.BULK, deadline_s=50))
        now = 60.0
        gate.open()
        await first
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded, np.ndarray, Overloaded]
    assert model.batches == [[30]]
    assert batcher.counts[Lane.BULK].expired_texts == 2


async def test_the_request_beyond_a_full_queue_is_refused_with_a_time_to_come_again() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_waiting_texts=4)) as batcher:
        gate, first = await held(batcher, model)
        waiting = await queued(batcher, several(5, 3), Lane.BULK)
        with pytest.raises(Overloaded) as refusal:
            await batcher.run(several(6, 2), lane=Lane.BULK)
        assert refusal.value.retry_after_s >= 1
        assert batcher.counts[Lane.BULK].refused_requests == 1
        person = await queued(batcher, several(7, 2), Lane.INTERACTIVE)
        gate.open()
        await asyncio.gather(first, waiting, person)
        assert batcher.waiting_texts(Lane.BULK) == 0
        await batcher.run(several(5, 9), lane=Lane.BULK)


class Ticking:
    """A clock that only the model moves: a batch takes 1 s and .1 s a padded token.

    So slow that no deadline of these tests passes in real time, which asyncio goes by.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, lengths: list[int]) -> None:
        self.now += 1 + 0.1 * len(lengths) * max(lengths)


async def test_a_burst_is_admitted_as_far_as_it_can_be_served_and_the_rest_is_refused_untouched() -> None:
    clock = Ticking()
    model = LengthModel(on_forward=clock.run)
    limits = replace(ROOMY, max_batch_s=10)
    async with batcher_of(model, limits=limits, clock=clock) as batcher:
        for number in range(20):
            await batcher.run([f"8#{number:023}"], lane=Lane.INTERACTIVE)
        encoded: list[str] = []
        gate, first = await held(batcher, model, "8#held")
        model.on_encode = encoded.extend
        burst = [
            asyncio.create_task(batcher.run([f"8#{number:024}"], lane=Lane.INTERACTIVE, deadline_s=100))
            for number in range(1000)
        ]
        # All but the 11 of the prefetched batch.
        await until(
            lambda: queued_texts(batcher, Lane.INTERACTIVE) + sum(task.done() for task in burst) == 989
        )
        model.on_forward = clock.run
        gate.open()
        _, *results = await asyncio.gather(first, *burst, return_exceptions=True)
    served = sum(isinstance(result, np.ndarray) for result in results)
    refused = [result for result in results if isinstance(result, Overloaded)]
    # A batch of 9.8 s has room for 11 texts of 8 tokens: 112 texts take 100 s, and forecasts are taken for 1.05 times
    # as long.
    assert 0.9 * 112 / 1.05 <= served <= 112
    assert len(encoded) == served
    assert len(refused) == 1000 - served
    assert all(0.1 <= refusal.retry_after_s < 100 for refusal in refused)


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_tokenised() -> None:
    clock = Ticking()
    model = LengthModel(on_forward=clock.run)
    async with batcher_of(model, clock=clock) as batcher:
        await batcher.run(["1000#" + "x" * 4000], lane=Lane.BULK)
        model.on_encode = lambda _: pytest.fail("it was tokenised")
        with pytest.raises(Overloaded) as refusal:
            await batcher.run(["1000#" + "y" * 4000], lane=Lane.BULK, deadline_s=40)
        # About 101 s on an idle device.
        assert 50 < refusal.value.retry_after_s < 70
        model.on_encode = lambda _: None
        await batcher.run(["1000#" + "y" * 4000], lane=Lane.BULK, deadline_s=150)


# Equal texts, and texts that are remembered.


async def test_equal_texts_in_flight_are_computed_once_for_all_who_share_a_salt() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        calls = [await queued(batcher, ["5", "6", "5"], Lane.BULK)]
        calls.append(asyncio.create_task(batcher.run(["6", "7"], lane=Lane.BULK)))
        calls.append(asyncio.create_task(batcher.run(["6"], lane=Lane.BULK, cache_salt="other")))
        await until(lambda: queued_texts(batcher, Lane.BULK) == 4)
        gate.open()
        _, *results = await asyncio.gather(first, *calls)
    assert model.batches == [[5, 6, 7, 6]]
    assert [rows.tolist() for rows in results] == [
        rows_of(["5", "6", "5"]),
        rows_of(["6", "7"]),
        rows_of(["6"]),
    ]
    assert batcher.counts[Lane.BULK].joined_texts == 1


async def test_a_person_who_asks_for_a_text_that_waits_in_bulk_gets_it_as_a_person() -> None:
    model = LengthModel()
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=1)) as batcher:
        gate, first = await held(batcher, model)
        bulk = await prefetched(batcher, ["5", "6", "7"], Lane.BULK)
        person = asyncio.create_task(batcher.run(["7"], lane=Lane.INTERACTIVE))
        await until(lambda: queued_texts(batcher, Lane.INTERACTIVE) == 1)
        gate.open()
        _, rows, bulk_rows = await asyncio.gather(first, person, bulk)
    assert model.batches == [[7], [5], [6]]
    assert rows.tolist() == rows_of(["7"])
    assert bulk_rows.tolist() == rows_of(["5", "6", "7"])


async def test_a_departing_caller_takes_no_text_away_from_others_who_wait_for_it() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        departing = await queued(batcher, ["5", "6"], Lane.BULK)
        staying = asyncio.create_task(batcher.run(["6"], lane=Lane.BULK))
        await until(lambda: batcher.counts[Lane.BULK].joined_texts == 1)
        departing.cancel()
        await asyncio.gather(departing, return_exceptions=True)
        gate.open()
        assert (await staying).tolist() == rows_of(["6"])
        await first
    assert model.batches == [[6]]


async def test_everybody_who_asked_for_a_bad_text_is_told() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        one = await queued(batcher, ["5", "13"], Lane.BULK)
        two = asyncio.create_task(batcher.run(["13"], lane=Lane.BULK))
        await until(lambda: batcher.counts[Lane.BULK].joined_texts == 1)
        model.on_forward = fails_on(13)
        gate.open()
        _, *refusals = await asyncio.gather(first, one, two, return_exceptions=True)
    assert [(type(refusal), refusal.index) for refusal in refusals if isinstance(refusal, TextRefused)] == [
        (TextRefused, 1),
        (TextRefused, 0),
    ]


async def test_a_row_is_remembered_for_those_who_share_a_salt() -> None:
    model, cache = LengthModel(), RowCache(10_000)
    async with batcher_of(model, cache=cache, fingerprint="f") as batcher:
        await batcher.run(["5"], lane=Lane.BULK, cache_salt="a")
        model.batches.clear()
        again = await batcher.run(["5", "5"], lane=Lane.BULK, cache_salt="a", deadline_s=1e-9)
        assert model.batches == []
        await batcher.run(["5"], lane=Lane.BULK, cache_salt="b")
        assert model.batches == [[5]]
    assert again.tolist() == rows_of(["5", "5"])
    assert batcher.counts[Lane.BULK].remembered_texts == 2
    assert (cache.hits, cache.misses) == (1, 2)


async def test_no_row_is_remembered_of_a_text_that_failed() -> None:
    model, cache = LengthModel(), RowCache(10_000)
    async with batcher_of(model, cache=cache) as batcher:
        model.on_forward = fails_on(13)
        with pytest.raises(TextRefused):
            await batcher.run(["13"], lane=Lane.BULK)
        assert len(cache) == 0
        model.on_forward = lambda _: None
        assert (await batcher.run(["13"], lane=Lane.BULK)).tolist() == rows_of(["13"])


# Texts that are too long.


async def test_a_text_that_is_too_long_is_refused_before_anything_of_its_request_is_computed() -> None:
    model = LengthModel(max_tokens=100)
    limits = replace(ROOMY, sorting_window=2)
    async with batcher_of(model, limits=limits) as batcher:
        model.batches.clear()
        with pytest.raises(TextTooLong) as refusal:
            await batcher.run(["5", "6", "7", "101", "102"], lane=Lane.BULK)
        assert batcher.waiting_texts(Lane.BULK) == 0
        assert model.batches == []
    assert (refusal.value.index, refusal.value.tokens, refusal.value.max_tokens) == (3, 101, 100)


async def test_a_text_that_may_be_cut_is_cut() -> None:
    model = LengthModel(max_tokens=100)
    async with batcher_of(model) as batcher:
        rows = await batcher.run(["5", "300"], lane=Lane.BULK, truncate=True)
    assert rows[:, 0].tolist() == [5, 100]


async def test_the_row_of_a_cut_text_is_not_given_to_a_caller_who_refuses_cutting() -> None:
    model = LengthModel(max_tokens=100)
    async with batcher_of(model, cache=RowCache(10_000)) as batcher:
        gate, first = await held(batcher, model, "300")
        with pytest.raises(TextTooLong):
            await batcher.run(["300"], lane=Lane.BULK)
        gate.open()
        await first
        with pytest.raises(TextTooLong) as refusal:
            await batcher.run(["5", "300"], lane=Lane.BULK)
    assert refusal.value.index == 1


# Failures.


def fails_on(length: int) -> Callable[[list[int]], None]:
    def fail(lengths: list[int]) -> None:
        if length in lengths:
            raise RuntimeError("a text that must not be repeated to anybody")

    return fail


def fails(_: list[int]) -> None:
    raise RuntimeError


def dies(_: list[int]) -> None:
    raise SystemExit


async def test_a_poison_text_fails_alone() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        good = [await queued(batcher, several(length, 3), Lane.BULK) for length in (10, 11, 12)]
        bad = await queued(batcher, ["9#0", "13", "9#1"], Lane.BULK)
        model.on_forward = fails_on(13)
        gate.open()
        results = await asyncio.gather(first, *good, bad, return_exceptions=True)
    assert [rows.tolist() for rows in results[1:4] if isinstance(rows, np.ndarray)] == [
        rows_of(several(length, 3)) for length in (10, 11, 12)
    ]
    refusal = results[4]
    assert isinstance(refusal, TextRefused)
    assert refusal.index == 1
    assert "must not be repeated" not in str(refusal)


async def test_a_text_that_cannot_be_collated_fails_alone() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        good = await queued(batcher, several(10, 3), Lane.BULK)
        bad = await queued(batcher, ["13"], Lane.BULK)
        model.on_collate = fails_on(13)
        gate.open()
        _, rows, refusal = await asyncio.gather(first, good, bad, return_exceptions=True)
    assert isinstance(rows, np.ndarray)
    assert isinstance(refusal, TextRefused)


async def test_a_text_that_cannot_be_tokenised_is_named() -> None:
    async with batcher_of(LengthModel()) as batcher:
        with pytest.raises(TextRefused) as refusal:
            await batcher.run(["1", "2", "untokenisable"], lane=Lane.BULK)
    assert refusal.value.index == 2


async def test_a_tokeniser_that_dies_ends_the_call_and_nothing_else() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:

        def die(_: Sequence[str]) -> None:
            raise SystemExit

        model.on_encode = die
        with pytest.raises(ModelUnavailable):
            await batcher.run(["5"], lane=Lane.BULK)
        model.on_encode = lambda _: None
        await batcher.run(["5"], lane=Lane.BULK)


def with_nan(rows: Rows) -> Rows:
    rows[rows[:, 0] == 13, 1] = np.nan
    return rows


def with_infinity(rows: Rows) -> Rows:
    rows[rows[:, 0] == 13, 0] = np.inf
    return rows


def with_a_column_more(rows: Rows) -> Rows:
    return np.repeat(rows, 2, axis=1) if 13 in rows[:, 0] else rows


def with_a_row_less(rows: Rows) -> Rows:
    return rows[1:] if 13 in rows[:, 0] else rows


def in_double_precision(rows: Rows) -> Any:
    return rows.astype(np.float64) if 13 in rows[:, 0] else rows


@pytest.mark.parametrize(
    "spoil", [with_nan, with_infinity, with_a_column_more, with_a_row_less, in_double_precision]
)
async def test_a_row_that_is_not_what_the_model_promised_fails_its_text_alone(
    spoil: Callable[[Rows], Rows],
) -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, first = await held(batcher, model)
        good = await queued(batcher, several(10, 3), Lane.BULK)
        bad = await queued(batcher, ["13"], Lane.BULK)
        model.spoil = spoil
        gate.open()
        _, rows, refusal = await asyncio.gather(first, good, bad, return_exceptions=True)
    assert isinstance(rows, np.ndarray)
    assert isinstance(refusal, TextRefused)


async def test_rows_do_not_change_when_the_model_writes_the_next_batch_into_the_same_buffer() -> None:
    buffer = np.zeros((256, 2), np.float32)

    def into_buffer(rows: Rows) -> Rows:
        buffer[: len(rows)] = rows
        return buffer[: len(rows)]

    model = LengthModel(spoil=into_buffer)
    texts = [f"{length}#{number}" for length in (5, 9) for number in range(64)]
    async with batcher_of(model, limits=replace(ROOMY, max_batch_texts=4)) as batcher:
        assert (await batcher.run(texts, lane=Lane.BULK)).tolist() == rows_of(texts)


async def test_a_model_that_fails_on_every_text_blames_no_text_and_is_back_by_itself_once_it_works() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        model.on_forward = fails
        with pytest.raises(ModelUnavailable):
            await batcher.run(["5"], lane=Lane.BULK)
        assert batcher.fault is not None
        with pytest.raises(ModelUnavailable):
            await batcher.run(["6"], lane=Lane.BULK)
        model.on_forward = lambda _: None
        await until(lambda: batcher.fault is None)
        assert (await batcher.run(["5"], lane=Lane.BULK)).tolist() == rows_of(["5"])


async def test_a_failing_replica_leaves_its_texts_to_those_that_work() -> None:
    good, bad = LengthModel(), LengthModel()
    async with batcher_of(good, bad, limits=replace(ROOMY, max_batch_texts=4)) as batcher:
        bad.on_forward = fails
        rows = await batcher.run(several(5, 64), lane=Lane.BULK)
        assert rows.tolist() == rows_of(several(5, 64))
        assert batcher.fault is None
        bad.on_forward = lambda _: None
        await until(lambda: batcher.replica_faults == (None, None))


async def test_when_every_replica_fails_on_a_text_its_caller_is_told() -> None:
    models = [LengthModel(), LengthModel()]
    async with batcher_of(*models) as batcher:
        for model in models:
            model.on_forward = fails
        with pytest.raises(ModelUnavailable):
            await asyncio.wait_for(batcher.run(several(5, 64), lane=Lane.BULK), 10)


async def test_the_death_of_the_worker_is_told_to_its_batch_and_another_serves_those_who_wait() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        gate, running = await held(batcher, model)
        waiting = [await queued(batcher, [f"5#{lane}"], lane) for lane in Lane]
        probing = Gate()

        def die_once(lengths: list[int]) -> None:
            model.on_forward = probing
            raise SystemExit

        # The held batch ends well; the one after it, a person's, kills the thread.
        model.on_forward = die_once
        gate.open()
        await running
        with pytest.raises(ModelUnavailable):
            await asyncio.wait_for(waiting[0], 10)
        assert await asyncio.to_thread(probing.reached.wait, 10)
        assert batcher.fault is not None
        assert "SystemExit" in batcher.fault
        probing.open()
        rows = await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)
        assert [one.tolist() for one in rows] == [
            rows_of([f"5#{lane}"]) for lane in (Lane.BULK, Lane.BACKGROUND)
        ]
        assert batcher.fault is None


async def test_a_worker_that_dies_again_and_again_leaves_nobody_waiting() -> None:
    model = LengthModel()
    async with batcher_of(model) as batcher:
        model.on_forward = dies
        for _ in range(3):
            with pytest.raises(ModelUnavailable):
                await asyncio.wait_for(batcher.run(["5"], lane=Lane.BULK), 10)
        model.on_forward = lambda _: None
        await until(lambda: batcher.fault is None)


@pytest.mark.parametrize("dying", ["collate", "report"])
async def test_a_preparer_that_dies_is_replaced(dying: str) -> None:
    model = LengthModel()
    deadly = [False]

    def report(_: BatchReport) -> None:
        if deadly[0]:
            deadly[0] = False
            raise SystemExit

    async with batcher_of(model, on_batch=report) as batcher:
        if dying == "collate":
            model.on_collate = dies
            with pytest.raises(ModelUnavailable):
                await asyncio.wait_for(batcher.run(["5"], lane=Lane.BULK), 10)
            model.on_collate = lambda _: None
        else:
            deadly[0] = True
            assert (await batcher.run(["5"], lane=Lane.BULK)).tolist() == rows_of(["5"])
        await until(lambda: not deadly[0] and batcher.fault is None)
        assert (await asyncio.wait_for(batcher.run(["6"], lane=Lane.BULK), 10)).tolist() == rows_of(["6"])


# Opening, closing, reports.


async def test_closing_answers_whoever_still_waits() -> None:
    model = LengthModel()
    batcher = batcher_of(model)
    await batcher.__aenter__()
    gate, running = await held(batcher, model)
    waiting = await queued(batcher, ["5"], Lane.BULK)
    closing = asyncio.create_task(batcher.__aexit__(None, None, None))
    await until(lambda: batcher.fault is not None)
    gate.open()
    await closing
    assert (await running).tolist() == rows_of(["9999"])
    with pytest.raises(ModelUnavailable):
        await waiting
    with pytest.raises(ModelUnavailable):
        await batcher.run(["5"], lane=Lane.BULK)


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_model_with_a_replica_that_fails_on_the_probe_does_not_start(failing: int) -> None:
    def broken(lengths: list[int]) -> None:
        raise RuntimeError("no kernel image")

    models = [LengthModel(), LengthModel()]
    models[failing].on_forward = broken
    batcher = batcher_of(*models)
    with pytest.raises(ModelUnavailable, match="no kernel image"):
        async with batcher:
            pass
    assert "no kernel image" in str(batcher.replica_faults[failing]), "trying again hides no reason"


async def test_batches_shrink_to_the_time_that_a_person_may_wait() -> None:
    """100 tokens take 10 ms here, so .1 s has room for about 1000 and not for 16,000."""
    clock = Ticking()

    def run(lengths: list[int]) -> None:
        clock.now += max(lengths) * len(lengths) * 1e-4

    reports: list[BatchReport] = []
    model = LengthModel(on_forward=run)
    limits = replace(ROOMY, max_batch_s=0.1)
    async with batcher_of(model, limits=limits, clock=clock, on_batch=reports.append) as batcher:
        await batcher.run(several(100, 80), lane=Lane.BULK)
    assert all(report.seconds < 0.101 for report in reports)
    assert max(report.texts for report in reports) >= 9


async def test_a_report_tells_padding_and_waiting() -> None:
    now = 0.0
    model = LengthModel()
    reports: list[BatchReport] = []
    async with batcher_of(model, on_batch=reports.append, clock=lambda: now) as batcher:
        gate, first = await held(batcher, model)
        call = await queued(batcher, ["10", "8"], Lane.INTERACTIVE)
        now = 3.0
        gate.open()
        await asyncio.gather(first, call)
        await until(lambda: len(reports) == 2)
    assert reports[-1] == BatchReport(Lane.INTERACTIVE, 2, 18, 20, 0.0, 3.0, 0)


async def test_the_batcher_tells_since_when_nobody_has_called_it() -> None:
    now = 5.0
    model = LengthModel()
    async with batcher_of(model, clock=lambda: now) as batcher:
        assert batcher.idle_since == 5.0
        gate, first = await held(batcher, model)
        assert batcher.idle_since == float("inf")
        now = 7.0
        gate.open()
        await first
        assert batcher.idle_since == 7.0


async def test_errors_of_the_batcher_are_serving_errors() -> None:
    assert issubclass(TextTooLong, TextRefused)
    assert issubclass(TextRefused, ServingError)
