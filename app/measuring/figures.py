"""What a benchmark of a running Strongroom found: figures that are kept as JSON, and what follows from them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

BENCHMARKS, FIGURES = "benchmarks", "bench.json"
"""The folder of all reports, in the data folder, and what each of them holds."""
GAIN = 1.1
"""Twice the clients that give less than this times the throughput have saturated what they ask."""
SLOW_FIRST_TOKEN_MS = 2_000.0
HELD_UP = 3.0
FEW_PREFIX_HITS = 0.3


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(Strict):
    """Of times in milliseconds."""

    p50_ms: float
    p95_ms: float


class Ingested(Strict):
    documents: int
    characters: int
    seconds: float
    failed: int

    @property
    def documents_per_s(self) -> float:
        return self.documents / self.seconds


class Load(Strict):
    """So many clients, each of which asks again as soon as it has its answer."""

    clients: int
    requests: int
    refused: int
    seconds: float
    time: Spread | None
    """Of a whole answer; None when none came."""

    @property
    def per_second(self) -> float:
        return (self.requests - self.refused) / self.seconds


class Chats(Load):
    first_token: Spread | None
    between_tokens: Spread | None
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Lanes(Strict):
    """A person's small request: alone, and while bulk work fills the models."""

    alone: Spread
    beside_bulk: Spread
    bulk_texts_per_s: float


class Prefixes(Strict):
    """One long beginning, asked for the first time, and again. `hit_share`: as the engine counts, if it does."""

    new: Spread
    known: Spread
    hit_share: float | None


class Overload(Load):
    told_when: int
    """Of those refused, how many were told in Retry-After when to come again."""
    slowest_refusal_ms: float


class Figures(Strict):
    format: Literal[1] = 1
    measured_at: datetime
    version: str
    server: str
    machine: str
    models: list[str]
    ingested: Ingested
    searches: list[Load]
    lanes: Lanes
    grounded: Chats | None = None
    """One person who asks the documents."""
    chats: list[Chats]
    prefixes: Prefixes | None = None
    overload: Overload | None = None


class FiguresUnreadable(Exception):
    """A file holds no figures of `strongroom bench`; the message names it."""


def read_figures(path: Path) -> Figures:
    """Raises FiguresUnreadable."""
    try:
        return Figures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise FiguresUnreadable(f"{path} holds no figures of `strongroom bench`.") from error


def spread(seconds: Sequence[float]) -> Spread | None:
    if not seconds:
        return None
    p50, p95 = np.percentile(np.asarray(seconds) * 1000, [50, 95])
    return Spread(p50_ms=round(float(p50), 2), p95_ms=round(float(p95), 2))


def saturation(points: Sequence[tuple[int, float]]) -> int | None:
    """The number of clients from which more of them give hardly more: of (clients, throughput), in rising order.

    None when the last step still gave more.
    """
    for place, (clients, reached) in enumerate(points[:-1]):
        later = points[place + 1 :]
        if all(gained < reached * GAIN ** np.log2(more / clients) for more, gained in later):
            return clients
    return None


def advice(figures: Figures) -> list[str]:
    """What to change, and why, the most telling first."""
    told = []
    knee = saturation([(load.clients, load.tokens_per_s) for load in figures.chats])
    if figures.chats:
        best = max(figures.chats, key=lambda load: load.tokens_per_s)
        if knee is None:
            told.append(
                f"Generation still gained at {best.clients} clients: measure with a higher --most to find its limit."
            )
        else:
            told.append(
                f"Generation is saturated from {knee} clients on ({best.tokens_per_s:.0f} tokens/s at best): more of "
                "them wait for each other. Another replica (engine.replicas) or a smaller model gives more."
            )
        first = figures.chats[0].first_token
        if first is not None and first.p50_ms > SLOW_FIRST_TOKEN_MS:
            told.append(
                f"A single person waits {first.p50_ms / 1000:.1f} s for the first token: the model is too large for "
                "this machine, or the engine has no GPU."
            )
    searching = saturation([(load.clients, load.per_second) for load in figures.searches])
    if searching is not None:
        told.append(
            f"Search is saturated from {searching} clients on: more api processes, or a second replica of the "
            "embedding model (models.replicas), give more."
        )
    lanes = figures.lanes
    if lanes.beside_bulk.p50_ms > HELD_UP * lanes.alone.p50_ms:
        told.append(
            f"Beside bulk work a small request takes {lanes.beside_bulk.p50_ms / lanes.alone.p50_ms:.1f} times as "
            "long: give the models role more threads or a GPU of its own."
        )
    if figures.prefixes is not None and (figures.prefixes.hit_share or 1.0) < FEW_PREFIX_HITS:
        told.append(
            "The engine finds few prompts' beginnings in its cache: see that vLLM runs with --enable-prefix-caching, "
            "and give its KV cache more memory."
        )
    if figures.overload is not None:
        over = figures.overload
        if over.refused and over.told_when < over.refused:
            told.append("Something between clients and Strongroom drops the header Retry-After of refusals.")
        if not over.refused:
            told.append(
                f"{over.clients} clients at once were all answered. engine.max_queued bounds how many may wait; lower "
                "it if they should be told to come again instead."
            )
    if figures.ingested.failed:
        told.append(f"{figures.ingested.failed} documents failed: `strongroom doctor` says more.")
    return told


def headline(figures: Figures) -> dict[str, tuple[float, str, bool]]:
    """Figures to compare by: value, unit, and whether more is better."""
    named: dict[str, tuple[float, str, bool]] = {
        "ingestion": (figures.ingested.documents_per_s, "documents/s", True),
        "small request beside bulk, p50": (figures.lanes.beside_bulk.p50_ms, "ms", False),
    }
    if figures.searches:
        first = figures.searches[0].time
        if first is not None:
            named["one search, p50"] = (first.p50_ms, "ms", False)
        named["searches"] = (max(load.per_second for load in figures.searches), "a second", True)
    if figures.chats:
        alone = figures.chats[0]
        if alone.first_token is not None:
            named["first token, one client, p50"] = (alone.first_token.p50_ms, "ms", False)
        if alone.between_tokens is not None:
            named["between tokens, one client, p50"] = (alone.between_tokens.p50_ms, "ms", False)
        named["tokens"] = (max(load.tokens_per_s for load in figures.chats), "a second", True)
    if figures.grounded is not None and figures.grounded.first_token is not None:
        named["first token of an answer from documents, p50"] = (
            figures.grounded.first_token.p50_ms,
            "ms",
            False,
        )
    return named
