"""What is searched for a question: made to stand alone where it leans on the conversation, split where it asks more.

Nobody's model is asked for what a cheap look decides: a first question, and one that stands on its own, are searched
as they are.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

import orjson

from app.answers.generation import CHAT_PATH, Generator
from app.answers.prompt import as_prefix, harmless, text_of
from app.settings import ChatSettings
from retrieval.languages import function_words
from retrieval.search import Candidates, FoundChunk
from serving.protocols import Lane, ServingError

MOST_QUERIES = 4
"""More things than that asked at once are searched as one."""
EXCHANGES = 3
"""Those that a model rewrites a question by."""
MOST_TURNS = 16
"""Of the conversation, those that are looked at."""
MOST_TURN_CHARS = 400
MOST_READ_CHARS = 2_000
"""What is longer is a text with a question in it, and is searched as it is."""
MOST_QUESTION_CHARS = 300
REWRITE_TOKENS = 64
ANSWER_TOKENS = 96
LEAST_KNOWN = 0.7
"""Share of a rewritten question's words that must stand in the conversation: a rewriting names nothing new."""
LEAST_KEPT = 0.5
"""Share of the question's own content words that a rewriting must keep."""

Json = dict[str, Any]


class How(StrEnum):
    """How the question that is searched came about."""

    ASKED = "asked"
    """As the person wrote it."""
    JOINED = "joined"
    """With the question before it in front, which may name the subject."""
    REWRITTEN = "rewritten"
    """By the generation model, from the conversation."""


@dataclass(frozen=True)
class Asked:
    """A question as it is searched."""

    question: str
    """Standing alone, as far as that could be had."""
    queries: tuple[str, ...]
    """What is searched, one at least."""
    how: How
    failure: str | None = None
    """Why it was not rewritten although it should have been."""
    parts: tuple[str, ...] = ()
    """The first of `queries`, where each asks for something of its own."""

    def told(self) -> Json:
        """The fields of a reply that say so."""
        told: Json = {"search_queries": list(self.queries), "search_question": self.how.value}
        return told if self.failure is None else {**told, "rewrite_failed": self.failure}


class _Useless(Exception):
    """The generation model's text is of no use here; the message says why."""


