"""`statestream serve` with several workers: a supervisor, its log, its metrics, and the processes under it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

GONE_S_MAX = 30.0


class Workers:
    """A running supervisor. What it logs is read up to what a test waits for."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.said: list[dict[str, Any]] = []

    def hears(self, event: str) -> dict[str, Any]:
        """The next line with this event.

        Raises:
            AssertionError: it ended without one.
        """
        assert self.child.stderr is not None
        for line in self.child.stderr:
            assert line.startswith("{"), line + self.child.stderr.read()
            self.said.append(json.loads(line))
            if self.said[-1]["event"] == event:
                return self.said[-1]
        raise AssertionError(f"ended with status {self.child.wait()} before {event!r}: {self.said}")

    def serves(self) -> None:
        """Waits until all workers serve."""
        told = self.hears("serving")
        self.port, self.metrics_port = int(told["port"]), int(told["metrics_port"])

    @property
    def address(self) -> str:
        """Where they serve."""
        return f"127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        """Worker processes in the order in which they came to serve; those that have gone are among them."""
        return [int(line["pid"]) for line in self.said if line["event"] == "worker serves"]

    def metric(self, name: str, **labels: str) -> float:
        """The value that Prometheus would read; sums up where labels leave several."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def ends(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to the supervisor, reads its log to the end, and gives its exit status."""
        self.child.send_signal(number)
        assert self.child.stderr is not None
        self.said += map(json.loads, self.child.stderr)
        return self.child.wait(GONE_S_MAX)


@contextmanager
def workers(
    *options: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    before: str = "",
    through: Sequence[str] = (),
) -> Generator[Workers]:
    """A supervisor that has been started; on leaving it is killed, and its workers go by themselves.

    Args:
        options: of the command.
        env: variables besides those of the test, which are cleared of settings.
        folder: for its temporary files.
        before: commands of a shell that becomes the supervisor.
        through: a program that becomes it last, given the command as its arguments.
    """
    command = [*through, sys.executable, "-m", "services.cli", "serve", "--listen", "127.0.0.1:0"]
    command += ["--metrics-listen", "127.0.0.1:0", *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTREAM_")}
    with subprocess.Popen(
        ["/bin/sh", "-c", f'{before}\nexec "$@"', "sh", *command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, "TMPDIR": str(folder), "STATESTREAM_DRAIN_S": "5", **(env or {})},
    ) as child:
        found = Workers(child)
        try:
            yield found
        finally:
            child.kill()
            for pid in found.pids():
                gone(pid)


def gone(pid: int) -> None:
    """Waits until a process that need not be our child has ended.

    Raises:
        TimeoutError: it does not.
    """
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([end], [], [], GONE_S_MAX)[0]:
            raise TimeoutError(f"process {pid} goes on")
    finally:
        os.close(end)


def has_ended(connection: socket.socket) -> bool:
    """True if the other end of a connection, which sends no more than some greeting, has closed it by now."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            continue
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
