"""Models that come and go: loaded when needed, one at a time, and unloaded when unused or for another."""

import asyncio
import json
import math
import shutil
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.running.models_role import create_models_app
from app.settings import Settings
from serving.batching.batcher import Rows
from serving.client import ModelsClient
from serving.hosting import MIB, HostedModel, HostingLimits, ModelHost, choose_leaving
from serving.protocols import Lane, ModelUnavailable, ModelUnknown
from serving.readiness import Kind, ModelReadiness, State
from tests.serving.hosting import MINILM, NO_MINILM, SmallSource, served, until, until_ready


def host_of(*sources: SmallSource, defaults: int = 0, **limits: Any) -> ModelHost:
    """The first `defaults` of them are default models."""
    declared = [
        source.declared(is_default=place < defaults, expected_bytes=source.memory_bytes)
        for place, source in enumerate(sources)
    ]
    return ModelHost(declared, limits=HostingLimits(**limits))


async def embed(host: ModelHost, alias: str, text: str = "7", deadline_s: float | None = None) -> float:
    """The first number of the text's row."""
    rows, _ = await host.run(
        Kind.EMBEDDING,
        alias,
        [text],
        lane=Lane.INTERACTIVE,
        deadline_s=deadline_s,
        cache_salt="",
        truncate=False,
    )
    return float(rows[0, 0])


def told(host: ModelHost, alias: str) -> ModelReadiness:
    return next(model for model in host.readiness() if model.alias == alias)


