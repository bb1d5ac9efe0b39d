"""A model as a function of padded arrays, whatever computes it; and a replica of it as the batcher runs it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol

import torch

from serving.batching.model import InputT, Rows, Tokens
from serving.models.reading import Arrays, Padding, Reader


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


class RowsModule(torch.nn.Module):  # type: ignore[misc]
    """A sentence-transformers model as torch and OpenVINO see it: tensors in, one float32 tensor out.

    Reads int64 tensors (texts, longest) in the order of `names`; gives (texts, columns).
    """

    def __init__(
        self, model: Any, *, names: Sequence[str], constants: Mapping[str, Any], output: str
    ) -> None:
        """`constants` are what the library hands to its modules beside tensors: modality, length of the prompt."""
        super().__init__()
        self.model = model
        self._names = tuple(names)
        self._constants = dict(constants)
        self._output = output
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features = self._constants | dict(zip(self._names, tensors, strict=True))
        rows: torch.Tensor = self.model(features)[self._output]
        return rows.float()


class Replica(Generic[InputT]):
    """A BatchModel: one network with the reader that all replicas of the model share."""

    def __init__(
        self,
        network: Network,
        reader: Reader[InputT],
        padding: Padding,
        *,
        width: int,
        finish: Callable[[Rows], Rows],
    ) -> None:
        """`finish` makes of the network's rows what callers get, or raises ValueError for rows it refuses."""
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
