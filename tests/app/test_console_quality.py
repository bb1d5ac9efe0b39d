"""The console's page of reports: whose they are, what two of them say when compared, and that they stay inert."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from retrieval.tables import Role
from tests.app.conftest import Api
from tests.app.reports import write_bench, write_run
from tests.app.test_console import key_of, new_key
from tests.app.visitor import visiting

PAYLOAD = "<img src=x onerror=pwned()><script>pwned()</script>"


@pytest.fixture
async def visitor(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(api, key_of(api)) as client:
        yield client


@pytest.fixture
def data_dir(api: Api) -> Path:
    return api.settings.storage.data_dir


async def test_without_reports_the_page_says_how_to_make_some(visitor: httpx.AsyncClient) -> None:
    page = (await visitor.get("/console/quality")).text
    assert "strongroom eval answers" in page
    assert "strongroom bench" in page


async def test_runs_are_listed_shown_and_compared_with_their_significance(
    api: Api, visitor: httpx.AsyncClient, data_dir: Path
) -> None:
    store = await api.store()
    worse = write_run(data_dir, store, hour=1, right=10, question=PAYLOAD)
    better = write_run(data_dir, store, hour=2, right=35, question=PAYLOAD)
    listed = (await visitor.get("/console/quality")).text
    assert "<strong>0.875</strong>" in listed
    assert listed.index(better) < listed.index(worse)
    shown = (await visitor.get(f"/console/quality/runs/{better}")).text
    assert shown.count("<svg") == 4  # The brand's, and three plots.
    told = await visitor.get(f"/console/quality/compared/runs?chosen={better}&chosen={worse}")
    assert "<strong>+0.6250</strong>" in told.text
    assert "0.000 → 1.000" in told.text
    for page in (shown, told.text):
        assert PAYLOAD not in page
        assert "&lt;script&gt;pwned" in page
        assert " style=" not in page
    same = await visitor.get(f"/console/quality/compared/runs?chosen={better}&chosen={better}")
    assert "No question changed" in same.text
    assert (await visitor.get(f"/console/quality/compared/runs?chosen={better}")).status_code == 400


async def test_benchmarks_are_listed_shown_and_compared(visitor: httpx.AsyncClient, data_dir: Path) -> None:
    before, now = (write_bench(data_dir, hour=hour, tokens=hour * 40) for hour in (1, 2))
    assert "<strong>40.0</strong> a second" in (await visitor.get("/console/quality")).text
    shown = (await visitor.get(f"/console/quality/benches/{now}")).text
    assert shown.count("<svg") == 5
    told = (await visitor.get(f"/console/quality/compared/benches?chosen={now}&chosen={before}")).text
    assert 'up-by">2.00</td>' in told


async def test_what_is_damaged_or_elsewhere_is_not_shown(visitor: httpx.AsyncClient, data_dir: Path) -> None:
    name = write_bench(data_dir, hour=1, tokens=40)
    (data_dir / "benchmarks" / name / "bench.json").write_text("{}")
    assert name not in (await visitor.get("/console/quality")).text
    for path in (
        f"benches/{name}",
        "benches/none",
        "runs/none",
        "runs/..%2F..%2Fkeys",
        "benches/%2E%2E",
        "compared/runs?chosen=../x&chosen=y",
    ):
        reply = await visitor.get(f"/console/quality/{path}")
        assert reply.status_code in (400, 404), path


async def test_a_report_is_its_tenants_and_goes_with_its_collection(api: Api, data_dir: Path) -> None:
    store = await api.store()
    mine = write_run(data_dir, store, hour=1, right=9)
    of_all = write_run(data_dir, None, hour=2, right=9)
    async with visiting(api, key_of(api)) as visitor:
        page = (await visitor.get("/console/quality")).text
        assert mine in page
        assert of_all in page
        _, text = new_key(api, Role.ADMIN, tenant="another")
        async with visiting(api, text) as another:
            page = (await another.get("/console/quality")).text
            assert mine not in page
            assert of_all not in page
            for name in (mine, of_all):
                assert (await another.get(f"/console/quality/runs/{name}")).status_code == 404
        await api.http.delete(f"/v1/vector_stores/{store}")
        assert (await visitor.get(f"/console/quality/runs/{mine}")).status_code == 404
    _, text = new_key(api, Role.WRITER)
    async with visiting(api, text) as writer:
        assert (await writer.get("/console/quality")).status_code == 403
