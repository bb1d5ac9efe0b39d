"""Evaluates search on a test collection: ingests its corpus, asks its queries in each stage, scores the rankings."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path

from rich.console import Console

from app.commands.adding import add_files
from app.commands.remote import Json, Remote
from app.evaluation.asking import QuestionRefused, ask_missing, patiently, shown_progress, stage_ms
from app.evaluation.beir import RetrievalSet, file_name
from app.evaluation.lines import EvaluationRefused
from app.evaluation.metrics import ranking_metrics
from app.evaluation.runs import Outcome, RunFolder

CHUNKS_ASKED_FOR = 50
"""The most that the endpoint gives. A document counts once, where its best chunk stands."""
LOOK_S = 1.0


class Stage(StrEnum):
    BM25 = "bm25"
    DENSE = "dense"
    FUSED = "fused"
    RRF = "rrf"
    RERANKED = "reranked"


DEFAULT_STAGES = (Stage.BM25, Stage.DENSE, Stage.FUSED, Stage.RERANKED)
SEARCHES: Mapping[Stage, Json] = {
    Stage.BM25: {"search_mode": "keyword", "ranking_options": {"ranker": "none"}},
    Stage.DENSE: {"search_mode": "vector", "ranking_options": {"ranker": "none"}},
    Stage.FUSED: {"search_mode": "hybrid", "ranking_options": {"ranker": "weighted"}},
    Stage.RRF: {"search_mode": "hybrid", "ranking_options": {"ranker": "rrf"}},
    Stage.RERANKED: {"search_mode": "hybrid", "ranking_options": {"ranker": "auto"}},
}
"""How each is asked of the search endpoint."""
RERANK_STAGE = "rerank"


async def ingest_corpus(
    remote: Remote, asked: RetrievalSet, collection: str, *, console: Console
) -> list[str]:
    """Adds the documents that are not there yet, a file each, and waits until all can be searched. Returns notes."""
    collection_id = await remote.collection(collection)
    present = await remote.filenames(collection_id)
    texts = {file_name(document_id): text for document_id, text in asked.documents.items() if text.strip()}
    notes = []
    if empty := len(asked.documents) - len(texts):
        notes.append(f"{empty} documents of the corpus are empty and were left out.")
    if missing := {name: text for name, text in texts.items() if name not in present}:
        async with _written(missing) as paths:
            outcome = await add_files(remote, paths, collection, console=console)
        if outcome.failures:
            path, reason = outcome.failures[0]
            notes.append(f"{len(outcome.failures)} documents could not be added; {path.name}: {reason}")
    await _wait_for_others(remote, collection_id, console=console)
    return notes


async def check_corpus(remote: Remote, asked: RetrievalSet, collection_id: str) -> list[str]:
    """Notes what the collection lacks. Raises EvaluationRefused when it has none of the corpus."""
    present = set((await remote.documents(collection_id)).values())
    wanted = [document_id for document_id, text in asked.documents.items() if text.strip()]
    there = sum(file_name(document_id) in present for document_id in wanted)
    if not there:
        raise EvaluationRefused(
            f"The collection holds no document of {asked.name}: files there are not named by its ids, such as "
            f"'{file_name(next(iter(asked.documents)))}'. Add --ingest to put the corpus in."
        )
    if there < len(wanted):
        return [f"The collection holds {there} of the corpus's {len(wanted)} documents."]
    return []


async def search_all(
    remote: Remote,
    asked: RetrievalSet,
    collection_id: str,
    stages: Sequence[Stage],
    folder: RunFolder,
    *,
    at_once: int,
    console: Console,
) -> None:
    """Asks every query in every stage that the folder has no outcome of. Raises RemoteRefused."""
    names = {file_name(document_id): document_id for document_id in asked.documents}

    async def ask(query_id: str, stage: Stage) -> Outcome:
        body = {"query": asked.queries[query_id], "max_num_results": CHUNKS_ASKED_FOR, **SEARCHES[stage]}
        chunks: list[Json] = []
        timing, error = "", None
        started = time.perf_counter()
        try:
            page, timing = await patiently(lambda: remote.search(collection_id, body))
            chunks = page["data"]
        except QuestionRefused as refused:
            error = str(refused)
        return Outcome(
            variant=stage.value,
            id=query_id,
            question=asked.queries[query_id],
            wanted=_relevant(asked, query_id),
            found=_documents(chunks, names),
            seconds=time.perf_counter() - started,
            stage_ms=stage_ms(timing),
            error=error,
        )

    for stage in stages:
        await ask_missing(
            folder,
            stage.value,
            list(asked.queries),
            partial(ask, stage=stage),
            at_once=at_once,
            console=console,
        )


def scored(folder: RunFolder, asked: RetrievalSet, stages: Sequence[Stage], *, k: int) -> list[Outcome]:
    """The outcomes with their metrics. A query that failed has found nothing. Raises EvaluationRefused if all did."""
    complete: list[Outcome] = []
    for stage in stages:
        outcomes = [folder.outcomes[stage.value, query_id] for query_id in asked.queries]
        rankings = {outcome.id: outcome.found for outcome in outcomes}
        metrics = ranking_metrics(rankings, asked.grades, k=k)
        complete += [outcome.model_copy(update={"metrics": metrics[outcome.id]}) for outcome in outcomes]
    if all(outcome.error is not None for outcome in complete):
        raise EvaluationRefused(f"Every search failed. The first: {complete[0].error}")
    return complete


def notes_on(outcomes: Sequence[Outcome]) -> list[str]:
    notes = []
    if failed := [outcome for outcome in outcomes if outcome.error is not None]:
        notes.append(f"{len(failed)} searches were refused and count as 0. The first: {failed[0].error}")
    reranked = [outcome for outcome in outcomes if outcome.variant == Stage.RERANKED.value]
    if reranked and not any(RERANK_STAGE in outcome.stage_ms for outcome in reranked):
        notes.append("The server has no reranker (models.reranker): 'reranked' is what 'fused' is.")
    return notes


def _documents(chunks: Sequence[Json], names: Mapping[str, str]) -> tuple[str, ...]:
    """Each document where its best chunk stands. A file that is not of the corpus keeps its place in the ranking."""
    found = (names.get(chunk["filename"], f"file: {chunk['filename']}") for chunk in chunks)
    return tuple(dict.fromkeys(found))


def _relevant(asked: RetrievalSet, query_id: str) -> tuple[str, ...]:
    grades = asked.grades[query_id]
    return tuple(sorted(grades, key=lambda document_id: -grades[document_id]))


@asynccontextmanager
async def _written(texts: Mapping[str, str]) -> AsyncIterator[list[Path]]:
    """As files. Each in a folder of its own: two names may differ in case only, which some disks do not tell apart."""
    with tempfile.TemporaryDirectory(prefix="strongroom-eval-") as folder:
        paths = []
        for number, (name, text) in enumerate(texts.items()):
            path = Path(folder) / str(number) / name
            path.parent.mkdir()
            path.write_text(text, "utf-8", newline="")
            paths.append(path)
        yield paths


async def _wait_for_others(remote: Remote, collection_id: str, *, console: Console) -> None:
    """An earlier attempt that was cut may have left files on their way."""
    with shown_progress(console) as progress:
        bar = None
        total = 0
        while under_way := (await remote.collection_now(collection_id))["file_counts"]["in_progress"]:
            total = max(total, under_way)
            if bar is None:
                bar = progress.add_task("Waiting for files that are on their way", total=total)
            progress.update(bar, total=total, completed=total - under_way)
            await asyncio.sleep(LOOK_S)
