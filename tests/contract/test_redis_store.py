"""The Redis store when things go wrong, on servers of its own."""

from __future__ import annotations

import asyncio
import signal
import traceback
from typing import TYPE_CHECKING

import pytest
import redis.asyncio
from redis.asyncio.connection import AbstractConnection

from services.runtime.core.errors import CapacityExceeded, StateCorrupt, StoreUnavailable
from services.runtime.state.format import RecordFormat
from services.runtime.state.redis import link as redis_link
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Absence, Position, Stored, Terms
from tests.contract.store_fixtures import a_turn, found, told
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_proxy import SwallowingProxy
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator

    from services.runtime.core.ids import SequenceName

TIMEOUT_S = 0.25
BOUND_S = 5.0
"""Far above the time-out, far below for ever: tests share their machine."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may break."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store on that server, impatient."""
    store = RedisStore.from_url(server.url, timeout_s=TIMEOUT_S)
    yield store
    await store.close()


@pytest.fixture
async def raw(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain client of that server."""
    async with redis.asyncio.from_url(server.url) as client:
        yield client


def _key(name: SequenceName) -> bytes:
    return sequence_key("ss", name)


async def _unavailable(*calls: Awaitable[object]) -> None:
    """All `calls` end as `StoreUnavailable`, in time, with a delay for the retry."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable), outcome
        assert outcome.retry_delay_s is not None
    assert loop.time() - began < BOUND_S


async def _answers(store: RedisStore) -> bool:
    try:
        await store.ping()
    except StoreUnavailable:
        return False
    return True


async def test_a_damaged_record_fails_alone(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """Of many loaded together only the damaged one fails; the others are whole."""
    names = [a_name() for _ in range(10)]
    for name in names:
        await store.commit(name, None, a_record(7), TERMS)
    data = await raw.hget(_key(names[4]), "r")
    assert isinstance(data, bytes)
    await raw.hset(_key(names[4]), "r", data[:60] + bytes([data[60] ^ 4]) + data[61:])
    outcomes = await asyncio.gather(*[store.load(name) for name in names], return_exceptions=True)
    assert isinstance(outcomes.pop(4), StateCorrupt)
    assert all(isinstance(outcome, Stored) for outcome in outcomes)


async def test_a_damaged_sequence_can_be_started_again(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """The error tells the position, so that a new epoch can take the place of what is damaged."""
    name = a_name()
    await store.commit(name, None, a_record(7, epoch=3), TERMS)
    await raw.hset(_key(name), "r", b"rubbish")
    with pytest.raises(StateCorrupt) as damaged:
        await store.load(name)
    position = Position(int(damaged.value.metadata["epoch"]), int(damaged.value.metadata["step"]))
    assert position == Position(3, 7)
    assert await store.commit(name, position, a_record(0, epoch=4), TERMS) is None
    assert is_same((await found(store, name)).record, a_record(0, epoch=4))


@pytest.mark.parametrize(("field", "damage"), [("p", b"1:8"), ("p", b""), ("x", b"soon"), ("r", b"")])
async def test_fields_that_contradict_the_record_are_damage(
    store: RedisStore, raw: redis.asyncio.Redis, field: str, damage: bytes
) -> None:
    """A position or time that does not fit the record is never served."""
    name = a_name()
    await store.commit(name, None, a_record(7), TERMS)
    await raw.hset(_key(name), field, damage)
    with pytest.raises(StateCorrupt):
        await store.load(name)


async def test_a_key_of_somebody_else_is_damage(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """A key that holds no hash is reported, not overwritten."""
    name = a_name()
    await raw.set(_key(name), b"mine")
    with pytest.raises(StateCorrupt):
        await store.load(name)
    with pytest.raises(StateCorrupt):
        await store.commit(name, None, a_record(), TERMS)
    assert await raw.get(_key(name)) == b"mine"


async def test_a_record_moved_to_another_name_is_refused(redis_url: str, raw: redis.asyncio.Redis) -> None:
    """Whoever can write to Redis still cannot give one tenant the state of another."""
    store = RedisStore.from_url(redis_url, records=RecordFormat(b"key"))
    one, other = a_name(), a_name()
    async with redis.asyncio.from_url(redis_url) as client:
        await store.commit(one, None, a_record(), TERMS)
        await client.copy(_key(one).decode(), _key(other).decode())
    with pytest.raises(StateCorrupt):
        await store.load(other)
    await store.close()


@pytest.mark.parametrize("url", ["unix:///nonexistent/redis.sock", "redis://127.0.0.1:1/0"])
async def test_an_unreachable_server_is_told_at_once(url: str) -> None:
    """Nobody listens: every call says so, without waiting for its time-out."""
    store = RedisStore.from_url(url, timeout_s=60)
    await _unavailable(store.ping(), store.load(a_name()), store.commit(a_name(), None, a_record(), TERMS))
    await store.close()


async def test_a_hanging_server_is_told_in_time(server: RedisServer, store: RedisStore) -> None:
    """A server that takes calls and does not answer: each ends in time, also those that wait for a connection."""
    await store.ping()
    server.signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            # More than a socket takes, so that a part is never sent.
            big = [store.commit(a_name(), None, a_record(width=100_000), TERMS) for _ in range(8)]
            await _unavailable(store.ping(), store.load(a_name()), *big)
    finally:
        server.signal(signal.SIGCONT)
    # Given up in the meantime, it is used again once it has answered a probe.
    async with asyncio.timeout(BOUND_S):
        while not await _answers(store):
            await a_turn()
    name = a_name()
    assert await store.commit(name, None, a_record(), TERMS) is None
    assert is_same((await found(store, name)).record, a_record())


async def test_a_restarted_server_is_used_again(server: RedisServer, store: RedisStore) -> None:
    """While it is down calls are refused; when it is back, bare of functions, they work."""
    name = a_name()
    await store.commit(name, None, a_record(), TERMS)
    server.stop()
    await _unavailable(store.load(name), store.load(name))
    server.start()
    assert await store.load(name) is Absence.UNKNOWN
    assert await store.commit(name, None, a_record(), TERMS) is None


async def test_lost_functions_are_loaded_again(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """A server that lost its functions gets them with the next calls, all of which succeed."""
    await store.load(a_name())
    await raw.execute_command("FUNCTION", "FLUSH")
    await raw.flushall()
    names = [a_name() for _ in range(50)]
    commits = [store.commit(name, None, a_record(), TERMS) for name in names]
    loads = [store.load(a_name()) for _ in names]
    assert set(await asyncio.gather(*commits, *loads)) == {None, Absence.UNKNOWN}


async def test_a_connection_closed_while_idle_is_not_noticed(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """Callers do not see that the server closed connections between two calls."""
    name = a_name()
    for step in range(1, 6):
        before = Position(1, step - 1) if step > 1 else None
        assert await store.commit(name, before, a_record(step), TERMS) is None
        ours = [client["id"] for client in await raw.client_list() if client["name"] == "statestream"]
        assert ours
        for number in ours:
            await raw.client_kill_filter(_id=number)


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[SwallowingProxy]:
    """Stands before that server."""
    async with SwallowingProxy(server.socket) as proxy:
        yield proxy


async def test_a_commit_whose_answer_was_lost_is_no_conflict(proxy: SwallowingProxy) -> None:
    """Applied, then the connection broke: sent again, the store knows its own record and reports success."""
    store = RedisStore.from_url(proxy.url, connections=1)
    name = a_name()
    await store.commit(name, None, a_record(1), TERMS)
    proxy.swallow = True
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
    assert not proxy.swallow, "the answer was not swallowed"
    assert is_same((await found(store, name)).record, a_record(2))
    told(await store.commit(name, Position(1, 1), a_record(2, fill=1), TERMS))
    await store.close()


async def test_a_repeated_commit_that_lost_the_race_conflicts(proxy: SwallowingProxy) -> None:
    """Sent again after a broken connection, a commit against a position that another replica took conflicts."""
    store = RedisStore.from_url(proxy.url, connections=1)
    name = a_name()
    await store.commit(name, None, a_record(1), TERMS)
    await store.commit(name, Position(1, 1), a_record(2, fill=7), TERMS)
    proxy.swallow = True
    conflict = told(await store.commit(name, Position(1, 1), a_record(2), TERMS))
    assert is_same(conflict.record, a_record(2, fill=7))
    await store.close()


async def test_a_loop_that_is_taken_down_leaves_no_caller_waiting(proxy: SwallowingProxy) -> None:
    """Cancelling all tasks but the callers', as the end of a loop may do, fails the calls at once."""
    store = RedisStore.from_url(proxy.url, timeout_s=60)
    await store.ping()
    proxy.silent = True
    before = asyncio.all_tasks()
    callers = [asyncio.ensure_future(store.load(a_name())) for _ in range(3)]
    while not (inner := asyncio.all_tasks() - before - set(callers)):
        await a_turn()
    for task in inner:
        task.cancel()
    await _unavailable(*callers)
    await store.close()


async def test_a_silent_connection_is_given_up(proxy: SwallowingProxy) -> None:
    """A connection that did not answer in time is replaced: the next call does not wait on it."""
    store = RedisStore.from_url(proxy.url, connections=1, timeout_s=TIMEOUT_S)
    await store.ping()
    proxy.silent = True
    await _unavailable(store.load(a_name()), store.ping())
    proxy.silent = False
    assert await store.load(a_name()) is Absence.UNKNOWN
    await store.close()


async def test_a_turn_of_the_loop_is_one_write(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of one turn leave together, loads and commits alike."""
    await store.load(a_name())
    writes: list[int] = []
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, command: Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        pieces = list(command)
        writes.append(sum(piece.count(b"FCALL") for piece in pieces))
        await send(self, pieces, check_health)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    commits = [store.commit(a_name(), None, a_record(), TERMS) for _ in range(40)]
    await asyncio.gather(*commits, *[store.load(a_name()) for _ in range(24)])
    assert writes == [64]


async def test_too_many_waiting_calls_are_refused(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a connection is bounded; the rest is told at once."""
    monkeypatch.setattr(redis_link, "_CALLS_WAITING_MAX", 10)
    outcomes = await asyncio.gather(*[store.load(a_name()) for _ in range(15)], return_exceptions=True)
    assert outcomes[:10] == [Absence.UNKNOWN] * 10
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes[10:])
    assert await store.load(a_name()) is Absence.UNKNOWN


async def test_close_lets_calls_finish(server: RedisServer) -> None:
    """What is on its way when the store closes is answered; what comes after is refused."""
    store = RedisStore.from_url(server.url)
    tasks = [asyncio.ensure_future(store.commit(a_name(), None, a_record(), TERMS)) for _ in range(5)]
    turn = asyncio.ensure_future(store.ping())
    await asyncio.wait([turn])
    await store.close()
    assert await asyncio.gather(*tasks) == [None] * 5
    await _unavailable(store.ping())


async def test_a_full_server_refuses_new_sequences_and_lets_old_ones_end(
    store: RedisStore, raw: redis.asyncio.Redis
) -> None:
    """Out of memory: starts are told CAPACITY, loads work, and an END is taken, because it makes room."""
    name = a_name()
    await store.commit(name, None, a_record(1), TERMS)
    await raw.config_set("maxmemory", 1)
    for before, record in ((None, a_record()), (Position(1, 1), a_record(2))):
        with pytest.raises(CapacityExceeded):
            await store.commit(a_name() if before is None else name, before, record, TERMS)
    assert is_same((await found(store, name)).record, a_record(1))
    assert await store.commit(name, Position(1, 1), a_record(2, ended=True), TERMS) is None


async def test_keys_go_by_themselves(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """Every key has an expiry of its idle and retention time; with no retention an ended one is gone at once."""
    name, terms = a_name(), Terms(idle_ms=20_000, lifetime_ms=60_000, retention_ms=10_000)
    await store.commit(name, None, a_record(), terms)
    assert 20_000 < await raw.pttl(_key(name)) <= 30_000
    await store.commit(name, Position(1, 1), a_record(2, ended=True), Terms(20_000, 60_000, 0))
    assert await store.load(name) is Absence.UNKNOWN


async def test_prefixes_keep_installations_apart(server: RedisServer, store: RedisStore) -> None:
    """Two installations on one server do not see each other's sequences."""
    neighbour = RedisStore.from_url(server.url, prefix="ss:2")
    name = a_name()
    await store.commit(name, None, a_record(), TERMS)
    assert await neighbour.load(name) is Absence.UNKNOWN
    await neighbour.close()


async def test_the_password_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the text nor the repr nor the traceback of anything holds the password, right or wrong."""
    with RedisServer(password="s3cret-w0rd") as server:  # noqa: S106
        store = RedisStore.from_url(server.url)
        await store.ping()
        texts = [repr(store), str(await store.check())]
        await store.close()
        wrong = RedisStore.from_url(server.url.replace("w0rd", "w0rd-but-wrong"))
        for call in (wrong.ping(), wrong.load(a_name())):
            with pytest.raises(StoreUnavailable, match="user and password") as refused:
                await call
            texts += traceback.format_exception(refused.value)
        texts.append(str(await wrong.check()))
        await wrong.close()
    with pytest.raises(ValueError, match="cannot be read") as unreadable:
        RedisStore.from_url("redis://:s3cret-w0rd/with/slashes@host:port/0")
    texts += traceback.format_exception(unreadable.value)
    told_out = "".join([*texts, caplog.text])
    # The tracebacks quote the source of this test, which does not count.
    assert "s3cret" not in told_out.replace('RedisStore.from_url("redis://:s3cret-w0rd/with/slashes@host:port/0")', "")
