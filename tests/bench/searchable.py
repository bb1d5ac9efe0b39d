"""How soon a small upload is found, beyond the time that its own parsing and embedding take."""

import re
import time

from tests.bench.clients import Api
from tests.bench.corpora import prose
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.run import QUICK_REASON, Run
from tests.stack import Stack, eventually

SAYS = "small upload: until found, without its own processing, p95"
MUST_REACH = Bound(1.0, is_upper=True)
LONGEST_S = 30.0
WORDS = 80


def measure(run: Run) -> list[Figure]:
    """Uploads one document at a time to an idle stack and searches without a pause until it is found."""
    store_id = run.api.create_store("bench: searchable")
    _until_found(run.api, run.stack, store_id, number=0)  # warms up; not counted
    found_s: list[float] = []
    own_s: list[float] = []
    for number in run.progress.track(range(1, run.sizes.documents + 1), description="searchable"):
        elapsed_s, processing_s = _until_found(run.api, run.stack, store_id, number=number)
        found_s.append(elapsed_s)
        own_s.append(processing_s)
    added = tuple(total - own for total, own in zip(found_s, own_s, strict=True))
    samples = {
        "attach reply to found": Samples(tuple(found_s), "s"),
        "own processing": Samples(tuple(own_s), "s"),
        "added": Samples(added, "s"),
    }
    return [
        Figure(
            "searchable",
            SAYS,
            unit="s",
            measured=round(samples["added"].percentile(95), 3),
            bound=MUST_REACH,
            is_judged=not run.sizes.is_quick,
            reason=QUICK_REASON if run.sizes.is_quick else "",
            samples=samples,
        )
    ]


def _until_found(api: Api, stack: Stack, store_id: str, *, number: int) -> tuple[float, float]:
    """Seconds from the attach reply to the first search that finds the file, and those of its own processing."""
    completed = len(_processing_s(stack))
    title = f"Register entry {number * 7919} of the harbour office"
    text = f"{title}\n\n{' '.join(prose(words=WORDS, seed=number))}"
    file_id = api.upload(f"entry-{number}.txt", text.encode())
    api.attach(store_id, file_id)
    started = time.perf_counter()
    while file_id not in api.search(store_id, title):
        if time.perf_counter() - started > LONGEST_S:
            raise MeasureFailed(f"An upload was not found within {LONGEST_S:.0f} s.")
    elapsed_s = time.perf_counter() - started
    eventually(lambda: len(_processing_s(stack)) > completed, within_s=LONGEST_S)
    return elapsed_s, _processing_s(stack)[-1]


def _processing_s(stack: Stack) -> list[float]:
    """What the worker says of each completed document: seconds to parse, chunk, embed and write it."""
    told = re.findall(r"document_completed document=\d+ seconds=([\d.]+)", stack.log.read_text())
    return [float(each) for each in told]
