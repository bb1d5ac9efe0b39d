"""`strongroom bench` against a running api with an engine that follows a script, and what follows from figures."""

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from app.commands.remote import Remote
from app.evaluation.plots import lines
from app.measuring.figures import (
    Figures,
    FiguresUnreadable,
    advice,
    headline,
    read_figures,
    saturation,
    spread,
)
from app.measuring.measuring import Measurement
from app.measuring.report import compared, render
from tests.app.conftest import Api
from tests.serving.hosting import served


def test_where_more_clients_give_hardly_more_it_is_saturated() -> None:
    assert saturation([(1, 20), (2, 39), (4, 70), (8, 72), (16, 71)]) == 4
    assert saturation([(1, 20), (2, 39), (4, 70)]) is None
    # Four times the clients are two doublings, which have to give 1.21 times as much.
    assert saturation([(1, 100), (4, 120)]) == 1
    assert saturation([(1, 100), (4, 122)]) is None
    # A step that gave little before one that gave much was chance.
    assert saturation([(1, 24), (2, 26), (4, 32), (8, 53)]) is None
    assert saturation([]) is None


def test_a_spread_is_of_milliseconds() -> None:
    found = spread([0.001 * number for number in range(1, 101)])
    assert found is not None
    assert (found.p50_ms, found.p95_ms) == (50.5, 95.05)
    assert spread([]) is None


def test_a_line_is_drawn_from_its_points_and_escapes_its_texts() -> None:
    drawn = lines({"<a>": [(0, 0), (4, 10)]}, title="t & t", across="x", unit="y", marked=2)
    assert "&lt;a&gt;" in drawn
    assert "t &amp; t" in drawn
    assert 'points="70.0,240.0 680.0,30.0"' in drawn
    assert 'd="M375.0 30 V240"' in drawn


async def measured(api: Api, *, most: int = 4) -> Figures:
    key = api.http.headers["Authorization"].removeprefix("Bearer ")
    working = asyncio.create_task(api.worker.run())
    try:
        async with served(api.app, is_started=True) as url, Remote(url, key) as remote:
            measurement = Measurement(
                remote, seconds=0.3, documents=3, most=most, console=Console(quiet=True)
            )
            return await measurement.run(url)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_server_is_measured_and_nothing_is_left_behind(api: Api, tmp_path: Path) -> None:
    api.engine.answer = lambda _: "one two three four five six seven eight"
    api.engine.before_first_word_s, api.engine.between_words_s = 0.05, 0.01
    await api.store("of one tenant alone")
    figures = await measured(api)
    # A report is shown to the admins of all tenants.
    assert not [model for model in figures.models if model.startswith("rag")]
    assert figures.models
    assert (figures.ingested.documents, figures.ingested.failed) == (3, 0)
    assert [load.clients for load in figures.searches] == [1, 4, 16]
    assert all(load.requests > 0 for load in figures.searches)
    assert [load.clients for load in figures.chats] == [1, 2, 4]
    alone = figures.chats[0]
    assert alone.first_token is not None
    assert 50 <= alone.first_token.p50_ms < 500
    assert alone.between_tokens is not None
    assert 9 <= alone.between_tokens.p50_ms < 100
    assert figures.chats[2].tokens_per_s > 2 * alone.tokens_per_s
    assert figures.lanes.bulk_texts_per_s > 0
    assert figures.overload is not None
    assert figures.overload.clients == 16
    stores, files = [(await api.http.get(path)).json()["data"] for path in ("/v1/vector_stores", "/v1/files")]
    assert [store["name"] for store in stores] == ["of one tenant alone"]
    assert files == []

    kept = tmp_path / "bench.json"
    kept.write_text(figures.model_dump_json())
    assert read_figures(kept) == figures
    page = render(figures, figures)
    assert page.count("<svg") == 4
    assert "Time to the first token" in page
    assert all(gain == pytest.approx(1) for _, gain in compared(figures, figures).values())
    assert compared(figures, figures).keys() == headline(figures).keys()


async def test_without_an_engine_the_rest_is_measured(api: Api) -> None:
    api.engine.healthy = False
    async with asyncio.timeout(20):
        while (await api.http.get("/ready")).json()["roles"]["engine"]["state"] == "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    figures = await measured(api)
    assert figures.chats == []
    assert figures.searches[0].requests > 0
    assert "Tokens a second" not in render(figures)


async def test_what_is_refused_for_want_of_room_is_told(api: Api) -> None:
    api.engine.answer = lambda _: "one two three"
    api.engine.max_running, api.engine.before_first_s = 1, 0.05
    figures = await measured(api, most=2)
    assert figures.overload is not None
    assert figures.overload.requests == 8
    assert advice(figures)


def test_another_file_is_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("{}")
    with pytest.raises(FiguresUnreadable, match=str(path)):
        read_figures(path)
