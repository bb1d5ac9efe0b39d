"""What is cited stands in SQL, under the caller's scope, where we say; and only what words leave open costs a model."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from app.answers import checking
from app.answers.checking import Checked, Checker, Judge, Outcome, Sentence
from app.answers.citations import cited_stream, cited_whole
from retrieval import catalog
from retrieval.database import Database
from retrieval.passages import Passage, read_text
from retrieval.places import Box
from retrieval.scope import Scope
from retrieval.tables import Document, ParsedPart
from serving.protocols import Lane, ModelUnavailable, Overloaded
from tests.app.citing import passage
from tests.fakes import FakeReranker
from tests.retrieval.library import new_collection, shelve

PARAGRAPHS = (
    "The strongroom is fireproof. It was built in 1932 by Jonas Vey.",
    "The iron key of the vault hangs in the north hall.",
)
PARAPHRASE = "The iron key of the vault dangles in the north hall."


@pytest.fixture
def document(database: Database, scope: Scope) -> Document:
    return shelve(database, scope, new_collection(database, scope), *PARAGRAPHS)


@pytest.fixture
def passages(document: Document) -> list[Passage]:
    return [
        replace(passage(PARAGRAPHS[0], document_id=document.id), file_id=document.file_id),
        replace(
            passage(PARAGRAPHS[1], document_id=document.id, start=len(PARAGRAPHS[0]) + 2),
            file_id=document.file_id,
        ),
    ]


def checker(
    database: Database, scope: Scope, passages: Sequence[Passage], reranker: FakeReranker | None = None
) -> Checker:
    return Checker(database, scope, passages, question="", reranker=reranker, lane=Lane.INTERACTIVE)


async def check(asking: Checker, sentence: Sentence) -> Checked:
    (checked,) = await asking.check([sentence])
    return checked


def said(text: str) -> Sentence:
    return Sentence(text, 0, len(text), hinted=(), takes_marker=True, is_heading=False)


async def test_a_citation_has_the_page_and_boxes_that_are_stored_for_its_quote(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    checked = await check(checker(database, scope, passages), said("The iron key hangs in the north hall."))
    assert checked.outcome is Outcome.SUPPORTED
    assert checked.support is not None
    assert checked.support.page == 2
    assert checked.support.boxes == ((2, Box(0.0, 0.0, 100.0, 10.0)),)
    with database.read() as session:
        place = (checked.support.start_char, checked.support.end_char)
        assert read_text(session, scope, passages[1].document_id, *place) == checked.support.quote
    assert checked.support.quote == PARAGRAPHS[1]


async def test_a_quote_that_does_not_stand_there_any_more_is_not_cited(
    database: Database, scope: Scope, other_scope: Scope, passages: list[Passage], document: Document
) -> None:
    claim = said("The iron key hangs in the north hall.")
    assert (await check(checker(database, other_scope, passages), claim)).outcome is Outcome.UNSUPPORTED
    misplaced = [replace(each, start_char=each.start_char + 1) for each in passages]
    assert (await check(checker(database, scope, misplaced), claim)).outcome is Outcome.UNSUPPORTED
    with database.write() as session:
        session.execute(update(ParsedPart).values(text=" ".join(PARAGRAPHS).replace("iron", "gold")))
    assert (await check(checker(database, scope, passages), claim)).outcome is Outcome.UNSUPPORTED
    with database.write() as session:
        session.execute(update(ParsedPart).values(text="\n\n".join(PARAGRAPHS)))
    assert (await check(checker(database, scope, passages), claim)).outcome is Outcome.SUPPORTED
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    assert (await check(checker(database, scope, passages), claim)).outcome is Outcome.UNSUPPORTED


async def test_sentences_that_are_checked_at_once_are_each_held_against_what_is_stored_now(
    database: Database, scope: Scope, passages: list[Passage], document: Document
) -> None:
    asking = checker(database, scope, passages)
    claims = [
        said(PARAGRAPHS[1]),
        said("The strongroom is fireproof."),
        said("Cats sleep a lot."),
        said("Is it?"),
    ]
    many = claims * checking.MOST_AT_ONCE
    as_one_by_one = [await check(asking, each) for each in claims]
    assert await asking.check(many) == as_one_by_one * checking.MOST_AT_ONCE
    assert [each.support and each.support.quote for each in as_one_by_one] == [
        PARAGRAPHS[1],
        "The strongroom is fireproof.",
        None,
        None,
    ]
    with database.write() as session:
        session.execute(update(ParsedPart).values(text="\n\n".join(PARAGRAPHS).replace("iron", "gold")))
    changed = [each.outcome for each in await asking.check(claims[:2])]
    assert changed == [Outcome.UNSUPPORTED, Outcome.SUPPORTED]
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    gone = [each.outcome for each in await asking.check(claims)]
    assert gone == [Outcome.UNSUPPORTED] * 3 + [Outcome.NO_CLAIM]


async def test_a_document_that_is_deleted_while_an_answer_streams_is_cited_no_more(
    database: Database, scope: Scope, passages: list[Passage], document: Document
) -> None:
    answer = cited_stream(checker(database, scope, passages), is_prose=True)
    for is_there in (True, False):
        piece = f"{PARAGRAPHS[1]} The strongroom is fireproof. So"
        await answer.look_ahead(piece)
        shown = [each async for each in answer.feed(piece)]
        assert bool([found for each in shown for found in each.citations]) == is_there
        if is_there:
            with database.write() as session:
                catalog.delete_file(session, scope, document.file_id)
    assert answer.counts["cited"] == 2


async def test_another_passage_that_still_holds_it_is_cited_instead(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    gone = replace(passages[1], document_id=10_000)
    checked = await check(checker(database, scope, [gone, passages[1]]), said(PARAGRAPHS[1]))
    assert checked.support is not None
    assert checked.support.number == 2


async def test_a_reranker_is_asked_only_about_what_words_leave_open(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    reranker = FakeReranker()
    asking = checker(database, scope, passages, reranker)
    for settled in (PARAGRAPHS[1], "The strongroom was built in 1933.", "Cats sleep a lot.", "Yes."):
        await check(asking, said(settled))
    assert reranker.calls == []
    checked = await check(asking, said(PARAPHRASE))
    assert checked.support is not None
    assert (checked.support.judge, checked.support.quote) == (Judge.RERANKER, PARAGRAPHS[1])
    assert checked.support.score >= checking.MIN_RERANKED
    ((lane, query, texts),) = reranker.calls
    assert (lane, query) == (Lane.INTERACTIVE, PARAPHRASE)
    assert PARAGRAPHS[1] in texts
    assert reranker.salts == [scope.tenant_id]


async def test_what_the_reranker_doubts_is_unsupported_and_without_one_all_that_is_open(
    database: Database, scope: Scope, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "MIN_RERANKED", 0.99)
    reranker = FakeReranker()
    doubted = await check(checker(database, scope, passages, reranker), said(PARAPHRASE))
    assert doubted == Checked(Outcome.UNSUPPORTED)
    assert len(reranker.calls) == 1
    alone = await check(checker(database, scope, passages), said(PARAPHRASE))
    assert alone == Checked(Outcome.UNSUPPORTED)


@pytest.mark.parametrize("failure", [Overloaded(1.0), ModelUnavailable("away")])
async def test_a_reranker_that_fails_leaves_a_sentence_unjudged_and_says_so(
    database: Database, scope: Scope, passages: list[Passage], failure: Exception
) -> None:
    reranker = FakeReranker()
    reranker.failure = failure  # type: ignore[assignment]
    text, answer = await cited_whole(
        checker(database, scope, passages, reranker), f"{PARAPHRASE} {PARAGRAPHS[1]}", is_prose=True
    )
    assert text == f"{PARAPHRASE} {PARAGRAPHS[1]} [2]"
    assert answer.counts == {"sentences": 2, "cited": 1, "unsupported": 1, "unjudged": 1}
    assert [text[each.start : each.end] for each in answer.unsupported] == [PARAPHRASE]


async def test_a_slow_reranker_is_waited_for_no_longer_than_its_bound(
    database: Database, scope: Scope, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "RERANK_WAIT_S", 0.05)
    reranker = FakeReranker()

    async def hang(_: Sequence[str]) -> None:
        await asyncio.sleep(60)

    reranker.meanwhile = hang
    checked = await check(checker(database, scope, passages, reranker), said(PARAPHRASE))
    assert checked.outcome is Outcome.UNJUDGED


async def test_slow_or_failing_sql_costs_the_citation_and_never_the_text(
    database: Database, scope: Scope, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = checker(database, scope, passages)

    def fail(*_: object) -> None:
        raise OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(checking, "read_stretch", fail)
    text, answer = await cited_whole(asking, PARAGRAPHS[1], is_prose=True)
    assert (text, answer.counts["unjudged"]) == (PARAGRAPHS[1], 1)


async def test_all_open_sentences_of_an_answer_are_asked_about_at_once(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    reranker, begun, go = FakeReranker(), [], asyncio.Event()

    async def wait(texts: Sequence[str]) -> None:
        begun.append(texts)
        if len(begun) == 2:
            go.set()
        await asyncio.wait_for(go.wait(), 5)

    reranker.meanwhile = wait
    other = "The strongroom was erected in 1932 by Jonas Vey."
    text, answer = await cited_whole(
        checker(database, scope, passages, reranker), f"{PARAPHRASE} {other}", is_prose=True
    )
    assert text == f"{PARAPHRASE} [2] {other} [1]"
    assert [each.support.judge for each in answer.citations] == [Judge.RERANKER] * 2


async def test_a_streams_text_does_not_wait_for_the_reranker_and_its_citation_comes_later(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    reranker, go = FakeReranker(), asyncio.Event()

    async def wait(_: Sequence[str]) -> None:
        await go.wait()

    reranker.meanwhile = wait
    answer = cited_stream(checker(database, scope, passages, reranker), is_prose=True)
    shown = [each async for each in answer.feed(f"{PARAPHRASE} Cats")]
    assert ("".join(each.text for each in shown), shown[-1].citations) == (f"{PARAPHRASE} Cats", ())
    go.set()
    later = [each async for each in answer.feed(" sleep.")] + [each async for each in answer.finish()]
    (citation,) = [found for each in later for found in each.citations]
    assert (citation.start_index, citation.end_index) == (0, len(PARAPHRASE))
    assert citation.support.judge is Judge.RERANKER
    assert answer.citations == [citation]
    assert answer.counts == {"sentences": 2, "cited": 1, "unsupported": 1, "unjudged": 0}


async def test_who_leaves_takes_the_checks_along(
    database: Database, scope: Scope, passages: list[Passage]
) -> None:
    reranker, ended = FakeReranker(), asyncio.Event()

    async def hang(_: Sequence[str]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    reranker.meanwhile = hang
    answer = cited_stream(checker(database, scope, passages, reranker), is_prose=True)
    async for _ in answer.feed(f"{PARAPHRASE} Cats"):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    await answer.close()
    assert ended.is_set()
