"""A replica of a model and what a batch goes through on it: collated, run, halved when it fails. For the batcher."""

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from serving.batching.model import BatchModel, InputT, Rows, Tokens
from serving.batching.waiting import Text
from serving.protocols import Lane, ModelUnavailable

Outcome = Rows | Exception
"""Of a text: its row, float32 (width,), or why there is none."""


@dataclass(eq=False)
class Batch:
    """Texts that run together."""

    lane: Lane
    texts: list[Text]
    due: bool
    """It was its lane's turn, whoever else waited: nobody goes before it."""
    passed_over_since: float
    """The lane, before this batch was chosen."""
    ready: bool = False
    """It is collated, or could not be."""
    collated: Any = None
    collate_error: Exception | None = None
    started: float = math.inf
    seconds: float = math.nan
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def padded_tokens(self) -> int:
        return len(self.texts) * max(map(len, self.texts))


class Replica(Generic[InputT]):
    """Its two threads, what passes between them (behind the batcher's lock), and the model."""

    def __init__(self, index: int, model: BatchModel[InputT], lock: threading.Lock) -> None:
        self.index = index
        self.prefetched: Batch | None = None
        self.running: Batch | None = None
        self.ran: deque[Batch] = deque()
        """Their outcomes are to be delivered."""
        self.fault: str | None = "not opened"
        self.failed_attempts = 0
        """To bring it back, since it last worked."""
        self.tried = threading.Event()
        """Its first attempt to run is over."""
        self.worker_wakes = threading.Condition(lock)
        self.preparer_wakes = threading.Condition(lock)
        self.worker: threading.Thread
        self.preparer: threading.Thread
        self._model = model
        self._collating = threading.Lock()

    @property
    def idle(self) -> bool:
        """It would run a batch at once."""
        return self.fault is None and self.running is None and self.prefetched is None

    def collate(self, batch: list[Tokens]) -> Any:
        """Never for two threads at once: the worker collates too, when a batch has failed."""
        with self._collating:
            return self._model.collate(batch)

    def compute(self, batch: list[Tokens]) -> Rows:
        """float32 (len(batch), width). In the worker's thread only, as are the functions below."""
        return self._forward(self.collate(batch), len(batch))

    def outcomes(self, batch: Batch, probe: list[Tokens]) -> list[Outcome]:
        """For each text its row or its error: ModelUnavailable when the model fails on the probe too."""
        try:
            if batch.collate_error is not None:
                raise batch.collate_error
            return list(self._forward(batch.collated, len(batch.texts)))
        except Exception as error:  # noqa: BLE001 - a model may raise anything; each text gets its outcome
            return self._bisect([text.tokens for text in batch.texts], error, probe)

    def _bisect(self, batch: list[Tokens], error: Exception, probe: list[Tokens]) -> list[Outcome]:
        """A failed batch is halved until bad texts stand alone."""
        try:
            self.compute(probe)
        except Exception as cause:  # noqa: BLE001 - as above
            return [ModelUnavailable(f"The model failed ({type(cause).__name__}).") for _ in batch]
        if len(batch) == 1:
            return [error]
        middle = len(batch) // 2
        outcomes: list[Outcome] = []
        for half in (batch[:middle], batch[middle:]):
            if outcomes and isinstance(outcomes[-1], ModelUnavailable):
                return outcomes + [outcomes[-1]] * len(half)
            try:
                outcomes += list(self.compute(half))
            except Exception as cause:  # noqa: BLE001 - as above
                outcomes += self._bisect(half, cause, probe)
        return outcomes

    def _forward(self, collated: Any, texts: int) -> Rows:
        """Raises ValueError for rows that are not what the model promised."""
        rows = self._model.forward(collated)
        if rows.shape != (texts, self._model.width) or rows.dtype != np.float32:
            raise ValueError(f"the model gave an output of shape {rows.shape} and type {rows.dtype}")
        if not np.isfinite(rows).all():
            raise ValueError("the model gave an output that is not finite")
        # Rows in a buffer of the model's would change under their readers while the next batch runs.
        return rows if rows.flags.owndata else rows.copy()
