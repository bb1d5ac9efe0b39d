"""Small files through the API: how many a second, beside the bare embedding loop, OGX, and searches meanwhile.

`python -m tests.bench --only ingestion [--quick]` runs it alone. A file counts from its upload until it can be
searched. OGX embeds with the same models role, by the API's /v1/embeddings, while our worker is idle.
"""

import gzip
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import orjson
from rich.progress import Progress

from tests.bench.clients import Api, in_parallel
from tests.bench.corpora import SHARED, read_beir
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.ingestion_stack import CLIENTS, LONGEST_S, Ingested, IngestionStack, text_files
from tests.bench.peers import load
from tests.bench.peers.embedding_servers import MODEL
from tests.bench.peers.install import PeerAbsent
from tests.bench.peers.load import Answer, LoadProcess
from tests.bench.peers.ogx import ogx
from tests.bench.run import QUICK_REASON

SAYS = "small files through the API, beside the bare embedding loop and OGX"
SQUAD = SHARED / "squad" / "beir-v1.1"
MEDQUAD = SHARED / "medquad" / "medquad.jsonl.gz"
SQUAD_SAYS = "SQuAD's paragraphs"
MEDQUAD_SAYS = "MedQuAD's answers"
DIMENSIONS = 384
SEARCHES_A_SECOND = 4.0
LOOK_S = 0.1
"""OGX's batches are asked so often how far they are."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `raw`: chunks for the bare loop. OGX gets fewer files, for it slows down with each."""

    squad: int
    medquad: int
    raw: int
    ogx_by_batch: int
    ogx_in_parallel: int
    searches_a_round: int
    warm_up: int = 8


FULL = Sizes(
    squad=2_067, medquad=16_407, raw=1_500, ogx_by_batch=200, ogx_in_parallel=400, searches_a_round=20
)
QUICK = Sizes(squad=60, medquad=300, raw=60, ogx_by_batch=6, ogx_in_parallel=16, searches_a_round=4)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not SQUAD.is_dir():
        return [skipped("ingestion", SAYS, f"{SQUAD} is absent")]
    sizes = QUICK if is_quick else FULL
    with (
        tempfile.TemporaryDirectory(prefix="bench-ingestion-") as folder,
        IngestionStack.running(Path(folder)) as ours,
        LoadProcess() as process,
    ):
        figures = _Comparison(ours, process, sizes, progress).run(Path(folder))
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


