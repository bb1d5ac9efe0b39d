"""Kills the worker while it ingests: `python -m tests.faults.kills [--times 200] [--files 500] [--seed N]`.

Then all files must be in, none twice and none half: their chunks are compared with those of a run that nobody
disturbed, and `strongroom verify` must find that indexes and tables agree. Kills strike at any time from a worker's
start to some documents later; once all files are in, as many new ones follow.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retrieval.tables import DocumentStatus
from tests.bench.corpora import prose
from tests.faults.ingesting import Ingesting, quick_models
from tests.faults.report import Row
from tests.stack import eventually

DELAY_S = 0.2
"""Of an embedding batch, so that documents are in hand when a kill strikes."""
LONGEST_LIFE_S = 1.5
"""Of a worker, from the first result that it keeps."""
START_KILLS = 0.1
"""The share of kills that strike while a worker starts."""
LONGEST_START_S = 4.0
EVERY_BOOK = 12
"""One file in so many is as long as three parts."""
BOOK_WORDS = 200_000
NOTE_WORDS = 40
QUIET_S = 600.0


@dataclass(frozen=True)
class Killed:
    """What happened. `differences` is empty when all is well."""

    kills: int
    files: int
    rounds: int
    seconds: float
    differences: tuple[str, ...]
    left_behind: int
    """Folders of dead workers' parsers."""


def run(
    folder: Path, *, times: int, files: int, seed: int, tell: Callable[[str], None] = lambda _: None
) -> Killed:
    """The whole experiment. Raises AssertionError when something hangs or does not start."""
    chance = random.Random(seed)
    started = time.monotonic()
    rounds: list[dict[str, str]] = []
    with quick_models(folder / "slow-models.log", delay_s=DELAY_S) as slow:
        disturbed = Ingesting(folder / "disturbed", slow)
        try:
            for number in range(times):
                if disturbed.jobs() == 0:
                    rounds.append(texts(files, seed=seed + len(rounds)))
                    disturbed.add(f"round {len(rounds)}", rounds[-1])
                _live_and_die(disturbed, chance)
                tell(f"kill {number + 1}: {disturbed.jobs()} files left of round {len(rounds)}")
            disturbed.start_worker()
            disturbed.wait_until_done(within_s=QUIET_S)
            disturbed.stop_worker()
            left_behind = sum(1 for _ in disturbed.temporary.iterdir())
            with quick_models(folder / "quick-models.log") as quick:
                undisturbed = Ingesting(folder / "undisturbed", quick)
                try:
                    differences = compare(disturbed, _ingested(undisturbed, rounds))
                finally:
                    undisturbed.close()
            disturbed.verify()
        finally:
            disturbed.close()
    seconds = time.monotonic() - started
    return Killed(times, files * len(rounds), len(rounds), seconds, tuple(differences), left_behind)


def texts(count: int, *, seed: int) -> dict[str, str]:
    """By name: notes of one chunk, and here and there a book."""
    words = prose(words=BOOK_WORDS + count * NOTE_WORDS, seed=seed)
    book, notes = words[:BOOK_WORDS], words[BOOK_WORDS:]
    found = {}
    for number in range(count):
        own = notes[number * NOTE_WORDS : (number + 1) * NOTE_WORDS]
        if number % EVERY_BOOK == EVERY_BOOK // 2:
            paragraphs = [" ".join(book[start : start + 150]) for start in range(0, len(book), 150)]
            found[f"book-{number}.txt"] = "\n\n".join([" ".join(own), *paragraphs])
        else:
            found[f"note-{number}.txt"] = " ".join(own)
    return found


def compare(disturbed: Ingesting, undisturbed: Ingesting) -> list[str]:
    """A sentence for each file that is not as it should be."""
    found, expected = disturbed.chunks(), undisturbed.chunks()
    statuses = disturbed.statuses()
    told = [
        f"{count} files are {status}"
        for status, count in statuses.items()
        if status is not DocumentStatus.COMPLETED
    ]
    told += [f"{name} has no chunks" for name in sorted(expected.keys() - found.keys())]
    told += [f"{name} should not be there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            told.append(f"{name} has {len(found[name])} chunks, not the same {len(expected[name])}")
    return told


def _live_and_die(disturbed: Ingesting, chance: random.Random) -> None:
    """One worker's life."""
    before = disturbed.kept()
    disturbed.start_worker()
    if chance.random() < START_KILLS:
        time.sleep(chance.uniform(0, LONGEST_START_S))
    else:
        eventually(lambda: disturbed.kept() != before, within_s=QUIET_S, every_s=0.02)
        time.sleep(chance.uniform(0, LONGEST_LIFE_S))
    disturbed.kill_worker()


def _ingested(undisturbed: Ingesting, rounds: list[dict[str, str]]) -> Ingesting:
    for number, files in enumerate(rounds, 1):
        undisturbed.add(f"round {number}", files)
    undisturbed.start_worker()
    undisturbed.wait_until_done(within_s=QUIET_S * len(rounds))
    undisturbed.stop_worker()
    return undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strongroom-kills-") as folder:
        killed = run(
            Path(folder),
            times=options.times,
            files=options.files,
            seed=options.seed,
            tell=lambda said: print(said, flush=True),
        )
    for difference in killed.differences:
        print(difference)
    violations = len(killed.differences) + killed.left_behind
    figures = f"{killed.files} files ingested, {killed.left_behind} folders left behind"
    Row("F1 kill -9 of the worker", killed.kills, violations, None, figures).show()
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
