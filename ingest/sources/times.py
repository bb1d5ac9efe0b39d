"""When a source is swept next: every so long, or by cron in UTC, which no daylight saving time moves."""

import re
from datetime import UTC, datetime

from apscheduler.triggers.cron import CronTrigger

from ingest.sources.entries import SourceRefused
from retrieval.tables import Source

LEAST_EVERY_S = 10.0
MOST_EVERY_S = 366 * 86_400.0
SAFETY_S = 600.0
"""A watched folder is swept this often as well: the kernel drops events when too many come at once."""
FIRST_BACKOFF_S = 60.0
MOST_BACKOFF_S = 3600.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def parse_every(text: str) -> float:
    """Seconds of `90s`, `5m`, `2h`, `1d`. Raises SourceRefused."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    seconds = float(int(match[1]) * _UNITS_S[match[2]]) if match else 0.0
    if not LEAST_EVERY_S <= seconds <= MOST_EVERY_S:
        raise SourceRefused(
            f"every must be a number with s, m, h or d, such as 5m, and {LEAST_EVERY_S:.0f}s at least.",
            param="every",
        )
    return seconds


def show_every(seconds: float) -> str:
    for unit, length in reversed(_UNITS_S.items()):
        if seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds}s"


def check_cron(expression: str) -> None:
    """Raises SourceRefused."""
    if _next_by_cron(expression, after=0.0) is None:
        raise SourceRefused(f"cron: {expression!r} never comes.", param="cron")


def next_due(source: Source, *, now: float) -> float | None:
    """After a sweep at `now`; None for a source that is only swept when it is asked for.

    A source that fails is left alone for longer each time, an hour at most.
    """
    regular: float | None = None
    if source.every_s is not None:
        regular = now + source.every_s
    elif source.cron is not None:
        regular = _next_by_cron(source.cron, after=now)
    elif source.is_watched:
        regular = now + SAFETY_S
    if regular is None:
        return None
    return max(regular, now + backoff_s(source.failures))


def backoff_s(failures: int) -> float:
    """0, then 1, 2, 4 … 60 minutes."""
    if failures == 0:
        return 0.0
    return min(MOST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))


def _next_by_cron(expression: str, *, after: float) -> float | None:
    try:
        minute, hour, day, month, weekday = expression.split()
    except ValueError as error:
        raise SourceRefused(
            "cron needs five fields: minute, hour, day of month, month, day of week.", param="cron"
        ) from error
    if "*" not in (day, weekday):
        # cron takes either, the library both: a schedule that means another thing than it says helps nobody.
        raise SourceRefused("cron: name days of the month or of the week, and * for the other.", param="cron")
    try:
        trigger = CronTrigger(
            minute=minute,
            hour=hour,
            day=day,
            month=month.lower(),
            day_of_week=_named_days(weekday),
            timezone=UTC,
        )
        found = trigger.get_next_fire_time(None, datetime.fromtimestamp(after, UTC))
    except ValueError as error:
        raise SourceRefused(f"cron: {error}.", param="cron") from error
    # The library also gives the very moment that it is asked for.
    if found is not None and found.timestamp() <= after:
        found = trigger.get_next_fire_time(found, datetime.fromtimestamp(after, UTC))
    return float(found.timestamp()) if found is not None else None


def _named_days(field: str) -> str:
    """cron counts days of the week from Sunday, the library from Monday; both know names."""
    if field == "*":
        return field
    days: set[int] = set()
    for part in field.lower().split(","):
        match = re.fullmatch(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/(\d+))?", part)
        if match is None:
            raise ValueError(f"{field!r} is no day of the week")
        first = 0 if match[1] == "*" else _day(match[1])
        last = _day(match[2]) if match[2] else (6 if match[1] == "*" or match[3] else first)
        if last < first:
            last += 7
        days.update(each % 7 for each in range(first, last + 1, int(match[3] or 1) or 1))
    return ",".join(_DAYS[each] for each in sorted(days))


def _day(text: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    if text.isdigit() and int(text) <= 7:
        return int(text)
    raise ValueError(f"{text!r} is no day of the week: 0 to 7, or sun to sat")