class _Comparison:
    """The steps, one after the other on one stack."""

    def __init__(self, ours: IngestionStack, process: LoadProcess, sizes: Sizes, progress: Progress) -> None:
        squad = read_beir(SQUAD)
        self._files = text_files(dict(islice(squad.texts.items(), sizes.squad)))
        self._queries = iter(dict.fromkeys(squad.queries.values()))
        self._ours = ours
        self._process = process
        self._sizes = sizes
        self._progress = progress

    def run(self, folder: Path) -> list[Figure]:
        self._warm_up()
        squad = self._ingest("squad", self._files)
        throughput = _throughput("ingestion", SQUAD_SAYS, squad, self._ogx(folder))
        figures = [
            replace(throughput, bound=Bound(40.0, is_upper=False)),
            squad.share_of_raw("ingestion_of_raw", SQUAD_SAYS),
        ]
        if MEDQUAD.exists():
            medquad = self._ingest("medquad", text_files(read_medquad(self._sizes.medquad)))
            figures += [
                _throughput("ingestion_medquad", MEDQUAD_SAYS, medquad, {}),
                medquad.share_of_raw("ingestion_medquad_of_raw", MEDQUAD_SAYS),
            ]
        else:
            figures.append(skipped("ingestion_medquad", MEDQUAD_SAYS, f"{MEDQUAD} is absent"))
        return [*figures, self._search_meanwhile(squad.store_id)]

    def _warm_up(self) -> None:
        """Parsers have loaded their libraries, and models have seen long texts; not counted."""
        store_id = self._ours.api.create_store("bench: warm-up")
        some = islice(self._files.items(), self._sizes.warm_up)
        self._ours.add(store_id, {name: b"Warm-up. " + content for name, content in some})
        self._ours.wait_until_quiet()

    def _ingest(self, name: str, files: Mapping[str, bytes]) -> Ingested:
        """Every second file, then the others."""
        self._progress.console.print(f"ingestion: {len(files)} files of {name}", highlight=False)
        rows = list(files.items())
        return self._ours.ingest(name, [dict(rows[::2]), dict(rows[1::2])], raw=self._sizes.raw)

    def _ogx(self, folder: Path) -> dict[str, float | str]:
        """Documents a second, by how they were sent; or why it was not measured."""
        sizes, files = self._sizes, list(self._files.items())
        key, url = self._ours.stack.key, self._ours.stack.url
        try:
            with ogx(folder, api=url, key=key, model=MODEL, dimensions=DIMENSIONS) as api:
                store_id = api.create_store("bench")
                api.add(store_id, [("warm-up.txt", b"It starts.")])
                by_batch = _batch_s(api, store_id, files[: sizes.ogx_by_batch])
                chosen = files[-sizes.ogx_in_parallel :]
                started = time.monotonic()
                api.add(store_id, chosen, clients=CLIENTS)
                in_parallel_s = time.monotonic() - started
        except (PeerAbsent, MeasureFailed) as error:
            return {"OGX: not measured": str(error)}
        return {
            f"OGX, documents/s of {sizes.ogx_by_batch} as a file batch": round(
                sizes.ogx_by_batch / by_batch, 2
            ),
            f"OGX, documents/s of {len(chosen)} by {CLIENTS} clients": round(len(chosen) / in_parallel_s, 2),
        }

    def _search_meanwhile(self, store_id: str) -> Figure:
        """The store, grown by as many documents again, is searched at a constant rate until they are in, and after."""
        ours = self._ours
        again = {f"again-{name}": b"Once more. " + content for name, content in self._files.items()}
        self._search(store_id)  # builds the indexes; not counted
        with ThreadPoolExecutor(1) as pool:
            adding = pool.submit(self._add_and_wait, store_id, again)
            answers: list[Answer] = []
            while not adding.done():
                answers += self._search(store_id)
            ended_at = adding.result()
        during = [each.seconds for each in load.checked(answers) if each.ended_at < ended_at]
        idle: list[float] = []
        while len(idle) < len(during):
            idle += [each.seconds for each in load.checked(self._search(store_id))]
        if not during:
            raise MeasureFailed("Ingestion ended before a search was answered.")
        ours.check_completed(store_id, 2 * len(self._files))
        samples = {"during": Samples.milliseconds(during), "idle": Samples.milliseconds(idle)}
        return Figure(
            "ingestion_search",
            "search while small files come in: p95, times that of an idle stack",
            unit="x",
            measured=round(samples["during"].percentile(95) / samples["idle"].percentile(95), 2),
            bound=Bound(2.0, is_upper=True),
            samples=samples,
            facts={"searches a second": SEARCHES_A_SECOND},
        )

    def _add_and_wait(self, store_id: str, files: Mapping[str, bytes]) -> float:
        """Returns when the last one was in."""
        self._ours.add(store_id, files)
        self._ours.wait_until_quiet()
        return time.monotonic()

    def _search(self, store_id: str) -> list[Answer]:
        """A round, with queries that were not asked before."""
        stack = self._ours.stack
        path = f"/v1/vector_stores/{store_id}/search"
        queries = islice(self._queries, self._sizes.searches_a_round)
        requests = [load.post(stack.url, path, {"query": query}, token=stack.key) for query in queries]
        assert requests
        return self._process.run(load.at_rate, stack.url, requests, a_second=SEARCHES_A_SECOND)


def read_medquad(most: int) -> dict[str, str]:
    """Question and answer, by line and id: some ids stand for several."""
    with gzip.open(MEDQUAD, "rt", encoding="utf-8") as lines:
        rows = [orjson.loads(line) for line in islice(lines, most)]
    return {
        f"{number}-{row['id']}": f"{row['question']}\n\n{row['answer']}" for number, row in enumerate(rows)
    }


def _batch_s(api: Api, store_id: str, files: Sequence[tuple[str, bytes]]) -> float:
    """Seconds until a file batch is in, uploads included."""
    started = time.monotonic()
    uploads = in_parallel(lambda each: api.upload(*each), files, clients=CLIENTS)
    batch_id = api.attach_all(store_id, list(uploads))
    while (counts := api.batch_counts(store_id, batch_id))["in_progress"]:
        time.sleep(LOOK_S)
        if time.monotonic() - started > LONGEST_S:
            raise MeasureFailed(f"The batch did not end: {counts}")
    if counts["completed"] != len(files):
        raise MeasureFailed(f"Of a batch of {len(files)} files: {counts}")
    return time.monotonic() - started


def _throughput(name: str, of: str, ingested: Ingested, peer: Mapping[str, float | str]) -> Figure:
    return Figure(
        name,
        f"{of} as single files: upload, attach, ready",
        unit="documents/s",
        measured=round(ingested.documents / ingested.seconds, 1),
        facts={"documents": ingested.documents, **peer},
    )