class Questions:
    """Reads the question of a conversation. `settings` say what the generation model may do to it."""

    def __init__(self, generator: Generator, settings: ChatSettings) -> None:
        self._generator = generator
        self._settings = settings

    async def read(self, messages: Sequence[Json], *, model: str, tenant: str, lane: Lane) -> Asked:
        """`messages` hold one of the person's at least. A generation model that fails costs its work, never this."""
        turns = _turns(messages)
        asked = [text for role, text in turns if role == "user"]
        last = asked[-1] if asked else ""
        if len(last) > MOST_READ_CHARS:
            return Asked(last, (last,), How.ASKED)
        subject = subject_of(asked)
        question, how, failure = last, How.ASKED, None
        if subject is not None:
            question, how = f"{subject}\n{last}", How.JOINED
            if self._settings.rewrite:
                try:
                    question = await self._rewritten(turns, model=model, tenant=tenant, lane=lane)
                    how = How.REWRITTEN
                except _Useless as useless:
                    failure = str(useless)
        queries = (question,) if how is How.JOINED else parts_of(question)
        more = await self._more(question, model=model, tenant=tenant, lane=lane)
        parts = tuple(dict.fromkeys(queries)) if len(queries) > 1 else ()
        return Asked(question, tuple(dict.fromkeys([*queries, *more])), how, failure, parts)

    async def reworded(self, query: str, *, model: str, tenant: str, lane: Lane) -> Asked:
        """A search query as the generation model would put it; as it is, if that comes to nothing."""
        if len(query) > MOST_QUESTION_CHARS:
            return Asked(query, (query,), How.ASKED, "too long")
        messages = [{"role": "user", "content": _QUERY.format(query=_short(query))}]
        try:
            told = await self._say(messages, REWRITE_TOKENS, model=model, tenant=tenant, lane=lane)
            rewritten = _LABEL.sub("", told.strip().partition("\n")[0]).strip(_QUOTES)
            if not is_sound(rewritten, [("user", query)]):
                raise _Useless("nonsense")
        except _Useless as useless:
            return Asked(query, (query,), How.ASKED, str(useless))
        return Asked(query, (rewritten,), How.REWRITTEN)

    async def _rewritten(
        self, turns: Sequence[tuple[str, str]], *, model: str, tenant: str, lane: Lane
    ) -> str:
        """Raises _Useless."""
        told = await self._say(
            [*_EXAMPLES, {"role": "user", "content": _conversation(turns)}],
            REWRITE_TOKENS,
            model=model,
            tenant=tenant,
            lane=lane,
        )
        lines = [line.strip(_QUOTES) for line in told.splitlines() if line.strip(_QUOTES)]
        rewritten = _LABEL.sub("", lines[0]).strip(_QUOTES) if lines else ""
        if not is_sound(rewritten, turns):
            raise _Useless("nonsense")
        return rewritten

    async def _more(self, question: str, *, model: str, tenant: str, lane: Lane) -> list[str]:
        """A made-up answer and other wordings to search for as well, as the settings say. What fails is left out."""

        async def ask(told: str, tokens: int) -> str:
            try:
                messages = [{"role": "user", "content": told}]
                return await self._say(messages, tokens, model=model, tenant=tenant, lane=lane)
            except _Useless:
                return ""

        count = self._settings.other_wordings
        answer, wordings = await asyncio.gather(
            ask(_ANSWER.format(question=question), ANSWER_TOKENS)
            if self._settings.hypothetical_answer
            else _none(),
            ask(_WORDINGS.format(question=question, count=count), count * REWRITE_TOKENS)
            if count
            else _none(),
        )
        lines = [_LABEL.sub("", line.strip(_QUOTES)).strip(_QUOTES) for line in wordings.splitlines()]
        sound = [line for line in lines if 0 < len(line) <= MOST_QUESTION_CHARS][:count]
        # Beside the question's own words: a small model's answer alone leads astray. Source: Gao et al., HyDE, 2022.
        return [*([f"{question}\n{answer.strip()}"] if answer.strip() else []), *sound]

    async def _say(
        self, messages: Sequence[Json], tokens: int, *, model: str, tenant: str, lane: Lane
    ) -> str:
        """Raises _Useless."""
        body = {
            "model": model,
            "messages": list(messages),
            "temperature": 0,
            "seed": 0,
            "max_tokens": tokens,
            "stream": False,
        }
        try:
            async with self._generator.send(
                CHAT_PATH,
                orjson.dumps(body),
                model=model,
                tenant=tenant,
                lane=lane,
                prefix=as_prefix(messages),
                deadline_s=self._settings.rewrite_timeout_s,
            ) as reply:
                raw = await reply.read()
                if reply.status != 200:
                    raise _Useless("refused")
            return str(orjson.loads(raw)["choices"][0]["message"].get("content") or "")
        except ServingError as error:
            raise _Useless("unavailable") from error
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise _Useless("nonsense") from error


async def _none() -> str:
    return ""


def subject_of(asked: Sequence[str]) -> str | None:
    """The nearest question before the last that stands on its own, if the last one leans on it; else None."""
    if len(asked) < 2:
        return None
    subject = asked[0]
    for before, question in pairwise(asked[:-1]):
        if not leans(question, before=before):
            subject = question
    return subject if leans(asked[-1], before=subject) else None


def leans(question: str, *, before: str) -> bool:
    """Whether a question needs the one before it to be understood: by pronouns, by what it leaves out, by brevity."""
    conjunction = _CONJUNCTION.match(question)
    if conjunction is not None:
        question = question[conjunction.end() :]
        if not (_ASKS.match(question) and _has_name(question)):
            return True
    if _OPENING.match(question) or _REFERRING.search(question):
        return True
    pronoun = _PRONOUN.search(question)
    if pronoun is not None and not _stands_before(question[: pronoun.start()]):
        return True
    if _has_name(question):
        return False
    if len(_CONTENT.findall(question)) <= FRAGMENT_WORDS:
        return not _DEFINITION.match(question)
    # "How many steps has the staircase?", after a question that named the lighthouse.
    return bool(_DEFINITE.search(question)) and _has_name(before)


