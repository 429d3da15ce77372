"""An event loop whose time is virtual: when everybody waits it jumps to the next timer, so hours take milliseconds.

On it live nodes, each standing for a process of its own. What a node does runs in the node's context, and tasks,
timers and callbacks inherit it; so the loop knows whose turn it is about to run, and can hold back all turns of a node
that is paused and drop all turns of one that has crashed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

WALL_START_S = 1_700_000_000.0

_NODE: contextvars.ContextVar[Node | None] = contextvars.ContextVar("node", default=None)

# Hashes of tasks in the order of their making: a set of tasks then has the same order in every process.
_Task = asyncio.Task


class _NumberedTask(_Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self.number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class Node:
    """One process: it lives until it crashes, and may be paused. Its `wall` clock may be wrong by `skew_s`."""

    def __init__(self, loop: VirtualTimeLoop, name: str) -> None:
        self._loop = loop
        self.name = name
        self.alive = True
        self.paused = False
        self.skew_s = 0.0
        self.turns_left: int | None = None
        """Turns after which it crashes; None: it does not."""
        self.on_crash: list[Callable[[], None]] = []
        self._held: list[asyncio.Handle] = []
        self._context = contextvars.copy_context()
        self._context.run(_NODE.set, self)

    @property
    def context(self) -> contextvars.Context:
        """A context in which everything belongs to this node."""
        return self._context.copy()

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._loop.time()

    def wall(self) -> float:
        """See `Clock`."""
        return self._loop.wall() + self.skew_s

    def spawn(self, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs `main` as a task of this node."""
        return self._loop.create_task(main, context=self.context)

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Calls back as a turn of this node: not while it is paused, and never once it has crashed."""
        return self._loop.call_later(delay_s, callback, *args, context=self.context)

    def crash(self) -> None:
        """Ends the process: nothing of it runs any more, not even what cleans up."""
        if not self.alive:
            return
        self.alive = False
        self._held.clear()
        for callback in self.on_crash:
            callback()

    def pause(self) -> None:
        """Stops the process, as SIGSTOP does."""
        self.paused = True

    def resume(self) -> None:
        """Lets a paused process go on; it then finds everything that has come meanwhile, in the order it came."""
        self.paused = False
        held, self._held = self._held, []
        self._loop.ready(held)

    def takes(self, handle: asyncio.Handle) -> bool:
        """True if the turn may run now; else it is dropped or kept for later."""
        if not self.alive:
            return False
        if self.paused:
            self._held.append(handle)
            return False
        if self.turns_left is not None:
            if self.turns_left <= 0:
                self.crash()
                return False
            self.turns_left -= 1
        return True


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Its `time()` is the virtual one; it serves as a `Clock` too. It knows no sockets and no threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._tasks_made = 0
        self._timers_made = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._turns: deque[asyncio.Handle] = deque()
        self._kept: list[asyncio.Task[Any]] = []
        self._world = contextvars.copy_context()
        self.broken: list[BaseException] = []
        """Exceptions that nobody handled."""
        self.turns = 0
        """How many callbacks have run."""
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    monotonic = time

    def wall(self) -> float:
        """Virtual seconds since 1970."""
        return WALL_START_S + self._now

    def at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Calls back as a turn of no node: what the world does."""
        return self.call_at(when, callback, *args, context=self._world)

    def ready(self, handles: list[asyncio.Handle]) -> None:
        """Puts turns that were held back into the queue."""
        self._turns.extend(handles)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`; what is due at the same time runs in the order in which it was asked for."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_later`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`."""
        handle = asyncio.Handle(callback, args, self, context)
        self._turns.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def close(self) -> None:
        """Closes the loop; what has not come to its end is left where it is."""
        for task in self._kept:
            if not task.done():
                task._log_destroy_pending = False
        self._turns.clear()
        self._timers.clear()
        super().close()

    def _make_task(self, _: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._tasks_made += 1
        task = _NumberedTask(coro, number=self._tasks_made, loop=self, **options)
        if _NODE.get() is not None or "context" in options:
            # Kept: collecting the task of a node that has crashed would run the code that cleans up behind it.
            self._kept.append(task)
        return task

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.broken.append(context.get("exception") or RuntimeError(context["message"]))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when they are due."""

    def _run_once(self) -> None:
        turns = self._turns
        if not turns and not self._stopping:
            timers = self._timers
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise RuntimeError("every task waits and no timer is set: this would wait for ever")
            self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                turns.append(heapq.heappop(timers)[2])
        for _ in range(len(turns)):
            handle = turns.popleft()
            if handle._cancelled:
                continue
            node = handle._context.get(_NODE)
            if node is None or node.takes(handle):
                self.turns += 1
                handle._run()


def run_virtual(main: Coroutine[Any, Any, T], loop: VirtualTimeLoop) -> T:
    """Runs `main` to its end on virtual time and closes the loop."""
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
        asyncio.set_event_loop(None)
