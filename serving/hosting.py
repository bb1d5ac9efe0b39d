"""Keeps the models that the models role declares: loads them when they are needed, unloads them when they are not.

A model is idle, loading, ready or failed. Loading happens one model at a time, in a thread; callers wait for it.
What memory there is goes to the models used last: before a load the least recently used ones leave, each after
its running work, and while one is leaving its new callers queue behind the load that needs its place. So two
models that do not fit together take turns, and neither shuts the other out.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from serving.batching.batcher import Batcher, BatchModel, LaneCounts, Limits, RowCache, Rows
from serving.model_metrics import ModelFigures, ModelMetrics, outcome_of
from serving.protocols import EmbeddingModel, Lane, ModelUnavailable, ModelUnknown, RerankingModel
from serving.readiness import Kind, ModelReadiness, State

MIB = 1024 * 1024

logger = logging.getLogger("strongroom.models")

Card = EmbeddingModel | RerankingModel


class LoadedModel(Protocol):
    """A model in memory: its replicas for the batcher, and what readiness tells of it."""

    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def threads(self) -> int:
        """Of one replica."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Of all replicas."""
        ...

    @property
    def replicas(self) -> Sequence[BatchModel[Any]]: ...
    @property
    def express(self) -> BatchModel[Any] | None:
        """One more, for people alone."""
        ...

    @property
    def limits_hint(self) -> int | None:
        """Tokens that a batch may have on this device, where that was measured."""
        ...

    @property
    def card(self) -> Card: ...
    def close(self) -> None:
        """Frees the memory. Blocks."""
        ...


@dataclass(frozen=True, kw_only=True)
class DeclaredModel:
    """A model that the settings name."""

    alias: str
    kind: Kind
    load: Callable[[], LoadedModel]
    """Blocks for seconds; runs in a thread. What it raises is told to callers and shows in readiness."""
    is_default: bool = False
    """Loaded at the start, and kept while unused: only the memory budget can make it leave."""
    expected_bytes: int = 0
    """What it should take in memory. Once loaded, what it took counts."""


@dataclass(frozen=True, kw_only=True)
class HostingLimits:
    """How much memory models may take, and how long who waits for whom."""

    memory_bytes: float = math.inf
    idle_unload_s: float = math.inf
    loading_wait_s: float = 60.0
    """The longest that a call without a deadline, or a question for a card, waits for its model."""
    retry_pause_s: float = 30.0
    """After a failed load: until then callers are told the reason at once."""
    batches: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class _Running:
    """A loaded model with its batcher; `exits` stops the one and frees the other."""

    loaded: LoadedModel
    fingerprint: str
    batcher: Batcher[Any]
    exits: AsyncExitStack


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    retry_at: float


@dataclass(eq=False)
class HostedModel:
    """A declared model and where it is in its life. ModelHost alone changes it."""

    declared: DeclaredModel
    running: _Running | None = None
    opening: asyncio.Task[None] | None = None
    waits_for: str = ""
    """Within `opening`: what has to happen before the load begins. Until then it may be given up."""
    failure: _Failure | None = None
    card: Card | None = None
    """Known since the first load, so that a question for it needs no reload."""
    fingerprint: str = ""
    """What a reply's rows came from: changes when vectors or scores may."""
    measured_bytes: int | None = None
    """What it took when it was last loaded."""
    callers: "set[asyncio.Future[_Running]]" = field(default_factory=set)
    """Calls that wait for the model to be opened."""
    in_flight: int = 0
    last_used: float = 0.0
    leaving: bool = False
    """Chosen to make room: new callers wait for the model to be opened again."""
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Mapping[Lane, LaneCounts] = field(default_factory=lambda: {lane: LaneCounts() for lane in Lane})
    """Of all its batchers, one after the other."""

    def __post_init__(self) -> None:
        self.unused.set()

    @property
    def alias(self) -> str:
        return self.declared.alias

    @property
    def kind(self) -> Kind:
        return self.declared.kind

    @property
    def memory_bytes(self) -> int:
        """Measured, or expected while it was never loaded."""
        return self.declared.expected_bytes if self.measured_bytes is None else self.measured_bytes

    def begin_use(self) -> None:
        self.in_flight += 1
        self.unused.clear()
        self.last_used = time.monotonic()

    def end_use(self) -> None:
        self.in_flight -= 1
        self.last_used = time.monotonic()
        if not self.in_flight:
            self.unused.set()

    def let_callers_in(self) -> None:
        """Those who wait have their use of the model begun for them."""
        assert self.running is not None
        for caller in self.callers:
            if not caller.done():
                self.begin_use()
                caller.set_result(self.running)

    def tell_callers(self, error: ModelUnavailable) -> None:
        """What those who wait get instead of the model."""
        for caller in self.callers:
            if not caller.done():
                caller.set_exception(error)

    def readiness(self) -> ModelReadiness:
        """What /ready tells."""
        told = ModelReadiness(
            alias=self.alias, kind=self.kind, state=State.IDLE, is_default=self.declared.is_default
        )
        if self.running is not None:
            loaded = self.running.loaded
            every = self.running.batcher.replica_faults
            faults = [fault for fault in every if fault is not None]
            return replace(
                told,
                state=State.FAILED if len(faults) == len(every) else State.READY,
                reason="; ".join(sorted(set(faults))),
                device=loaded.device,
                precision=loaded.precision,
                backend=loaded.backend,
                threads=loaded.threads,
                replicas=len(loaded.replicas),
                memory_bytes=loaded.memory_bytes,
            )
        if self.opening is not None and not self.opening.done():
            return replace(told, state=State.LOADING, reason=self.waits_for)
        if self.failure is not None:
            return replace(told, state=State.FAILED, reason=self.failure.reason)
        return told

    def figures(self) -> ModelFigures:
        """What /metrics reads."""
        waiting = {lane: self.running.batcher.waiting_texts(lane) if self.running else 0 for lane in Lane}
        return ModelFigures(readiness=self.readiness(), waiting_texts=waiting, counts=self.counts)