def parts_of(question: str) -> tuple[str, ...]:
    """The things that a question asks, each to be searched on its own; or the question, if it asks one.

    A part that leans on the one before it ("and who built it?") is searched together with that.
    """
    sentences = [each for each in _SENTENCE_END.split(question.strip()) if each]
    if any(not each.endswith(_ASKING) and not _ASKS.match(each) for each in sentences):
        # What is told before or after belongs to what is asked.
        return (question,)
    parts = [part for sentence in sentences for part in _NEXT_CLAUSE.split(sentence)]
    if not 1 < len(parts) <= MOST_QUERIES:
        return (question,)
    queries: list[str] = []
    for index, part in enumerate(parts):
        needs_previous = index > 0 and leans(part, before=parts[index - 1])
        if len(_content_words(part)) < (1 if needs_previous else 2):
            return (question,)
        queries.append(f"{parts[index - 1]} {part}" if needs_previous else part)
    return tuple(queries)


def merged(found: Sequence[Candidates], *, limit: int) -> Candidates:
    """What several queries found, as one ranking: each query's best, then each one's second, and so on.

    Not by reciprocal ranks, whose sums put what is middling for two questions before what is best for one. A chunk
    that several found keeps the scores of the query that it suits best.
    """
    if len(found) == 1:
        return found[0]
    ranks: dict[int, int] = {}
    best: dict[int, FoundChunk] = {}
    for candidates in found:
        for rank, chunk in enumerate(candidates.chunks):
            known = best.setdefault(chunk.chunk_id, chunk)
            ranks[chunk.chunk_id] = min(rank, ranks.get(chunk.chunk_id, rank))
            if chunk.score > known.score:
                best[chunk.chunk_id] = chunk
    # Sorting is stable: of equal ranks, the first query's.
    ordered = sorted(best, key=lambda chunk_id: ranks[chunk_id])
    return replace(found[0], chunks=tuple(best[chunk_id] for chunk_id in ordered[:limit]))


