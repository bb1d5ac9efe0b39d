"""The console before the whole stack: a quote is lit on its page, a folder is watched, and all goes again."""

from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from tests.app.browser import must_light
from tests.stack import Stack

pytestmark = pytest.mark.engine

QUESTION = "How high is the tower of the Brennick lighthouse?"
PATIENCE_MS = 120_000
A_MOMENT_MS = 700
MOST_SHIFT = 0.1
"""Of the layout, as a good page has it: https://web.dev/articles/cls."""
LOOK_ON = """() => {
  window.lengths = new Set();
  const look = () => {
    for (const each of document.querySelectorAll('.turn .answer')) window.lengths.add(each.textContent.length);
  };
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
  window.shifted = 0;
  const shifts = new PerformanceObserver((list) => {
    for (const each of list.getEntries()) window.shifted += each.hadRecentInput ? 0 : each.value;
  });
  shifts.observe({type: 'layout-shift'});
}"""


def test_from_signing_in_to_a_lit_quote_and_until_all_is_gone(
    stack: Stack, client: OpenAI, handbook: Path, page: Page, tmp_path: Path
) -> None:
    for number in range(3):
        folder = tmp_path / "port" / f"pier-{number}"
        folder.mkdir(parents=True)
        (folder / f"boats-{number}.txt").write_text(f"At pier {number} lie {number + 4} boats.")
    page.set_default_timeout(PATIENCE_MS)
    page.click("nav >> text=Documents")
    page.fill("#name", "brennick")
    page.click("text=Create")
    page.wait_for_selector("#drop")
    page.set_input_files("#files", handbook)
    page.set_input_files("#folder", tmp_path / "port")
    expect(page.locator("td .state.completed")).to_have_count(4, timeout=PATIENCE_MS)

    page.click("nav >> text=Ask")
    page.click("summary:has-text('Where to look')")
    page.check("label:has-text('brennick') >> input")
    page.click("summary:has-text('Where to look')")
    page.fill("#question", QUESTION)
    page.evaluate(LOOK_ON)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .chip")
    page.wait_for_selector("#send:visible")
    assert "47" in page.locator(".turn .answer").inner_text()
    # It was seen to grow, and nothing jumped about meanwhile.
    assert page.evaluate("window.lengths.size") > 3
    assert page.evaluate("window.shifted") < MOST_SHIFT

    page.click(".turn .chip")
    lit = page.locator("#source .lit")
    expect(lit).to_contain_text("47 metres high")
    sheet = page.locator("#source .sheet")
    page.wait_for_selector("#source .sheet .box")
    page.evaluate("document.querySelector('#source .sheet').scrollIntoView()")
    page.wait_for_timeout(A_MOMENT_MS)
    width, height = map(float, (sheet.get_attribute("viewBox") or "").split()[2:])
    must_light(sheet.screenshot(), (width, height), box_of_quote(client))
    page.keyboard.press("Escape")

    page.goto(f"{stack.url}/console/collections")
    page.click("text=brennick")
    page.on("dialog", lambda dialog: dialog.accept())
    page.check("tr:has-text('lighthouse-handbook') >> [name=file]")
    page.click("text=Delete chosen")
    expect(page.locator("tr[id]")).to_have_count(3)
    page.goto(f"{stack.url}/console")
    page.locator("#conversations a").first.click()
    page.click(".citation")
    expect(page.locator("#notice")).to_contain_text("may have been deleted")
    (store,) = [each.id for each in client.vector_stores.list() if each.name == "brennick"]
    assert not [hit for hit in client.vector_stores.search(store, query=QUESTION) if "47" in str(hit.content)]
    client.vector_stores.delete(store)


def test_a_folder_is_tried_watched_paused_and_left(
    stack: Stack, client: OpenAI, page: Page, sources_root: Path
) -> None:
    folder = sources_root / "logbooks"
    folder.mkdir()
    for number in range(3):
        (folder / f"log-{number}.txt").write_text(f"On day {number} the fog horn sounded {number + 2} times.")
    store = client.vector_stores.create(name="logbooks").id
    page.on("dialog", lambda dialog: dialog.accept())
    page.set_default_timeout(PATIENCE_MS)
    page.click("nav >> text=Sources")
    page.fill("#url", str(folder))
    page.select_option("[name=collection]", store)
    page.select_option("[name=when]", "1d")
    page.click("button:text-is('Add')")
    card = page.locator("article", has_text="logbooks")
    expect(card).to_contain_text("every day")
    expect(card.locator("tbody tr")).to_contain_text("3 would be added", timeout=PATIENCE_MS)
    expect(card.locator(".state")).to_have_text("paused")
    assert client.vector_stores.retrieve(store).file_counts.total == 0

    card.locator("text=Resume").click()
    expect(card.locator(".state")).to_have_text("kept equal")
    card.locator("text=Run now").click()
    card.locator("summary:has-text('Last sweeps')").click()
    expect(card.locator("tbody tr").first).to_contain_text("3 added", timeout=PATIENCE_MS)
    page.goto(f"{stack.url}/console/collections/{store}")
    expect(page.locator("td .state.completed")).to_have_count(3, timeout=PATIENCE_MS)

    page.click("nav >> text=Sources")
    card.locator("text=Pause").click()
    expect(card.locator(".state")).to_have_text("paused")
    card.get_by_text("Remove", exact=True).click()
    expect(card).to_have_count(0)
    page.goto(f"{stack.url}/console/collections/{store}")
    expect(page.locator("tr[id]")).to_have_count(0, timeout=PATIENCE_MS)
    client.vector_stores.delete(store)


def box_of_quote(client: OpenAI) -> dict[str, float]:
    """Where the API says that the tower's height stands."""
    reply = client.chat.completions.create(
        model="rag/brennick", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=120
    ).to_dict()
    told = reply["choices"][0]["message"]["annotations"]  # type: ignore[index]
    (box,) = next(each["boxes"] for each in told if "47 metres high" in each["quote"])
    return dict(box)
