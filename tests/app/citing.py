"""Passages, and a check by words without SQL, for tests of what becomes of an answer's text."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from app.answers.checking import Checked, Judge, Outcome, Sentence, Support
from app.answers.citations import CitedAnswer, Shown
from app.answers.support import PassageWords
from retrieval.passages import Passage
from retrieval.places import Place


def passage(
    text: str,
    *,
    start: int = 0,
    headings: tuple[str, ...] = (),
    places: tuple[Place, ...] = (),
    document_id: int = 1,
) -> Passage:
    return Passage(
        document_id=document_id,
        collection_id="vs_1",
        file_id="file-1",
        filename="tower.pdf",
        text=text,
        start_char=start,
        end_char=start + len(text),
        headings=headings,
        places=places,
        score=1.0,
    )


TOWER = passage("The strongroom is fireproof. It was built in 1932 by Jonas Vey.", start=100)
KEYS = passage("The key hangs in the hall.\nThe spare key is with Dr. Lund on floor 3.")


def by_words(
    passages: Sequence[Passage], question: str = ""
) -> Callable[[Sequence[Sentence]], Awaitable[list[Checked]]]:
    """The check of app/answers/checking.py, as if every quote stood in SQL."""
    words = PassageWords(passages, question=question)

    async def check(sentences: Sequence[Sentence]) -> list[Checked]:
        return [judge(each) for each in sentences]

    def judge(sentence: Sentence) -> Checked:
        judged = words.judge(sentence.text, sentence.hinted)
        if sentence.is_heading or not judged.is_claim:
            return Checked(Outcome.NO_CLAIM)
        if not judged.sure:
            return Checked(Outcome.UNSUPPORTED)
        found = judged.sure[0]
        cited = passages[found.number - 1]
        support = Support(
            number=found.number,
            passage=cited,
            quote=cited.text[found.start : found.end],
            start_char=cited.start_char + found.start,
            end_char=cited.start_char + found.end,
            page=None,
            boxes=(),
            score=found.score,
            judge=Judge.WORDS,
        )
        return Checked(Outcome.SUPPORTED, support)

    return check


def answered(
    pieces: Sequence[str],
    passages: Sequence[Passage],
    *,
    question: str = "",
    is_prose: bool = True,
    is_quick: bool = False,
    looks_ahead: bool = False,
) -> tuple[list[Shown], CitedAnswer]:
    """All that is shown of an answer that comes in these pieces, and what is known of it in the end.

    `is_quick`: pieces in which no sentence ends are taken at once, and those of plain text as they are.
    `looks_ahead`: all are there before the first is taken.
    """
    answer = CitedAnswer(by_words(passages, question), is_prose=is_prose)

    async def show() -> list[Shown]:
        shown: list[Shown] = []
        if looks_ahead:
            await answer.look_ahead("".join(pieces))
        for piece in pieces:
            if is_quick and answer.passes(piece):
                shown.append(Shown(piece))
            elif is_quick and (at_once := answer.feed_at_once(piece)) is not None:
                shown.append(at_once)
            else:
                shown += [each async for each in answer.feed(piece)]
        return shown + [each async for each in answer.finish()]

    return asyncio.run(show()), answer


def cut(text: str, step: int) -> list[str]:
    return [text[at : at + step] for at in range(0, len(text), step)]


def text_of(shown: Sequence[Shown]) -> str:
    return "".join(each.text for each in shown)
