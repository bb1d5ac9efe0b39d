"""Citations over hundreds of answers of the demo engine: where their quotes stand, and whether they support.

`python -m tests.bench --only citations [--quick]` runs it alone. Questions and paragraphs are those of SQuAD that the
demo reranker was not trained on. The engine answers each prompt of ours once; its words are kept in
.bench/citations.jsonl, and each run plays them through the api role again, word by word. So a change of the checks
is measured on the same answers, and a run that was cut goes on. Delete the file after a change of the prompt.

The reranker's verdict on a sentence and a text is its score, from a half on. It tells what a text is about better
than what it says: what it takes for supported includes contradictions, which are not cited.
"""

import asyncio
import json
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from sentence_transformers import CrossEncoder

from app.answers.sentences import sentences
from serving.generation.engine import Accelerator, EngineConfig, engine_command, engine_environment
from tests.bench.clients import Api, in_parallel, wait_ingested
from tests.bench.corpora import SHARED, RetrievalSet, read_beir
from tests.bench.figures import Bound, Figure, MeasureFailed, skipped
from tests.bench.run import QUICK_REASON
from tests.fakes import ScriptedEngine
from tests.stack import ENGINE_PYTHON, MODELS, ROOT, Stack, free_port

SAYS = "citations: quotes that stand verbatim at their place"
SAYS_SUPPORT = "citations: quotes that support their sentence, by the reranker's verdict"
ANSWERS = ROOT / ".bench" / "citations.jsonl"
RERANKER = SHARED.parent / "models" / "reranker"
GENERATOR = "SmolLM2-135M-Instruct"
ANSWER_TOKENS = 96
CLIENTS = 8
VERDICT = 0.5
REPLY_S = 600.0
START_S = 900.0
INGEST_S = 600.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    questions: int
    texts: int
    reranked: int
    """Questions that are played a second time, with the reranker in the api role: it reads a hundred times longer
    for their searches than for their sentences.
    """


FULL = Sizes(questions=560, texts=413, reranked=100)
QUICK = Sizes(questions=12, texts=30, reranked=6)


@dataclass(frozen=True)
class Answer:
    """As a client gets it."""

    question_id: str
    text: str
    annotations: Sequence[Json]
    unsupported: Sequence[str]
    sentences: int


@dataclass
class Judged:
    """Counts over all answers."""

    citations: int = 0
    verbatim: int = 0
    marked: int = 0
    """Whose place in the answer holds their number, or their sentence."""
    supports: dict[str, list[bool]] = field(default_factory=dict)
    """By what judged them."""
    uncited: int = 0
    uncited_but_supported: int = 0

    @property
    def precision(self) -> float:
        verdicts = [each for of_one in self.supports.values() for each in of_one]
        return sum(verdicts) / max(1, len(verdicts))

    @property
    def recall(self) -> float:
        """Of the sentences that the judge takes for supported, those with a citation."""
        right = sum(each for of_one in self.supports.values() for each in of_one)
        return right / max(1, right + self.uncited_but_supported)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    sizes = QUICK if is_quick else FULL
    for path in (SHARED / "squad", RERANKER, ENGINE_PYTHON, MODELS / GENERATOR):
        if not path.exists():
            return [skipped("citations", SAYS, f"no {path.name}")]
    return asyncio.run(_measure(sizes, is_quick, progress))


