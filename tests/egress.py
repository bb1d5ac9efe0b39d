"""Runs a command where only loopback leads anywhere, and tells what it sends elsewhere: `python -m tests.egress -- ls`.

The command has a network namespace of its own. What leaves it for any other address, a name server's too, arrives at
this process as a packet and goes no further. Ends with the command's status, or with 90 when anything was sent.
"""

import argparse
import fcntl
import ipaddress
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Final

SENT = 90
INTERFACE = "outside"
OUR_ADDRESS, NAME_SERVER = "192.0.2.2", "192.0.2.1"
OUR_ADDRESS_6 = "2001:db8::2"
TUNSETIFF: Final = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
INSIDE = "--inside"


def can_isolate() -> bool:
    """Whether this user may make namespaces and interfaces."""
    asked = ["unshare", "--net", "--mount", "ip", "link", "set", "lo", "up"]
    try:
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0 and os.access(
            "/dev/net/tun", os.R_OK | os.W_OK
        )
    except FileNotFoundError:
        return False


class Outside:
    """The way out of this namespace, which ends here. `sent` counts packets by protocol, address and port."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
        for command in (
            "link set lo up",
            f"address add {OUR_ADDRESS}/24 dev {INTERFACE}",
            f"-6 address add {OUR_ADDRESS_6}/64 dev {INTERFACE} nodad",
            f"link set {INTERFACE} up",
            f"route add default dev {INTERFACE}",
            f"-6 route add default dev {INTERFACE}",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while packet := os.read(self._tun, 65_536):
            if (told := told_of(packet)) is not None:
                self.sent[told] += 1


def told_of(packet: bytes) -> str | None:
    """`tcp 203.0.113.7 443`; None for what the kernel itself says to its neighbours."""
    if packet[0] >> 4 == 4:
        protocol, to, payload = packet[9], ipaddress.ip_address(packet[16:20]), packet[4 * (packet[0] & 15) :]
    else:
        protocol, to, payload = packet[6], ipaddress.ip_address(packet[24:40]), packet[40:]
    if to.is_multicast and protocol not in (6, 17):
        return None
    name = PROTOCOLS.get(protocol, str(protocol))
    port = f" {int.from_bytes(payload[2:4])}" if name in ("tcp", "udp") else ""
    return f"{name} {to}{port}"


def run_inside(command: list[str]) -> int:
    """In the namespaces that are there for it."""
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "resolv.conf")
        names.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n")
        subprocess.run(["mount", "--bind", str(names), str(Path("/etc/resolv.conf").resolve())], check=True)
        outside = Outside()
        status = subprocess.run(command, check=False).returncode
    for told, count in outside.sent.most_common():
        print(f"sent out: {told}, {count} packets", file=sys.stderr)
    print(f"egress: {len(outside.sent)} addresses outside this machine", file=sys.stderr)
    return SENT if outside.sent else status


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    if asked.inside:
        sys.exit(run_inside(asked.command))
    if not can_isolate():
        print("egress is not watched: that needs the right to make network namespaces", file=sys.stderr)
        sys.exit(subprocess.run(asked.command, check=False).returncode)
    alone = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.egress", INSIDE, "--"]
    sys.exit(subprocess.run([*alone, *asked.command], check=False).returncode)


if __name__ == "__main__":
    main()
