"""Lets live streams move on before a replica stops."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.runtime.core.errors import Draining

if TYPE_CHECKING:
    from collections.abc import Generator


class Drain:
    """Knows which streams wait for their client, and wakes them when the replica stops.

    A stream that is in the middle of a step finishes it first. Waking is done by cancelling the stream's own task,
    which costs nothing while nobody drains.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Task[object]] = set()  # bounded by the streams open at once
        self._begun = False

    def begin(self) -> None:
        """From now on every stream that waits, or would wait, ends with Draining."""
        self._begun = True
        for task in self._waiting:
            task.cancel()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Marks that the current task only waits for its client.

        Raises:
            Draining: the replica stops.
        """
        if self._begun:
            raise Draining("this replica is stopping; the sequence goes on at another")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not inside a task")
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._begun:
                raise
            task.uncancel()
            raise Draining("this replica is stopping; the sequence goes on at another") from None
        finally:
            self._waiting.discard(task)
