"""From questions that are saved in the search lab to two evaluations of them, compared on the page Quality."""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.app.browser import opened_browser, signed_in
from tests.app.conftest import Api
from tests.app.evaluation.conftest import Commands

pytestmark = pytest.mark.processes

HARBOUR = "The harbour master is Ondine Marsh. She took office in 2019. The quay is 340 metres long."
ASKED = {
    "Who is the harbour master?": "Ondine Marsh",
    "How long is the quay?": "340 metres",
    "Which prime number follows eleven?": "",
}
"""With the answer, which is empty where no document has it."""


async def test_a_set_of_the_lab_is_evaluated_and_two_runs_are_compared(
    commands: Commands, tmp_path: Path
) -> None:
    api = commands.api
    await api.add_document(await api.store("port"), "harbour.txt", HARBOUR)
    key = (commands.data_dir / "keys" / "admin.key").read_text().strip()
    async with opened_browser() as browser, signed_in(browser, commands.url, key) as visit:
        page = visit.page
        for question, answer in ASKED.items():
            await save(page, commands.url, question, answer)
        await page.click("#question-sets summary")
        async with page.expect_download() as saving:
            await page.click("#question-sets >> text=Download")
        questions = tmp_path / (await saving.value).suggested_filename
        await (await saving.value).save_as(questions)

        says_nothing(api)
        await commands.succeed("answers", questions, "--collection", "port", "--name", "before")
        knows_it(api)
        await commands.succeed("answers", questions, "--collection", "port", "--name", "after")

        await page.click("nav >> text=Quality")
        for name in ("before", "after"):
            await page.check(f"[aria-label^='Choose {name},']")
        await page.click("text=Compare two")
        await expect(page.locator("h1")).to_have_text("Two evaluations")
        # Both questions that the documents answer, and not the third, which was refused in both runs.
        row = page.locator("tr", has=page.locator("th:text-is('contains')"))
        await expect(row.locator("td").nth(0)).to_have_text("0.0000")
        await expect(row.locator("td").nth(1)).to_have_text("1.0000")
        await expect(row.locator("td").nth(4)).to_have_text("2")
        refusals = page.locator("tr", has=page.locator("th:text-is('refusal recall')"))
        await expect(refusals.locator("td").nth(1)).to_have_text("1.0000")
        await page.click("summary:has-text('What changed most')")
        await expect(page.locator("details[open]")).to_contain_text("How long is the quay?")
        await page.go_back()
        await page.click("a:text-is('before')")
        await expect(page.locator("article").first).to_contain_text("Wanted:")
        assert not visit.elsewhere
        assert not visit.errors


async def save(page: Page, url: str, question: str, answer: str) -> None:
    await page.goto(f"{url}/console/search")
    await page.fill("#query", question)
    await page.keyboard.press("Enter")
    await page.wait_for_selector("#found .ranked")
    if answer:
        await page.locator("[name=right]").first.check()
    await page.fill("[name=set_name]", "the port")
    await page.fill("[name=answer]", answer)
    await page.click("button:text-is('Save')")
    await expect(page.locator("#question-sets")).to_contain_text("the port")
    await expect(page.locator("#question-sets li", has_text=question)).to_have_count(1)


def says_nothing(api: Api) -> None:
    api.engine.answer = lambda _: "The weather is fine."


def knows_it(api: Api) -> None:
    api.engine.answer = lambda asked: (
        "The quay is 340 metres long."
        if "quay" in str(asked["messages"][-1])
        else "The harbour master is Ondine Marsh."
    )
