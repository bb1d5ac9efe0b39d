"""How long it takes to see that nothing changed in a folder of 10,000 files, and that it makes no work.

`python -m tests.bench --only sweep [--quick]` runs it alone.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from tests.bench.corpora import prose
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.ingestion_stack import IngestionStack
from tests.bench.run import QUICK_REASON
from tests.stack import eventually

SAYS = "sweep of an unchanged folder of 10,000 files, longest"
MUST_REACH = Bound(5.0, is_upper=True)
FOLDERS = 100
WORDS = 12
FIRST_SWEEP_S = 1_200.0
SWEEP_S = 120.0


@dataclass(frozen=True)
class Sizes:
    files: int
    sweeps: int


FULL = Sizes(files=10_000, sweeps=5)
QUICK = Sizes(files=200, sweeps=2)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    sizes = QUICK if is_quick else FULL
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
        source = Path(folder) / "source"
        _write_files(source, sizes.files)
        settings = {"STRONGROOM_SOURCES__ROOTS": folder}
        with IngestionStack.running(Path(folder), settings) as ours, ours.stack.http() as client:
            swept = _Source(ours, client, source)
            swept.first_sweep()
            ours.wait_until_quiet()
            ours.check_completed(swept.store_id, sizes.files)
            rounds = progress.track(range(sizes.sweeps), description="sweep")
            seconds = Samples(tuple(swept.unchanged_sweep_s(sizes.files) for _ in rounds), "s")
    return [
        Figure(
            "sweep",
            SAYS,
            unit="s",
            measured=round(max(seconds.values), 2),
            bound=MUST_REACH,
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
            samples={"sweep": seconds},
            facts={"files": sizes.files, "jobs, parts and chunks that they made": 0},
        )
    ]


class _Source:
    """The folder as a source of a collection of its own, asked for its sweeps over the API."""

    def __init__(self, ours: IngestionStack, client: httpx.Client, folder: Path) -> None:
        self._ours = ours
        self._client = client
        self.store_id = ours.api.create_store("bench: sweep")
        body = {"url": folder.as_uri(), "collection": self.store_id, "every": "1d"}
        self._path = f"/v1/sources/{self._call('POST', '/v1/sources', body)['id']}"

    def first_sweep(self) -> None:
        """Is due as soon as the source is added."""
        eventually(lambda: bool(self._ended()), within_s=FIRST_SWEEP_S)
        _check(self._ended()[-1])

    def unchanged_sweep_s(self, files: int) -> float:
        """Of one more sweep. Raises MeasureFailed when it found or made anything."""
        before, known = self._ours.kept(), {each["id"] for each in self._ended()}
        self._call("POST", f"{self._path}/sweep", {})
        eventually(lambda: {each["id"] for each in self._ended()} > known, within_s=SWEEP_S, every_s=0.5)
        (sweep,) = (each for each in self._ended() if each["id"] not in known)
        _check(sweep)
        found = {name: count for name, count in sweep["counts"].items() if count}
        if found != {"unchanged": files} or self._ours.kept() != before:
            raise MeasureFailed(f"The sweep of {files} unchanged files found or made something: {found}")
        return float(sweep["seconds"])

    def _ended(self) -> list[dict[str, Any]]:
        return [each for each in self._call("GET", self._path)["sweeps"] if each["status"] == "ended"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.request(method, path, json=body).raise_for_status().json()
        return answer


def _check(sweep: dict[str, Any]) -> None:
    if sweep["error"]:
        raise MeasureFailed(f"The sweep failed: {sweep['error']}")


def _write_files(folder: Path, count: int) -> None:
    words = prose(words=count * WORDS)
    for number in range(count):
        place = folder / f"shelf-{number % FOLDERS}"
        place.mkdir(parents=True, exist_ok=True)
        text = " ".join(words[number * WORDS : (number + 1) * WORDS])
        (place / f"note-{number}.txt").write_text(f"Note {number}. {text}")
