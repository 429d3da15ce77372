"""A way between two processes over loopback TCP, which can be blocked, slowed and cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHUNK_BYTES = 65_536


class Link:
    """What connects to `port` of the loopback address reaches `upstream` there; use it as an async context manager.

    Where a side closes or breaks its connection, so does the link with the other. `renamed` are texts that the upstream
    sends, and what arrives instead: addresses that it gives out can so be led over other links.
    """

    def __init__(self, upstream: int, *, port: int, renamed: Mapping[bytes, bytes] | None = None) -> None:
        self.port = port
        """Where it listens."""
        self.upstream = upstream
        """Where new connections lead."""
        self.delay_s = 0.0
        """How long each chunk of bytes is held up, in both directions, in seconds."""
        self._renamed = dict(renamed or {})
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.Task[None]] = set()

    def block(self) -> None:
        """Nothing gets through any more, not even that a side is gone; what is sent meanwhile arrives later."""
        self._open.clear()

    def unblock(self) -> None:
        """Goes on, with what was held up."""
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._open.wait()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writers.append(up_writer)
            pumps = [
                asyncio.create_task(self._pump(reader, up_writer, {})),
                asyncio.create_task(self._pump(up_reader, writer, self._renamed)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # nobody listens there: so the other side sees its connection break
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, renamed: Mapping[bytes, bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                for name, other in renamed.items():
                    data = data.replace(name, other)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._open.wait()
                sink.write(data)
                await sink.drain()
            await self._open.wait()
            # What was sent before the end still has to arrive.
            sink.close()
            await sink.wait_closed()
            return
        await self._open.wait()
