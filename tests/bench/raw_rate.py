"""What an embedding backend computes without a server: the rate that bulk work through one is held against."""

import subprocess
import sys
from collections.abc import Sequence

import orjson

from tests.bench.figures import MeasureFailed
from tests.bench.peers.embedding_servers import FOLDER
from tests.stack import ROOT


def raw_texts_a_second(texts: Sequence[str]) -> float:
    """In a process of its own, that this one stays light. Raises MeasureFailed."""
    command = [sys.executable, "-m", "tests.bench.raw_loop", "--model", FOLDER]
    done = subprocess.run(command, input=orjson.dumps(texts), capture_output=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise MeasureFailed(f"The bare loop failed: {done.stderr.decode()[-1000:]}")
    return float(done.stdout)
