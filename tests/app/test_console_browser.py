"""The console in a real browser: from signing in to a quote lit on its page, for everybody, and harmless to all."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from app.console import turns, uploads
from app.console.turns import Answer, Turn
from app.evaluation.runs import RUNS
from app.measuring.figures import BENCHMARKS
from ingest.sandbox import ParserPool
from retrieval.tables import DocumentStatus
from tests.app.browser import AXE, NO_AXE, PATIENCE_MS, Visit, must_light, opened_browser, signed_in
from tests.app.conftest import Api, opened_api
from tests.app.reports import write_bench, write_run
from tests.payloads import PAYLOADS
from tests.serving.hosting import MINILM, REPOSITORY, served

pytestmark = pytest.mark.processes

SAMPLES = REPOSITORY / "data" / "samples"
MANUAL = SAMPLES / "icehouse-vault-manual.pdf"
QUESTION = "At what temperature does the Icehouse keep the seed vault?"
TRUE = "The Icehouse keeps the seed vault at minus 21 degrees Celsius [1]. Three giraffes painted it in 1820."
WIDTHS = (360, 1280, 3840)
A_MOMENT_MS = 700


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
async def served_api(
    models_url: str, parsers: ParserPool, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Api, str]]:
    folder = tmp_path_factory.mktemp("console")
    async with (
        opened_api(models_url, parsers, folder, embedding=str(MINILM)) as api,
        served(api.app, is_started=True) as url,
    ):
        working = asyncio.create_task(work(api))
        yield api, url
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def work(api: Api) -> None:
    while True:
        await api.worker.drain()
        await asyncio.sleep(0.1)


@asynccontextmanager
async def visiting(browser: Browser, served_api: tuple[Api, str], **looks: object) -> AsyncIterator[Visit]:
    api, url = served_api
    key = (api.settings.storage.data_dir / "keys" / "admin.key").read_text().strip()
    async with signed_in(browser, url, key, **looks) as visit:  # type: ignore[arg-type]
        yield visit


async def ask(visit: Visit, question: str = QUESTION) -> None:
    """Until the answer is whole."""
    await visit.page.fill("#question", question)
    await visit.page.click("#send")
    await visit.page.wait_for_selector("#stop:visible")
    await visit.page.wait_for_selector("#send:visible")


async def test_from_signing_in_to_a_lit_quote_and_until_all_is_gone(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    api.engine.answer, api.engine.between_words_s = (lambda _: TRUE), 0.03
    async with visiting(browser, served_api) as visit:
        page = visit.page
        await page.click("nav >> text=Documents")
        await page.fill("#name", "manuals")
        await page.click("text=Create")
        await page.wait_for_selector("#drop")
        await page.set_input_files("#files", [MANUAL, SAMPLES / "volunteer-handbook.md"])
        await expect(page.locator("td .state.completed")).to_have_count(2, timeout=PATIENCE_MS)

        await page.click("nav >> text=Ask")
        await page.fill("#question", QUESTION)
        await page.keyboard.press("Enter")
        # It is seen to grow.
        answer = page.locator(".turn .answer")
        await expect(answer).to_contain_text("The Icehouse")
        assert "1820" not in await answer.inner_text()
        await page.wait_for_selector("#send:visible")
        await expect(page.locator(".unsupported")).to_have_text("Three giraffes painted it in 1820.")

        await page.click(".chip")
        await expect(page.locator("#source .lit")).to_contain_text("minus 21 degrees Celsius")
        await page.wait_for_selector("#source .sheet .box")
        await must_light_the_quote(api, visit)
        await page.keyboard.press("Escape")
        await expect(page.locator("#source")).to_be_hidden()

        await page.goto(visit.url + "/console/collections")
        await page.click("text=manuals")
        await page.check("tr:has-text('icehouse') >> [name=file]")
        page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        visit.errors.clear()
        await page.click("text=Delete chosen")
        await expect(page.locator("tr[id]")).to_have_count(1)
        await page.goto(visit.url + "/console")
        await page.click("#conversations a")
        await page.click(".citation")
        await expect(page.locator("#notice")).to_contain_text("may have been deleted")
        assert not visit.elsewhere


async def must_light_the_quote(api: Api, visit: Visit) -> None:
    """The pixels that are lit are those of the boxes that the API tells, and no others."""
    told = (await api.chat(QUESTION)).json()["choices"][0]["message"]["annotations"][0]
    sheet = visit.page.locator("#source .sheet")
    width, height = map(float, (await sheet.get_attribute("viewBox") or "").split()[2:])
    await visit.page.evaluate("document.querySelector('#source .sheet').scrollIntoView()")
    await visit.page.wait_for_timeout(A_MOMENT_MS)
    (box,) = told["boxes"]
    must_light(await sheet.screenshot(), (width, height), box)


async def test_stop_stops_the_engine_and_escape_does_too(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    await filled(api)
    api.engine.answer = lambda _: "The Icehouse " + "keeps seeds " * 500
    api.engine.between_words_s = 0.02
    async with visiting(browser, served_api) as visit:
        for by_key in (False, True):
            before = api.engine.departures
            await visit.page.fill("#question", QUESTION)
            await visit.page.click("#send")
            await expect(visit.page.locator(".turn .answer").last).to_contain_text("keeps seeds")
            await (visit.page.keyboard.press("Escape") if by_key else visit.page.click("#stop"))
            async with asyncio.timeout(2):
                await api.engine.until(partial(has_seen_leave, api, before))
            await expect(visit.page.locator(".closing").last).to_contain_text("was stopped")


def has_seen_leave(api: Api, before: int) -> bool:
    return api.engine.departures > before


async def test_what_is_edited_and_asked_again_replaces_its_turn_and_what_follows(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    await filled(api)
    api.engine.answer, api.engine.between_words_s = (lambda _: TRUE), 0.0
    async with visiting(browser, served_api) as visit:
        page = visit.page
        for question in (QUESTION, "How cold is the seed vault?", "Who painted the seed vault?"):
            await ask(visit, question)
        asked = page.locator(".turn:visible .asked")
        await expect(asked).to_have_count(3)
        await page.locator(".turn .again").nth(1).click()
        await expect(page.locator("#editing")).to_be_visible()
        await expect(page.locator("#question")).to_have_value("How cold is the seed vault?")
        await page.click("#keep-turn")
        await expect(page.locator("#editing")).to_be_hidden()
        await page.locator(".turn .again").nth(1).click()
        await ask(visit, "How cold is the antechamber?")
        kept = [QUESTION, "How cold is the antechamber?"]
        await expect(asked).to_have_text(kept)
        await page.reload()
        await expect(asked).to_have_text(kept)


async def test_sources_are_gone_through_by_keyboard(browser: Browser, served_api: tuple[Api, str]) -> None:
    api, _ = served_api
    await filled(api)
    api.engine.answer, api.engine.between_words_s = (
        lambda _: (
            "The Icehouse keeps the seed vault at minus 21 degrees Celsius. "
            "The antechamber is kept at 4 degrees Celsius."
        ),
        0.0,
    )
    async with visiting(browser, served_api) as visit:
        await ask(visit)
        await expect(visit.page.locator(".chip")).to_have_count(2)
        await visit.page.locator(".chip").first.click()
        await expect(visit.page.locator("#source .lit")).to_contain_text("minus 21")
        await visit.page.wait_for_selector("#source .sheet")
        await visit.page.keyboard.press("]")
        await expect(visit.page.locator("#source .lit")).to_contain_text("antechamber")
        await visit.page.wait_for_selector("#source .sheet")
        await visit.page.keyboard.press("[")
        await expect(visit.page.locator("#source .lit")).to_contain_text("minus 21")


async def test_a_folder_is_taken_whole(browser: Browser, served_api: tuple[Api, str], tmp_path: Path) -> None:
    api, _ = served_api
    (tmp_path / "port" / "logs").mkdir(parents=True)
    (tmp_path / "port" / "harbour.txt").write_text("The harbour master is Ondine Marsh.")
    (tmp_path / "port" / "logs" / "night.txt").write_text("Nothing happened tonight.")
    (tmp_path / "port" / "logs" / "tool").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(200))
    store = await api.store("port")
    async with visiting(browser, served_api) as visit:
        await visit.open(f"/console/collections/{store}")
        await visit.page.set_input_files("#folder", tmp_path / "port")
        await expect(visit.page.locator("td .state.completed")).to_have_count(2, timeout=PATIENCE_MS)
        await expect(visit.page.locator("#refused")).to_contain_text("port/logs/tool: ")
        await expect(visit.page.locator("tr:has-text('night.txt')")).to_contain_text("port/logs")
        await visit.page.fill("#named", "night")
        await expect(visit.page.locator("tr[id]")).to_have_count(1)


async def test_a_folder_that_is_dropped_is_taken_whole(
    browser: Browser, served_api: tuple[Api, str], tmp_path: Path
) -> None:
    api, _ = served_api
    (tmp_path / "port" / "logs").mkdir(parents=True)
    (tmp_path / "port" / "harbour.txt").write_text("The harbour master is Ondine Marsh.")
    # Browsers tell a hundred of a folder's files at a time.
    for number in range(101):
        (tmp_path / "port" / "logs" / f"night-{number}.txt").write_text(
            f"Nothing happened in night {number}."
        )
    (tmp_path / "quay.txt").write_text("The quay is grey.")
    store = await api.store("dropped")
    async with visiting(browser, served_api) as visit:
        page = visit.page
        await visit.open(f"/console/collections/{store}")
        place = await page.locator("#drop").bounding_box()
        assert place is not None
        hand = await page.context.new_cdp_session(page)
        dropped = [str(tmp_path / "port"), str(tmp_path / "quay.txt")]
        for kind in ("dragEnter", "dragOver", "drop"):
            told = {"items": [], "files": dropped, "dragOperationsMask": 1}
            await hand.send(
                "Input.dispatchDragEvent",
                {"type": kind, "x": place["x"] + 20, "y": place["y"] + 20, "data": told},
            )
        await expect(page.locator("#sent-of")).to_have_text("103 of 103 files sent", timeout=PATIENCE_MS)
        await expect(page.locator("#refused li")).to_have_count(0)
        await page.fill("#named", "night-100")
        await expect(page.locator("tr[id]:has-text('night-100.txt')")).to_contain_text("port/logs")
        assert (await counts(api, store))["total"] == 103


async def test_an_upload_that_is_cut_off_goes_on_after_the_page_was_loaded_anew(
    browser: Browser, served_api: tuple[Api, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _ = served_api
    monkeypatch.setattr(uploads, "PART_BYTES", 20_000)
    folder = tmp_path / "port"
    folder.mkdir()
    (folder / "large.txt").write_text("The harbour master is Ondine Marsh. " * 3000)
    for number in range(12):
        (folder / f"note-{number}.txt").write_text(f"Note {number} of the harbour.")
    store = await api.store("cut")
    parts: list[str] = []
    wholes: list[str] = []
    async with visiting(browser, served_api) as visit:
        page = visit.page

        async def cut(route: Route) -> None:
            parts.append(route.request.url)
            await (route.continue_() if len(parts) < 3 else route.abort())

        await page.route("**/parts?*", cut)
        await visit.open(f"/console/collections/{store}")
        await page.set_input_files("#folder", folder)
        await expect(page.locator("#sent-of")).to_have_text("12 of 13 files sent", timeout=PATIENCE_MS)
        async with asyncio.timeout(60):
            while len(parts) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await page.reload()
        await page.unroute("**/parts?*")
        await expect(page.locator("#cut-off")).to_be_visible()
        page.on("request", lambda request: parts.append(request.url) if "/parts?" in request.url else None)
        page.on("request", lambda request: wholes.append(request.url) if "/upload" in request.url else None)
        parts.clear()
        await page.set_input_files("#folder", folder)
        await expect(page.locator("#sent-of")).to_have_text("13 of 13 files sent", timeout=PATIENCE_MS)
        await expect(page.locator("td .state.completed")).to_have_count(13, timeout=PATIENCE_MS)
        await expect(page.locator("#cut-off")).to_be_hidden()
        assert [re.sub(".*after=", "", part) for part in parts] == ["40000", "60000", "80000", "100000"]
        assert not [each for each in wholes if each.endswith("/upload")]
        assert (await counts(api, store))["total"] == 13
        # Nothing is noted any more: who chooses it again means it.
        assert await page.evaluate("localStorage.length") == 0
        visit.errors.clear()


async def test_the_server_may_be_away_while_files_are_sent(
    browser: Browser, served_api: tuple[Api, str], tmp_path: Path
) -> None:
    api, _ = served_api
    store = await api.store("away")
    for number in range(8):
        (tmp_path / f"note-{number}.txt").write_text(f"Note {number} of the harbour.")
    async with visiting(browser, served_api) as visit:
        failed = 0

        async def away(route: Route) -> None:
            nonlocal failed
            failed += 1
            await (route.abort() if failed <= 3 else route.continue_())

        await visit.page.route("**/upload", away)
        await visit.open(f"/console/collections/{store}")
        await visit.page.set_input_files("#files", sorted(tmp_path.iterdir()))
        await expect(visit.page.locator("#sent-of")).to_have_text("8 of 8 files sent", timeout=PATIENCE_MS)
        await expect(visit.page.locator("#refused li")).to_have_count(0)
        assert (await counts(api, store))["total"] == 8


async def test_who_is_signed_out_meanwhile_goes_on_after_signing_in(
    browser: Browser, served_api: tuple[Api, str], tmp_path: Path
) -> None:
    api, _ = served_api
    store = await api.store("left")
    for number in range(60):
        (tmp_path / f"note-{number}.txt").write_text(f"Note {number} of the harbour.")
    notes = sorted(tmp_path.iterdir())
    async with visiting(browser, served_api) as visit:
        page = visit.page
        posted: list[str] = []
        page.on("request", lambda each: posted.append(each.url) if each.url.endswith("/upload") else None)
        await visit.open(f"/console/collections/{store}")
        cookies = await page.context.cookies()
        await page.set_input_files("#files", notes)
        async with asyncio.timeout(60):
            while len(posted) < 10:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await page.context.clear_cookies()
        await page.wait_for_url("**/console/sign-in")
        # All the others would have been refused alike.
        assert len(posted) < len(notes)
        await page.context.add_cookies(cookies)  # type: ignore[arg-type]
        await visit.open(f"/console/collections/{store}")
        await expect(page.locator("#cut-off")).to_be_visible()
        await page.set_input_files("#files", notes)
        await expect(page.locator("#sent-of")).to_have_text("60 of 60 files sent", timeout=PATIENCE_MS)
        await expect(page.locator("#refused li")).to_have_count(0)
        assert (await counts(api, store))["total"] == len(notes)


async def test_an_answer_to_who_was_signed_out_shows_the_way_to_sign_in(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    async with visiting(browser, served_api) as visit:
        await visit.page.context.clear_cookies()
        await visit.page.fill("#question", QUESTION)
        await visit.page.click("#send")
        await visit.page.click(".closing a")
        await visit.page.wait_for_selector("#key")


async def test_files_are_pasted(browser: Browser, served_api: tuple[Api, str]) -> None:
    api, _ = served_api
    store = await api.store("pasted")
    async with visiting(browser, served_api) as visit:
        await visit.open(f"/console/collections/{store}")
        await visit.page.evaluate(
            """() => {
                const pasted = new DataTransfer();
                pasted.items.add(new File(["The quay is grey."], "quay.txt", {type: "text/plain"}));
                pasted.items.add(new File(["The mast is tall."], "mast.txt", {type: "text/plain"}));
                document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: pasted, bubbles: true}));
            }"""
        )
        await expect(visit.page.locator("td .state.completed")).to_have_count(2, timeout=PATIENCE_MS)


async def test_all_of_a_list_is_deleted_from_its_menu(browser: Browser, served_api: tuple[Api, str]) -> None:
    api, _ = served_api
    store = await api.store("menu")
    for name in ("quay-1.txt", "quay-2.txt", "mast.txt"):
        await api.add_document(store, name, f"This is {name}.")
    async with visiting(browser, served_api) as visit:
        page = visit.page
        await visit.open(f"/console/collections/{store}")
        await page.fill("#named", "quay")
        await expect(page.locator("tr[id]")).to_have_count(2)
        await page.click("text=All of this list…")
        page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.click("text=Delete all")
        await expect(page.locator("tr[id]")).to_have_count(0)
        await page.fill("#named", "")
        await expect(page.locator("tr[id]")).to_have_count(1)


async def counts(api: Api, store: str) -> dict[str, int]:
    told: dict[str, int] = (await api.http.get(f"/v1/vector_stores/{store}")).json()["file_counts"]
    return told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_every_page_is_usable_by_everybody_at_every_width(
    browser: Browser, served_api: tuple[Api, str], width: int, scheme: str
) -> None:
    if not AXE.is_file():
        pytest.skip(NO_AXE)
    api, _ = served_api
    store, file_id = await filled(api)
    api.engine.answer, api.engine.between_words_s = (lambda _: TRUE), 0.0
    data_dir = api.settings.storage.data_dir
    if not (data_dir / RUNS).exists():
        for hour in (1, 2):
            write_run(data_dir, None, hour=hour, right=10 * hour)
            write_bench(data_dir, hour=hour, tokens=40 * hour)
    run, bench = (sorted(each.name for each in (data_dir / kind).iterdir()) for kind in (RUNS, BENCHMARKS))
    async with visiting(browser, served_api, width=width, height=900, scheme=scheme) as visit:
        await must_be_usable(visit)
        await ask(visit)
        await visit.page.locator(".chip").first.click()
        await visit.page.wait_for_selector("#source .sheet")
        await must_be_usable(visit)
        await visit.page.keyboard.press("Escape")
        await visit.page.locator(".again").first.click()
        await must_be_usable(visit)
        document = f"/console/collections/{store}/files/{file_id}"
        for path in (
            "/console/collections",
            f"/console/collections/{store}",
            document,
            f"{document}?view=chunks",
            f"{document}?view=pages",
            f"{document}?view=attributes",
            "/console/search",
            "/console/sources",
            "/console/quality",
            f"/console/quality/runs/{run[0]}",
            f"/console/quality/benches/{bench[0]}",
            f"/console/quality/compared/runs?chosen={run[0]}&chosen={run[1]}",
            f"/console/quality/compared/benches?chosen={bench[0]}&chosen={bench[1]}",
            "/console/overview",
            "/console/admin",
            "/console/collections/vs_none",
            "/console/sign-in",
        ):
            await visit.open(path)
            if path == f"/console/collections/{store}":
                await visit.page.click("text=All of this list…")
            if path == "/console/search":
                await visit.page.fill("#query", QUESTION)
                await visit.page.keyboard.press("Enter")
                await visit.page.wait_for_selector("#found .ranked")
                await visit.page.click("text=Filters")
                await visit.page.locator("[name=right]").first.check()
                await visit.page.fill("[name=set_name]", "vault")
                await visit.page.fill("[name=answer]", "minus 21 degrees")
                await visit.page.click("button:text-is('Save')")
                await visit.page.click("#question-sets summary")
            await must_be_usable(visit)


async def must_be_usable(visit: Visit) -> None:
    """By axe's rules for WCAG 2.2 AA, and without scrolling sideways."""
    # Evaluated from outside: the page's own policy lets no script in.
    await visit.page.evaluate(AXE.read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = await visit.page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    violations = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
    assert violations == [], visit.page.url
    overflow = await visit.page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0, visit.page.url


async def filled(api: Api) -> tuple[str, str]:
    """A collection with the manual in it, and the manual."""
    store = await api.store("vault")
    file_id = (await api.upload(MANUAL.name, MANUAL.read_bytes())).json()["id"]
    await api.http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file_id})
    await until_ingested(api, store, file_id)
    return store, file_id


