"""What the order of passages saves the engine: prefix-cache hits and first tokens, with and without it."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import orjson

from app.answers.prompt import passage_text, with_passages
from retrieval.passages import Passage
from serving.generation.passage_order import PassageOrder
from tests.bench.clients import Wire, wait_ingested
from tests.bench.corpora import SEED, SHARED, read_beir
from tests.bench.figures import Figure, Samples, skipped
from tests.bench.run import Run

SAYS = "prompt layout: prefix-cache hit share of questions over one corpus, passages in our order"
FOLDER = SHARED / "squad" / "beir-v1.1"
PASSAGES = 3
QUESTIONS = 120
PATH = "/v1/chat/completions"

Order = Callable[[Sequence[Passage]], list[int]]


@dataclass
class _Way:
    """One order of passages. Its own cache salt keeps its prompts from hitting those of the other."""

    name: str
    order: Order
    seconds: list[float] = field(default_factory=list)
    queried: float = 0
    hit: float = 0

    @property
    def hit_share(self) -> float:
        return self.hit / self.queried if self.queried else 0.0


def measure(run: Run) -> list[Figure]:
    """The same questions, over passages that a real search found, both ways in turn, to the engine itself."""
    if not FOLDER.is_dir():
        return [skipped("prompt_layout", SAYS, "no squad set beside the repository")]
    asked = _found(run)
    remembered = PassageOrder()
    ours = _Way("our order", lambda passages: _ours(remembered, passages))
    by_rank = _Way("best last", lambda passages: list(reversed(range(len(passages)))))
    url, key = run.stack.engine_address()
    headers = {"Authorization": f"Bearer {key}"}
    with Wire(url, key) as wire, httpx.Client(base_url=url, headers=headers) as engine:
        model = engine.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        for number, (question, passages) in enumerate(run.progress.track(asked, description="prompt layout")):
            for way in (ours, by_rank) if number % 2 else (by_rank, ours):
                _ask(wire, engine, way, model, question, passages)
    return [
        Figure(
            "prompt_layout",
            SAYS,
            measured=round(ours.hit_share, 3),
            samples={
                f"first token, {way.name}": Samples.milliseconds(way.seconds) for way in (ours, by_rank)
            },
            facts={
                "questions": len(asked),
                "hit share, best last": round(by_rank.hit_share, 3),
                "prompt tokens, each way": by_rank.queried,
            },
        )
    ]


def _ask(
    wire: Wire, engine: httpx.Client, way: _Way, model: str, question: str, passages: Sequence[Passage]
) -> None:
    ranks = way.order(passages)
    messages = with_passages(
        [{"role": "user", "content": question}], [passages[rank] for rank in ranks], ranks=ranks
    )
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
        "cache_salt": way.name,
    }
    queried, hit = prefix_counters(engine)
    way.seconds.append(wire.first_token_s(PATH, orjson.dumps(body)))
    queried_after, hit_after = prefix_counters(engine)
    way.queried += queried_after - queried
    way.hit += hit_after - hit


def prefix_counters(engine: httpx.Client) -> tuple[float, float]:
    """Tokens that vLLM looked up in its prefix cache so far, and those that it found."""
    told = engine.get("/metrics").raise_for_status().text
    queried, hit = (
        sum(
            float(value)
            for value in re.findall(rf"^vllm:prefix_cache_{name}_total\S* (\S+)$", told, re.MULTILINE)
        )
        for name in ("queries", "hits")
    )
    return queried, hit


def _ours(order: PassageOrder, passages: Sequence[Passage]) -> list[int]:
    texts = [passage_text(passage) for passage in passages]
    return order.choose(texts, sizes=[len(text) for text in texts], cache_salt="")


def _found(run: Run) -> list[tuple[str, list[Passage]]]:
    """Questions in random order, several to each paragraph, each with what a search for it finds, best first."""
    whole = read_beir(FOLDER)
    texts = dict(list(whole.texts.items())[: 5 if run.sizes.is_quick else 40])
    asked = [
        question
        for query_id, question in whole.queries.items()
        if whole.grades[query_id].keys() & texts.keys()
    ]
    random.Random(SEED).shuffle(asked)
    store_id = run.api.create_store("prompt layout")
    uploaded = {
        run.api.upload(f"{text_id}.txt", text.encode()): (text_id, text) for text_id, text in texts.items()
    }
    for file_id in uploaded:
        run.api.attach(store_id, file_id)
    wait_ingested(run.api, store_id, within_s=120, on_progress=lambda *_: None)
    return [
        (
            question,
            [_passage(*uploaded[file_id]) for file_id in run.api.search(store_id, question, limit=PASSAGES)],
        )
        for question in asked[: 12 if run.sizes.is_quick else QUESTIONS]
    ]


def _passage(text_id: str, text: str) -> Passage:
    return Passage(
        document_id=0,
        collection_id="",
        file_id=text_id,
        filename=f"{text_id}.txt",
        text=text,
        start_char=0,
        end_char=len(text),
        headings=(),
        places=(),
        score=0.0,
    )
