"""Documents, queries and prompts for a benchmark: made up from a seed, so that two runs ask the same."""

import random
from collections.abc import Iterator

SUBJECTS = [
    "archive",
    "boiler",
    "bridge",
    "canal",
    "chapel",
    "compass",
    "crane",
    "dock",
    "engine",
    "ferry",
    "gallery",
    "harbour",
    "kiln",
    "ledger",
    "lens",
    "loom",
    "mill",
    "pump",
    "quarry",
    "rudder",
    "sluice",
    "telescope",
    "turbine",
    "vault",
]
VERBS = [
    "closes",
    "drains",
    "feeds",
    "guards",
    "heats",
    "keeps",
    "lifts",
    "measures",
    "moves",
    "repairs",
    "stores",
    "supplies",
    "warms",
    "watches",
]
KINDS = [
    "brass",
    "broken",
    "carved",
    "cold",
    "copper",
    "damp",
    "dusty",
    "eastern",
    "frozen",
    "heavy",
    "hidden",
    "iron",
    "narrow",
    "northern",
    "old",
    "painted",
    "quiet",
    "rusted",
    "silver",
    "southern",
    "stone",
    "tall",
    "wooden",
]
SENTENCES_A_DOCUMENT = 120


class Material:
    """`salt` keeps one run's texts from being found in caches that another has filled."""

    def __init__(self, seed: int, salt: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - texts, not secrets
        self._salt = salt

    def documents(self, count: int) -> Iterator[tuple[str, str]]:
        """Name and text of each."""
        for number in range(count):
            lines = [self.sentence() for _ in range(SENTENCES_A_DOCUMENT)]
            yield (
                f"{self._salt}-{number:05}.txt",
                f"Report {number} of {self._salt}\n\n" + "\n".join(lines),
            )

    def sentence(self) -> str:
        pick = self._random.choice
        return (
            f"The {pick(KINDS)} {pick(SUBJECTS)} {pick(VERBS)} the {pick(KINDS)} {pick(SUBJECTS)} "
            f"number {self._random.randrange(10_000)}."
        )

    def query(self) -> str:
        pick = self._random.choice
        return f"Which {pick(SUBJECTS)} {pick(VERBS)} the {pick(KINDS)} {pick(SUBJECTS)}?"

    def prompt(self) -> str:
        number = self._random.randrange(10**9)
        return f"{self._salt} {number}. Continue this report with many details: {self.sentence()}"

    def long_beginning(self, sentences: int) -> str:
        return f"{self._salt} {self._random.randrange(10**9)}\n" + "\n".join(
            self.sentence() for _ in range(sentences)
        )
