"""`python -m tests.bench.peers.install [NAME ...]`: an environment for each peer, under .bench/peers.

What cannot be installed is told and left out; its row of the table then says why.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.peers import ogx_syntax
from tests.stack import ROOT

ENVIRONMENTS = ROOT / ".bench" / "peers"
PINNED = Path(__file__).parent
PEERS = ("vllm-router", "litellm", "bentoml", "infinity", "ogx", "chroma", "lancedb")
FAILURE = "not-installed.txt"
DONE = "installed.txt"


class PeerAbsent(Exception):
    """A peer has no environment; the message tells why."""


def program(peer: str, name: str) -> str:
    """The path of a program of the peer's environment. Raises PeerAbsent."""
    folder = ENVIRONMENTS / peer
    if not (folder / DONE).exists():
        why = folder / FAILURE
        raise PeerAbsent(why.read_text() if why.exists() else "run python -m tests.bench.peers.install")
    return str(folder / "bin" / name)


def install(peer: str) -> str | None:
    """Makes the environment unless it is there with the same pins. Returns why it could not be made."""
    folder, pins = ENVIRONMENTS / peer, PINNED / f"{peer}.txt"
    if (folder / DONE).exists() and (folder / DONE).read_text() == pins.read_text():
        return None
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run(sys.executable, "-m", "venv", str(folder))
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        torch = [pin for pin in pins.read_text().split() if pin.startswith("torch==")]
        if torch:
            _run(*pip, *torch)  # with what this build of it needs: a CUDA build brings libraries
        # The lists are whole. Some packages ask for newer releases of others than there are, OGX for a newer Python.
        _run(*pip, "--no-deps", "--ignore-requires-python", "--requirement", str(pins))
        ogx_syntax.rewrite(*folder.glob("lib/python3*/site-packages"))
    except subprocess.CalledProcessError as error:
        reason = str(error.stderr).strip().splitlines()[-1:] or [str(error)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).write_text(reason[0])
        return reason[0]
    (folder / DONE).write_text(pins.read_text())
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers.install", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    for peer in parser.parse_args().names or PEERS:
        print(f"{peer}: {install(peer) or 'installed'}", flush=True)


if __name__ == "__main__":
    main()