def choose_leaving(loaded: Iterable[HostedModel], *, needed_bytes: float) -> list[HostedModel]:
    """Those that leave so that `needed_bytes` are freed: unused ones first, the least recently used before others.

    All of them when even that is not enough.
    """
    chosen: list[HostedModel] = []
    for model in sorted(loaded, key=lambda model: (model.in_flight > 0, model.last_used)):
        if needed_bytes <= 0:
            break
        chosen.append(model)
        needed_bytes -= model.memory_bytes
    return chosen


class ModelHost:
    """The declared models of one process, in one event loop; `serving` is its life."""

    def __init__(
        self,
        declared: Sequence[DeclaredModel],
        *,
        limits: HostingLimits | None = None,
        cache: RowCache | None = None,
    ) -> None:
        """`cache` is shared by all models: a search that is asked again, or paged, costs no forward pass."""
        self._limits = limits or HostingLimits()
        self._cache = cache
        self._models = {(each.kind, each.alias): HostedModel(each) for each in declared}
        self._metrics = ModelMetrics(
            lambda: [model.figures() for model in self.models],
            memory_limit_bytes=self._limits.memory_bytes,
            cache=cache,
        )
        self._is_serving = False
        self._turn = asyncio.Lock()
        """Held while a model is loaded or unloaded."""
        self._changed = asyncio.Event()
        """Tells the keeper that a model was opened, or failed, or that all ends."""

    @property
    def models(self) -> Sequence[HostedModel]:
        """In the order of their declaration."""
        return tuple(self._models.values())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Loads the defaults meanwhile, one after the other; at the end stops every model."""
        self._is_serving = True
        for model in self.models:
            if model.declared.is_default:
                self._start_opening(model)
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            self._is_serving = False
            self._changed.set()
            opening = [model for model in self.models if model.opening is not None]
            for model in opening:
                self._give_up(model)
            # A load that has begun cannot be stopped: what it loads is closed like the others.
            await asyncio.wait({keeper, *(model.opening for model in opening if model.opening is not None)})
            for model in self.models:
                await self._close(model)

    def readiness(self) -> list[ModelReadiness]:
        """Of each model, in the order of their declaration."""
        return [model.readiness() for model in self.models]

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.render()

    async def describe(self, kind: Kind, alias: str) -> tuple[Card, str]:
        """The card and the fingerprint that replies carry. Loads a model that never was.

        Raises ModelUnknown, ModelUnavailable.
        """
        model = self._find(kind, alias)
        if model.card is None:
            await self._begin_use(model, self._limits.loading_wait_s)
            model.end_use()
        assert model.card is not None
        return model.card, model.fingerprint

    async def run(
        self,
        kind: Kind,
        alias: str,
        inputs: Sequence[Any],
        *,
        lane: Lane,
        deadline_s: float | None,
        cache_salt: str,
        truncate: bool,
    ) -> tuple[Rows, str]:
        """Batcher.run on that model, with the fingerprint of the model that computed. Loads it if need be.

        Raises ModelUnknown, ModelUnavailable, Overloaded, TextRefused.
        """
        model = self._find(kind, alias)
        outcome = "cancelled"
        began = time.monotonic()
        try:
            running = await self._begin_use(
                model, self._limits.loading_wait_s if deadline_s is None else deadline_s
            )
            try:
                rows = await running.batcher.run(
                    inputs,
                    lane=lane,
                    deadline_s=None if deadline_s is None else began + deadline_s - time.monotonic(),
                    cache_salt=cache_salt,
                    truncate=truncate,
                )
            finally:
                model.end_use()
            outcome = "ok"
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._metrics.count_request(alias, lane, outcome)
        return rows, running.fingerprint

    def _find(self, kind: Kind, alias: str) -> HostedModel:
        model = self._models.get((kind, alias))
        if model is None:
            raise ModelUnknown(alias, [alias for each, alias in self._models if each is kind])
        return model

    async def _begin_use(self, model: HostedModel, wait_s: float) -> _Running:
        """The open model, which stays open until `end_use`. Raises ModelUnavailable after `wait_s` or a failure."""
        if model.running is not None and not model.leaving:
            model.begin_use()
            return model.running
        if model.failure is not None and time.monotonic() < model.failure.retry_at:
            raise _failed(model, model.failure)
        opened: asyncio.Future[_Running] = asyncio.get_running_loop().create_future()
        model.callers.add(opened)
        self._start_opening(model)
        try:
            async with asyncio.timeout(wait_s):
                return await opened
        except TimeoutError:
            if not opened.cancelled():
                # Opened, or failed, at that very moment.
                return opened.result()
            what = f"waits for {model.waits_for}" if model.waits_for else "is still loading"
            raise ModelUnavailable(f"The {model.kind} model {model.alias} {what}. Try again.") from None
        except asyncio.CancelledError:
            # As above, for a caller who leaves: the use that was begun for it ends.
            if not opened.cancelled() and opened.exception() is None:
                model.end_use()
            raise
        finally:
            model.callers.discard(opened)
            if not model.callers and not model.declared.is_default:
                self._give_up(model)

    def _start_opening(self, model: HostedModel) -> None:
        """One task for all who wait."""
        if model.opening is None:
            model.waits_for = "its turn to be loaded"
            model.opening = asyncio.create_task(self._open(model))
            # Not within the task, which never begins when it is given up at once.
            model.opening.add_done_callback(lambda _: self._opening_ended(model))

    def _opening_ended(self, model: HostedModel) -> None:
        model.opening = None
        model.waits_for = ""
        self._changed.set()
        if model.callers and self._is_serving:
            # They came while it was being given up.
            self._start_opening(model)
        elif model.callers:
            model.tell_callers(ModelUnavailable("The models server is stopping."))

    def _give_up(self, model: HostedModel) -> None:
        """Ends an opening that nobody waits for any more, unless the load has begun."""
        if model.opening is not None and model.waits_for:
            model.opening.cancel()

    async def _open(self, model: HostedModel) -> None:
        try:
            async with self._turn:
                if model.running is None:
                    model.running = await self._load(model)
                    model.failure = None
                    model.last_used = time.monotonic()
                # Now, before the next load has its turn: else two models that do not fit together could make each
                # other leave for ever, and nobody would be served.
                model.let_callers_in()
        except Exception as error:
            # The task's edge: whoever waits for the model, or asks for readiness, is told.
            logger.exception("model_failed", extra={"model": model.alias, "kind": model.kind.value})
            self._metrics.count_load(model.alias, succeeded=False)
            reason = str(error) if isinstance(error, ModelUnavailable) else type(error).__name__
            model.failure = _Failure(reason, time.monotonic() + self._limits.retry_pause_s)
            model.tell_callers(_failed(model, model.failure))

    async def _load(self, model: HostedModel) -> _Running:
        began = time.monotonic()
        while True:
            await self._make_room(model)
            loaded = await asyncio.to_thread(model.declared.load)
            model.measured_bytes = loaded.memory_bytes
            if self._lacking_bytes(model) <= 0:
                break
            # It took more than its files let expect: once more, with the right figure.
            await asyncio.to_thread(loaded.close)
        running = await self._start(model, loaded)
        model.card = loaded.card
        model.fingerprint = running.fingerprint
        self._metrics.count_load(model.alias, succeeded=True)
        took = {"seconds": round(time.monotonic() - began, 1), "mib": loaded.memory_bytes // MIB}
        logger.info("model_loaded", extra={"model": model.alias, "kind": model.kind.value, **took})
        return running

    async def _start(self, model: HostedModel, loaded: LoadedModel) -> _Running:
        limits = self._limits.batches
        if loaded.limits_hint is not None:
            limits = replace(limits, max_batch_tokens=loaded.limits_hint)
        is_embedding = model.kind is Kind.EMBEDDING
        fingerprint = loaded.card.fingerprint
        exits = AsyncExitStack()
        exits.push_async_callback(asyncio.to_thread, loaded.close)
        try:
            batcher: Batcher[Any] = Batcher(
                loaded.replicas,
                express=loaded.express,
                probe="warm up" if is_embedding else ("warm", "up"),
                limits=limits,
                on_batch=partial(self._metrics.record, model.alias),
                cache=self._cache,
                fingerprint=fingerprint,
                counts=model.counts,
            )
            await exits.enter_async_context(batcher)
        except BaseException:
            await exits.aclose()
            raise
        return _Running(loaded, fingerprint, batcher, exits)

    async def _make_room(self, model: HostedModel) -> None:
        """Returns when the model fits beside those that stayed. Raises ModelTooLarge when it never will."""
        budget = self._limits.memory_bytes
        if model.measured_bytes is not None and model.measured_bytes > budget:
            raise ModelTooLarge(model.alias, model.measured_bytes, budget)
        others = (other for other in self.models if other.running is not None)
        leaving = choose_leaving(others, needed_bytes=self._lacking_bytes(model))
        for other in leaving:
            other.leaving = True
        try:
            for other in leaving:
                model.waits_for = f"memory that {other.alias} uses"
                await other.unused.wait()
                model.waits_for = ""
                await self._close(other)
        finally:
            for other in leaving:
                other.leaving = False
        model.waits_for = ""

    def _lacking_bytes(self, model: HostedModel) -> float:
        """How much the others take of what the model needs."""
        others = sum(other.memory_bytes for other in self.models if other.running is not None)
        return others + model.memory_bytes - self._limits.memory_bytes

    async def _close(self, model: HostedModel) -> None:
        running, model.running = model.running, None
        if running is None:
            return
        try:
            await running.exits.aclose()
        except Exception:
            # It is out of use in any case, and whoever needs its place can go on.
            logger.exception("model_close_failed", extra={"model": model.alias, "kind": model.kind.value})
        self._metrics.count_unload(model.alias)
        logger.info("model_unloaded", extra={"model": model.alias, "kind": model.kind.value})

    async def _keep(self) -> None:
        """Unloads models that are idle for long, and tries failed defaults again; sleeps until the next is due."""
        while self._is_serving:
            next_due_s = min(self._due_at(model) for model in self.models) - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(next_due_s if next_due_s < math.inf else None):
                    await self._changed.wait()
            self._changed.clear()
            for model in self.models:
                if self._due_at(model) > time.monotonic():
                    continue
                if model.running is None:
                    if self._is_serving:
                        self._start_opening(model)
                    continue
                async with self._turn:
                    # It may have been used while a load had its turn.
                    if self._due_at(model) <= time.monotonic():
                        await self._close(model)

    def _due_at(self, model: HostedModel) -> float:
        """When the keeper has something to do for it, or has to look again; infinite for never."""
        if model.declared.is_default:
            waits = model.running is None and model.opening is None and model.failure is not None
            return model.failure.retry_at if waits and model.failure else math.inf
        if model.running is None:
            return math.inf
        return (time.monotonic() if model.in_flight else model.last_used) + self._limits.idle_unload_s


class ModelTooLarge(ModelUnavailable):
    """A model alone takes more memory than all models may."""

    def __init__(self, alias: str, memory_bytes: int, budget_bytes: float) -> None:
        super().__init__(
            f"{alias} takes {memory_bytes / MIB:.0f} MiB, and all models together may take "
            f"{budget_bytes / MIB:.0f} (models.memory_mib): raise that, or declare a smaller model."
        )


def _failed(model: HostedModel, failure: _Failure) -> ModelUnavailable:
    return ModelUnavailable(f"The {model.kind} model {model.alias} failed: {failure.reason}")
