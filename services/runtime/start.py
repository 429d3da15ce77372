"""Starts a server: in this process, or, where the settings want several, a supervisor with workers.

`python -m services.runtime.start <number>` is a worker; the number is that of its end of the link.
"""

from __future__ import annotations

import socket
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from services.runtime.config import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.runtime.transport.task import Task

WORKER = ("-m", "services.runtime.start")


def start(tasks: Sequence[str], given: Mapping[str, Any] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status of the process, having said why it is not 0.

    Args:
        tasks: modules with a `TASK`, imported by whoever serves; a supervisor does not.
        given: settings that go before those of the environment.

    Raises:
        pydantic.ValidationError: a setting cannot be used.
    """
    given = given or {}
    settings = Settings(**given)
    if settings.workers != 1:
        from services.runtime.workers.supervisor import supervise  # noqa: PLC0415 - needs no gRPC, and has none

        return supervise(settings, given, tasks, WORKER)
    from services.runtime.app import run  # noqa: PLC0415 - as above

    return run(settings, _imported(tasks))


def work(end: int) -> int:
    """Serves as one worker of a supervisor, which says what and where."""
    from services.runtime.app import run  # noqa: PLC0415 - as above
    from services.runtime.workers.link import Link  # noqa: PLC0415 - as above

    link = Link(socket.socket(fileno=end))
    return run(Settings(**link.brief.given), _imported(link.brief.tasks), link=link)


def _imported(tasks: Sequence[str]) -> tuple[Task, ...]:
    return tuple(import_module(name).TASK for name in tasks)


if __name__ == "__main__":
    sys.exit(work(int(sys.argv[1])))
