"""Lets live streams move on before a replica stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from services.runtime.core.errors import Draining

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

_MOVE_ON = "this replica is stopping; the sequence goes on at another"


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

    async def receive(self, messages: AsyncIterator[T]) -> T | None:
        """The next message of the client, or None after the last.

        Raises:
            Draining: the replica stops.
        """
        task = asyncio.current_task()
        if self._begun or task is None:
            raise Draining(_MOVE_ON)
        self._waiting.add(task)
        try:
            return await anext(messages, None)
        except asyncio.CancelledError:
            if not self._begun:
                raise
            task.uncancel()
            raise Draining(_MOVE_ON) from None
        finally:
            self._waiting.discard(task)
