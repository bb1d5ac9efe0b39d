"""Runs models with OpenVINO, the fastest backend on CPUs. The only module that imports openvino.

Texts for each second of one core's time (all-MiniLM-L6-v2, SQuAD paragraphs of 158 tokens sorted by length, batches of
8, AVX512-BF16), core ms for a real question, and lowest cosine to torch in float32: torch float32 21.5, 11.5; torch
bfloat16 39.6, 8.3, .99993; OpenVINO float32 26.6, 5.6, 1.00000; bfloat16 47.9, 4.8, .99997. A cross-encoder of the same
size, pairs and largest change of a score: torch float32 21.3; torch bfloat16 37.2, .0042; OpenVINO float32 25.1, .0000;
bfloat16 46.1, .0030.

8-bit weights are left out. With activations quantised as they come they reach 47.8 at a lowest cosine of .9990, which
is bfloat16's speed; where the CPU multiplies 8-bit numbers but not bfloat16, 45.5 against 26.2. Quantised ahead of time
by samples: 70 at .994. Such vectors would need an index of their own, so that no machine could choose them by itself.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.batching.model import Rows
from serving.models.loading import ModelLoadError
from serving.models.reading import Arrays
from serving.models.task import Finish
from serving.protocols import Precision

# OpenVINO reports its import and each conversion to Google Analytics without asking. Where its telemetry package
# cannot be imported it reports nothing, and None makes every import of it fail, installed or not.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

BYTES_OF_ELEMENT = {Precision.FLOAT32: 4, Precision.BFLOAT16: 2, Precision.FLOAT16: 2}
HINTS = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "f16"}
ELEMENT_TYPES = {
    Precision.FLOAT32: openvino.Type.f32,
    Precision.BFLOAT16: openvino.Type.bf16,
    Precision.FLOAT16: openvino.Type.f16,
}

BULK_NICENESS = 19
"""Of the threads that compute for machines where a replica of its own computes for people."""

LARGEST_DIFFERENCE = 0.05
"""Between a row of torch in float32 and one of OpenVINO, as a length: for unit rows a cosine of .99875.

A graph that was converted wrongly is far off; bfloat16 stays below .03.
"""


class NotConvertible(ModelLoadError):
    """OpenVINO cannot compute this model as torch does; the message tells why."""


class OpenVinoNetwork:
    """One inference request of a compiled model: replicas share the weights and run side by side."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request: openvino.InferRequest | None = compiled.create_infer_request()

    def place(self, arrays: Arrays) -> Arrays:
        return arrays

    def run(self, placed: Arrays) -> Rows:
        assert self._request is not None
        rows: Rows = self._request.infer(list(placed.values()), share_inputs=True)[0]
        return rows

    def close(self) -> None:
        self._request = None


def traced(module: Any, example: tuple[Any, ...]) -> openvino.Model:
    """A torch module as a graph, which goes on using the module's weights. Raises NotConvertible."""
    with _as_it_was():
        try:
            return openvino.convert_model(module, example_input=example)
        except Exception as error:
            # Whatever a library of compilers raises for a model that it does not know.
            raise NotConvertible(f"OpenVINO cannot convert it: {_first_line(error)}") from error


def save_graph(graph: openvino.Model, path: Path) -> None:
    """As `path`, an .xml, and the weights beside it. Raises OSError or RuntimeError."""
    openvino.save_model(graph, path, compress_to_fp16=False)


def read_graph(path: Path) -> openvino.Model:
    """What `save_graph` wrote; the weights stay in the file until they are used. Raises RuntimeError."""
    return openvino.Core().read_model(path)


def compiled(
    graph: openvino.Model,
    *,
    probe: Arrays,
    expected: Rows,
    precision: Precision,
    threads: int,
    replicas: int,
    has_express: bool,
    finish: Finish,
) -> list[OpenVinoNetwork]:
    """The graph as networks, one for each replica.

    With `has_express` there is one network more, at the end: its threads go before those of the others, which the
    operating system lets compute with what it leaves of the cores.

    Raises NotConvertible, also when `finish` does not make about `expected` of its rows for `probe`: torch did, and
    tracing takes sizes for fixed that are not.
    """
    with _as_it_was():
        try:
            core = openvino.Core()
            settings = _settings(precision, threads=threads, replicas=replicas)
            compile_bulk = partial(core.compile_model, graph, "CPU", settings)
            model = _in_nice_thread(compile_bulk) if has_express else compile_bulk()
            networks = [OpenVinoNetwork(model) for _ in range(replicas)]
            if has_express:
                alone = _settings(precision, threads=threads, replicas=1)
                networks.append(OpenVinoNetwork(core.compile_model(graph, "CPU", alone)))
            rows = finish(networks[-1].run(probe))
        except Exception as error:
            raise NotConvertible(f"OpenVINO cannot compute it: {_first_line(error)}") from error
    if model.get_property("INFERENCE_PRECISION_HINT") != ELEMENT_TYPES[precision]:
        raise NotConvertible(f"OpenVINO cannot compute in {precision} on this CPU")
    _check_agreement(rows, expected)
    return networks


def memory_bytes_of(weights_bytes: int, precision: Precision, *, has_express: bool) -> int:
    """About what networks take whose float32 weights have `weights_bytes`.

    A compiled model refers to the float32 weights and packs a copy in its own precision. Measured at 110 million
    parameters, batches of 1,024 tokens included: 740 MiB in bfloat16 where this tells 624, 890 in float32 where this
    tells 832.
    """
    return weights_bytes + (1 + has_express) * weights_bytes // 4 * BYTES_OF_ELEMENT[precision]


def _in_nice_thread(compile_model: Callable[[], openvino.CompiledModel]) -> openvino.CompiledModel:
    """OpenVINO computes in threads that it starts when it compiles, and a thread is as nice as its parent.

    The threads of Python that wait for them stay as they are: a nice one would hold the interpreter's lock for as long
    as others have the cores.
    """
    with ThreadPoolExecutor(1, initializer=_be_nice) as pool:
        return pool.submit(compile_model).result()


def _be_nice() -> None:
    # Only on Linux a thread has a niceness of its own.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)


def _settings(precision: Precision, *, threads: int, replicas: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": replicas,
        "INFERENCE_NUM_THREADS": threads * replicas,
        # A pinned thread waits for its core while another is idle. Two replicas of one thread on two cores, another
        # process on one of them, medians of runs in turn: 59 texts/s instead of 41, a query p95 3.6 ms instead of 11.
        "ENABLE_CPU_PINNING": False,
    }


def _check_agreement(rows: Rows, expected: Rows) -> None:
    difference = (
        float(np.linalg.norm(rows - expected, axis=1).max()) if rows.shape == expected.shape else np.inf
    )
    if not difference <= LARGEST_DIFFERENCE:
        raise NotConvertible(f"OpenVINO's rows differ from torch's by {difference:.3f}")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Tracing warns about every branch, and the conversion reshapes the root logger and forgets it on errors."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
