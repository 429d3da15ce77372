"""The Redis store behind Sentinel: the primary dies, a replica takes over, the sequence goes on."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis import RedisStore
from services.runtime.state.types import Position
from tests.contract.store_fixtures import a_turn, found
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAKEN_OVER_S_MAX = 40.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def _until(server: RedisServer, section: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Asks the server again and again until what INFO tells of `section` is so."""
    async with asyncio.timeout(TAKEN_OVER_S_MAX), redis.asyncio.from_url(server.url) as client:
        while True:
            try:
                if holds(await client.info(section)):
                    return
            except RedisError:
                continue


@pytest.fixture
def servers() -> Iterator[list[RedisServer]]:
    """A primary, its replica, and a sentinel that watches them, in this order."""
    with ExitStack() as stack:
        primary_port, replica_port, sentinel_port = _free_port(), _free_port(), _free_port()
        primary = RedisServer("--repl-diskless-sync-delay", "0", port=primary_port)
        replica = RedisServer("--replicaof", f"127.0.0.1 {primary_port}", port=replica_port)
        sentinel = RedisServer(port=sentinel_port)
        sentinel.become_sentinel(f"main 127.0.0.1 {primary_port} 1", "down-after-milliseconds main 500")
        yield [stack.enter_context(server) for server in (primary, replica, sentinel)]


@pytest.mark.timeout(60)
async def test_a_sequence_goes_on_when_the_primary_dies(servers: list[RedisServer]) -> None:
    """While nobody is primary calls are refused in time; then the replica goes on from the last commit it got."""
    primary, replica, sentinel = servers
    await _until(replica, "replication", lambda told: told["master_link_status"] == "up")
    await _until(sentinel, "sentinel", lambda told: told["master0"]["slaves"] == 1)
    store = RedisStore.from_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
    name = a_name()
    assert await store.commit(name, None, a_record(1), TERMS) is None
    await _until(primary, "replication", lambda told: told["slave0"]["offset"] == told["master_repl_offset"])
    primary.stop()
    refused = 0
    async with asyncio.timeout(TAKEN_OVER_S_MAX):
        while True:
            try:
                conflict = await store.commit(name, Position(1, 1), a_record(2), TERMS)
                break
            except StoreUnavailable:
                refused += 1
                # A server that was given up is not waited for.
                await a_turn()
    assert refused
    assert conflict is None
    assert is_same((await found(store, name)).record, a_record(2))
    await store.close()
