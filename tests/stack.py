"""A whole Strongroom as processes of its own, for end-to-end tests and benchmarks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from app.settings import read_settings
from app.storage.opening import open_storage
from retrieval.database import Database

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "data" / "models"
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
START_S = 240.0


class StartFailed(Exception):
    """The stack did not become ready; the message is its log's end."""


class Stack:
    """`strongroom serve` on a free port and a folder of its own."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, *, samples: Path | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder.with_suffix(".log")
        self._settings = dict(settings or {})
        self._samples = ["--samples", str(samples)] if samples else []
        self._client: OpenAI | None = None

    def start(self, *, roles: tuple[str, ...] = ("database", "models", "engine", "worker")) -> None:
        """Returns once the named roles are ready."""
        output = self.log.open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.cli",
                "serve",
                "--port",
                str(self.port),
                "--data-dir",
                str(self.folder),
                *self._samples,
            ],
            cwd=ROOT,
            env=os.environ | self._settings,  # noqa: TID251 - the child's environment
            stdout=output,
            stderr=output,
        )
        output.close()
        self.wait_ready(roles=roles)

    def wait_ready(self, *, roles: tuple[str, ...] = ("database", "models", "engine", "worker")) -> None:
        def all_ready() -> bool:
            if self.process.poll() is not None:
                raise StartFailed(self.log.read_text()[-3000:])
            told = self.readiness()
            return told is not None and all(told["roles"][role]["state"] == "ready" for role in roles)

        try:
            eventually(all_ready, within_s=START_S)
        except AssertionError as error:
            raise StartFailed(self.log.read_text()[-3000:]) from error

    def readiness(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = httpx.get(f"{self.url}/ready", timeout=10).json()
        except httpx.HTTPError:
            return None
        return told

    @property
    def key(self) -> str:
        return (self.folder / "keys" / "admin.key").read_text().strip()

    def client(self) -> OpenAI:
        """One for the stack's life: it keeps connections open until `stop`."""
        if self._client is None:
            url = f"{self.url}/v1"
            self._client = OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=180)
        return self._client

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The stack's own, whether it runs or not."""
        settings = read_settings().with_options(storage={"data_dir": str(self.folder)})
        with open_storage(settings) as storage:
            yield storage.database

    def pid(self, role: str) -> int:
        """Of the role's process that was started last."""
        started = re.findall(rf"role_started name={role} pid=(\d+)", self.log.read_text())
        return int(started[-1])

    def engine_address(self) -> tuple[str, str]:
        """The engine's own URL and key, which the supervisor chose and told nobody else."""
        process = Path(f"/proc/{self.pid('engine')}")
        environment = process.joinpath("environ").read_bytes().decode().split("\0")
        key = next(each for each in environment if each.startswith("VLLM_API_KEY=")).partition("=")[2]
        arguments = process.joinpath("cmdline").read_bytes().decode().split("\0")
        return f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}", key

    def kill(self, role: str) -> None:
        os.kill(self.pid(role), signal.SIGKILL)

    def stop(self) -> float:
        """Ends it as an operator would. Returns the seconds that it took."""
        if self._client is not None:
            self._client.close()
            self._client = None
        started = time.monotonic()
        self.process.terminate()
        self.process.wait(timeout=30)
        return time.monotonic() - started


def printed(environment: Mapping[str, str], *arguments: str) -> str:
    """What `strongroom …` prints. Fails when it does."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def eventually(condition: Callable[[], bool], *, within_s: float, every_s: float = 0.1) -> None:
    """Waits for something that another process does. Fails by assertion."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {within_s} s"
        time.sleep(every_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
