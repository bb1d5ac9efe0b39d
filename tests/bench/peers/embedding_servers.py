"""The servers whose embeddings are compared: how each is started, asked and read. All serve the same folder."""

import base64
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.protocols import Lane
from tests.bench.peers.install import program
from tests.bench.peers.load import post
from tests.bench.peers.processes import running
from tests.stack import MODELS, free_port

MODEL = "all-MiniLM-L6-v2"
FOLDER = str(MODELS / MODEL)
HERE = str(Path(__file__).parent)
TOKEN = "bench"


@dataclass(frozen=True)
class EmbeddingServer:
    """One that runs. Lanes and deadlines are ours only: the others have no word for them."""

    name: str
    url: str
    path: str
    body: Callable[[Sequence[str], Lane, float | None], Mapping[str, Any]]
    vectors: Callable[[bytes], NDArray[np.float32]]
    """Of a reply: float32 (texts, dimensions)."""

    def request(self, texts: Sequence[str], *, lane: Lane, deadline_s: float | None = None) -> bytes:
        return post(self.url, self.path, self.body(texts, lane, deadline_s), token=TOKEN)


@contextmanager
def naive(logs: Path) -> Iterator[EmbeddingServer]:
    port, url = _address()
    module = "tests.bench.peers.naive_server"
    command = [sys.executable, "-m", module, "--port", str(port), "--model", FOLDER]
    with running(command, ready=f"{url}/health", log=logs / "naive.log"):
        yield EmbeddingServer("naive", url, "/embed", _texts_alone, _from_lists)


@contextmanager
def bentoml(logs: Path) -> Iterator[EmbeddingServer]:
    """Raises PeerAbsent."""
    port, url = _address()
    serve = [program("bentoml", "bentoml"), "serve", "bentoml_service:Embeddings", "--working-dir", HERE]
    command = [*serve, "--host", "127.0.0.1", "--port", str(port), "--quiet"]
    # Its home would else be a folder of the user's.
    environment = {"BENCH_MODEL": FOLDER, "BENTOML_HOME": str(logs / "bentoml-home")}
    with running(command, ready=f"{url}/livez", log=logs / "bentoml.log", environment=environment):
        yield EmbeddingServer("bentoml", url, "/embed", _texts_alone, _from_lists)


@contextmanager
def infinity(logs: Path) -> Iterator[EmbeddingServer]:
    """Raises PeerAbsent."""
    port, url = _address()
    serve = [program("infinity", "infinity_emb"), "v2", "--model-id", FOLDER, "--served-model-name", MODEL]
    where = ["--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command = [*serve, *where, "--log-level", "warning"]
    with running(command, ready=f"{url}/health", log=logs / "infinity.log"):
        yield EmbeddingServer("infinity", url, "/embeddings", _as_openai, _from_openai)


@contextmanager
def strongroom(
    logs: Path, *, name: str = "strongroom", backend: str = "auto", precision: str = "auto"
) -> Iterator[EmbeddingServer]:
    """The models role, without its cache."""
    port, url = _address()
    settings = {
        "EMBEDDING": MODEL,
        "FOLDER": str(MODELS),
        "PORT": str(port),
        "TOKEN": TOKEN,
        "BACKEND": backend,
        "DTYPE": precision,
        "CACHE_MIB": "0",
    }
    environment = {f"STRONGROOM_MODELS__{key}": value for key, value in settings.items()}
    command = [sys.executable, "-m", "app.running.models_role"]
    with running(command, ready=f"{url}/ready", log=logs / f"{name}.log", environment=environment):
        yield EmbeddingServer(name, url, "/embed", _as_strongroom, _from_bytes)


def _address() -> tuple[int, str]:
    port = free_port()
    return port, f"http://127.0.0.1:{port}"


def _texts_alone(texts: Sequence[str], _: Lane, __: float | None) -> Mapping[str, Any]:
    return {"texts": texts}


def _as_openai(texts: Sequence[str], _: Lane, __: float | None) -> Mapping[str, Any]:
    return {"model": MODEL, "input": texts, "encoding_format": "base64"}


def _as_strongroom(texts: Sequence[str], lane: Lane, deadline_s: float | None) -> Mapping[str, Any]:
    deadline = {} if deadline_s is None else {"deadline_s": deadline_s}
    return {"model": MODEL, "texts": texts, "lane": lane.value, "truncate": True, **deadline}


def _from_lists(body: bytes) -> NDArray[np.float32]:
    return np.asarray(orjson.loads(body), np.float32)


def _from_openai(body: bytes) -> NDArray[np.float32]:
    rows = [base64.b64decode(row["embedding"]) for row in orjson.loads(body)["data"]]
    return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)


def _from_bytes(body: bytes, dimensions: int = 384) -> NDArray[np.float32]:
    return np.frombuffer(body, "<f4").reshape(-1, dimensions)
