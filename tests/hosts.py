"""Machines for tests: network namespaces that reach nothing but what is passed on to them, and can be cut off."""

import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

from tests.stack import ROOT


class NoHosts(Exception):
    """Namespaces are not allowed here, or `ip` is missing; the message tells which."""


class Passage(ThreadingTCPServer):
    """Passes connections to an address on to a port of this machine's loopback, unless it is cut."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        self.to = ("127.0.0.1", port)
        self.is_cut = False
        self.open: set[socket.socket] = set()
        super().__init__((address, port), _Passing)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Ends all connections, and the next ones at once, until `mend`."""
        self.is_cut = True
        for each in list(self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False


class _Passing(BaseRequestHandler):
    server: Passage

    def handle(self) -> None:
        if self.server.is_cut:
            return
        with socket.create_connection(self.server.to) as there:
            ends = {self.request, there}
            self.server.open |= ends
            back = threading.Thread(target=_copy, args=(there, self.request), daemon=True)
            back.start()
            _copy(self.request, there)
            back.join()
            self.server.open -= ends


def _copy(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            to.sendall(piece)
    for end in (source, to):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Host:
    """One machine. `outside` is where it finds what is passed on; `inside` is its own address."""

    def __init__(self, number: int) -> None:
        self.name = f"sr{secrets.token_hex(3)}{number}"
        network = f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}"
        self.outside, self.inside = f"{network}.1", f"{network}.2"
        self._passages: dict[int, Passage] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def open(self) -> None:
        """Raises NoHosts."""
        here, there = f"{self.name}o", f"{self.name}i"
        _ip("netns", "add", self.name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", self.name)
        _ip("addr", "add", f"{self.outside}/30", "dev", here)
        _ip("link", "set", here, "up")
        for words in (["addr", "add", f"{self.inside}/30", "dev", there], ["link", "set", there, "up"]):
            _ip("-n", self.name, *words)
        _ip("-n", self.name, "link", "set", "lo", "up")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for passage in self._passages.values():
            passage.shutdown()
            passage.server_close()
        with suppress(NoHosts):
            _ip("netns", "del", self.name)

    def passage(self, port: int) -> Passage:
        """To that port of this machine's loopback, from the same port at `outside`."""
        if port not in self._passages:
            self._passages[port] = Passage(self.outside, port)
        return self._passages[port]

    def start(self, command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise NoHosts(f"no network namespaces here: {error}") from error


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Raises NoHosts."""
    made = [Host(number) for number in range(count)]
    try:
        for each in made:
            each.open()
        yield made
    finally:
        for each in made:
            each.close()
