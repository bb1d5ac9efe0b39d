"""Streams with retrieval and citations beside plain ones, from the same mock engine, through the same api role.

`python -m tests.bench --only cited_relay [--quick]` runs it alone. The mock says the document's own sentences, word by
word, so that every sentence is checked and cited. Load, api role and engine share the machine's cores.
"""

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.progress import Progress

from tests.bench.clients import Api, wait_ingested
from tests.bench.figures import Bound, Figure, MeasureFailed
from tests.bench.mock_engine import MODEL
from tests.bench.peers import gateways, load
from tests.bench.peers.load import LoadProcess
from tests.bench.run import QUICK_REASON
from tests.stack import Stack

SAYS = "relay: events of streams with citations, share of plain ones"
DOCUMENT = (
    "The harbour master of Vellmouth is Ondine Marsh, who has held the post since the spring of 1987. "
    "Her office is on the second floor of the Customs House, behind the green door with the brass bell. "
    "The pier lamp is lit at dusk by the night watch and is put out when the first ferry leaves at six. "
    "Ships of more than forty metres wait at the outer buoy until a pilot from the station comes aboard. "
)
QUESTION = "Who is the harbour master of Vellmouth, and where do ships wait for a pilot?"
PLAIN, CITED = "plain", "cited"
ROLES = ("database", "models", "worker")
INGEST_S = 120.0
FASTEST_REASON = "no engine writes 1,000 sentences a second, each of which is checked"


@dataclass(frozen=True)
class Pace:
    """So many streams at once, of so many events each, so many ms apart. No distance: as fast as can be."""

    streams: int
    events: int
    apart_ms: int


@dataclass
class Measured:
    """Of one pace, by kind of stream."""

    events_a_second: dict[str, list[float]] = field(default_factory=lambda: {PLAIN: [], CITED: []})
    annotations: int = 0

    @property
    def share(self) -> float:
        return statistics.median(self.events_a_second[CITED]) / statistics.median(self.events_a_second[PLAIN])


PACES = {
    "paced": Pace(streams=32, events=300, apart_ms=20),
    "fastest": Pace(streams=32, events=500, apart_ms=0),
}
QUICK = {
    "paced": Pace(streams=4, events=40, apart_ms=20),
    "fastest": Pace(streams=4, events=40, apart_ms=0),
}
ROUNDS = 5


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    paces, rounds = (QUICK, 1) if is_quick else (PACES, ROUNDS)
    with (
        tempfile.TemporaryDirectory(prefix="bench-relay-") as folder,
        LoadProcess() as process,
        gateways.mock_engine(Path(folder), "--says", f" {DOCUMENT}") as engine,
    ):
        stack = Stack(Path(folder) / "data", {"STRONGROOM_ENGINE__URL": engine.url})
        stack.start(roles=ROLES)
        try:
            measured = _measure(stack, process, paces, rounds, progress)
        finally:
            stack.stop()
    return [_figure(name, measured[name], paces[name], is_quick) for name in paces]


def _measure(
    stack: Stack, process: LoadProcess, paces: Mapping[str, Pace], rounds: int, progress: Progress
) -> dict[str, Measured]:
    with stack.http() as http:
        api = Api(http)
        store_id = api.create_store("harbour")
        api.attach(store_id, api.upload("harbour.txt", DOCUMENT.encode()))
        wait_ingested(api, store_id, within_s=INGEST_S, on_progress=lambda *_: None)
    measured = {name: Measured() for name in paces}
    for _ in progress.track(range(rounds), description="cited_relay"):
        for name, pace in paces.items():
            for kind, model in ((PLAIN, MODEL), (CITED, f"rag/{store_id}")):
                told = _stream(stack, process, pace, model)
                measured[name].events_a_second[kind].append(told[0])
                measured[name].annotations += told[1]
    return measured


def _stream(stack: Stack, process: LoadProcess, pace: Pace, model: str) -> tuple[float, int]:
    """The engine's events a second, and the citations."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "max_tokens": pace.events,
        "seed": pace.apart_ms,
    }
    request = load.post(stack.url, gateways.PATH, body, token=stack.key)
    answers = process.run(
        load.closed_loop, stack.url, [request] * pace.streams, at_once=pace.streams, keep_bodies=True
    )
    load.checked(answers)
    words = DOCUMENT.split()
    for answer in answers:
        if _words(answer.body) != [words[number % len(words)] for number in range(pace.events)]:
            raise MeasureFailed("A stream's text is not the engine's.")
    annotations = sum(answer.body.count(b'"url_citation":') for answer in answers)
    return pace.streams * pace.events / load.span_s(answers), annotations


def _words(body: bytes) -> list[str]:
    """What was said, without markers."""
    events = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [choice["delta"] for event in events for choice in orjson.loads(event)["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return [word for word in text.split() if not word.startswith("[")]


def _figure(name: str, measured: Measured, pace: Pace, is_quick: bool) -> Figure:
    def told(kind: str) -> str:
        return f"{statistics.median(measured.events_a_second[kind]):.0f} events/s"

    if not measured.annotations:
        raise MeasureFailed("Nothing was cited.")
    apart = f"{pace.apart_ms} ms apart" if pace.apart_ms else "as fast as can be"
    facts: dict[str, float | str] = {PLAIN: told(PLAIN), CITED: told(CITED)}
    return Figure(
        f"cited_relay_{name}",
        f"{SAYS}: {pace.streams} streams, {apart}",
        measured=round(measured.share, 2),
        bound=Bound(0.7, is_upper=False),
        is_judged=not is_quick and pace.apart_ms > 0,
        reason=QUICK_REASON if is_quick else "" if pace.apart_ms else FASTEST_REASON,
        facts={**facts, "citations": measured.annotations},
    )
