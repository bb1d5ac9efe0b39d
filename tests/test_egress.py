"""The watch over what leaves this machine sees what leaves it."""

import subprocess
import sys

import pytest

from tests.egress import NAME_SERVER, SENT, can_isolate
from tests.stack import ROOT

TELLS = """
import socket
for family, address in ((socket.AF_INET, "203.0.113.7"), (socket.AF_INET6, "2001:db8:1::7")):
    with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"x", (address, 4318))
        tcp.settimeout(0.2)
        try:
            tcp.connect((address, 443))
        except TimeoutError:
            pass
try:
    socket.getaddrinfo("telemetry.example", 443)
except socket.gaierror:
    pass
"""
KEEPS = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print("reached")
raise SystemExit(3)
"""

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs the right to make network namespaces")


def test_each_packet_to_elsewhere_is_told() -> None:
    done = watched(TELLS)
    assert done.returncode == SENT
    for told in (
        "tcp 203.0.113.7 443",
        "udp 203.0.113.7 4318",
        "tcp 2001:db8:1::7 443",
        "udp 2001:db8:1::7 4318",
        f"udp {NAME_SERVER} 53",
    ):
        assert f"sent out: {told}, " in done.stderr
    assert "egress: 5 addresses" in done.stderr


def test_what_stays_inside_is_not_and_the_commands_status_is_kept() -> None:
    done = watched(KEEPS)
    assert (done.returncode, done.stdout) == (3, "reached\n")
    assert "egress: 0 addresses" in done.stderr


def watched(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.egress", "--", sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
