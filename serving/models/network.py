"""A model as a function of padded arrays, whatever computes it; and a replica of it as the batcher runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from serving.batching.model import InputT, Rows, Tokens
from serving.models.reading import Arrays, Padding, Reader
from serving.models.task import Finish
from serving.protocols import Backend


class Network(Protocol):
    """One replica's computation. `place` and `run` may be called beside each other."""

    def place(self, arrays: Arrays) -> Any:
        """Brings a batch to the device, while the batch before it runs."""
        ...

    def run(self, placed: Any) -> Rows:
        """float32 (texts, columns) as the model gives them. Never two calls at once."""
        ...

    def close(self) -> None:
        """Lets go of the weights; nothing is run after it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Started:
    """Networks that run. The device is `cpu`, or the CUDA devices by commas."""

    backend: Backend
    device: str
    networks: Sequence[Network]
    memory_bytes: int
    limits_hint: int | None = None
    has_express: bool = False
    """The last network is for people alone."""


class Replica(Generic[InputT]):
    """A BatchModel: one network with the reader that all replicas of the model share."""

    def __init__(
        self,
        network: Network,
        reader: Reader[InputT],
        padding: Padding,
        *,
        width: int,
        finish: Finish,
    ) -> None:
        self.width = width
        self.max_tokens = reader.max_tokens
        self._network = network
        self._reader = reader
        self._padding = padding
        self._finish = finish

    def encode(self, inputs: Sequence[InputT]) -> list[Tokens]:
        return self._reader.read(inputs)

    def collate(self, batch: Sequence[Tokens]) -> Any:
        return self._network.place(self._padding.pad(batch))

    def forward(self, collated: Any) -> Rows:
        return self._finish(self._network.run(collated))
