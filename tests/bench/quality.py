"""How well the product's own search endpoint ranks three test collections, one small file a text."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.clients import Api, in_parallel, wait_ingested
from tests.bench.corpora import SHARED, RetrievalSet, read_beir, sampled
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.metrics import ndcg, recall
from tests.bench.run import QUICK_REASON, Run

DEPTH = 10
CHUNKS_ASKED_FOR = 50
INGEST_S = 1_200.0
QUICK_TEXTS = 150


@dataclass(frozen=True)
class Collection:
    """A test collection, its bound, and what plain scripts reach with one of the two rankings alone.

    With --quick, some queries over their relevant texts and others up to QUICK_TEXTS: figures get too good.
    """

    name: str
    folder: Path
    least_ndcg: float
    plain_vector_ndcg: float
    plain_keyword_ndcg: float
    quick_queries: int = 30
    compares_modes: bool = True

    @property
    def says(self) -> str:
        return f"{self.name}: nDCG@10 of search over HTTP"


SCIFACT = Collection("scifact", SHARED / "scifact" / "beir", 0.723, 0.645, 0.679)
# Its 10,570 questions take minutes: the two smaller collections compare the modes.
SQUAD = Collection(
    "squad",
    SHARED / "squad" / "beir-v1.1",
    0.892,
    0.772,
    0.873,
    quick_queries=300,
    compares_modes=False,
)
CRANFIELD = Collection("cranfield", SHARED / "cranfield" / "beir", 0.415, 0.396, 0.376)


@dataclass(frozen=True)
class Ingested:
    """`text_of`: the text that each uploaded file holds. Refusals and failures are counted by reason."""

    store_id: str
    text_of: Mapping[str, str]
    completed: int
    empty: int
    refused: Counter[str]
    failed: Counter[str]
    seconds: float


@dataclass(frozen=True)
class Searched:
    """Rankings of text ids by query; a search that failed has an empty one."""

    rankings: Mapping[str, Sequence[str]]
    request_s: Sequence[float]
    failed: int
    seconds: float

    def mean_ndcg(self, asked: RetrievalSet) -> float:
        """Over all queries, failed searches included."""
        scores = [ndcg(ranking, asked.grades[each], DEPTH) for each, ranking in self.rankings.items()]
        return sum(scores) / len(scores)

    def mean_recall(self, asked: RetrievalSet) -> float:
        scores = [recall(ranking, asked.grades[each], DEPTH) for each, ranking in self.rankings.items()]
        return sum(scores) / len(scores)


def measure(run: Run, collection: Collection) -> list[Figure]:
    if not collection.folder.is_dir():
        return [skipped(collection.name, collection.says, f"no {collection.name} in ../shared/data")]
    asked = read_beir(collection.folder)
    if run.sizes.is_quick:
        asked = sampled(asked, queries=collection.quick_queries, texts=QUICK_TEXTS)
    ingested = _ingest(run, collection.name, asked)
    searched = _search_all(run, collection.name, asked, ingested, mode="hybrid")
    facts = _facts(asked, ingested, searched)
    if collection.compares_modes:
        plain = {"vector": collection.plain_vector_ndcg, "keyword": collection.plain_keyword_ndcg}
        for mode, plain_ndcg in plain.items():
            alone = _search_all(run, collection.name, asked, ingested, mode=mode)
            facts[f"nDCG@10 by {mode} alone (plain scripts {plain_ndcg:.3f})"] = round(
                alone.mean_ndcg(asked), 4
            )
    return [
        Figure(
            collection.name,
            collection.says,
            measured=round(searched.mean_ndcg(asked), 4),
            bound=Bound(collection.least_ndcg, is_upper=False),
            is_judged=not run.sizes.is_quick,
            reason=QUICK_REASON if run.sizes.is_quick else "",
            samples={"search, 4 clients": Samples.milliseconds(searched.request_s)},
            facts=facts,
        )
    ]


def _facts(asked: RetrievalSet, ingested: Ingested, searched: Searched) -> dict[str, float | str]:
    return {
        "recall@10": round(searched.mean_recall(asked), 4),
        "texts": len(asked.texts),
        "empty texts, not uploaded": ingested.empty,
        "uploads refused": _counted(ingested.refused),
        "documents failed": _counted(ingested.failed),
        "documents ingested a second": round(ingested.completed / ingested.seconds, 1),
        "ingestion, s": round(ingested.seconds, 1),
        "queries": len(asked.queries),
        "searches failed": searched.failed,
        "searches a second": round(len(asked.queries) / searched.seconds, 1),
    }


def _ingest(run: Run, name: str, asked: RetrievalSet) -> Ingested:
    """Uploads each text as a file of its own and waits until all are in."""
    store_id = run.api.create_store(f"bench: {name}")
    uploads = [(text_id, text) for text_id, text in asked.texts.items() if text.strip()]
    started = time.perf_counter()
    text_of: dict[str, str] = {}
    refused: Counter[str] = Counter()
    outcomes = in_parallel(lambda each: _add(run.api, store_id, *each), uploads)
    for (text_id, _), (file_id, refusal) in run.progress.track(
        zip(uploads, outcomes, strict=True), total=len(uploads), description=f"{name}: uploads"
    ):
        if refusal:
            refused[refusal] += 1
        else:
            text_of[file_id] = text_id
    task = run.progress.add_task(f"{name}: ingestion", total=None)
    counts = wait_ingested(
        run.api,
        store_id,
        within_s=INGEST_S,
        on_progress=lambda done, total: run.progress.update(task, completed=done, total=total),
    )
    return Ingested(
        store_id=store_id,
        text_of=text_of,
        completed=counts["completed"],
        empty=len(asked.texts) - len(uploads),
        refused=refused,
        failed=run.api.failures(store_id) if counts["failed"] else Counter(),
        seconds=time.perf_counter() - started,
    )


def _add(api: Api, store_id: str, text_id: str, text: str) -> tuple[str, str]:
    """The file's id and an empty string, or why it was refused."""
    try:
        file_id = api.upload(f"{text_id}.txt", text.encode())
        api.attach(store_id, file_id)
    except httpx.HTTPStatusError as error:
        return "", f"status {error.response.status_code}"
    except httpx.HTTPError as error:
        return "", type(error).__name__
    return file_id, ""


def _search_all(run: Run, name: str, asked: RetrievalSet, ingested: Ingested, *, mode: str) -> Searched:
    """Every query with the product's defaults; a file counts once, where its best chunk stands."""

    def timed(query: str) -> tuple[list[str] | None, float]:
        started = time.perf_counter()
        try:
            found = run.api.search(ingested.store_id, query, limit=CHUNKS_ASKED_FOR, mode=mode)
        except httpx.HTTPError:
            return None, time.perf_counter() - started
        return found, time.perf_counter() - started

    began = time.perf_counter()
    answers = list(
        run.progress.track(
            in_parallel(timed, asked.queries.values()),
            total=len(asked.queries),
            description=f"{name}: {mode} search",
        )
    )
    failed = sum(found is None for found, _ in answers)
    if failed == len(answers):
        raise MeasureFailed("Every search failed.")
    return Searched(
        rankings={
            query_id: [ingested.text_of[file_id] for file_id in found or ()]
            for query_id, (found, _) in zip(asked.queries, answers, strict=True)
        },
        request_s=[request_s for _, request_s in answers],
        failed=failed,
        seconds=time.perf_counter() - began,
    )


def _counted(reasons: Counter[str]) -> float | str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or 0
