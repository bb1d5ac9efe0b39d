"""Responses that nobody waits for: rows under a lease, which an api process runs on the background lane.

A process that ends gives back what it runs; of one that was killed, another takes it when the lease has ended, and
begins anew. Its events are rows as well, so that any process can show them, while they come and later.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Self

from sqlalchemy.exc import OperationalError

from app.access.auth import KeyInvalid, must_own
from app.access.retention import RetentionForbids, must_not_keep
from app.answers.chat import EngineRefused
from app.errors import BadRequest, UnknownModel
from app.responses.answering import (
    append_to_conversation,
    as_wished,
    skeleton,
    wishes,
    without_output,
    write,
)
from app.responses.engine_turn import refused_with
from app.responses.items import Json
from app.responses.quoting import unquoted
from app.responses.reading import Asked, read_asked
from app.responses.request import ResponseBody
from app.responses.writing import ResponseWriter, Wishes
from app.services import Services
from retrieval import audit, conversations, responses
from retrieval.catalog import NotFound
from retrieval.responses import ClaimedResponse, LeaseLost, PreviousMissing
from retrieval.row_security import act_for
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import NEVER, AuditEvent, ResponseStatus, StoredResponse, new_id
from retrieval.together import in_thread, together
from serving.protocols import EngineUnavailable, Lane, ModelUnavailable, Overloaded, ServingError

log = logging.getLogger("strongroom.responses")

LEASE_S = 15.0
LOOK_S = 1.0
"""How often is looked for what other processes left."""
FLUSH_S = 0.1
CHECK_S = 0.5
"""How often is looked whether it was cancelled by another process, while the engine says nothing."""
AT_ONCE = 4
"""Of one process. The gateway lets people go first anyway."""
MOST_WAITING = 1_000
"""Of one tenant."""
MOST_ATTEMPTS = 8
"""With the waits between them, ten minutes for an engine to come back."""
LONGEST_WAIT_S = 120.0

_PASSING = (EngineUnavailable, ModelUnavailable, Overloaded)
_LASTING = (
    BadRequest,
    NotFound,
    PreviousMissing,
    KeyInvalid,
    RetentionForbids,
    UnknownModel,
    EngineRefused,
    ServingError,
)


class Background:
    """Runs background responses as long as it is open."""

    def __init__(
        self, services: Services, *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._services = services
        self._database = services.storage.database
        """Of all tenants, by leases; what is answered is read as its key may."""
        self._lease_s = lease_s
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._loop, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def enqueue(self, scope: Scope, body: ResponseBody) -> Json:
        """The queued response. Raises what a request that cannot be answered leads to, as far as can be told now."""
        response = await in_thread(self._enqueue, scope, body)
        self._woken.set()
        return response

    def stop(self, response_id: str) -> None:
        """At once, if it runs here: its row is cancelled or gone. Other processes see that within a second."""
        if response_id in self._running:
            self._running[response_id].cancel()

    def _enqueue(self, scope: Scope, body: ResponseBody) -> Json:
        asked = read_asked(self._services, scope, body)
        now = self._clock()
        response_id = new_id("resp_")
        response = skeleton(asked, response_id, lane=Lane.BACKGROUND, now=now)
        events = ResponseWriter(response, Wishes()).created(queued=True)
        row = StoredResponse(
            id=response_id,
            tenant_id=scope.tenant_id,
            key_id=scope.key_id,
            status=ResponseStatus.QUEUED,
            previous_id=body.previous_response_id,
            conversation_id=body.conversation_id,
            is_background=True,
            content=without_output(response),
            request=body.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"input"}),
            due_at=now,
            last_event=events[-1]["sequence_number"],
            created_at=now,
        )
        with self._services.database.write() as session:
            if responses.count_waiting(session, scope) >= MOST_WAITING:
                raise Overloaded(LONGEST_WAIT_S)
            if body.conversation_id is not None:
                # For as long as it takes: the row lets go when it ends, is cancelled or deleted.
                conversations.hold(session, scope, body.conversation_id, response_id, now=now, hold_s=NEVER)
            responses.add_response(session, row, asked=unquoted(list(asked.items)))
            responses.insert_events(session, response_id, events)
            audit.record(session, AuditEvent.RESPONSE_STORED, response_id, scope=scope)
        return response

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            free = AT_ONCE - len(self._running)
            try:
                claimed = await in_thread(self._claim, free) if free else []
            except OperationalError:
                log.warning("responses_not_claimed")
                claimed = []
            for each in claimed:
                task = asyncio.create_task(self._answer(each))
                self._running[each.response_id] = task
                task.add_done_callback(lambda _, response_id=each.response_id: self._ended(response_id))  # type: ignore[misc]
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()

    def _ended(self, response_id: str) -> None:
        del self._running[response_id]
        self._woken.set()

    def _claim(self, most: int) -> list[ClaimedResponse]:
        now = self._clock()
        with self._database.read() as session:
            if not responses.any_due(session, now=now):
                return []
        with self._database.write() as session:
            return responses.claim(session, now=now, lease_s=self._lease_s, most=most)

    async def _answer(self, claimed: ClaimedResponse) -> None:
        try:
            await self._attempt(claimed)
        except LeaseLost:
            pass
        except asyncio.CancelledError:
            # This process ends. If the response was cancelled, it is no longer ours to give back.
            with suppress(LeaseLost, OperationalError):
                await in_thread(self._give_back, claimed, 0.0)
            raise
        except OperationalError:
            # Its lease ends, and then it is tried again.
            log.warning("response_not_written id=%s", claimed.response_id)
        except Exception:
            log.exception("response_failed id=%s", claimed.response_id)
            with suppress(LeaseLost, OperationalError):
                await in_thread(self._fail, claimed, "Internal error; the server's log has more.")

    async def _attempt(self, claimed: ClaimedResponse) -> None:
        """Raises LeaseLost, OperationalError."""
        try:
            await self._write(claimed)
        except _PASSING as error:
            if claimed.attempt >= MOST_ATTEMPTS:
                await in_thread(self._fail, claimed, str(error))
            else:
                await in_thread(self._give_back, claimed, min(2.0**claimed.attempt, LONGEST_WAIT_S))
        except _LASTING as error:
            reason = refused_with(error) if isinstance(error, EngineRefused) else str(error)
            await in_thread(self._fail, claimed, reason)

    async def _write(self, claimed: ClaimedResponse) -> None:
        services = self._services
        body = ResponseBody.model_validate(claimed.request)
        scope = await in_thread(services.keys.scope_of_id, claimed.key_id)
        act_for(scope.tenant_id)
        must_not_keep(scope, "background")
        asked = await in_thread(self._read, scope, claimed, body)
        writer = ResponseWriter(
            {**claimed.content, "output": [], "output_text": None},
            wishes(services, scope, body, asked),
            first_event=claimed.first_event,
        )
        pending: list[Json] = []
        async with together() as tasks:
            flushing = tasks.create_task(self._flush(claimed, pending))
            written = write(
                services,
                scope,
                asked,
                writer,
                is_new=claimed.attempt > 1,
                lane=Lane.BACKGROUND,
                stages=Stages(),
            )
            async with aclosing(written):
                async for event in written:
                    # `flushing` takes them out meanwhile.
                    pending.append(unquoted(event))  # noqa: PERF401
            flushing.cancel()
        try:
            await in_thread(self._finish, claimed, scope, body, writer, pending)
        except (NotFound, conversations.ItemPresent):
            writer.failed("The conversation was deleted or changed meanwhile.")
            await in_thread(self._finish, claimed, scope, body, writer, pending)

    def _read(self, scope: Scope, claimed: ClaimedResponse, body: ResponseBody) -> Asked:
        with self._services.database.read() as session:
            kept = responses.input_of(session, responses.get_response(session, scope, claimed.response_id))
        return read_asked(self._services, scope, body, kept=kept)

    async def _flush(self, claimed: ClaimedResponse, pending: list[Json]) -> None:
        """Writes events as they come, and sees whether the response is still ours. Raises LeaseLost."""
        renewed_at = checked_at = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_S)
            now = time.monotonic()
            if pending:
                events, pending[:] = pending[:], []
                await in_thread(self._add_events, claimed, events)
                renewed_at = checked_at = now
            elif now - renewed_at > self._lease_s / 3:
                await in_thread(self._renew, claimed)
                renewed_at = checked_at = now
            elif now - checked_at > CHECK_S:
                await in_thread(self._check, claimed)
                checked_at = now

    def _add_events(self, claimed: ClaimedResponse, events: list[Json]) -> None:
        with self._database.write() as session:
            responses.add_events(session, claimed, events, now=self._clock(), lease_s=self._lease_s)

    def _renew(self, claimed: ClaimedResponse) -> None:
        with self._database.write() as session:
            responses.renew(session, claimed, now=self._clock(), lease_s=self._lease_s)

    def _check(self, claimed: ClaimedResponse) -> None:
        with self._database.read() as session:
            if not responses.is_held(session, claimed):
                raise LeaseLost

    def _give_back(self, claimed: ClaimedResponse, wait_s: float) -> None:
        with self._database.write() as session:
            responses.give_back(session, claimed, due_at=self._clock() + wait_s)

    def _finish(
        self,
        claimed: ClaimedResponse,
        scope: Scope,
        body: ResponseBody,
        writer: ResponseWriter,
        pending: list[Json],
    ) -> None:
        response = writer.response
        said = unquoted(response["output"])
        closing = unquoted(writer.closing(as_wished(response, body.includes)))
        with self._services.database.write() as session:
            row = responses.get_response(session, scope, claimed.response_id)
            if body.conversation_id is not None and response["status"] != ResponseStatus.FAILED:
                asked = responses.input_of(session, row)
                append_to_conversation(session, scope, body.conversation_id, row.id, asked, said)
            conversations.let_go(session, claimed.response_id)
            responses.finish(
                session,
                claimed,
                status=ResponseStatus(response["status"]),
                content=without_output(response),
                said=said,
                events=[*pending, closing],
                now=self._clock(),
            )

    def _fail(self, claimed: ClaimedResponse, message: str) -> None:
        """Before anything was said."""
        with self._database.write() as session:
            first_event = responses.next_event(session, claimed)
            writer = ResponseWriter({**claimed.content, "output": []}, Wishes(), first_event=first_event)
            writer.failed(message)
            conversations.let_go(session, claimed.response_id)
            responses.finish(
                session,
                claimed,
                status=ResponseStatus.FAILED,
                content=without_output(writer.response),
                said=[],
                events=[writer.closing()],
                now=self._clock(),
            )


def cancel(services: Services, scope: Scope, response_id: str) -> None:
    """Blocks. What has ended stays as it is. Raises ResponseMissing, NotAllowed, BadRequest."""
    with services.database.write() as session:
        response = responses.get_response(session, scope, response_id, lock=True)
        if not response.is_background:
            raise BadRequest(
                "Only a response that was created with background=true can be cancelled.", param="response_id"
            )
        must_own(scope, response.key_id)
        if response.status.is_final:
            return
        conversations.let_go(session, response_id)
        content = {**response.content, "status": ResponseStatus.CANCELLED.value}
        event = {
            "type": "error",
            "code": "response_cancelled",
            "message": "The response was cancelled.",
            "param": None,
            "sequence_number": response.last_event + 1,
        }
        responses.cancel(session, response, content, event)