async def until_ingested(api: Api, store: str, file_id: str) -> None:
    async with asyncio.timeout(60):
        while await status_of(api, store, file_id) == DocumentStatus.IN_PROGRESS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def status_of(api: Api, store: str, file_id: str) -> str:
    status: str = (await api.http.get(f"/v1/vector_stores/{store}/files/{file_id}")).json()["status"]
    return status


async def test_no_payload_runs_or_calls_home_as_an_answer(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    api.engine.between_words_s = 0.0
    scope = await api.services.keys.scope_of(
        (api.settings.storage.data_dir / "keys" / "admin.key").read_text().strip()
    )
    with api.services.storage.database.write() as session:
        conversation = turns.begin(session, scope, PAYLOADS[0])
        for payload in PAYLOADS:
            turns.keep(session, scope, conversation.id, Turn(payload, Answer(payload)))
    await filled(api)
    async with visiting(browser, served_api) as visit:
        await visit.open(f"/console/conversations/{conversation.id}")
        await expect(visit.page.locator(".turn")).to_have_count(len(PAYLOADS))
        await visit.page.wait_for_timeout(A_MOMENT_MS)
        assert await visit.was_harmless()
        # And while it streams, into a page that paints what comes.
        await visit.open("/console")
        for first in range(0, len(PAYLOADS), 40):
            api.engine.answer = lambda _, first=first: "\n\n".join(PAYLOADS[first : first + 40])  # type: ignore[misc]
            await ask(visit)
        await visit.page.wait_for_timeout(A_MOMENT_MS)
        assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
    assert refusals(api) == 0


async def test_no_payload_runs_or_calls_home_as_a_name_or_a_document(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    api.engine.answer = lambda _: TRUE
    store = await api.store(PAYLOADS[60])
    content = "The Icehouse keeps the seed vault at minus 21 degrees Celsius.\n\n" + "\n\n".join(PAYLOADS)
    ids = []
    for name, raw in (("payloads.txt", content), ("payloads.html", content), ("payloads.md", content)):
        ids.append((await api.upload(name, raw.encode())).json()["id"])
    for payload in PAYLOADS[:45:3] + PAYLOADS[45:105:3]:
        reply = await api.upload(f"{payload.replace('/', '∕')[:120]}.txt", payload.encode() + b" text")
        ids.append(reply.json()["id"])
    for file_id in ids:
        attributes = {"folder": PAYLOADS[61][:500]}
        await api.http.post(
            f"/v1/vector_stores/{store}/files", json={"file_id": file_id, "attributes": attributes}
        )
    await until_ingested(api, store, ids[-1])
    async with visiting(browser, served_api) as visit:
        for path in ("", f"/{store}", *(f"/{store}/files/{each}" for each in ids[:12])):
            await visit.open(f"/console/collections{path}")
            assert await visit.was_harmless()
        for file_id in ids[:3]:
            await visit.open(f"/console/collections/{store}/files/{file_id}?view=chunks")
            assert await visit.was_harmless()
        await visit.open("/console/search")
        await visit.page.fill("#query", "img src evil example")
        await visit.page.keyboard.press("Enter")
        await visit.page.wait_for_selector(".ranked")
        assert await visit.was_harmless()
        await visit.open("/console")
        await ask(visit)
        await visit.page.locator(".citation").first.click()
        await visit.page.wait_for_selector("#source .lit")
        await visit.page.wait_for_timeout(A_MOMENT_MS)
        assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
    assert refusals(api) == 0


async def test_what_got_into_a_page_all_the_same_would_run_nothing_and_reach_nobody(
    browser: Browser, served_api: tuple[Api, str]
) -> None:
    api, _ = served_api
    before = refusals(api)
    async with visiting(browser, served_api) as visit:
        await visit.page.evaluate(
            """() => {
              const put = (html) => document.body.insertAdjacentHTML("beforeend", html);
              put("<img src='https://evil.example/x'>");
              put("<img src=x onerror='window.pwned=1'>");
              put("<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>");
              put("<p style='background:url(https://evil.example/y)'>x</p>");
              const script = document.createElement("script");
              try { script.text = "window.pwned=1"; document.body.append(script); } catch (refused) {}
            }"""
        )
        await visit.page.wait_for_timeout(A_MOMENT_MS)
        assert not await visit.page.evaluate("window.pwned !== undefined")
        assert [url for url in visit.elsewhere if not visit.blocked(url)] == []
    assert refusals(api) > before


def refusals(api: Api) -> float:
    """What browsers reported to have refused."""
    found = re.search(
        rb"^strongroom_console_refusals_total ([\d.]+)", api.services.metrics.render(), re.MULTILINE
    )
    assert found is not None
    return float(found[1])
