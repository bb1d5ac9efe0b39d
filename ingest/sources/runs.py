"""Which sweeps are to run, and what became of them. Each is a row that is unique for its source and due time."""

from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ingest.sources.patterns import PathFilter
from ingest.sources.registry import KEEP_SWEEPS, scope_of
from ingest.sources.sweep import Report, SweptSource
from ingest.sources.times import backoff_s, next_due
from retrieval import audit
from retrieval.tables import AuditEvent, Source, Sweep

AGAIN_AFTER_S = 2.0
"""When a watched folder had files that were still being written."""
CHANGES = ("added", "changed", "renamed", "removed")
ABANDONED = "The worker that ran it stopped; it is run again."


@dataclass(frozen=True)
class BegunSweep:
    """All that the one who runs it needs, read in the transaction that began it."""

    sweep_id: int
    source: SweptSource
    url: str
    options: bytes | None
    is_dry: bool
    may_empty: bool
    next_due_at: float | None
    """As set at its beginning."""


def waiting(session: Session, *, now: float) -> list[str]:
    """Sources with a sweep that somebody asked for or that is due, the longest due first."""
    asked = session.execute(select(Sweep.source_id, Sweep.due_at).where(Sweep.started_at.is_(None))).all()
    due = session.execute(
        select(Source.id, Source.due_at).where(Source.is_paused.is_(False), Source.due_at <= now)
    ).all()
    first: dict[str, float] = {}
    for source_id, due_at in [*asked, *due]:
        assert due_at is not None
        first[source_id] = min(due_at, first.get(source_id, due_at))
    return sorted(first, key=lambda source_id: (first[source_id], source_id))


def begin(session: Session, source_id: str, *, now: float) -> BegunSweep | None:
    """Starts what is asked for or due of a source, if it still is. The next one is due after this one's end."""
    source = session.get(Source, source_id, with_for_update=True)
    if source is None:
        return None
    sweep = session.scalar(
        select(Sweep)
        .where(Sweep.source_id == source_id, Sweep.started_at.is_(None))
        .order_by(Sweep.id)
        .limit(1)
    )
    if sweep is None:
        if source.is_paused or source.due_at is None or source.due_at > now:
            return None
        done = select(Sweep.id).where(Sweep.source_id == source_id, Sweep.due_at == source.due_at)
        if session.scalar(done) is not None:
            source.due_at = next_due(source, now=now)
            return None
        sweep = Sweep(source_id=source_id, due_at=source.due_at, counts={})
        session.add(sweep)
    if not sweep.is_dry:
        source.due_at = next_due(source, now=now)
    sweep.started_at = now
    session.flush()
    return BegunSweep(
        sweep_id=sweep.id,
        source=SweptSource(
            source_id=source.id,
            scope=scope_of(source),
            collection_id=source.collection_id,
            wanted=PathFilter(source.include, source.exclude),
            max_bytes=source.max_bytes,
            attributes=source.attributes,
            chunking=source.chunking,
        ),
        url=source.url,
        options=source.options,
        is_dry=sweep.is_dry,
        may_empty=sweep.may_empty,
        next_due_at=source.due_at,
    )


def finish(session: Session, begun: BegunSweep, report: Report, *, now: float) -> None:
    sweep = session.get(Sweep, begun.sweep_id)
    source = session.get(Source, begun.source.source_id, with_for_update=True)
    if sweep is None or source is None:
        return
    sweep.ended_at = now
    sweep.counts = report.counts
    if not begun.is_dry and any(report.counts[name] for name in CHANGES):
        audit.record(
            session,
            AuditEvent.SOURCE_SWEPT,
            source.id,
            scope=begun.source.scope,
            added=report.counts["added"],
            changed=report.counts["changed"],
            renamed=report.counts["renamed"],
            removed=report.counts["removed"],
        )
    sweep.error = report.note
    if not begun.is_dry:
        source.failures = 0
        # Else it was made due while the sweep ran: something happened that the sweep may not have seen.
        if source.due_at == begun.next_due_at:
            source.due_at = next_due(source, now=now)
        if source.is_watched and report.counts["unsettled"]:
            source.due_at = now + AGAIN_AFTER_S
    _trim(session, source.id)


def fail(session: Session, begun: BegunSweep, reason: str, *, now: float) -> None:
    """The source is left alone for a while, longer each time."""
    sweep = session.get(Sweep, begun.sweep_id)
    source = session.get(Source, begun.source.source_id, with_for_update=True)
    if sweep is None or source is None:
        return
    sweep.ended_at = now
    sweep.error = reason
    if not begun.is_dry:
        source.failures += 1
        source.due_at = next_due(source, now=now)
    _trim(session, source.id)


def needs_tidying(session: Session, *, but: list[int], now: float) -> bool:
    """A cheap look, before `abandon_unfinished` and `pull_back` take the write lock."""
    unfinished = select(Sweep.id).where(
        Sweep.started_at.is_not(None), Sweep.ended_at.is_(None), Sweep.id.not_in(but)
    )
    if session.scalar(unfinished.limit(1)) is not None:
        return True
    waiting = session.scalars(select(Source).where(Source.due_at > now)).all()
    return any(_waits_too_long(source, now=now) for source in waiting)


def abandon_unfinished(session: Session, *, but: list[int], now: float) -> None:
    """Ends sweeps that nobody runs any more, and makes their sources due: what they did stands, the rest is left."""
    rows = session.scalars(
        select(Sweep).where(Sweep.started_at.is_not(None), Sweep.ended_at.is_(None), Sweep.id.not_in(but))
    ).all()
    for sweep in rows:
        sweep.ended_at = now
        sweep.error = ABANDONED
        if not sweep.is_dry:
            session.execute(update(Source).where(Source.id == sweep.source_id).values(due_at=now))


def make_due(session: Session, source_id: str, *, at: float) -> None:
    """For a folder in which something happened. A source that fails waits on."""
    session.execute(
        update(Source)
        .where(Source.id == source_id, Source.failures == 0, (Source.due_at > at) | Source.due_at.is_(None))
        .values(due_at=at)
    )


def pull_back(session: Session, *, now: float) -> None:
    """After a clock was set back: nothing waits longer than from now on it would."""
    for source in session.scalars(select(Source).where(Source.due_at > now)):
        if _waits_too_long(source, now=now):
            source.due_at = next_due(source, now=now)


def reason_waiting(source: Source) -> str | None:
    """Why a source is not swept as often as it should be."""
    if source.is_paused:
        return "It is paused."
    if source.failures:
        minutes = backoff_s(source.failures) / 60
        tries = "The last sweep" if source.failures == 1 else f"The last {source.failures} sweeps"
        return f"{tries} failed; the next waits {minutes:.0f} minutes at least."
    return None


def _waits_too_long(source: Source, *, now: float) -> bool:
    soonest = next_due(source, now=now)
    return soonest is not None and source.due_at is not None and source.due_at > soonest


def _trim(session: Session, source_id: str) -> None:
    kept = select(Sweep.id).where(Sweep.source_id == source_id).order_by(Sweep.id.desc()).limit(KEEP_SWEEPS)
    session.execute(
        delete(Sweep).where(
            Sweep.source_id == source_id,
            Sweep.id.not_in(list(session.scalars(kept))),
            Sweep.ended_at.is_not(None),
        )
    )
