"""Commits that wait until replicas of Redis have them, on a real primary with a real replica."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis.check import RIGHTS, RIGHTS_REPLICAS
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Absence, Position
from tests.contract.store_fixtures import found, told
from tests.kit.processes import free_port
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import Conflict

BOUND_S = 30.0


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica, in step."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer("--repl-diskless-sync-delay", "0", port=free_port()))
        replica = stack.enter_context(RedisServer("--replicaof", f"127.0.0.1 {primary.port}"))
        # A replica counts as online before it follows: what is written to the one has to be seen in the other.
        primary.ask("SET", "probe", "1")
        while not replica.ask("EXISTS", "probe"):
            continue
        yield primary, replica


@pytest.fixture
async def store(servers: tuple[RedisServer, RedisServer]) -> AsyncIterator[RedisStore]:
    """A store that wants one replica to have every commit; its functions are loaded."""
    store = RedisStore.from_url(servers[0].url, replicas_acked=1, connections=1)
    await store.commit(a_name(), None, a_record(), TERMS)
    yield store
    await store.close()


def _waits(primary: RedisServer) -> int:
    """How often the server was asked to wait for replicas."""
    calls = re.search(rb"cmdstat_wait:calls=(\d+)", primary.ask("INFO", "commandstats"))
    return int(calls[1]) if calls else 0


async def test_a_reply_says_that_a_replica_has_it(servers: tuple[RedisServer, RedisServer], store: RedisStore) -> None:
    """When a commit returns its record stands in the replica, each time."""
    for _ in range(20):
        name = a_name()
        assert await store.commit(name, None, a_record(), TERMS) is None
        assert servers[1].ask("EXISTS", sequence_key("ss", name)) == 1


async def test_calls_of_one_turn_wait_together(servers: tuple[RedisServer, RedisServer], store: RedisStore) -> None:
    """One WAIT for all that leave together, commits or loads, and none for what tells of no sequence."""
    before = _waits(servers[0])
    names = [a_name() for _ in range(30)]
    assert await asyncio.gather(*[store.commit(name, None, a_record(), TERMS) for name in names]) == [None] * 30
    assert _waits(servers[0]) == before + 1
    await asyncio.gather(*[store.load(name) for name in names])
    assert _waits(servers[0]) == before + 2
    await asyncio.gather(store.ping(), store.names("t", "m"))
    assert _waits(servers[0]) == before + 2


async def test_what_no_replica_has_is_not_told(servers: tuple[RedisServer, RedisServer]) -> None:
    """A replica hangs: a commit fails, though it took effect, and neither a load nor a conflict tells of it."""
    primary, replica = servers
    plain = RedisStore.from_url(primary.url)
    store = RedisStore.from_url(primary.url, replicas_acked=1, timeout_s=1.0, connections=1)
    name = a_name()
    # The functions first, which takes a round trip more.
    assert await plain.commit(name, None, a_record(1), TERMS) is None
    assert await store.load(a_name()) is Absence.UNKNOWN
    replica.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(BOUND_S):
            for call in (
                lambda: store.commit(name, Position(1, 1), a_record(2), TERMS),
                lambda: store.load(name),
                lambda: store.commit(name, Position(1, 1), a_record(2, fill=1), TERMS),
            ):
                with pytest.raises(StoreUnavailable, match="replicas"):
                    await call()
            assert is_same((await found(plain, name)).record, a_record(2))
    finally:
        replica.signal(signal.SIGCONT)
    # Once the replica has caught up whoever repeats it is told what stands there.
    assert is_same(told(await _in_the_end(store, name, Position(1, 1), 2)).record, a_record(2))
    assert await store.commit(name, Position(1, 2), a_record(3), TERMS) is None
    await asyncio.gather(plain.close(), store.close())


async def _in_the_end(store: RedisStore, name: SequenceName, before: Position, step: int) -> Conflict | None:
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await store.commit(name, before, a_record(step), TERMS)
            except StoreUnavailable:
                continue


async def test_more_replicas_than_there_are_stop_all_steps(servers: tuple[RedisServer, RedisServer]) -> None:
    """Two are wanted and one is there: every commit is refused, by none of which the server is given up."""
    store = RedisStore.from_url(servers[0].url, replicas_acked=2, timeout_s=1.0, connections=1)
    for _ in range(6):
        with pytest.raises(StoreUnavailable, match="replicas"):
            await store.commit(a_name(), None, a_record(), TERMS)
    await store.ping()
    await store.close()


async def test_a_user_needs_the_right_to_wait(servers: tuple[RedisServer, RedisServer]) -> None:
    """With the documented rights commits work; without the one to WAIT they are refused, and the error says so."""
    url = servers[0].url.replace("unix://", "unix://app:word@")
    servers[0].ask("ACL", "SETUSER", "app", "on", ">word", "~ss:*", *RIGHTS.split(), *RIGHTS_REPLICAS.split())
    store = RedisStore.from_url(url, replicas_acked=1)
    assert await store.commit(a_name(), None, a_record(), TERMS) is None
    servers[0].ask("ACL", "SETUSER", "app", "-wait")
    with pytest.raises(StoreUnavailable, match="NOPERM"):
        await store.commit(a_name(), None, a_record(), TERMS)
    await store.close()
