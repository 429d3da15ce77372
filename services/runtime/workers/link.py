"""The line between the supervisor and one worker: a pair of sockets that the worker inherits one end of.

The supervisor writes one line, what is to be served; the worker writes one line once it serves. Nothing else is said.
An end that closes is the news that the other process is gone: no signal can be missed, and no process outlives the
supervisor.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

READY = b"ready\n"
BRIEF_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Brief:
    """What a worker is told. It may hold secrets, and so goes neither into its arguments nor into its environment.

    Attributes:
        name: of this process; no other one of this supervisor ever has it.
        slot: which of the workers it is; its successor has the same.
        tasks: modules with a `TASK`.
        given: settings that go before those of the environment.
        metrics_folder: where its metrics go; empty for nowhere.
    """

    name: str
    slot: int
    tasks: tuple[str, ...]
    given: dict[str, Any]
    metrics_folder: str

    def line(self) -> bytes:
        """How it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Brief:
        """What was sent."""
        fields: dict[str, Any] = json.loads(line)
        return cls(fields["name"], fields["slot"], tuple(fields["tasks"]), fields["given"], fields["metrics_folder"])


class Link:
    """The worker's end, with what the supervisor said first."""

    def __init__(self, end: socket.socket) -> None:
        """Waits for the supervisor's line.

        Raises:
            ConnectionError: the supervisor has gone.
        """
        self._end = end
        end.set_inheritable(False)
        line = b""
        while not line.endswith(b"\n"):
            piece = end.recv(65_536)
            if not piece or len(line) > BRIEF_BYTES_MAX:
                raise ConnectionError("the supervisor said nothing")
            line += piece
        self.brief = Brief.of(line)

    def ready(self) -> None:
        """Says that this worker serves."""
        try:
            self._end.sendall(READY)
        except OSError:
            # It has gone; `when_alone` tells whoever wants to know.
            return

    def when_alone(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        """Calls back once the supervisor is gone."""

        def look() -> None:
            try:
                said = self._end.recv(64)
            except ConnectionError:
                # It is gone, and never read that we serve.
                said = b""
            if not said:
                loop.remove_reader(self._end)
                callback()

        loop.add_reader(self._end, look)
