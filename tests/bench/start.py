"""From `strongroom serve` to its first search and its first answer, on a data folder that was used before.

`python -m tests.bench --only start [--quick]` runs it alone. What the engine takes by itself, started with the same
words, is measured beside: an answer cannot come before.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.progress import Progress

from tests.bench.clients import Api, wait_ingested
from tests.bench.figures import Bound, Figure, Samples, skipped
from tests.bench.run import QUICK_REASON
from tests.stack import ENGINE_PYTHON, ROOT, START_S, Stack, eventually

SAYS = "second start: to the first search, and to the first answer beyond the engine's own start"
SEARCH, ANSWER = Bound(8.0, is_upper=True), Bound(5.0, is_upper=True)
ROUNDS, QUICK_ROUNDS = 3, 1
LOOK_S = 0.2
MANUAL = ROOT / "data" / "samples" / "icehouse-vault-manual.pdf"
QUESTION = "At what temperature does the Icehouse keep the seed vault?"


@dataclass
class Starts:
    """Seconds of each round."""

    engine_s: list[float] = field(default_factory=list)
    search_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not ENGINE_PYTHON.exists():
        return [skipped("start", SAYS, f"{ENGINE_PYTHON} is absent")]
    starts = Starts()
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        stack = Stack(Path(folder) / "data")
        try:
            stack.start()
            store_id = _add_manual(stack)
            engine = _Engine(stack)
        finally:
            stack.stop()
        for _ in progress.track(range(QUICK_ROUNDS if is_quick else ROUNDS), description="start"):
            starts.engine_s.append(engine.started_alone_s(Path(folder) / "engine.log"))
            _start(stack, store_id, starts)
    return _figures(starts, is_quick)


class _Engine:
    """The process that the stack started, to be started again without it."""

    def __init__(self, stack: Stack) -> None:
        process = Path(f"/proc/{stack.pid('engine')}")
        self._command = _words(process / "cmdline")
        self._environment = dict(each.split("=", 1) for each in _words(process / "environ"))
        self._url, _ = stack.engine_address()

    def started_alone_s(self, log: Path) -> float:
        with log.open("ab") as output:
            begun = time.monotonic()
            process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=output, cwd=ROOT
            )
        try:
            eventually(lambda: _is_ok(f"{self._url}/health"), within_s=START_S, every_s=LOOK_S)
            return time.monotonic() - begun
        finally:
            process.terminate()
            process.wait()


def _start(stack: Stack, store_id: str, starts: Starts) -> None:
    begun = time.monotonic()
    try:
        stack.start(roles=())
        with stack.http() as client:
            search = {"query": QUESTION}
            starts.search_s.append(_until(lambda: client.post(_search_path(store_id), json=search), begun))
            chat = {"model": "rag", "messages": [{"role": "user", "content": QUESTION}]}
            starts.answer_s.append(_until(lambda: client.post("/v1/chat/completions", json=chat), begun))
    finally:
        stack.stop()


def _until(ask: Callable[[], httpx.Response], begun: float) -> float:
    """Seconds from `begun` until it is answered."""

    def is_answered() -> bool:
        with suppress(httpx.HTTPError):
            return ask().status_code == 200
        return False

    eventually(is_answered, within_s=START_S, every_s=LOOK_S)
    return time.monotonic() - begun


def _add_manual(stack: Stack) -> str:
    with stack.http() as client:
        api = Api(client)
        store_id = api.create_store("bench: start")
        api.attach(store_id, api.upload(MANUAL.name, MANUAL.read_bytes()))
        wait_ingested(api, store_id, within_s=START_S, on_progress=lambda *_: None)
        client.post(_search_path(store_id), json={"query": QUESTION}).raise_for_status()
    return store_id


def _search_path(store_id: str) -> str:
    return f"/v1/vector_stores/{store_id}/search"


def _words(path: Path) -> list[str]:
    return path.read_bytes().decode().rstrip("\0").split("\0")


def _is_ok(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2).status_code == 200
    return False


def _figures(starts: Starts, is_quick: bool) -> list[Figure]:
    beyond = [answer - engine for answer, engine in zip(starts.answer_s, starts.engine_s, strict=True)]

    def figure(
        name: str, says: str, values: Sequence[float], bound: Bound, **others: Sequence[float]
    ) -> Figure:
        samples = {name: Samples(tuple(values), "s")}
        samples |= {each.replace("_", " "): Samples(tuple(more), "s") for each, more in others.items()}
        return Figure(
            name,
            says,
            unit="s",
            measured=round(samples[name].percentile(50), 1),
            bound=bound,
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
            samples=samples,
        )

    return [
        figure("start_search", "second start: to the first search, p50", starts.search_s, SEARCH),
        figure(
            "start_answer",
            "second start: to the first answer, less what the engine takes alone, p50",
            beyond,
            ANSWER,
            first_answer=starts.answer_s,
            engine_alone=starts.engine_s,
        ),
    ]