async def begin(call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """The call, which has gone as far as it can at once."""
    task = asyncio.create_task(call)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


@contextmanager
def busy(source: SmallSource) -> Iterator[None]:
    """Within it, forward passes of the model do not end."""
    source.model.go.clear()
    source.model.begun.clear()
    try:
        yield
    finally:
        source.model.go.set()


async def test_the_defaults_are_loaded_at_the_start_and_the_others_by_their_first_use() -> None:
    one, two = SmallSource("one"), SmallSource("two")
    host = host_of(one, two, defaults=1)
    async with host.serving():
        await until(lambda: told(host, "one").state is State.READY)
        assert (one.loads, two.loads) == (1, 0)
        assert told(host, "two").state is State.IDLE
        assert await embed(host, "two", "5") == 5
        assert (told(host, "two").state, two.loads) == (State.READY, 1)
    assert (one.closed, two.closed) == (1, 1)


async def test_readiness_tells_where_a_model_runs_and_what_it_takes() -> None:
    source = SmallSource("one", memory_bytes=3 * MIB)
    host = host_of(source, defaults=1)
    async with host.serving():
        await embed(host, "one")
        assert told(host, "one") == ModelReadiness(
            alias="one",
            kind=Kind.EMBEDDING,
            state=State.READY,
            is_default=True,
            device="cpu",
            precision="float32",
            backend="small",
            threads=1,
            replicas=1,
            memory_bytes=3 * MIB,
        )


async def test_one_model_is_loaded_at_a_time_and_once_for_all_who_wait() -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    class Counting(SmallSource):
        def load(self) -> Any:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            try:
                return super().load()
            finally:
                with lock:
                    at_once -= 1

    sources = [Counting(name) for name in ("one", "two", "three")]
    host = host_of(*sources)
    async with host.serving():
        await asyncio.gather(*(embed(host, source.alias) for source in sources for _ in range(5)))
    assert most == 1
    assert [source.loads for source in sources] == [1, 1, 1]


async def test_a_caller_waits_for_a_model_no_longer_than_its_deadline() -> None:
    source = SmallSource("one")
    source.go.clear()
    host = host_of(source)
    async with host.serving():
        with pytest.raises(ModelUnavailable, match="one is still loading"):
            await embed(host, "one", deadline_s=0.02)
        source.go.set()
        assert await embed(host, "one") == 7
    assert source.loads == 1


async def test_a_caller_without_a_deadline_waits_a_bounded_time() -> None:
    source = SmallSource("one")
    source.go.clear()
    host = host_of(source, loading_wait_s=0.02)
    async with host.serving():
        with pytest.raises(ModelUnavailable, match="one is still loading"):
            await embed(host, "one")
        with pytest.raises(ModelUnavailable, match="one is still loading"):
            await host.describe(Kind.EMBEDDING, "one")
        source.go.set()


async def test_a_failed_load_is_told_with_its_reason_and_not_tried_again_at_every_request() -> None:
    source = SmallSource("one", failure=ModelUnavailable("/models/one holds no safetensors weights"))
    host = host_of(source, retry_pause_s=math.inf)
    async with host.serving():
        for _ in range(3):
            with pytest.raises(ModelUnavailable, match="one failed: /models/one holds no safetensors"):
                await embed(host, "one")
        assert told(host, "one").state is State.FAILED
        assert told(host, "one").reason == "/models/one holds no safetensors weights"
    assert source.loads == 1


async def test_what_a_library_says_of_a_failed_load_is_not_repeated() -> None:
    source = SmallSource("one", failure=ValueError("an internal path"))
    host = host_of(source, retry_pause_s=math.inf)
    async with host.serving():
        with pytest.raises(ModelUnavailable, match=r"one failed: ValueError$"):
            await embed(host, "one")


async def test_a_failed_load_is_tried_again_after_a_pause() -> None:
    source = SmallSource("one", failure=ModelUnavailable("disk away"))
    host = host_of(source, retry_pause_s=0.02)
    async with host.serving():
        with pytest.raises(ModelUnavailable):
            await embed(host, "one")
        source.failure = None
        await asyncio.sleep(0.03)
        assert await embed(host, "one") == 7


async def test_a_failed_default_is_tried_again_by_itself() -> None:
    source = SmallSource("one", failure=ModelUnavailable("disk away"))
    host = host_of(source, defaults=1, retry_pause_s=0.02)
    async with host.serving():
        await until(lambda: told(host, "one").state is State.FAILED)
        source.failure = None
        await until(lambda: told(host, "one").state is State.READY)


async def test_a_model_that_fails_on_its_first_text_is_freed() -> None:
    source = SmallSource("one")
    source.model.width = 3
    host = host_of(source, retry_pause_s=math.inf)

    class Wrong(type(source.model)):  # type: ignore[misc]
        def forward(self, collated: list[int]) -> Rows:
            return np.zeros((len(collated), 1), np.float32)

    source.model = Wrong()
    async with host.serving():
        with pytest.raises(ModelUnavailable, match=r"one failed: .*first text"):
            await embed(host, "one")
        assert (source.loads, source.closed) == (1, 1)


async def test_an_unused_model_is_unloaded_and_its_card_stays_known_without_a_reload() -> None:
    default, other = SmallSource("default"), SmallSource("other")
    host = host_of(default, other, defaults=1, idle_unload_s=0.03)
    async with host.serving():
        await embed(host, "other")
        await until(lambda: told(host, "other").state is State.IDLE and other.closed == 1)
        card, fingerprint = await host.describe(Kind.EMBEDDING, "other")
        assert (card.name, fingerprint, other.loads) == ("other", "first", 1)
        assert await embed(host, "other") == 7
        assert other.loads == 2
        assert told(host, "default").state is State.READY
    assert (default.loads, default.closed) == (1, 1)


async def test_a_model_with_work_in_flight_is_not_unused() -> None:
    source = SmallSource("one")
    host = host_of(source, idle_unload_s=0.01)
    async with host.serving():
        await host.describe(Kind.EMBEDDING, "one")
        with busy(source):
            call = await begin(embed(host, "one"))
            await asyncio.sleep(0.05)
            assert told(host, "one").state is State.READY
        assert await call == 7


async def test_the_least_recently_used_model_leaves_when_memory_is_short() -> None:
    sources = {name: SmallSource(name) for name in ("one", "two", "three")}
    host = host_of(*sources.values(), memory_bytes=250 * MIB)
    async with host.serving():
        for name in ("one", "two", "one", "three"):
            await embed(host, name)
        states = {name: told(host, name).state for name in sources}
    assert states == {"one": State.READY, "two": State.IDLE, "three": State.READY}


async def test_models_that_do_not_fit_together_take_turns_and_running_work_is_finished_first() -> None:
    one, two = SmallSource("one"), SmallSource("two")
    host = host_of(one, two, memory_bytes=150 * MIB)
    async with host.serving():
        await embed(host, "one")
        with busy(one):
            running = await begin(embed(host, "one", "1"))
            for_two = await begin(embed(host, "two", "2"))
            later = await begin(embed(host, "one", "3"))
            assert told(host, "two").state is State.LOADING
            assert told(host, "two").reason == "memory that one uses"
            assert not later.done()
        assert [await call for call in (running, for_two, later)] == [1, 2, 3]
        assert (one.loads, two.loads) == (2, 1)


async def test_a_model_stays_when_the_caller_who_needed_its_place_has_left() -> None:
    one, two = SmallSource("one"), SmallSource("two")
    host = host_of(one, two, memory_bytes=150 * MIB)
    async with host.serving():
        await embed(host, "one")
        with busy(one):
            running = await begin(embed(host, "one"))
            for_two = await begin(embed(host, "two"))
            for_two.cancel()
            await asyncio.wait({for_two})
            later = await begin(embed(host, "one"))
        await asyncio.gather(running, later)
        assert (one.loads, two.loads, told(host, "two").state) == (1, 0, State.IDLE)


async def test_a_caller_who_waits_for_memory_in_vain_is_told_what_uses_it() -> None:
    one, two = SmallSource("one"), SmallSource("two")
    host = host_of(one, two, memory_bytes=150 * MIB)
    async with host.serving():
        await embed(host, "one")
        with busy(one):
            running = await begin(embed(host, "one"))
            with pytest.raises(ModelUnavailable, match="two waits for memory that one uses"):
                await embed(host, "two", deadline_s=0.02)
        await running


async def test_a_model_larger_than_all_memory_says_so_and_is_not_loaded_again_to_find_out() -> None:
    large, small = SmallSource("large", memory_bytes=300 * MIB), SmallSource("small")
    declared = [large.declared(is_default=False), small.declared(is_default=False)]
    host = ModelHost(declared, limits=HostingLimits(memory_bytes=250 * MIB, retry_pause_s=0.0))
    async with host.serving():
        await embed(host, "small")
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match=r"large takes 300 MiB.* 250 \(models.memory_mib\)"):
                await embed(host, "large")
        assert (large.loads, large.closed, small.closed) == (1, 1, 0)


