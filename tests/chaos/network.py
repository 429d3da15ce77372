"""Partitions: packets dropped by the kernel, in a network namespace of the campaign's own, or links that block."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tests.kit.links import Link

_SIOCSIFFLAGS = 0x8914
_UP = 0x1 | 0x40
_INSIDE = "STATESTREAM_CHAOS_INSIDE"


class Partitions(Protocol):
    """Makes it so that nothing gets through a link."""

    name: str

    def begin(self, link: Link) -> None:
        """From now on nothing gets through."""
        ...

    def end(self, link: Link) -> None:
        """It goes on."""
        ...


class BlockedLinks:
    """The forwarding process keeps what it is sent: works everywhere, but connections are still accepted."""

    name = "forwarder"

    def begin(self, link: Link) -> None:
        """See `Partitions`."""
        link.block()

    def end(self, link: Link) -> None:
        """See `Partitions`."""
        link.unblock()


class DroppedPackets:
    """The kernel drops every packet to and from the link's port, those that open a connection as well."""

    name = "iptables in a network namespace"

    def begin(self, link: Link) -> None:
        """See `Partitions`."""
        self._rules("-I", link.port)

    def end(self, link: Link) -> None:
        """See `Partitions`."""
        self._rules("-D", link.port)

    def _rules(self, action: str, port: int) -> None:
        for side in ("--dport", "--sport"):
            subprocess.run(["iptables", action, "INPUT", "-p", "tcp", side, str(port), "-j", "DROP"], check=True)


def partitions() -> Partitions:
    """The best that this process may use."""
    return DroppedPackets() if os.environ.get(_INSIDE) else BlockedLinks()


def enter_namespace() -> None:
    """Starts this program again, inside a network namespace of its own where the rights allow it; there it returns."""
    if (inside := os.environ.get(_INSIDE)) is not None:
        if inside:
            _loopback_up()
        return
    unshare = ["unshare", "--net", *(["--map-root-user"] if os.getuid() else [])]
    probe = [*unshare, "iptables", "-I", "INPUT", "-p", "tcp", "--dport", "1", "-j", "DROP"]
    may = shutil.which("unshare") and shutil.which("iptables")
    may = may and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    command = [*(unshare if may else []), sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
    # This process forks while gRPC runs in it, and its children never touch what they inherit of that.
    environment = {**os.environ, _INSIDE: "1" if may else "", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is wanted


def _loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _UP))
