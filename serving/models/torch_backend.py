"""Runs models with torch, on the CPU and on CUDA devices."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from serving.batching.model import Rows
from serving.models.reading import Arrays


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


class TorchNetwork:
    """A torch module on one device. Replicas on one device share the module."""

    def __init__(self, module: RowsModule, device: str, *, threads: int | None = None) -> None:
        """`threads` are for each forward pass on the CPU."""
        self._module: RowsModule | None = module
        self._device = torch.device(device)
        self._threads = threads
        self._of_thread = threading.local()

    def place(self, arrays: Arrays) -> tuple[torch.Tensor, ...]:
        """On CUDA from pinned memory without waiting: the copies queue up behind the running batch."""
        tensors = tuple(torch.from_numpy(array) for array in arrays.values())
        if self._device.type == "cpu":
            return tensors
        return tuple(tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors)

    def run(self, placed: tuple[torch.Tensor, ...]) -> Rows:
        assert self._module is not None
        self._use_threads()
        with torch.inference_mode():
            rows: Rows = self._module(*placed).cpu().numpy()
        return rows

    def close(self) -> None:
        """CUDA's cache too: torch keeps freed memory from others otherwise."""
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def measure_peak_bytes(self, arrays: Arrays) -> int | None:
        """Memory that this batch takes on a CUDA device beside the weights, or None when there is not enough."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        try:
            self.run(self.place(arrays))
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()
        # Reserved and not allocated: what fragmentation wastes is gone for others too.
        return int(torch.cuda.max_memory_reserved(self._device)) - int(before)

    def _use_threads(self) -> None:
        # OpenMP keeps the number for each calling thread, so that models differ without disturbing each other.
        if self._threads is not None and getattr(self._of_thread, "threads", None) != self._threads:
            torch.set_num_threads(self._threads)
            self._of_thread.threads = self._threads


def has_cuda() -> bool:
    return bool(torch.cuda.is_available())


def cuda_multiplies_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported())


def cuda_devices(replicas: int) -> list[str]:
    """Where each replica runs: all visible devices in turn, one replica on each when `replicas` is 0."""
    visible = torch.cuda.device_count()
    return [f"cuda:{replica % visible}" for replica in range(replicas or visible)]


def cuda_memory(device: str) -> tuple[str, int, int]:
    """The device's name, and its free and total memory in bytes."""
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.get_device_name(device), int(free), int(total)


def bytes_of(module: Any) -> int:
    """Of its parameters and buffers in memory."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
