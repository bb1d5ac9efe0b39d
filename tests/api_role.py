"""The api role as a process of its own, without a worker, models or an engine unless the settings name some."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.stack import ROOT, eventually, free_port, printed

NOWHERE = "http://127.0.0.1:9"
START_S = 180.0


class ApiRole:
    """Over a data folder that is migrated here, at an address that it keeps. A with-block kills it at its end."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder.with_suffix(".log")
        self._environment = os.environ | {  # noqa: TID251 - the child's environment
            "STRONGROOM_SERVER__PORT": str(port),
            "STRONGROOM_STORAGE__DATA_DIR": str(folder),
            "STRONGROOM_ENGINE__URL": NOWHERE,
            "STRONGROOM_MODELS__URL": NOWHERE,
            **(settings or {}),
        }
        self.command("migrate")
        self.key = (folder / "keys" / "admin.key").read_text().strip()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def __enter__(self) -> "ApiRole":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns once it answers."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "api"],
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        eventually(self._answers, within_s=START_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def command(self, *arguments: str) -> str:
        """What `strongroom …` prints. Fails when it does."""
        return printed(self._environment, *arguments)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