async def test_a_model_that_took_more_than_expected_makes_others_leave() -> None:
    one, two = SmallSource("one"), SmallSource("two", memory_bytes=200 * MIB)
    declared = [one.declared(is_default=False), two.declared(is_default=False, expected_bytes=100 * MIB)]
    host = ModelHost(declared, limits=HostingLimits(memory_bytes=250 * MIB))
    async with host.serving():
        await embed(host, "one")
        await embed(host, "two")
        assert told(host, "one").state is State.IDLE
        assert (two.loads, two.closed) == (2, 1)


async def test_an_expected_size_makes_room_before_the_load() -> None:
    one, two = SmallSource("one"), SmallSource("two", memory_bytes=200 * MIB)
    declared = [one.declared(is_default=False), two.declared(is_default=False, expected_bytes=190 * MIB)]
    host = ModelHost(declared, limits=HostingLimits(memory_bytes=250 * MIB))
    async with host.serving():
        await embed(host, "one")
        await embed(host, "two")
        assert (one.closed, two.loads) == (1, 1)


def test_unused_models_leave_before_used_ones_and_no_more_than_are_needed() -> None:
    def hosted(alias: str, *, last_used: float, in_flight: int = 0) -> HostedModel:
        model = HostedModel(SmallSource(alias).declared(expected_bytes=100))
        model.last_used, model.in_flight = last_used, in_flight
        return model

    old_in_use = hosted("old in use", last_used=1, in_flight=1)
    older, newer = hosted("older", last_used=2), hosted("newer", last_used=3)
    models = [old_in_use, newer, older]
    assert choose_leaving(models, needed_bytes=0) == []
    assert choose_leaving(models, needed_bytes=100) == [older]
    assert choose_leaving(models, needed_bytes=101) == [older, newer]
    assert choose_leaving(models, needed_bytes=1_000) == [older, newer, old_in_use]


