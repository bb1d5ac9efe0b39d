"""The gateways that are compared: how each is started before the same engine, as one process."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.mock_engine import MODEL
from tests.bench.peers.install import program
from tests.bench.peers.load import post
from tests.bench.peers.processes import running
from tests.stack import ROOT, free_port

PATH = "/v1/chat/completions"
LITELLM = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "{engine}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""


@dataclass(frozen=True)
class Gateway:
    """One that runs, or the engine itself."""

    name: str
    url: str
    token: str = ""

    def request(self, **options: object) -> bytes:
        """A chat of a usual length. `options` are OpenAI's."""
        messages = [{"role": "user", "content": "What hangs in the hall, and who put it there? " * 20}]
        return post(self.url, PATH, {"model": MODEL, "messages": messages, **options}, token=self.token)


@contextmanager
def mock_engine(folder: Path, *options: str) -> Iterator[Gateway]:
    port, url = _address()
    command = [sys.executable, "-m", "tests.bench.mock_engine", "--port", str(port), *options]
    with running(command, ready=f"{url}/health", log=folder / "mock-engine.log"):
        yield Gateway("direct", url)


@contextmanager
def strongroom(folder: Path, engine: str) -> Iterator[Gateway]:
    """The api role with a database of its own. No models server: a plain chat needs none."""
    port, url = _address()
    kept = folder / "strongroom"
    environment = {
        "STRONGROOM_SERVER__PORT": str(port),
        "STRONGROOM_STORAGE__DATA_DIR": str(kept),
        "STRONGROOM_ENGINE__URL": engine,
        "STRONGROOM_MODELS__URL": "http://127.0.0.1:9",
    }
    cli = [sys.executable, "-m", "app.cli"]
    subprocess.run(
        [*cli, "migrate"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=os.environ | environment,  # noqa: TID251 - the child's environment
    )
    token = (kept / "keys" / "admin.key").read_text().strip()
    with running(
        [*cli, "api"], ready=f"{url}/health", log=folder / "strongroom.log", environment=environment
    ):
        yield Gateway("strongroom", url, token)


@contextmanager
def litellm(folder: Path, engine: str) -> Iterator[Gateway]:
    """Raises PeerAbsent."""
    port, url = _address()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(model=MODEL, engine=engine))
    command = [
        program("litellm", "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    token = f"sk-{secrets.token_hex(32)}"  # it does not start without one
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_MASTER_KEY": token}
    with running(
        [*command, "--num_workers", "1"],
        ready=f"{url}/health/liveliness",
        log=folder / "litellm.log",
        environment=environment,
    ):
        yield Gateway("litellm", url, token)


@contextmanager
def vllm_router(folder: Path, engine: str) -> Iterator[Gateway]:
    """Raises PeerAbsent."""
    port, url = _address()
    metrics_port, _ = _address()
    serve = [program("vllm-router", "vllm-router"), "--worker-urls", engine, "--log-level", "warning"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    with running([*serve, *where], ready=f"{url}/health", log=folder / "vllm-router.log"):
        yield Gateway("vllm-router", url)


def _address() -> tuple[int, str]:
    port = free_port()
    return port, f"http://127.0.0.1:{port}"
