"""The Redis store behind Sentinel: the primary dies, a replica takes over, the sequence goes on."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Position
from tests.contract.store_fixtures import a_turn, found
from tests.kit.processes import free_port
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

TAKEN_OVER_S_MAX = 40.0


async def _until(server: RedisServer, section: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Asks the server again and again until what INFO tells of `section` is so."""
    async with asyncio.timeout(TAKEN_OVER_S_MAX), redis.asyncio.from_url(server.url) as client:
        while True:
            try:
                if holds(await client.info(section)):
                    return
            except RedisError:
                continue


def _watch(primary_port: int, *settings: str, password: str | None = None) -> RedisServer:
    """A sentinel of a primary at that port."""
    sentinel = RedisServer(password=password, port=free_port())
    watch = ("down-after-milliseconds main 500", "failover-timeout main 2000", *settings)
    sentinel.become_sentinel(f"main 127.0.0.1 {primary_port} 1", *watch)
    return sentinel


def _begun(sentinel: RedisServer) -> bool:
    """Asks for a fail-over; False while the sentinel does not know enough of the replica."""
    try:
        sentinel.ask("SENTINEL", "FAILOVER", "main")
    except RedisError:
        return False
    return True


async def _asked_again(call: Callable[[], Coroutine[None, None, object]]) -> None:
    """Repeats `call` until the store is available."""
    async with asyncio.timeout(TAKEN_OVER_S_MAX):
        while True:
            try:
                await call()
            except StoreUnavailable:
                await a_turn()
            else:
                return


@pytest.fixture
def servers() -> Iterator[list[RedisServer]]:
    """A primary, its replica, and a sentinel that watches them, in this order."""
    with ExitStack() as stack:
        primary = RedisServer("--repl-diskless-sync-delay", "0", port=free_port())
        replica = RedisServer("--replicaof", f"127.0.0.1 {primary.port}", port=free_port())
        stack.enter_context(primary)
        stack.enter_context(replica)
        sentinel = stack.enter_context(_watch(primary.port))
        # It would look every 10 s only, and promotes nobody whom it has not seen in step.
        sentinel.ask("SENTINEL", "DEBUG", "info-period", 100, "ask-period", 100, "publish-period", 100)
        yield [primary, replica, sentinel]


async def _ready(servers: list[RedisServer]) -> None:
    """Returns when the replica is in step and the sentinel knows it."""
    _, replica, sentinel = servers
    await _until(replica, "replication", lambda told: told["master_link_status"] == "up")
    await _until(sentinel, "sentinel", lambda told: told["master0"]["slaves"] == 1)


@pytest.mark.timeout(60)
async def test_a_sequence_goes_on_when_the_primary_dies(servers: list[RedisServer]) -> None:
    """While nobody is primary calls are refused in time; then the replica goes on from the last commit it got."""
    primary, _, sentinel = servers
    await _ready(servers)
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


async def test_a_planned_fail_over_is_followed(servers: list[RedisServer]) -> None:
    """The sentinels make the replica the primary, while the old one lives on: the next calls go to the new one."""
    primary, replica, sentinel = servers
    await _ready(servers)
    store = RedisStore.from_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
    name = a_name()
    assert await store.commit(name, None, a_record(1), TERMS) is None
    await _until(primary, "replication", lambda told: told["slave0"]["offset"] == told["master_repl_offset"])
    while not _begun(sentinel):
        await a_turn()
    await _until(replica, "replication", lambda told: told["role"] == "master")
    await _until(primary, "replication", lambda told: told["role"] == "slave" and told["master_link_status"] == "up")
    await _asked_again(lambda: store.load(name))
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
    assert is_same((await found(store, name)).record, a_record(2))
    assert b" name=statestream " in replica.ask("CLIENT", "LIST")
    await store.close()


async def test_a_primary_that_became_a_replica_is_left(servers: list[RedisServer]) -> None:
    """Connected to it all the time, a store is told READONLY: it asks the sentinels again and goes to the new one."""
    primary, replica, sentinel = servers
    await _ready(servers)
    # Watches the new primary, once there is one: the first sentinel would break the connections when it sees it.
    second = _watch(replica.port)
    hosts = f"127.0.0.1:{sentinel.port},127.0.0.1:{second.port}"
    store = RedisStore.from_url(f"redis+sentinel://{hosts}/main", connections=1)
    name = a_name()
    assert await store.commit(name, None, a_record(1), TERMS) is None
    await _until(primary, "replication", lambda told: told["slave0"]["offset"] == told["master_repl_offset"])
    sentinel.stop()
    replica.ask("REPLICAOF", "NO", "ONE")
    primary.ask("REPLICAOF", "127.0.0.1", replica.port)
    with second:
        assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
        assert b"errorstat_READONLY" in primary.ask("INFO", "errorstats")
        assert replica.ask("HEXISTS", sequence_key("ss", name), "r") == 1
        assert is_same((await found(store, name)).record, a_record(2))
    await store.close()


async def test_users_and_passwords_of_sentinels_and_servers_are_their_own() -> None:
    """The sentinel asks for one password and the primary for another; each gets its own."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer(password="of the primary", port=free_port()))  # noqa: S106
        sentinel = stack.enter_context(_watch(primary.port, password="of/the:sentinel"))  # noqa: S106
        where = f"127.0.0.1:{sentinel.port}/main"
        told = f"redis+sentinel://:of%20the%20primary@{where}?sentinel_password=of%2Fthe%3Asentinel"
        store = RedisStore.from_url(told)
        await store.ping()
        await store.close()
        for wrong in (told.replace("%20", ""), told.replace("%2F", "")):
            store = RedisStore.from_url(wrong)
            with pytest.raises(StoreUnavailable):
                await store.ping()
            await store.close()


async def test_sentinels_that_hang_or_are_gone_are_passed_over(servers: list[RedisServer]) -> None:
    """One sentinel does not listen, one hangs: the third is asked within the time-out."""
    primary, _, sentinel = servers
    with _watch(primary.port) as hanging:
        hanging.signal(signal.SIGSTOP)
        hosts = f"127.0.0.1:1,127.0.0.1:{hanging.port},127.0.0.1:{sentinel.port}"
        store = RedisStore.from_url(f"redis+sentinel://{hosts}/main", timeout_s=6.0)
        await store.ping()
        await store.close()