async def test_an_unknown_alias_is_told_with_those_of_its_kind() -> None:
    host = host_of(SmallSource("one"), SmallSource("two"), SmallSource("ranker", Kind.RERANKING))
    async with host.serving():
        with pytest.raises(ModelUnknown) as unknown:
            await embed(host, "ranker")
        assert unknown.value.available == ("one", "two")


async def test_stopping_tells_those_who_wait_and_frees_what_was_being_loaded() -> None:
    loading, queued = SmallSource("loading"), SmallSource("queued")
    loading.go.clear()
    host = host_of(loading, queued)
    async with host.serving():
        calls = [await begin(embed(host, name)) for name in ("loading", "queued")]
        await until(lambda: loading.loads == 1)
        threading.Timer(0.05, loading.go.set).start()
    with pytest.raises(ModelUnavailable, match="stopp"):
        await calls[1]
    await asyncio.gather(*calls, return_exceptions=True)
    assert (loading.loads, loading.closed, queued.loads) == (1, 1, 0)


@pytest.fixture(scope="session")
def minilm_256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second real embedding model: MiniLM that gives the first 256 of its dimensions."""
    if not MINILM.is_dir():
        pytest.skip(NO_MINILM)
    folder = tmp_path_factory.mktemp("models") / "minilm-256"
    shutil.copytree(MINILM, folder)
    described = folder / "config_sentence_transformers.json"
    content = json.loads(described.read_text()) if described.exists() else {}
    described.write_text(json.dumps(content | {"truncate_dim": 256}))
    return folder


async def test_two_real_models_take_turns_in_memory_for_one(minilm_256: Path) -> None:
    weights_mib = sum(path.stat().st_size for path in MINILM.glob("*.safetensors")) / MIB
    settings = Settings().with_options(
        models={
            "embedding": f"large={MINILM}, small={minilm_256}",
            "device": "cpu",
            "backend": "torch",
            "dtype": "float32",
            "memory_mib": math.ceil(1.2 * weights_mib),
            "cache_mib": 0,
        }
    )
    texts = ["A vault.", "A key hangs in the hall."]
    async with served(create_models_app(settings.models)) as url, ModelsClient(url) as client:
        await until_ready(client)
        assert await states(client) == {"large": State.READY, "small": State.IDLE}
        large, small = client.embedder("large"), client.embedder("small")
        rows = await large.embed(texts, lane=Lane.BULK)
        shorter = await small.embed(texts, lane=Lane.BULK)
        assert await states(client) == {"large": State.IDLE, "small": State.READY}
        again = await large.embed(texts, lane=Lane.BULK)
        cards = await large.describe(), await small.describe()
    assert [card.dimensions for card in cards] == [384, 256]
    assert cards[0].fingerprint != cards[1].fingerprint
    np.testing.assert_allclose(again, rows, atol=1e-5)
    first = rows[:, :256] / np.linalg.norm(rows[:, :256], axis=1, keepdims=True)
    np.testing.assert_allclose(np.sum(first * shorter, axis=1), 1, atol=1e-3)


async def states(client: ModelsClient) -> dict[str, State]:
    return {alias: model.state for alias, model in (await client.readiness()).items()}
