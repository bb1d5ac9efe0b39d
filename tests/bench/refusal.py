"""How well the evidence score tells questions that a collection answers from others, through the search endpoint.

Questions of one test collection are asked of another one, whose texts cannot answer them; and questions that were
written, or found, to be about a text that does not answer them. None of those that the shipped weights were fitted on
is asked (`is_held_out`), and the demo reranker reads only what it was not trained on.
`python -m tests.bench --only refusal [--quick]` runs it alone.
"""

import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from app.answers.calibration import HeldOut, Interval
from app.answers.chat import SEARCH_DEPTH
from app.evaluation.calibration import Sample, measured, scored
from retrieval.evidence import SHIPPED, Weighing
from tests.bench.clients import Api, in_parallel, wait_ingested
from tests.bench.corpora import SHARED, read_beir
from tests.bench.figures import Bound, Figure, MeasureFailed, skipped
from tests.bench.ingestion_stack import IngestionStack
from tests.bench.run import QUICK_REASON

SAYS = "questions that a collection does not answer: balanced accuracy of refusals, AUC of the evidence score"
LEAST_BALANCED = 0.90
RERANKER = SHARED.parent / "models" / "reranker"
RERANKERS_AUC = 0.69
"""The demo reranker's own, on SQuAD's unanswerable questions and their own passages: its README."""
INGEST_S = 1_800.0
ATTACHED_AT_ONCE = 500


@dataclass(frozen=True)
class Sizes:
    texts: int | None
    """Of a collection; None for all."""
    questions: int
    """Of a kind."""
    reranked: int
    """The same where a reranker reads them: half a second each on two cores."""


FULL = Sizes(texts=None, questions=300, reranked=120)
QUICK = Sizes(texts=60, questions=12, reranked=6)


@dataclass(frozen=True)
class Asked:
    """Questions that the weights were not fitted on. `unseen`: nor was the demo reranker trained on them."""

    questions: Mapping[str, str]
    unanswerable: Mapping[str, str]
    unseen: Mapping[str, str]


def is_held_out(question_id: str) -> bool:
    """The shipped weights were fitted on the other half."""
    return zlib.crc32(question_id.encode()) % 2 == 1


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    folders = {
        "scifact": SHARED / "scifact" / "beir",
        "cranfield": SHARED / "cranfield" / "beir",
        "squad": SHARED / "squad" / "beir-v1.1",
        "clapnq": SHARED / "clapnq_dev" / "beir",
    }
    if absent := [name for name, folder in folders.items() if not folder.is_dir()]:
        return [skipped("refusal", SAYS, f"no {', '.join(absent)} in ../shared/data")]
    sizes = QUICK if is_quick else FULL
    settings = {"STRONGROOM_MODELS__RERANKER": f"demo={RERANKER}" if RERANKER.is_dir() else ""}
    with (
        tempfile.TemporaryDirectory(prefix="bench-refusal-") as folder,
        IngestionStack.running(Path(folder), settings) as ours,
    ):
        asked = {name: _asked(name, path) for name, path in folders.items()}
        stores = {
            name: _ingest(ours.api, name, _texts(path, asked[name], sizes), progress)
            for name, path in folders.items()
        }
        weigh = _Weighing(ours.api, stores, progress)
        figures = [_uncovered(weigh, asked, sizes, is_quick=is_quick)]
        figures += [
            _unanswerable(weigh, name, asked[name], sizes, is_quick=is_quick) for name in ("squad", "clapnq")
        ]
        if RERANKER.is_dir():
            figures.append(_uncovered_reranked(weigh, asked, sizes, is_quick=is_quick))
            figures.append(_unanswerable_reranked(weigh, asked["squad"], sizes, is_quick=is_quick))
        else:
            figures.append(skipped("refusal_reranked", SAYS, "no reranker in ../shared/models"))
    return figures


def _uncovered(weigh: "_Weighing", asked: Mapping[str, Asked], sizes: Sizes, *, is_quick: bool) -> Figure:
    own = [(name, name) for name in asked]
    crossed = [(name, other) for name in ("squad", "clapnq") for other in ("scifact", "cranfield")]
    crossed += [(other, name) for name, other in crossed]
    samples: list[Sample] = []
    facts: dict[str, float | str] = {}
    for name, store in [*own, *crossed]:
        # As many that are covered as are not.
        count = sizes.questions if name == store else sizes.questions // 2
        told = weigh.all(_some(asked[name].questions, count), store, is_covered=name == store)
        facts[f"{name} asked of {store}: taken for covered"] = _taken(told, is_reranked=False)
        samples += told
    return _balanced("refusal", samples, facts, is_reranked=False, is_quick=is_quick)