async def _measure(sizes: Sizes, is_quick: bool, progress: Progress) -> list[Figure]:
    asked = _held_out(sizes)
    with tempfile.TemporaryDirectory(prefix="bench-citations-") as folder:
        async with ScriptedEngine(models=(GENERATOR,), owned_by="vllm") as engine:
            data, judge = Path(folder) / "data", CrossEncoder(str(RERANKER))
            async with _serving(data, engine, reranker="") as (stack, http):
                with stack.http() as client:
                    store_id = await asyncio.to_thread(_ingest, Api(client), asked, progress)
                recorded = await _recorded(http, engine, store_id, asked, progress)
                engine.answer = lambda body: recorded[body["user"]]
                by_words = await _answers(http, store_id, asked.queries, recorded, progress)
                stored = await _stored(http, store_id, by_words)
            some = {
                each: asked.queries[each]
                for each in _spread(list(recorded), sizes.reranked)
                if each in asked.queries
            }
            async with _serving(data, engine, reranker=str(RERANKER)) as (_, http):
                by_both = await _answers(http, store_id, some, recorded, progress)
                stored |= await _stored(http, store_id, by_both)
    judged = [_judge(judge, asked, answers, stored, progress) for answers in (by_words, by_both)]
    return _figures(by_words, judged[0], by_both, judged[1], is_quick)


@asynccontextmanager
async def _serving(
    data: Path, engine: ScriptedEngine, *, reranker: str
) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    settings = {"STRONGROOM_ENGINE__URL": engine.url, "STRONGROOM_MODELS__RERANKER": reranker}
    stack = Stack(data, settings)
    try:
        await asyncio.to_thread(stack.start)
        headers = {"Authorization": f"Bearer {stack.key}"}
        async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=REPLY_S) as http:
            yield stack, http
    finally:
        await asyncio.to_thread(stack.stop)


def _held_out(sizes: Sizes) -> RetrievalSet:
    """Spread evenly over what the reranker was not trained on."""
    split = json.loads((RERANKER / "split.json").read_text())
    squad = read_beir(SHARED / "squad" / "beir-v1.1")
    queries = _spread([each for each in split["val_queries"] if each in squad.queries], sizes.questions)
    needed = list(dict.fromkeys(text_id for each in queries for text_id in squad.grades[each]))
    kept = dict.fromkeys([*needed, *_spread(split["held"], sizes.texts)])
    return RetrievalSet(
        texts={text_id: squad.texts[text_id] for text_id in kept},
        queries={each: squad.queries[each] for each in queries},
        grades={each: squad.grades[each] for each in queries},
    )


def _spread(ids: Sequence[str], count: int) -> list[str]:
    return [ids[number * len(ids) // count] for number in range(count)] if count < len(ids) else list(ids)


def _ingest(api: Api, asked: RetrievalSet, progress: Progress) -> str:
    store_id = api.create_store("bench: citations")
    uploads = in_parallel(lambda each: api.upload(f"{each[0]}.txt", each[1].encode()), asked.texts.items())
    file_ids = list(progress.track(uploads, total=len(asked.texts), description="citations: uploads"))
    api.attach_all(store_id, file_ids)
    counts = wait_ingested(api, store_id, within_s=INGEST_S, on_progress=lambda *_: None)
    if counts["completed"] != len(file_ids):
        raise MeasureFailed(f"Not all documents came in: {counts}")
    return store_id


async def _recorded(
    http: httpx.AsyncClient, engine: ScriptedEngine, store_id: str, asked: RetrievalSet, progress: Progress
) -> dict[str, str]:
    """The engine's words by question; asked for where they are missing, in the prompts that the api role writes."""
    ANSWERS.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in ANSWERS.read_text().splitlines()] if ANSWERS.exists() else []
    recorded: dict[str, str] = {row["id"]: row["text"] for row in known}
    missing = [each for each in asked.queries if each not in recorded]
    if missing:
        prompts: dict[str, Json] = {}
        for question_id in progress.track(missing, description="citations: prompts"):
            await _ask(http, store_id, question_id, asked.queries[question_id])
            prompts |= {body["user"]: body for body in engine.requests}
            engine.requests.clear()
        async with _running_engine() as generator:
            with ANSWERS.open("a") as file:
                task = progress.add_task("citations: answers", total=len(prompts))
                async for question_id, text in _generated(generator, prompts):
                    recorded[question_id] = text
                    row = {"id": question_id, "question": asked.queries[question_id], "text": text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    progress.advance(task)
    return recorded


@asynccontextmanager
async def _running_engine() -> AsyncIterator[httpx.AsyncClient]:
    config = EngineConfig(
        python=ENGINE_PYTHON,
        model=str(MODELS / GENERATOR),
        served_name=GENERATOR,
        accelerator=Accelerator.CPU,
        port=free_port(),
        max_model_len=4096,
    )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            engine_command(config),
            env=os.environ | engine_environment(config),  # noqa: TID251 - the child's environment
            stdout=log,
            stderr=log,
        )
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{config.port}", timeout=REPLY_S
            ) as generator:
                async with asyncio.timeout(START_S):
                    while not await _is_up(generator):
                        if process.poll() is not None:
                            raise MeasureFailed("The engine ended before it was ready.")
                        await asyncio.sleep(1)
                yield generator
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


