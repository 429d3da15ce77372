"""A real server in the background, for blocking tests: in a thread with a loop of its own, or as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from statestream._portal import Portal

from services.cli.tasks import discover
from services.runtime.app import Server
from services.runtime.config import Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from services.runtime.state.store import StateStore


@contextmanager
def background_server(*, store: StateStore | None = None, **settings: str | float | Path) -> Generator[str]:
    """The address of a warm server of all tasks; `settings` go before the defaults."""
    portal = Portal()
    values: dict[str, Any] = {"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 1.0}
    values.update(settings)

    async def start() -> Server:
        server = Server(Settings(**values), discover(), store=store)
        await server.start()
        return server

    server = portal.run(start())
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        portal.run(server.stop())
        portal.close()


def statestream(
    *arguments: str, stdin: bytes = b"", expect: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, with nothing of ours in its environment but `env`.

    Raises:
        AssertionError: its exit status is not `expect`.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTREAM_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        input=stdin,
        capture_output=True,
        env=clean | dict(env or {}),
        timeout=50,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == expect, f"status {done.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)