def _uncovered_reranked(
    weigh: "_Weighing", asked: Mapping[str, Asked], sizes: Sizes, *, is_quick: bool
) -> Figure:
    others = ("scifact", "cranfield")
    pairs = [("squad", "squad"), *((each, each) for each in others)]
    pairs += [("squad", each) for each in others] + [(each, "squad") for each in others]
    samples: list[Sample] = []
    facts: dict[str, float | str] = {}
    for name, store in pairs:
        questions = _some(asked[name].unseen, sizes.reranked)
        told = weigh.all(questions, store, is_covered=name == store, is_reranked=True)
        facts[f"{name} asked of {store}: taken for covered"] = _taken(told, is_reranked=True)
        samples += told
    return _balanced("refusal_reranked", samples, facts, is_reranked=True, is_quick=is_quick)


def _balanced(
    name: str,
    samples: Sequence[Sample],
    facts: dict[str, float | str],
    *,
    is_reranked: bool,
    is_quick: bool,
) -> Figure:
    figures = measured(SHIPPED.reranked if is_reranked else SHIPPED.plain, samples)
    told = "with the demo reranker" if is_reranked else "without a reranker"
    return Figure(
        name,
        f"refusal of questions that a collection does not cover, {told}: balanced accuracy",
        measured=figures.balanced_accuracy.value,
        bound=Bound(LEAST_BALANCED, is_upper=False),
        facts={**_facts(figures), **facts},
        is_judged=not is_quick,
        reason=QUICK_REASON if is_quick else "",
    )


def _unanswerable(weigh: "_Weighing", name: str, asked: Asked, sizes: Sizes, *, is_quick: bool) -> Figure:
    """Without a bound: what no reranker reads is weighed by its words and its nearness alone."""
    samples = weigh.all(_some(asked.questions, sizes.questions), name, is_covered=True)
    samples += weigh.all(_some(asked.unanswerable, sizes.questions), name, is_covered=False)
    figures = measured(SHIPPED.plain, samples)
    return Figure(
        f"unanswerable_{name}",
        f"{name}'s unanswerable questions, without a reranker: AUC of the evidence score",
        measured=figures.auc.value,
        facts=_facts(figures),
        reason=QUICK_REASON if is_quick else "",
    )


def _unanswerable_reranked(weigh: "_Weighing", asked: Asked, sizes: Sizes, *, is_quick: bool) -> Figure:
    """Of the unanswerable ones those whose best text is one that the reranker was not trained on."""
    held = set(json.loads((RERANKER / "split.json").read_text())["held"])
    samples = weigh.all(_some(asked.unseen, 2 * sizes.reranked), "squad", is_covered=True, is_reranked=True)
    unseen = weigh.leading_to(asked.unanswerable, "squad", held, count=2 * sizes.reranked)
    samples += weigh.all(unseen, "squad", is_covered=False, is_reranked=True)
    figures = measured(SHIPPED.reranked, samples)
    alone = measured(Weighing(0.0, {"relevance": 1.0}, threshold=0.5), samples)
    return Figure(
        "unanswerable_squad_reranked",
        "squad's unanswerable questions, with the demo reranker: AUC of the evidence score",
        measured=figures.auc.value,
        bound=Bound(RERANKERS_AUC, is_upper=False),
        facts={**_facts(figures), "AUC of the reranker's best score alone, on these": alone.auc.value},
        is_judged=not is_quick,
        reason=QUICK_REASON if is_quick else "",
    )


@dataclass(frozen=True)
class _Weighing:
    """Asks the search endpoint as a chat searches, and takes the signals that it tells."""

    api: Api
    stores: Mapping[str, str]
    progress: Progress

    def all(
        self, questions: Mapping[str, str], name: str, *, is_covered: bool, is_reranked: bool = False
    ) -> list[Sample]:
        ranker = "auto" if is_reranked else "weighted"
        pages = self._search(name, questions, ranker)
        return [Sample(page["evidence"]["signals"], is_covered) for page in pages]

    def leading_to(
        self, questions: Mapping[str, str], name: str, texts: set[str], *, count: int
    ) -> dict[str, str]:
        """Those whose best text is one of `texts`, `count` at most."""
        tried = _some(questions, 6 * count)
        pages = self._search(name, tried, "weighted")
        led = [
            each
            for each, page in zip(tried, pages, strict=True)
            if page["data"] and page["data"][0]["filename"].removesuffix(".txt") in texts
        ]
        return {each: tried[each] for each in led[:count]}

    def _search(self, name: str, questions: Mapping[str, str], ranker: str) -> list[dict[str, Any]]:
        def search(question: str) -> dict[str, Any]:
            body = {
                "query": question,
                "max_num_results": SEARCH_DEPTH,
                "include": ["scores"],
                "ranking_options": {"ranker": ranker},
            }
            return self.api.page(self.stores[name], body)

        return list(
            self.progress.track(
                in_parallel(search, questions.values()), total=len(questions), description=f"{name}: {ranker}"
            )
        )