async def _is_up(generator: httpx.AsyncClient) -> bool:
    try:
        return (await generator.get("/health", timeout=5)).status_code == 200
    except httpx.HTTPError:
        return False


async def _generated(
    generator: httpx.AsyncClient, prompts: Mapping[str, Json]
) -> AsyncIterator[tuple[str, str]]:
    gate = asyncio.Semaphore(CLIENTS)
    ours = ("user", "stream", "stream_options", "priority", "cache_salt")

    async def generate(question_id: str, body: Json) -> tuple[str, str]:
        async with gate:
            plain = {name: value for name, value in body.items() if name not in ours}
            reply = await generator.post("/v1/chat/completions", json=plain)
            if reply.status_code != 200:
                raise MeasureFailed(f"The engine answered {reply.status_code}: {reply.text[:300]}")
            return question_id, reply.json()["choices"][0]["message"]["content"]

    for answer in asyncio.as_completed([generate(*each) for each in prompts.items()]):
        yield await answer


async def _ask(http: httpx.AsyncClient, store_id: str, question_id: str, question: str) -> str:
    """The reply's events."""
    body = {
        "model": f"rag/{store_id}",
        "messages": [{"role": "user", "content": question}],
        "user": question_id,
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
    }
    reply = await http.post("/v1/chat/completions", json=body)
    if reply.status_code != 200 or not reply.text.rstrip().endswith("[DONE]"):
        raise MeasureFailed(f"A chat answered {reply.status_code}: {reply.text[-300:]}")
    return reply.text


async def _answers(
    http: httpx.AsyncClient,
    store_id: str,
    questions: Mapping[str, str],
    recorded: Mapping[str, str],
    progress: Progress,
) -> list[Answer]:
    """Of the questions that were not refused before the engine was asked."""
    answers: list[Answer] = []
    ids = [each for each in questions if each in recorded]
    for question_id in progress.track(ids, description="citations: streams"):
        events = await _ask(http, store_id, question_id, questions[question_id])
        lines = [line.removeprefix("data: ") for line in events.split("\n\n") if line.startswith("data: {")]
        deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
        closing = [delta for delta in deltas if "support" in delta]
        if not closing:
            continue
        text = "".join(delta.get("content") or "" for delta in deltas)
        answers.append(
            Answer(
                question_id=question_id,
                text=text,
                annotations=[each for delta in deltas for each in delta.get("annotations") or ()],
                unsupported=[
                    text[each["start_index"] : each["end_index"]] for each in closing[0]["unsupported"]
                ],
                sentences=closing[0]["support"]["sentences"],
            )
        )
    return answers


async def _stored(http: httpx.AsyncClient, store_id: str, answers: Sequence[Answer]) -> dict[str, str]:
    """The texts of the cited files, as the API gives them."""
    texts: dict[str, str] = {}
    for file_id in {each["file_id"] for answer in answers for each in answer.annotations}:
        content = await http.get(f"/v1/vector_stores/{store_id}/files/{file_id}/content")
        texts[file_id] = "".join(part["text"] for part in content.raise_for_status().json()["data"])
    return texts


