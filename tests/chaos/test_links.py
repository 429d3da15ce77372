"""The ways between the processes of a campaign can be blocked, slowed and cut."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.kit.links import Link
from tests.kit.processes import steady_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@asynccontextmanager
async def echoing(**renamed: bytes) -> AsyncGenerator[Link]:
    """A link to a server that sends back what it gets, and closes when it got `bye`."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
            if data == b"bye":
                break
        writer.close()

    port = steady_port()
    names = {name.encode(): other for name, other in renamed.items()}
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    async with server, Link(port, port=steady_port(), renamed=names) as link:
        yield link


async def test_a_link_passes_everything_on() -> None:
    """Both ways, the end too; what is renamed arrives under its other name."""
    async with echoing(here=b"away") as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"there and here")
        assert await reader.readexactly(14) == b"taway and away"
        writer.write(b"bye")
        assert await reader.read() == b"bye"
        writer.close()


async def test_a_blocked_link_keeps_what_it_is_sent() -> None:
    """Nothing arrives, not even the end of the other side; all of it does once the link is open again."""
    async with echoing() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        link.block()
        writer.write(b"bye")
        waiting = asyncio.ensure_future(reader.read())
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", link.port)
        late_writer.write(b"b")
        late = asyncio.ensure_future(late_reader.readexactly(1))
        done, _ = await asyncio.wait((waiting, late), timeout=0.05)
        assert not done
        link.unblock()
        assert await waiting == b"bye"
        assert await late == b"b"
        writer.close()
        late_writer.close()


async def test_a_link_to_nobody_breaks() -> None:
    """Who connects sees the connection end, as where a server has died."""
    async with Link(steady_port(), port=steady_port()) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