def _asked(name: str, folder: Path) -> Asked:
    whole = read_beir(folder)
    held_out = {each: text for each, text in whole.queries.items() if is_held_out(each)}
    unanswerable: dict[str, str] = {}
    unseen = held_out
    if name == "squad":
        rows = _rows(folder.parent / "unanswerable-v2.jsonl")
        unanswerable = {row["id"]: row["question"] for row in rows if is_held_out(row["id"])}
        if RERANKER.is_dir():
            split = set(json.loads((RERANKER / "split.json").read_text())["val_queries"])
            unseen = {each: text for each, text in held_out.items() if each in split}
    if name == "clapnq":
        rows = _rows(folder / "queries.jsonl")
        unanswerable = {
            row["_id"]: row["text"] for row in rows if not row["answerable"] and is_held_out(row["_id"])
        }
    return Asked(held_out, unanswerable, unseen)


def _texts(folder: Path, asked: Asked, sizes: Sizes) -> dict[str, str]:
    """All, or with --quick those that the first questions need and a few more."""
    whole = read_beir(folder)
    if sizes.texts is None:
        return whole.texts
    first = [*_some(asked.questions, sizes.questions)]
    first += [each for count in (1, 2) for each in _some(asked.unseen, count * sizes.reranked)]
    needed = {text_id for each in first for text_id in whole.grades[each]}
    others = [text_id for text_id in whole.texts if text_id not in needed][: sizes.texts]
    return {text_id: whole.texts[text_id] for text_id in [*needed, *others]}


def _ingest(api: Api, name: str, texts: Mapping[str, str], progress: Progress) -> str:
    """Each text as a file of its own. Returns the collection's id."""
    store_id = api.create_store(f"bench: {name}")
    uploads = [(f"{text_id}.txt", text.encode()) for text_id, text in texts.items() if text.strip()]
    uploaded = in_parallel(lambda each: api.upload(*each), uploads)
    ids = list(progress.track(uploaded, total=len(uploads), description=f"{name}: uploads"))
    for start in range(0, len(ids), ATTACHED_AT_ONCE):
        api.attach_all(store_id, ids[start : start + ATTACHED_AT_ONCE])
    task = progress.add_task(f"{name}: ingestion", total=None)
    counts = wait_ingested(
        api,
        store_id,
        within_s=INGEST_S,
        on_progress=lambda done, total: progress.update(task, completed=done, total=total),
    )
    if counts["failed"]:
        raise MeasureFailed(f"{counts['failed']} texts of {name} could not be ingested.")
    return store_id


def _facts(figures: HeldOut) -> dict[str, float | str]:
    shown = {
        "balanced accuracy": figures.balanced_accuracy,
        "refusal precision": figures.refusal_precision,
        "refusal recall": figures.refusal_recall,
        "AUC": figures.auc,
    }
    return {
        **{f"{name}, 95 % interval": _told(each) for name, each in shown.items()},
        "covered, not covered": f"{figures.answerable}, {figures.unanswerable}",
    }


def _told(figure: Interval) -> str:
    return f"{figure.value:.3f}: {figure.low:.3f} to {figure.high:.3f}"


def _taken(samples: Sequence[Sample], *, is_reranked: bool) -> float:
    weighing = SHIPPED.reranked if is_reranked else SHIPPED.plain
    scores = scored(weighing, samples)
    return round(float((scores >= weighing.threshold).mean()), 3)


def _some(questions: Mapping[str, str], count: int) -> dict[str, str]:
    """Spread evenly over the whole."""
    ids = list(questions)
    count = min(count, len(ids))
    return {ids[n * len(ids) // count]: questions[ids[n * len(ids) // count]] for n in range(count)}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