def _judge(
    judge: CrossEncoder,
    asked: RetrievalSet,
    answers: Sequence[Answer],
    stored: Mapping[str, str],
    progress: Progress,
) -> Judged:
    judged = Judged()
    for answer in progress.track(answers, description="citations: verdicts"):
        for each in answer.annotations:
            there = stored[each["file_id"]][each["start_char"] : each["end_char"]]
            judged.citations += 1
            judged.verbatim += bool(each["quote"]) and there == each["quote"]
            place = each["url_citation"]
            piece = answer.text[place["start_index"] : place["end_index"]]
            judged.marked += (
                piece == f"[{each['number']}]" if each["judge"] == "words" else bool(piece.strip())
            )
            (verdict,) = _verdicts(judge, _claim(answer.text, each), [each["quote"]])
            judged.supports.setdefault(each["judge"], []).append(verdict)
        wanted = [asked.texts[text_id] for text_id in asked.grades[answer.question_id]]
        quotes = [text[span.start : span.end] for text in wanted for span in sentences(text)]
        for claim in answer.unsupported:
            judged.uncited += 1
            judged.uncited_but_supported += any(_verdicts(judge, claim, quotes))
    return judged


def _claim(text: str, annotation: Json) -> str:
    """The sentence that an annotation is for."""
    place = annotation["url_citation"]
    if annotation["judge"] != "words":
        return text[place["start_index"] : place["end_index"]]
    before = text[: place["start_index"]].rstrip().rpartition("\n")[2]
    bare = re.sub(r" \[\d+\]", "", before)
    return [bare[span.start : span.end] for span in sentences(bare)][-1]


def _verdicts(judge: CrossEncoder, claim: str, texts: Sequence[str]) -> list[bool]:
    scores = judge.predict([(claim, text) for text in texts], show_progress_bar=False)
    return [bool(score >= VERDICT) for score in scores]


def _figures(
    answers: Sequence[Answer], judged: Judged, some: Sequence[Answer], reranked: Judged, is_quick: bool
) -> list[Figure]:
    if not judged.citations:
        raise MeasureFailed("No answer was cited.")
    reason = QUICK_REASON if is_quick else ""
    return [
        Figure(
            "citations",
            SAYS,
            measured=round(judged.verbatim / judged.citations, 4),
            bound=Bound(1.0, is_upper=False),
            is_judged=not is_quick,
            reason=reason,
            facts={
                "answers": len(answers),
                "answers with a citation": sum(bool(answer.annotations) for answer in answers),
                "citations": judged.citations,
                "at their place in the answer": round(judged.marked / judged.citations, 4),
                "with a reranker: answers": len(some),
                "with a reranker: citations": reranked.citations,
                "with a reranker: verbatim": round(reranked.verbatim / max(1, reranked.citations), 4),
            },
        ),
        Figure(
            "citations_support",
            SAYS_SUPPORT,
            measured=round(judged.precision, 4),
            bound=Bound(0.95, is_upper=False),
            is_judged=not is_quick,
            reason=reason,
            facts={**_facts(answers, judged, "words alone"), **_facts(some, reranked, "with a reranker")},
        ),
    ]


def _facts(answers: Sequence[Answer], judged: Judged, how: str) -> dict[str, float | str]:
    facts: dict[str, float | str] = {
        f"{how}: sentences that claim something": sum(answer.sentences for answer in answers),
        f"{how}: uncited": judged.uncited,
        f"{how}: of what is supported, cited": round(judged.recall, 4),
    }
    for judge, verdicts in sorted(judged.supports.items()):
        facts[f"{how}: cited by {judge}"] = len(verdicts)
        facts[f"{how}: cited by {judge}, precision"] = round(sum(verdicts) / len(verdicts), 4)
    return facts
