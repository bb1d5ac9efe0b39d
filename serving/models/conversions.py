"""Keeps models that were converted for OpenVINO, so that the next start needs neither torch nor their library.

The conversion of a model in `folder` lies beside it in `.converted/`: a graph, its weights, and how the model reads.
"""

import hashlib
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serving.batching.model import Rows
from serving.models.openvino_backend import read_graph, save_graph
from serving.models.reading import Padding, Reading

logger = logging.getLogger("strongroom.models")

FOLDER = ".converted"
"""Beside the models' folders and in none of them: there it would change a fingerprint."""
GRAPH, MODEL, DIGEST = "graph.xml", "model.json", "sha256"
DIGESTED = (GRAPH, "graph.bin", MODEL)
CONVERTERS = ("openvino", "sentence-transformers", "tokenizers", "torch", "transformers")
CONVERTING_MODULES = ("conversions.py", "library.py", "openvino_backend.py", "reading.py")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A model as OpenVINO computes it."""

    graph: Any
    reading: Reading
    width: int
    """Columns of the finished rows."""
    weights_bytes: int
    """In float32."""
    expected: Rows
    """What torch makes of the task's probe in float32, finished."""


def conversion_folder(model: Path, *, task: str, fingerprint: str) -> Path:
    """Where the conversion of the model in `model` is kept: another place for each version of what converts it.

    Our own modules count as well, so that nobody who changes one has to think of it.
    """
    parts = [fingerprint, *(f"{package} {version(package)}" for package in CONVERTERS)]
    parts += [(Path(__file__).parent / module).read_text() for module in CONVERTING_MODULES]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return model.parent / FOLDER / f"{model.name}.{task}.{key[:32]}"


def read_conversion(folder: Path) -> Conversion | None:
    """What was kept there, or None if there is nothing, or nothing whole."""
    if not folder.is_dir():
        return None
    try:
        if (folder / DIGEST).read_text() != _digest(folder):
            raise ValueError("it is not what was written")
        told = orjson.loads((folder / MODEL).read_bytes())
        padding = told["reading"].pop("padding")
        return Conversion(
            graph=read_graph(folder / GRAPH),
            reading=Reading(
                padding=Padding(**padding | {"names": tuple(padding["names"])}), **told["reading"]
            ),
            width=told["width"],
            weights_bytes=told["weights_bytes"],
            expected=np.asarray(told["expected"], np.float32),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        logger.warning("conversion_not_used", extra={"folder": str(folder), "reason": str(error)})
        return None


def keep_conversion(conversion: Conversion, folder: Path) -> None:
    """In place of any other of the same model and task. Where nothing can be written, each start converts anew."""
    told = {
        "reading": asdict(conversion.reading),
        "width": conversion.width,
        "weights_bytes": conversion.weights_bytes,
        "expected": conversion.expected.tolist(),
    }
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as made:
            new = Path(made) / "new"
            new.mkdir()
            save_graph(conversion.graph, new / GRAPH)
            (new / MODEL).write_bytes(orjson.dumps(told))
            (new / DIGEST).write_text(_digest(new))
            _forget(folder)
            new.rename(folder)
    except (OSError, RuntimeError) as error:
        logger.warning("conversion_not_kept", extra={"folder": str(folder), "reason": str(error)})


def _forget(folder: Path) -> None:
    """Older conversions of the model: those whose name has another key."""
    for each in folder.parent.glob(f"{folder.stem}.*"):
        shutil.rmtree(each)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in DIGESTED:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
