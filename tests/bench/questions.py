"""What is searched for a question in conversation, in each way: does the document that answers it come to the top?"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.answers.questions import Asked, How, Questions, parts_of, subject_of
from app.settings import ChatSettings
from retrieval.together import together
from serving.generation.gateway import Gateway, Replica
from serving.protocols import Lane
from tests.bench.clients import wait_ingested
from tests.bench.conversations import CONVERSATIONS, Conversation, documents
from tests.bench.figures import Figure
from tests.bench.run import QUICK_REASON, Run

SAYS = (
    "questions in conversation: documents that answer them among the first 3 that are found, as chats search"
)
DEPTH = 3
QUICK_CONVERSATIONS = 12
CLIENTS = 8
TIMEOUT_S = 120.0
"""Of a rewriting: the measure is of what it is worth, not of a busy machine."""

Queries = Callable[[Conversation], Sequence[str]]


@dataclass
class _Way:
    """One way to make queries of a conversation, and the share of wanted documents that each conversation found."""

    queries: Queries
    found: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: list[float] = field(default_factory=list)
    """1 where a wanted document leads the ranking."""

    @property
    def share(self) -> float:
        shares = [share for each in self.found.values() for share in each]
        return sum(shares) / len(shares)


def measure(run: Run) -> list[Figure]:
    """Searches over the product's endpoint; rewritten questions and others by the real engine."""
    chosen = (
        CONVERSATIONS[:: len(CONVERSATIONS) // QUICK_CONVERSATIONS] if run.sizes.is_quick else CONVERSATIONS
    )
    read = asyncio.run(_read_by_engine(run, chosen))
    ways = {
        "last question alone": _Way(lambda each: (each.asked[-1],)),
        "last two joined": _Way(lambda each: ("\n".join(each.asked[-2:]),)),
        "joined where it leans, split where it asks more": _Way(_as_chats_do),
        "rewritten by the engine": _Way(lambda each: read["rewritten"][each].queries),
        "and with a made-up answer": _Way(lambda each: read["answered"][each].queries),
        "and with other wordings": _Way(lambda each: read["worded"][each].queries),
        "written by a person": _Way(lambda each: parts_of(each.alone)),
    }
    store_id = run.api.create_store("bench: questions")
    names: dict[str, str] = {}
    for name, text in documents().items():
        file_id = run.api.upload(f"{len(names)}.txt", text.encode())
        run.api.attach(store_id, file_id)
        names[file_id] = name
    wait_ingested(run.api, store_id, within_s=180, on_progress=lambda *_: None)
    for conversation in run.progress.track(chosen, description="questions"):
        for way in ways.values():
            found = [names[each] for each in _found(run, store_id, way.queries(conversation))]
            hits = set(found[:DEPTH]) & set(conversation.wanted)
            way.found[conversation.kind].append(len(hits) / len(conversation.wanted))
            way.first.append(float(found[0] in conversation.wanted))
    return [_figure(run, chosen, ways, read["rewritten"])]


def _as_chats_do(conversation: Conversation) -> Sequence[str]:
    """With the default settings."""
    subject = subject_of(conversation.asked)
    last = conversation.asked[-1]
    return parts_of(last) if subject is None else (f"{subject}\n{last}",)


def _found(run: Run, store_id: str, queries: Sequence[str]) -> list[str]:
    """Files, best first; of several queries as chats merge them."""
    ranks: dict[str, int] = {}
    for query in queries:
        for rank, file_id in enumerate(run.api.search(store_id, query, limit=12)):
            ranks[file_id] = min(rank, ranks.get(file_id, rank))
    return sorted(ranks, key=lambda file_id: ranks[file_id])


async def _read_by_engine(
    run: Run, conversations: Sequence[Conversation]
) -> Mapping[str, Mapping[Conversation, Asked]]:
    settings = {
        "rewritten": ChatSettings(rewrite=True, rewrite_timeout_s=TIMEOUT_S),
        "answered": ChatSettings(hypothetical_answer=True, rewrite_timeout_s=TIMEOUT_S),
        "worded": ChatSettings(other_wordings=2, rewrite_timeout_s=TIMEOUT_S),
    }
    url, key = run.stack.engine_address()
    read: dict[str, dict[Conversation, Asked]] = defaultdict(dict)
    async with Gateway([Replica(url, key)], salt_secret=b"bench") as gateway:
        model = (await gateway.models())[0].id
        at_once = asyncio.Semaphore(CLIENTS)

        async def ask(name: str, questions: Questions, conversation: Conversation) -> None:
            async with at_once:
                read[name][conversation] = await questions.read(
                    conversation.messages, model=model, tenant="bench", lane=Lane.INTERACTIVE
                )

        async with together() as tasks:
            for name, chosen in settings.items():
                for conversation in conversations:
                    tasks.create_task(ask(name, Questions(gateway, chosen), conversation))
    return read


def _figure(
    run: Run,
    chosen: Sequence[Conversation],
    ways: Mapping[str, _Way],
    rewritten: Mapping[Conversation, Asked],
) -> Figure:
    facts: dict[str, float | str] = {"conversations": len(chosen)}
    for name, way in ways.items():
        kinds = ", ".join(f"{kind} {sum(shares) / len(shares):.2f}" for kind, shares in way.found.items())
        first = sum(way.first) / len(way.first)
        facts[name] = f"{way.share:.3f} among {DEPTH}, {first:.3f} first; {kinds}"
    leaning = [each for each in rewritten.values() if each.how is not How.ASKED]
    sound = sum(each.how is How.REWRITTEN for each in leaning)
    facts["leaning questions that the engine rewrote soundly"] = f"{sound} of {len(leaning)}"
    return Figure(
        "questions",
        SAYS,
        measured=round(ways["joined where it leans, split where it asks more"].share, 3),
        is_judged=not run.sizes.is_quick,
        reason=QUICK_REASON if run.sizes.is_quick else "",
        facts=facts,
    )
