"""Stands between a store and Redis, lets the server act, and then swallows its answer."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Self


class SwallowingProxy:
    """Passes everything on. With `swallow` it breaks the connection instead of the next answer, once.

    A connection on which an answer comes while `silent` is set stays silent for ever, as when a network loses its way.
    """

    def __init__(self, server_socket: Path) -> None:
        self._upstream = server_socket
        self._folder = tempfile.TemporaryDirectory(prefix="ss-proxy-")
        self._socket = Path(self._folder.name) / "s"
        self._pumps: set[asyncio.Task[None]] = set()
        self.swallow = False
        self.silent = False
        self._silenced: set[asyncio.StreamReader] = set()

    @property
    def url(self) -> str:
        """Address for `redis.from_url`."""
        return f"unix://{self._socket}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self._socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._folder.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._upstream))
        for source, sink, answers in ((reader, up_writer, False), (up_reader, writer, True)):
            pump = asyncio.ensure_future(self._pump(source, sink, answers=answers))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await source.read(65536):
                if answers and self.swallow:
                    self.swallow = False
                    return
                if answers and self.silent:
                    self._silenced.add(source)
                if source in self._silenced:
                    continue
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()
