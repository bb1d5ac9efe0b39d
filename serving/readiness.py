"""What a models server tells of each of its models: written by the server, read by its client."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a model is for."""

    EMBEDDING = "embedding"
    RERANKING = "reranking"


class State(StrEnum):
    """Where a model is in its life."""

    IDLE = "idle"
    """Not in memory; the first request for it loads it."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """It could not be loaded, or fails on every text; it is tried again."""


@dataclass(frozen=True, kw_only=True)
class ModelReadiness:
    """One model. What is only known of a loaded model is empty or 0 for the others."""

    alias: str
    kind: Kind
    state: State
    reason: str = ""
    """Why it failed, what its loading waits for, or what ails some of its replicas."""
    is_default: bool = False
    """The first of its kind: a models server is ready when its defaults can answer."""
    device: str = ""
    precision: str = ""
    backend: str = ""
    threads: int = 0
    """CPU threads of one replica."""
    replicas: int = 0
    memory_bytes: int = 0

    @property
    def can_answer(self) -> bool:
        """At once, or as soon as it was loaded."""
        return self.state in {State.READY, State.IDLE}
