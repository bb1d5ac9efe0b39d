"""When sources are swept next. Expected times were worked out by hand."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ingest.sources.entries import SourceRefused
from ingest.sources.times import SAFETY_S, backoff_s, check_cron, next_due, parse_every, show_every
from retrieval.tables import Source


def source(**changed: Any) -> Source:
    return Source(**{"every_s": None, "cron": None, "is_watched": False, "failures": 0, **changed})


def at(*when: int) -> float:
    year, month, day, hour, minute = (*when, 0, 0)[:5]
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400)])
def test_every_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_every(text) == seconds
    assert show_every(seconds) == text


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5 m", "1s", "9999d", "5m5s", "٥m"])
def test_every_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SourceRefused, match="such as 5m"):
        parse_every(text)


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("0 3 * * *", at(2026, 11, 23, 2, 59), at(2026, 11, 23, 3)),
        ("0 3 * * *", at(2026, 11, 23, 3), at(2026, 11, 24, 3)),
        ("*/15 * * * *", at(2026, 11, 23, 10, 20), at(2026, 11, 23, 10, 30)),
        # 23 November 2026 is a Monday, which cron calls 1.
        ("0 6 * * 1", at(2026, 11, 23, 5), at(2026, 11, 23, 6)),
        ("0 6 * * 0", at(2026, 11, 23, 5), at(2026, 11, 29, 6)),
        ("0 6 * * 7", at(2026, 11, 23, 5), at(2026, 11, 29, 6)),
        ("0 6 * * 0-6", at(2026, 11, 23, 7), at(2026, 11, 24, 6)),
        ("0 6 * * 5-7", at(2026, 11, 23, 5), at(2026, 11, 27, 6)),
        ("0 6 * * tue,THU", at(2026, 11, 24, 7), at(2026, 11, 26, 6)),
        ("0 6 * * */2", at(2026, 11, 23, 5), at(2026, 11, 24, 6)),
        ("0 0 1 jan *", at(2026, 11, 23), at(2027, 1, 1)),
    ],
)
def test_cron_means_what_cron_means(cron: str, after: float, expected: float) -> None:
    assert next_due(source(cron=cron), now=after) == expected


def test_cron_is_in_utc_so_that_no_daylight_saving_time_doubles_or_drops_a_run() -> None:
    due = at(2026, 3, 28)
    runs = [due := next_due(source(cron="30 2 * * *"), now=due) or 0.0 for _ in range(3)]
    assert runs == [at(2026, 3, 28, 2, 30), at(2026, 3, 29, 2, 30), at(2026, 3, 30, 2, 30)]


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("0 3 * *", "five fields"),
        ("0 3 * * * *", "five fields"),
        ("61 * * * *", "61"),
        ("0 3 1 * 1", "or of the week"),
        ("0 3 * * 8", "day of the week"),
        ("0 3 * * x", "day of the week"),
        ("a b c d *", "cron"),
        ("0 0 31 2 *", "never"),
    ],
)
def test_cron_that_cannot_be_meant_is_refused_with_the_reason(cron: str, reason: str) -> None:
    with pytest.raises(SourceRefused, match=reason):
        check_cron(cron)


def test_a_failing_source_waits_longer_each_time_but_an_hour_at_most() -> None:
    assert [backoff_s(failures) for failures in range(9)] == [0, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert backoff_s(10_000) == 3600
    assert next_due(source(every_s=300.0, failures=1), now=0) == 300
    assert next_due(source(every_s=300.0, failures=4), now=0) == 480


def test_a_source_without_a_schedule_is_swept_when_asked_and_a_watched_one_now_and_then() -> None:
    assert next_due(source(), now=0) is None
    assert next_due(source(is_watched=True), now=0) == SAFETY_S
