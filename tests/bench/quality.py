"""How well the product's own search endpoint ranks four test collections and real reports, stage by stage.

Each text of a test collection is a file of its own. With a reranker, questions that it was trained on are not asked
of it. `python -m tests.bench --only quality [--quick]` runs it alone.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from app.evaluation.intervals import differences, matrix
from app.evaluation.retrieval import CHUNKS_ASKED_FOR, SEARCHES, Stage
from tests.bench.clients import Api, in_parallel, wait_ingested
from tests.bench.corpora import SHARED, RetrievalSet, read_beir, sampled
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.ingestion_stack import IngestionStack
from tests.bench.metrics import ndcg, recall
from tests.bench.run import QUICK_REASON

SAYS = "nDCG@10 of search over HTTP, in each stage, and pages of real reports that were found"
DEPTH = 10
INGEST_S = 1_800.0
QUICK_TEXTS = 150
QUICK_QUERIES = 30
RERANKER = SHARED.parent / "models" / "reranker"
REPORTS = SHARED / "financebench"
QUICK_REPORTS = 3
DOCUMENT_DEPTH = 3


@dataclass(frozen=True)
class Collection:
    """A test collection, the least that the fused ranking must reach, and what plain scripts reach with one alone.

    With --quick, some queries over their relevant texts and others up to QUICK_TEXTS: figures get too good.
    """

    name: str
    folder: Path
    least_fused: float
    plain: Mapping[Stage, float]
    may_rerank: bool = True
    """False where the reranker was trained on its questions."""
    least_gain: float = -0.01
    """Of the reranked ranking over the fused one."""


COLLECTIONS = (
    Collection("scifact", SHARED / "scifact" / "beir", 0.73, {Stage.BM25: 0.679, Stage.DENSE: 0.645}),
    Collection("cranfield", SHARED / "cranfield" / "beir", 0.425, {Stage.BM25: 0.376, Stage.DENSE: 0.396}),
    Collection(
        "clapnq",
        SHARED / "clapnq_dev" / "beir",
        0.98,
        {Stage.BM25: 0.946, Stage.DENSE: 0.984},
        may_rerank=False,
    ),
    Collection(
        "squad",
        SHARED / "squad" / "beir-v1.1",
        0.90,
        {Stage.BM25: 0.873, Stage.DENSE: 0.772},
        least_gain=0.001,
    ),
)
RERANKED_QUERIES = 500
"""At most, evenly spread: a question takes the demo reranker half a second on two cores."""


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

    def ndcg_of(self, asked: RetrievalSet) -> dict[str, float]:
        """Of each query, failed searches included."""
        return {each: ndcg(ranking, asked.grades[each], DEPTH) for each, ranking in self.rankings.items()}

    def mean_recall(self, asked: RetrievalSet) -> float:
        scores = [recall(ranking, asked.grades[each], DEPTH) for each, ranking in self.rankings.items()]
        return sum(scores) / len(scores)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    settings = {"STRONGROOM_MODELS__RERANKER": f"demo={RERANKER}" if RERANKER.is_dir() else ""}
    figures: list[Figure] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-quality-") as folder,
        IngestionStack.running(Path(folder), settings) as ours,
    ):
        for collection in COLLECTIONS:
            if collection.folder.is_dir():
                figures += _measure(ours.api, collection, progress, is_quick=is_quick)
            else:
                figures.append(
                    skipped(collection.name, SAYS, f"no {collection.folder.name} in ../shared/data")
                )
        if REPORTS.is_dir():
            figures += _measure_reports(ours.api, progress, is_quick=is_quick)
        else:
            figures.append(skipped("financebench", SAYS, f"no {REPORTS.name} in ../shared/data"))
    return figures


def _measure(api: Api, collection: Collection, progress: Progress, *, is_quick: bool) -> list[Figure]:
    name = collection.name
    asked = read_beir(collection.folder)
    if is_quick:
        asked = sampled(asked, queries=QUICK_QUERIES, texts=QUICK_TEXTS)
    ingested = _ingest(api, name, asked, progress)
    alone = {
        stage: _search_all(api, name, asked.queries, ingested, stage, progress) for stage in collection.plain
    }
    fused = _search_all(api, name, asked.queries, ingested, Stage.FUSED, progress)

    figures = [
        Figure(
            name,
            f"{name}: nDCG@10 of search over HTTP, dense and BM25 fused",
            measured=round(_mean(fused.ndcg_of(asked)), 4),
            bound=Bound(collection.least_fused, is_upper=False),
            samples={"search, 4 clients": Samples.milliseconds(fused.request_s)},
            facts={
                **{
                    f"nDCG@10 by {stage} alone (plain scripts {collection.plain[stage]:.3f})": round(
                        _mean(searched.ndcg_of(asked)), 4
                    )
                    for stage, searched in alone.items()
                },
                **_facts(asked, ingested, fused),
            },
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
        )
    ]
    gained = f"{name}: nDCG@10 that the demo reranker adds to the fused ranking"
    if not collection.may_rerank or not RERANKER.is_dir():
        why = "it was trained on these questions" if RERANKER.is_dir() else "no reranker in ../shared/models"
        return [*figures, skipped(f"{name}_reranked", gained, why)]
    queries = _unseen(collection, asked)
    reranked = _search_all(api, name, queries, ingested, Stage.RERANKED, progress)
    before, after = fused.ndcg_of(asked), reranked.ndcg_of(asked)
    (difference,) = differences(
        matrix([[before[each]] for each in queries]), matrix([[after[each]] for each in queries])
    )
    assert difference is not None
    return [
        *figures,
        Figure(
            f"{name}_reranked",
            gained,
            measured=round(difference.difference, 4),
            bound=Bound(collection.least_gain, is_upper=False),
            samples={"search, 4 clients": Samples.milliseconds(reranked.request_s)},
            facts={
                "95 % interval, paired": f"{difference.low:+.4f} to {difference.high:+.4f}",
                "p, randomisation test": round(difference.p, 4),
                "fused": round(difference.a, 4),
                "reranked": round(difference.b, 4),
                "better, worse": f"{difference.better}, {difference.worse}",
                "queries": len(queries),
                "searches failed": reranked.failed,
            },
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
        ),
    ]


def _unseen(collection: Collection, asked: RetrievalSet) -> dict[str, str]:
    """Queries that the demo reranker was not trained on, RERANKED_QUERIES at most."""
    held_out = json.loads((RERANKER / "split.json").read_text())["val_queries"]
    kept = list(asked.queries)
    if collection.name == "squad":
        kept = [each for each in kept if each in set(held_out)]
    count = min(len(kept), RERANKED_QUERIES)
    return {kept[n * len(kept) // count]: asked.queries[kept[n * len(kept) // count]] for n in range(count)}


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _facts(asked: RetrievalSet, ingested: Ingested, searched: Searched) -> dict[str, float | str]:
    return {
        "recall@10": round(searched.mean_recall(asked), 4),
        "texts": len(asked.texts),
        "empty texts, not uploaded": ingested.empty,
        "uploads refused": _counted(ingested.refused),
        "documents failed": _counted(ingested.failed),
        "documents ingested a second": round(ingested.completed / ingested.seconds, 1),
        "queries": len(asked.queries),
        "searches failed": searched.failed,
    }


def _ingest(api: Api, name: str, asked: RetrievalSet, progress: Progress) -> Ingested:
    """Uploads each text as a file of its own and waits until all are in."""
    store_id = api.create_store(f"bench: {name}")
    uploads = [(text_id, text) for text_id, text in asked.texts.items() if text.strip()]
    started = time.perf_counter()
    text_of: dict[str, str] = {}
    refused: Counter[str] = Counter()
    outcomes = in_parallel(lambda each: _add(api, store_id, *each), uploads)
    for (text_id, _), (file_id, refusal) in progress.track(
        zip(uploads, outcomes, strict=True), total=len(uploads), description=f"{name}: uploads"
    ):
        if refusal:
            refused[refusal] += 1
        else:
            text_of[file_id] = text_id
    completed, failed = _wait(api, store_id, name, progress)
    return Ingested(
        store_id=store_id,
        text_of=text_of,
        completed=completed,
        empty=len(asked.texts) - len(uploads),
        refused=refused,
        failed=failed,
        seconds=time.perf_counter() - started,
    )


def _wait(api: Api, store_id: str, name: str, progress: Progress) -> tuple[int, Counter[str]]:
    """How many documents are in, and why others are not."""
    task = progress.add_task(f"{name}: ingestion", total=None)
    counts = wait_ingested(
        api,
        store_id,
        within_s=INGEST_S,
        on_progress=lambda done, total: progress.update(task, completed=done, total=total),
    )
    return counts["completed"], api.failures(store_id) if counts["failed"] else Counter()


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


def _search_all(
    api: Api, name: str, queries: Mapping[str, str], ingested: Ingested, stage: Stage, progress: Progress
) -> Searched:
    """Each query as the stage asks it; a file counts once, where its best chunk stands."""

    def timed(query: str) -> tuple[list[str] | None, float]:
        started = time.perf_counter()
        body = {"query": query, "max_num_results": CHUNKS_ASKED_FOR, **SEARCHES[stage]}
        try:
            found = api.found(ingested.store_id, body)
        except httpx.HTTPError:
            return None, time.perf_counter() - started
        files = list(dict.fromkeys(chunk["file_id"] for chunk in found))
        return files, time.perf_counter() - started

    answers = list(
        progress.track(
            in_parallel(timed, queries.values()), total=len(queries), description=f"{name}: {stage}"
        )
    )
    failed = sum(found is None for found, _ in answers)
    if failed == len(answers):
        raise MeasureFailed("Every search failed.")
    return Searched(
        rankings={
            query_id: [ingested.text_of[file_id] for file_id in found or ()]
            for query_id, (found, _) in zip(queries, answers, strict=True)
        },
        request_s=[request_s for _, request_s in answers],
        failed=failed,
    )


def _counted(reasons: Counter[str]) -> float | str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or 0


# Real reports


def _measure_reports(api: Api, progress: Progress, *, is_quick: bool) -> list[Figure]:
    """Questions about annual and quarterly reports, all in one collection, each with the pages that answer it."""
    paths = sorted((REPORTS / "pdfs").glob("*.pdf"), key=lambda path: path.stat().st_size)
    if is_quick:
        paths = paths[:QUICK_REPORTS]
    store_id = api.create_store("bench: financebench")
    report_of = {}
    for path in progress.track(paths, description="financebench: uploads"):
        file_id = api.upload(path.name, path.read_bytes())
        api.attach(store_id, file_id)
        report_of[file_id] = path.stem
    completed, failed = _wait(api, store_id, "financebench", progress)
    if completed < len(paths):
        raise MeasureFailed(f"Reports failed: {dict(failed)}")
    lines = (REPORTS / "questions.jsonl").read_text("utf-8").splitlines()
    questions = [each for each in map(json.loads, lines) if each["doc_name"] in report_of.values()]
    figures = []
    for stage in (Stage.FUSED, Stage.RERANKED) if RERANKER.is_dir() else (Stage.FUSED,):
        found = {
            each["financebench_id"]: api.found(
                store_id, {"query": each["question"], "max_num_results": DEPTH, **SEARCHES[stage]}
            )
            for each in progress.track(questions, description=f"financebench: {stage}")
        }
        figures += _reports_figures(stage, questions, found, report_of, is_quick=is_quick)
    return figures


def _reports_figures(
    stage: Stage,
    questions: Sequence[dict[str, Any]],
    found: Mapping[str, Sequence[dict[str, Any]]],
    report_of: Mapping[str, str],
    *,
    is_quick: bool,
) -> list[Figure]:
    pages, reports, missed = 0, 0, []
    for each in questions:
        evidence = {(line["doc_name"], line["evidence_page_num"] + 1) for line in each["evidence"]}
        ranking = [
            (report_of[chunk["file_id"]], set(chunk["pages"])) for chunk in found[each["financebench_id"]]
        ]
        has_page = any(
            report == name and page in shown for report, shown in ranking for name, page in evidence
        )
        first = list(dict.fromkeys(report for report, _ in ranking[:DOCUMENT_DEPTH]))
        pages += has_page
        reports += each["doc_name"] in first
        if not has_page:
            missed.append(each["financebench_id"].removeprefix("financebench_id_"))

    return [
        Figure(
            f"financebench_page_{stage}",
            f"financebench: questions with an evidence page among the first {DEPTH} passages, {stage}",
            measured=round(pages / len(questions), 4),
            bound=Bound(0.85, is_upper=False),
            facts={"questions": len(questions), "missed": ", ".join(missed) or "none"},
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
        ),
        Figure(
            f"financebench_document_{stage}",
            f"financebench: questions whose report is among the first {DOCUMENT_DEPTH} passages, {stage}",
            measured=round(reports / len(questions), 4),
            bound=Bound(0.95, is_upper=False),
            facts={"questions": len(questions)},
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
        ),
    ]
