"""The bridge on which the blocking client stands: one private event loop in one private thread.

The blocking client is the asyncio client, waited for. The alternatives were a second implementation on gRPC's
blocking stubs, which doubles retries, reconnects and their tests, and of which only one half is exercised by most
users; and one that shares the pure pieces, which leaves just the parts that go wrong, reads with a deadline and the
reopening of streams, written twice, since a blocking gRPC stream cannot wait for a reply for a bounded time. The price
of the bridge is a hand-over between threads, some tens of microseconds a call, and that a client must not be
used in a child after `os.fork`, which gRPC forbids anyway.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from statestream.errors import CallCancelled

if TYPE_CHECKING:
    from collections.abc import Coroutine

R = TypeVar("R")


class Portal:
    """Runs coroutines on a loop of its own; safe to use from many threads at once."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: a client that was never closed must not keep the program from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="statestream-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """The result of `work`; an interrupt while waiting cancels it.

        Raises:
            RuntimeError: the portal is closed.
        """
        if self.closed:
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise CallCancelled("the client was closed meanwhile") from None
        except BaseException:
            # Nothing to cancel where `work` itself has raised.
            future.cancel()
            raise

    def close(self) -> None:
        """Stops the loop and its thread; closing twice does nothing."""
        if self.closed:
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Lets whatever other threads still wait for end, instead of leaving them waiting for ever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
