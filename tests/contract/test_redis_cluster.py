"""The Redis store on a real cluster: slots that move, masters that die."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis.check import RIGHTS, RIGHTS_CLUSTER
from services.runtime.state.redis.connect import connect
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.library import LIBRARY
from services.runtime.state.redis.line import packed
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Absence, Position
from tests.contract.store_fixtures import a_turn, found
from tests.contract.store_kit import StoreKit
from tests.kit.processes import free_port
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_cluster import ClusterLapse, ClusterNode, RedisCluster
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse

BOUND_S = 30.0
"""Far above every time-out, far below for ever: tests share their machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Three masters and one replica; every test leaves them whole."""
    with RedisCluster(replica=True) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: RedisCluster) -> AsyncIterator[RedisStore]:
    """A store on that cluster that knows its slots."""
    store = RedisStore.from_url(cluster.url)
    await store.ping()
    yield store
    await store.close()


class TestRedisClusterStore(StoreKit):
    """The kit on a cluster."""

    @pytest.fixture
    async def store(self, cluster: RedisCluster) -> AsyncIterator[StateStore]:
        """A store of its own, that knows nothing of the cluster yet."""
        store = RedisStore.from_url(cluster.url)
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, cluster: RedisCluster) -> AsyncIterator[StateStore]:
        """A second store on the same sequences, by way of another node."""
        store = RedisStore.from_url(f"redis+cluster://127.0.0.1:{cluster.masters[1].port}", connections=1)
        yield store
        await store.close()

    @pytest.fixture
    def lapse(self, cluster: RedisCluster) -> Lapse:
        """Passes time."""
        return ClusterLapse(cluster)


def _slot(name: SequenceName) -> int:
    return key_slot(sequence_key("ss", name))


def _another(cluster: RedisCluster, source: ClusterNode) -> ClusterNode:
    """A master that is not `source`."""
    return next(node for node in cluster.masters[1:] if node is not source)


def _errors(node: ClusterNode, code: str) -> int:
    """How often the node has answered with an error that begins with `code`."""
    return int(node.told("errorstats").get(f"errorstat_{code}", "count=0").removeprefix("count="))


def _name_on(cluster: RedisCluster, node: ClusterNode) -> SequenceName:
    """A new sequence whose slot is owned by `node`."""
    return next(name for name in iter(a_name, None) if cluster.owner_of(name) is node)


async def _asked_again(call: Callable[[], Coroutine[None, None, object]]) -> list[StoreUnavailable]:
    """Repeats `call` until it works; returns how it failed before."""
    refusals: list[StoreUnavailable] = []
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                await call()
            except StoreUnavailable as error:
                refusals.append(error)
                await a_turn()
            else:
                return refusals


async def test_what_goes_to_one_master_leaves_in_one_write(
    cluster: RedisCluster, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls of one turn leave as one write to each master, and every master gets its share."""
    names = [a_name() for _ in range(60)]
    await asyncio.gather(*[store.load(name) for name in names])
    writes: list[int] = []
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, command: Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        pieces = list(command)
        writes.append(sum(piece.count(b"FCALL") for piece in pieces))
        await send(self, pieces, check_health)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    await asyncio.gather(*[store.commit(name, None, a_record(), TERMS) for name in names])
    assert len(writes) == 3
    assert sum(writes) == 60
    owners = {cluster.owner_of(name).port for name in names}
    assert {int(master.node.rpartition(":")[2]) for master in await store._link.masters()} == owners


@pytest.mark.parametrize("user", ["", "app:word@"])
async def test_a_sequence_goes_on_while_its_slot_moves(cluster: RedisCluster, user: str) -> None:
    """ASK is followed for what has moved, MOVED afterwards; also where functions are unknown, and with few rights."""
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "app", "on", ">word", "~ss:*", *RIGHTS.split(), *RIGHTS_CLUSTER.split())
    store = RedisStore.from_url(cluster.url.replace("://", f"://{user}"))
    name = a_name()
    slot, source = _slot(name), cluster.owner_of(name)
    target = _another(cluster, source)
    await store.commit(name, None, a_record(1), TERMS)
    target.ask("FUNCTION", "FLUSH")
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    asks = _errors(source, "ASK")
    assert is_same((await found(store, name)).record, a_record(1))
    assert _errors(source, "ASK") == asks
    source.ask("MIGRATE", "127.0.0.1", target.port, sequence_key("ss", name), 0, 5000)
    assert is_same((await found(store, name)).record, a_record(1))
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
    assert _errors(source, "ASK") == asks + 2
    moves = _errors(source, "MOVED")
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    assert await store.commit(name, Position(1, 2), a_record(3), TERMS) is None
    assert _errors(source, "MOVED") == moves + 1
    assert is_same((await found(store, name)).record, a_record(3))
    assert _errors(source, "MOVED") == moves + 1, "what was learnt is kept"
    await store.close()


async def test_servers_that_do_not_agree_cost_no_more_than_the_time_out(cluster: RedisCluster) -> None:
    """Two masters that send a call to one another for ever: it ends, late and with a bounded number of tries."""
    name = a_name()
    slot, source = _slot(name), cluster.owner_of(name)
    target = _another(cluster, source)
    store = RedisStore.from_url(cluster.url, timeout_s=1.0)
    # The target was not told to import, so it sends back what is sent to it.
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    asks = _errors(source, "ASK")
    try:
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(BOUND_S):
                await store.load(name)
        assert 3 <= _errors(source, "ASK") - asks <= 40
    finally:
        source.ask("CLUSTER", "SETSLOT", slot, "STABLE")
    assert await store.load(name) is Absence.UNKNOWN
    await store.close()


