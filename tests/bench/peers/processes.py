"""Starts servers for benchmarks on free ports of this machine, waits until they answer, and ends them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.bench.figures import MeasureFailed
from tests.stack import ROOT

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}
"""Nothing of a peer calls out."""
START_S = 180.0
STOP_S = 10.0


@contextmanager
def running(
    command: Sequence[str],
    *,
    ready: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    working_dir: Path = ROOT,
) -> Iterator[None]:
    """A server from its first 200 at the URL `ready` until the context ends. Raises MeasureFailed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=working_dir,
            env=os.environ | QUIET | dict(environment or {}),  # noqa: TID251 - the child's environment
            stdout=output,
            stderr=output,
            # A group of its own, since some start children that they do not always end.
            start_new_session=True,
        )
    try:
        _wait_ready(process, ready, log)
        yield
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise MeasureFailed(f"{log.stem} did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