def is_sound(rewritten: str, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether a rewritten question can be one: of its length, of the conversation's words, and not an older one."""
    asked = [text for role, text in turns if role == "user"]
    if not rewritten or len(rewritten) > MOST_QUESTION_CHARS:
        return False
    if any(rewritten.casefold() == text.casefold() for text in asked[:-1]):
        return False
    known = _content_words(" ".join(text for _, text in turns))
    wanted, own = _content_words(rewritten), _content_words(asked[-1])
    return (
        bool(wanted)
        and len(wanted & known) >= LEAST_KNOWN * len(wanted)
        and len(wanted & own) >= LEAST_KEPT * len(own)
        # Numbers and names of the question may not get lost.
        and {word for word in own if any(map(str.isdigit, word))} <= wanted
    )


def _turns(messages: Sequence[Json]) -> list[tuple[str, str]]:
    """Role and text of what the person asked and was answered, up to the last question."""
    turns = [(str(message.get("role")), text_of(message.get("content"))) for message in messages]
    said = [(role, text) for role, text in turns if role in ("user", "assistant") and text.strip()]
    while said and said[-1][0] != "user":
        said.pop()
    return said[-MOST_TURNS:]


def _conversation(turns: Sequence[tuple[str, str]]) -> str:
    """The last exchanges and the question, as the generation model is shown them."""
    shown = [
        f"{'Person' if role == 'user' else 'Answer'}: {_short(text)}"
        for role, text in turns[-1 - 2 * EXCHANGES : -1]
    ]
    return "\n".join(
        ["Conversation:", *shown, f"Last question: {_short(turns[-1][1])}", "Rewritten question:"]
    )


def _short(text: str) -> str:
    return " ".join(harmless(text).split())[:MOST_TURN_CHARS]


def _content_words(text: str) -> frozenset[str]:
    """In lower case, cut to their first letters against endings; of scripts without spaces each character."""
    binding = function_words(text)
    return frozenset(
        word[:STEM_CHARS]
        for word in _CONTENT.findall(text.lower())
        if word not in binding and (len(word) > 2 or not word.isascii() or word.isdigit())
    )


def _has_name(text: str) -> bool:
    """Whether it holds a name, a number or something in quotation marks, by which a search could find it.

    A capital inside a sentence is a name; its first word has one anyway. So German questions, whose nouns have
    them all, lean by their pronouns alone.
    """
    if _NAMED.search(text):
        return True
    words = [word for word in _WORD.finditer(text) if word.group() != "I"]
    return any(word.group()[0].isupper() and not _BEGINS.search(text[: word.start()]) for word in words)


def _stands_before(text: str) -> bool:
    """Whether a question names what its pronoun stands for before that: "What is a lock and how does it work?"."""
    return _has_name(text) or (bool(_CLAUSE_END.search(text)) and len(_content_words(text)) > 0)


FRAGMENT_WORDS = 3
STEM_CHARS = 6

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_CONTENT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_QUOTES = " \t\"'“”„«»*`"
_LABEL = re.compile(r"^(?:\d+[.)]\s*|[-*]\s+|(?:rewritten|last)?\s*question\s*:\s*)+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[?？؟.!。！])\s+|(?<=[？。！])|\n+")
_ASKING = ("?", "？", "؟")
_NAMED = re.compile(r"\d|[\"“„«][^\"”“»]{2,}[\"”“»]|\b[A-Z]{2,}\b|\b[A-Z][a-z]+[A-Z]")
_BEGINS = re.compile(r"(?:^|[.?!:]\s)[^\w]*$")
_ASK = (
    r"(?:what|who|when|where|which|why|how|whose|whom|is|are|was|were|do|does|did|can|could|should|has|have|will|may|must"
    r"|wer|wann|wo|welche[rsnm]?|warum|wie|wem|wessen|gibt|ist|sind|kann|muss|darf"
    r"|qui|quand|où|quel(?:le)?s?|pourquoi|comment|combien|est-ce|qu['’]est-ce"
    r"|¿?(?:qué|quién(?:es)?|cuándo|dónde|cuál(?:es)?|cómo|cuánt[oa]s?|por qué)"
    r"|chi|quando|dove|quale|quali|perché|come|quant[oi]|qual|quais|quem|onde|como|wat|wie|waar|wanneer|hoe|welke)\b"
)
_ASKS = re.compile(_ASK, re.IGNORECASE)
_NEXT_CLAUSE = re.compile(
    rf"[,;]?\s+(?:and|und|et|y|e|en)(?:\s+(?:also|auch|aussi))?\s+(?={_ASK})", re.IGNORECASE
)
_CLAUSE_END = re.compile(r"[,;:]\s|\s(?:and|und|et|y|e|en|or|oder|ou|o)\s", re.IGNORECASE)
_DEFINITION = re.compile(
    r"\s*(?:what|who|define|explain|was|wer|qu['’]est-ce|qui|¿?qué|¿?quién)(?:['’]s)?\s", re.IGNORECASE
)
_CONJUNCTION = re.compile(
    r"\s*(?:and|but|or|so|also|then|und|aber|oder|et|mais|ou|¿?y|pero|e|ma|mas|en|maar)\s+", re.IGNORECASE
)
_OPENING = re.compile(
    r"\s*(?:(?:what|how) about|same for"
    r"|was ist mit|et pour|tell me more|any(?:thing)? (?:else|more)|why not"
    r"|(?:in|for|at|on|with|without|by|after|before|until|since|during|für|mit|ohne|nach|vor|pour|avec|sans|para|con|sin)"
    rf"\s+(?!{_ASK})(?:\S+\s*){{1,4}}$)",
    re.IGNORECASE,
)
"""Among others a preposition, where no question follows it and not much else."""
_REFERRING = re.compile(
    r"\b(?:the same|the (?:other|former|latter|first|second|last) ones?|(?:that|this|these|those|which|another) ones?"
    r"|(?:someone|anything|what|who) else|the others?|each of them|dasselbe|derselbe|la même|le même|lo mismo)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    # English; "is it possible" and "does it take" stand for nothing, "this year" for today, and IT is no pronoun.
    r"\b(?:(?<!what time is )(?:it|It)(?! (?:possible|necessary|allowed|permitted|required|true|legal|safe)\b)"
    r"(?! (?:takes?|costs?)\b.*\bto\b)|[Ii]ts|[Tt]he(?:y|m|irs?)|[Hh]e|[Hh]i[ms]|[Ss]he|[Hh]ers?"
    r"|[Tt]h(?:is|ese)"
    r"(?! (?:year|week|month|quarter|document|file|manual|handbook|report|contract|policy|collection)s?\b)"
    r"|[Tt]hose|[Tt]hat(?= (?:is|was|does|did|has|had|would|can|will|mean)\b|\s*[?.!,]|$)"
    r"|(?:[Ii]s|[Ww]as|[Dd]oes|[Dd]id|[Hh]as|about|of|for|with|like|than|after|before) that"
    r"(?! \w+ (?:is|are|was|were)\b)"
    r"|(?<![Ii]s )(?<![Aa]re )(?<![Ww]as )(?<![Ww]ere )(?<!be )there(?! (?:is|are|was|were|be|any)\b))\b"
    # German, but for "Sie" and "Ihr", which are said to the one who is asked.
    r"|\b(?:er|sie|ihr|ihm|ihn|ihre[nmrs]?|seine[nmrs]?|dessen|deren|diese[rsnm]?|dort|damit|dafür|dabei|darin|davon|dazu"
    r"|daran|darauf|(?:[Ii]st|[Hh]at|[Ww]ird|[Ww]ar|[Ww]urde|[Kk]ostet|[Ll]iegt|[Kk]ann|[Mm]uss|[Ss]oll|[Ss]teht) es)\b"
    # French, Spanish, Italian, Portuguese, Dutch.
    r"|-(?:t-)?(?:ils?|elles?)\b(?! (?:possible|nécessaire))"
    r"|\b(?:elles?|lui|leurs?|ses|celui|celles?|ceux|cela|ça|cet|cette)\b"
    r"|\b(?:él|ellas?|ellos|sus|eso|ese|esa|esto)\b|¿[^?]*\bsu\b"
    r"|\b(?:lei|loro|suoi?|sua|sue|esso|essa|quest[oaie]|quell[oa])\b"
    r"|\b(?:eles?|elas?|seus?|suas?|isso|disso|nele|nela|dele|dela)\b|\b(?:hij|zij|hem|haar|hun|daar|deze)\b"
    # Chinese, Japanese, Korean.
    r"|[它他她]|这|那|该|其|それ|これ|あれ|その|この|あの|彼|そこ|그것|그녀|그들|그는|그의"
)
_DEFINITE = re.compile(
    r"\b(?:the|der|die|das|dem|den|des|le|la|les|el|los|las|il|lo|gli|het)\s", re.IGNORECASE
)

_RULE = (
    "Rewrite the last question so that it can be understood without the conversation. Put the names that it refers to "
    "in place of words such as it, they or there. Keep its language. Reply with the rewritten question only.\n\n"
)
_EXAMPLES: tuple[Json, ...] = (
    {
        "role": "user",
        "content": f"{_RULE}Conversation:\nPerson: Who runs the bakery in Tolm?\nAnswer: Mara Lind runs it.\n"
        "Last question: When does she open it?\nRewritten question:",
    },
    {"role": "assistant", "content": "When does Mara Lind open the bakery in Tolm?"},
    {
        "role": "user",
        "content": "Conversation:\nPerson: Was kostet das Jahresticket der Fähre?\nAnswer: Es kostet 300 Euro.\n"
        "Last question: Und für Kinder?\nRewritten question:",
    },
    {"role": "assistant", "content": "Was kostet das Jahresticket der Fähre für Kinder?"},
)
_ANSWER = (
    "Write one or two sentences, as they could stand in a document, that answer this question: {question}"
)
_QUERY = (
    "Rewrite this as a short search query that names what is looked for. Keep its language, its names and its numbers. "
    "Reply with the query only: {query}"
)
_WORDINGS = (
    "Write {count} other wordings of this question, each on a line of its own, and nothing else: {question}"
)