async def test_a_call_that_has_to_wait_is_sent_again(cluster: RedisCluster) -> None:
    """TRYAGAIN: keys of one slot lie in two places for a while; the call waits until they do not."""
    link = connect(cluster.url, LIBRARY.source, {"timeout_s": BOUND_S})
    slot = key_slot(b"{pair}")
    source = cluster.owner(slot)
    target = _another(cluster, source)
    source.ask("SET", "{pair}1", "there")
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    call = link.call(packed(b"MGET", b"{pair}1", b"{pair}2"), key=b"{pair}")
    while not _errors(source, "TRYAGAIN"):
        await a_turn()
    assert not call.reply.done()
    for node in (source, target):
        node.ask("CLUSTER", "SETSLOT", slot, "STABLE")
    assert await call.reply == [b"there", None]
    await link.close()


async def test_a_slot_that_nobody_owns_is_waited_for(cluster: RedisCluster) -> None:
    """CLUSTERDOWN: a call waits for the slot within its time-out, and no longer."""
    name = a_name()
    slot, owner = _slot(name), cluster.owner_of(name)
    impatient = RedisStore.from_url(cluster.url, timeout_s=1.0)
    patient = RedisStore.from_url(cluster.url, timeout_s=BOUND_S)
    await asyncio.gather(impatient.ping(), patient.ping())
    owner.ask("CLUSTER", "DELSLOTS", slot)
    try:
        waiting = asyncio.ensure_future(patient.load(name))
        with pytest.raises(StoreUnavailable):
            await impatient.load(name)
        assert not waiting.done()
    finally:
        owner.ask("CLUSTER", "ADDSLOTS", slot)
    assert await waiting is Absence.UNKNOWN
    await asyncio.gather(impatient.close(), patient.close())


async def test_a_planned_fail_over_loses_nothing(cluster: RedisCluster, store: RedisStore) -> None:
    """A replica takes over in good order: what was committed is there, and the sequence goes on."""
    master, replica = cluster.pair()
    name = _name_on(cluster, master)
    await store.commit(name, None, a_record(1), TERMS)
    replica.ask("CLUSTER", "FAILOVER")
    cluster.until(lambda: cluster.pair() == (replica, master) and cluster.is_replicated())
    await _asked_again(lambda: store.load(name))
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
    assert cluster.owner_of(name) is replica
    assert is_same((await found(store, name)).record, a_record(2))


async def test_a_sequence_goes_on_when_its_master_dies(cluster: RedisCluster, store: RedisStore) -> None:
    """Refused while nobody has its slot; then the replica that takes over has it. Other masters notice nothing."""
    master, replica = cluster.pair()
    name = _name_on(cluster, master)
    elsewhere = _name_on(cluster, cluster.masters[1])
    await store.commit(name, None, a_record(1), TERMS)
    offset = master.told("replication")["master_repl_offset"]
    cluster.until(lambda: replica.told("replication")["slave_repl_offset"] >= offset)
    master.stop()
    with pytest.raises(StoreUnavailable):
        await store.load(name)
    assert await store.load(elsewhere) is Absence.UNKNOWN
    replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    await _asked_again(lambda: store.load(name))
    assert is_same((await found(store, name)).record, a_record(1))
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS) is None
    master.start()
    cluster.until(lambda: cluster.pair() == (replica, master) and cluster.is_replicated())


async def test_a_master_that_hangs_stops_only_its_own_sequences(cluster: RedisCluster) -> None:
    """Calls to a stopped master end in time; those to the others are answered meanwhile."""
    store = RedisStore.from_url(cluster.url, timeout_s=1.0)
    hanging, well = cluster.masters[1], cluster.masters[2]
    here, there = _name_on(cluster, hanging), _name_on(cluster, well)
    await store.ping()
    hanging.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(BOUND_S):
            late, answered = await asyncio.gather(store.load(here), store.load(there), return_exceptions=True)
    finally:
        hanging.signal(signal.SIGCONT)
    assert isinstance(late, StoreUnavailable)
    assert answered is Absence.UNKNOWN
    await _asked_again(lambda: store.load(here))
    await store.close()


async def test_a_cluster_that_cannot_be_reached_is_told_at_once() -> None:
    """Nobody listens: every call says so without waiting for its time-out, and so does the question who is master."""
    store = RedisStore.from_url("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout_s=600)
    async with asyncio.timeout(BOUND_S):
        for call in (store.ping(), store.load(a_name()), store.names("t", "m")):
            with pytest.raises(StoreUnavailable):
                await call
    await store.close()


async def test_a_server_that_is_no_cluster_is_told() -> None:
    """The address of a cluster that leads to a single server is an error that says so."""
    with RedisServer(port=free_port()) as server:
        store = RedisStore.from_url(f"redis+cluster://127.0.0.1:{server.port}")
        with pytest.raises(StoreUnavailable, match="no cluster"):
            await store.ping()
        await store.close()


async def test_close_ends_what_waits(cluster: RedisCluster) -> None:
    """Calls that wait for the map of slots when the store closes are refused at once, and so is what comes after."""
    store = RedisStore.from_url(cluster.url, timeout_s=600)
    waiting = [asyncio.ensure_future(store.load(a_name())) for _ in range(3)]
    await a_turn()
    async with asyncio.timeout(BOUND_S):
        await store.close()
        for call in (*waiting, store.ping(), store.names("t", "m")):
            with pytest.raises(StoreUnavailable):
                await call
