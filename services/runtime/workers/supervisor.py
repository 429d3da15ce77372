"""The process that keeps the workers running. It serves nothing itself, and imports neither gRPC nor ONNX Runtime.

Its only state is which worker runs: sequences are in the store, and each worker is a whole server. So it has little to
fail by; should it be killed, the workers drain (see `link`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog

from services.runtime.config import THREADS_MAX, unknown_variables
from services.runtime.core.clock import SystemClock
from services.runtime.core.cores import usable_cores
from services.runtime.observability.logs import configure_logs
from services.runtime.observability.shared import MergedMetrics
from services.runtime.observability.worker_metrics import WorkerMetrics
from services.runtime.workers.address import reserve
from services.runtime.workers.fleet import Fleet, Limits
from services.runtime.workers.link import READY, Brief

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.runtime.config import Settings

_log = structlog.get_logger(__name__)


@dataclass
class _Process:
    number: int
    slot: int
    child: subprocess.Popen[bytes]
    link: socket.socket


class Supervisor:
    """Runs workers until SIGTERM or SIGINT, or its terminal is closed. SIGHUP restarts them one by one.

    Args:
        settings: of the whole; `workers` says how many.
        given: the settings that do not come from the environment, which a worker reads by itself.
        tasks: modules with a `TASK`.
        program: arguments of Python that make it a worker; the number of its end of the link follows.
    """

    def __init__(
        self, settings: Settings, given: Mapping[str, Any], tasks: Sequence[str], program: Sequence[str]
    ) -> None:
        self._settings = settings
        self._workers = settings.workers or usable_cores()
        self._given: dict[str, Any] = {
            **given,
            **share_of_threads(settings, self._workers),
            "workers": 1,
            "metrics_listen": "",
        }
        self._tasks = tuple(tasks)
        self._program = tuple(program)
        self._clock = SystemClock()
        limits = Limits(self._workers, drain_s=settings.drain_s, start_s_max=settings.worker_start_s)
        self._fleet = Fleet(limits, self)
        self._registry = prometheus_client.CollectorRegistry()
        self._metrics = WorkerMetrics(self._registry)
        self._metrics.watch(self._workers, lambda: self._fleet.ready_workers)
        self._merged: MergedMetrics | None = None
        self._metrics_port = 0
        self._had_terminal = _has_terminal()
        self._folder = ""
        self._numbers: dict[int, int] = {}
        self._processes: dict[int, _Process] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    async def run(self) -> int:
        """The exit status, once every worker has gone.

        Raises:
            OSError: an address cannot be had.
        """
        with ExitStack() as stack:
            held, self._given["listen"] = reserve(self._settings.listen)
            stack.callback(held.close)
            if self._settings.metrics_listen:
                self._serve_metrics(stack)
            loop = asyncio.get_running_loop()
            for number, act in {
                signal.SIGTERM: self._fleet.terminate,
                signal.SIGINT: self._fleet.terminate,
                signal.SIGHUP: self._reload,
            }.items():
                loop.add_signal_handler(number, lambda act=act: self._then(act))
            loop.add_signal_handler(signal.SIGCHLD, self._reap)
            self._then(self._fleet.begin)
            while self._fleet.finished is None:
                await self._changed.wait()
                self._changed.clear()
        _log.info("stopped")
        return self._fleet.finished

    def _serve_metrics(self, stack: ExitStack) -> None:
        self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="statestream-"))
        self._merged = MergedMetrics(Path(self._folder))
        self._registry.register(self._merged)
        host, _, port = self._settings.metrics_listen.rpartition(":")
        server, _ = prometheus_client.start_http_server(int(port), host, registry=self._registry)
        self._metrics_port = server.server_port
        stack.callback(server.server_close)
        stack.callback(server.shutdown)

    def _then(self, act: Any, *arguments: Any) -> None:  # noqa: ANN401 - any event of the fleet
        """Tells the fleet of something, and sets the timer for what comes next."""
        act(*arguments, self._clock.monotonic())
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._fleet.next_at < inf:
            delay_s = max(0.0, self._fleet.next_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._then, self._fleet.due)
        if self._fleet.finished is not None:
            self._changed.set()

    def _reload(self, now: float) -> None:
        if self._had_terminal and not _has_terminal():
            # The window was closed: the same signal, and nobody left to stop us by hand.
            self._fleet.terminate(now)
            return
        _log.info("restarting the workers one by one")
        self._fleet.reload(now)

    def _reap(self) -> None:
        """Takes note of every child that has ended; as process 1 of a container also of those that are not ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            number = self._numbers.pop(pid, None)
            if number is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            process = self._processes.pop(number)
            process.child.returncode = code
            asyncio.get_running_loop().remove_reader(process.link)
            process.link.close()
            if self._merged:
                self._merged.worker_gone(str(number))
            self._then(self._fleet.exited, number, code)

    def _hear(self, process: _Process) -> None:
        try:
            said = process.link.recv(64)
        except ConnectionError:
            said = b""
        if not said:
            # It is about to end, which SIGCHLD tells.
            asyncio.get_running_loop().remove_reader(process.link)
        elif said == READY:
            _log.info("worker serves", worker=process.slot, pid=process.child.pid)
            self._then(self._fleet.ready, process.number)

    # What the fleet decides; see `Hands`.

    def start(self, worker: int, slot: int) -> None:
        """See `Hands`."""
        loop = asyncio.get_running_loop()
        brief = Brief(str(worker), slot, self._tasks, self._given, self._folder)
        ours, theirs = socket.socketpair()
        # Before the child can be gone; one line is small enough to wait for it.
        ours.sendall(brief.line())
        ours.setblocking(False)
        try:
            with theirs:
                child = subprocess.Popen(  # noqa: S603 - this program itself
                    [sys.executable, *self._program, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl-C is for the supervisor, which passes it on
                )
        except OSError as error:
            _log.error("cannot start a process", error=str(error))
            ours.close()
            loop.call_soon(self._then, self._fleet.exited, worker, 1)
            return
        process = _Process(worker, slot, child, ours)
        self._numbers[child.pid] = worker
        self._processes[worker] = process
        loop.add_reader(ours, self._hear, process)

    def send(self, worker: int, number: signal.Signals) -> None:
        """See `Hands`."""
        process = self._processes.get(worker)
        if process:
            os.kill(process.child.pid, number)

    def serving(self) -> None:
        """See `Hands`."""
        port = int(self._given["listen"].rpartition(":")[2])
        metrics, store = self._metrics_port, self._settings.store
        _log.info("serving", port=port, workers=self._workers, store=store, metrics_port=metrics)

    def restarted(self, cause: str, *, slot: int, delay_s: float, status: int | None) -> None:
        """See `Hands`."""
        self._metrics.restarted(cause)
        if cause == "reload":
            _log.info("worker replaced", worker=slot)
        else:
            _log.warning("worker died", worker=slot, **_told(status), restart_in_s=delay_s)

    def trouble(self, what: str, *, slot: int, status: int | None = None) -> None:
        """See `Hands`."""
        _log.error(what, worker=slot, **_told(status))


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _told(status: int | None) -> dict[str, Any]:
    if status is None:
        return {}
    if status < 0:
        return {"signal": signal.Signals(-status).name}
    return {"exit_status": status}


def share_of_threads(settings: Settings, workers: int) -> dict[str, int]:
    """Threads of each worker where they are left to the machine: its share of the processors."""
    share = min(max(1, usable_cores() // workers), THREADS_MAX)
    return {name: share for name in ("run_threads", "lone_run_threads") if not getattr(settings, name)}


def supervise(settings: Settings, given: Mapping[str, Any], tasks: Sequence[str], program: Sequence[str]) -> int:
    """Runs a `Supervisor`; returns the exit status of the process, having said why it is not 0."""
    configure_logs(settings.log_level, settings.log_format)
    for name in unknown_variables():
        _log.warning("no such setting", variable=name)
    try:
        return asyncio.run(Supervisor(settings, given, tasks, program).run())
    except OSError as error:
        _log.error("cannot serve", error=str(error))
        return 1
