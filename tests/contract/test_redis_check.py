"""What `RedisStore.check` finds out about a server, for `statestream doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import pytest
import redis.asyncio

from services.runtime.state.redis.check import (
    RIGHTS,
    RIGHTS_CLUSTER,
    RIGHTS_DOCTOR,
    RIGHTS_REPLICAS,
    Finding,
    Severity,
)
from services.runtime.state.redis.connect import connect
from services.runtime.state.redis.store import RedisStore
from tests.contract.store_kit import StoreKit
from tests.kit.processes import free_port
from tests.kit.redis_cluster import RedisCluster
from tests.kit.redis_server import RedisServer
from tests.kit.redis_time import RedisLapse
from tests.unit.house.tree import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from services.runtime.state.redis.connect import LinkOptions
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may configure."""
    with RedisServer(port=free_port()) as server:
        yield server


async def _checked(url: str, **options: Unpack[LinkOptions]) -> list[Finding]:
    store = RedisStore.from_url(url, **options)
    try:
        return await store.check()
    finally:
        await store.close()


def _bad(findings: list[Finding]) -> list[tuple[Severity, str]]:
    """Severity and text of all that is not good; each must say how to mend it."""
    assert all(finding.remedy for finding in findings if finding.severity is not Severity.GOOD)
    return [(finding.severity, finding.text) for finding in findings if finding.severity is not Severity.GOOD]


async def _configure(url: str, **settings: str) -> None:
    async with redis.asyncio.from_url(url) as client:
        for name, value in settings.items():
            await client.config_set(name.replace("_", "-"), value)


WELL_KEPT = {"appendonly": "yes", "maxmemory": "100mb"}


async def test_a_well_kept_server_has_nothing_to_mend(server: RedisServer) -> None:
    """With an append-only file, bounded memory and no eviction all findings are good, and there are some."""
    await _configure(server.url, **WELL_KEPT)
    findings = await _checked(server.url)
    assert len(findings) >= 5
    assert _bad(findings) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_eviction_is_an_error(server: RedisServer, policy: str) -> None:
    """A policy that drops keys is an error, also one that spares keys without an expiry: ours have one."""
    await _configure(server.url, **WELL_KEPT, maxmemory_policy=policy)
    ((severity, text),) = _bad(await _checked(server.url))
    assert severity is Severity.ERROR
    assert policy in text


async def test_unbounded_memory_is_told(server: RedisServer) -> None:
    """Without maxmemory the server grows until something else stops it."""
    await _configure(server.url, **WELL_KEPT | {"maxmemory": "0"})
    ((severity, text),) = _bad(await _checked(server.url))
    assert severity is Severity.WARNING
    assert "maxmemory" in text


@pytest.mark.parametrize(("save", "said"), [("", "nothing is written"), ("60 1", "since its last snapshot")])
async def test_persistence_is_told(server: RedisServer, save: str, said: str) -> None:
    """No disk at all and snapshots alone are warnings that say what is lost."""
    await _configure(server.url, maxmemory="100mb", save=save)
    ((severity, text),) = _bad(await _checked(server.url))
    assert severity is Severity.WARNING
    assert said in text


@pytest.mark.parametrize(
    ("appendfsync", "said", "severity"),
    [
        ("always", "on disk before its reply", Severity.GOOD),
        ("everysec", "two seconds", Severity.GOOD),
        ("no", "has not flushed", Severity.WARNING),
    ],
)
async def test_what_a_crash_costs_is_told(server: RedisServer, appendfsync: str, said: str, severity: Severity) -> None:
    """How often the append-only file is flushed decides what a crash forgets."""
    await _configure(server.url, **WELL_KEPT, appendfsync=appendfsync)
    (told,) = [finding for finding in await _checked(server.url) if "appendfsync" in finding.text]
    assert said in told.text
    assert told.severity is severity


async def test_an_unreachable_server_is_one_error() -> None:
    """Where nobody listens the check says that, and does not fail itself."""
    for url in ("redis://127.0.0.1:1/0", "redis+sentinel://127.0.0.1:1/main", "redis+cluster://127.0.0.1:1"):
        ((severity, _),) = _bad(await _checked(url))
        assert severity is Severity.ERROR


async def _with_rights(server: RedisServer, *rules: str) -> list[Finding]:
    server.ask("ACL", "SETUSER", "app", "reset", "on", ">word", "~ss:*", *rules)
    return await _checked(server.url.replace("unix://", "unix://app:word@"))


async def test_the_rights_that_are_documented_are_enough(server: RedisServer) -> None:
    """A user with exactly these rights has nothing to mend; the page for operators names the same ones."""
    await _configure(server.url, **WELL_KEPT)
    findings = await _with_rights(server, *RIGHTS.split(), *RIGHTS_DOCTOR.split())
    assert _bad(findings) == []
    page = " ".join((ROOT / "docs/operations.md").read_text().split())
    for rights in (RIGHTS, RIGHTS_CLUSTER, RIGHTS_REPLICAS, RIGHTS_DOCTOR):
        assert rights in page


async def test_without_what_the_doctor_looks_at_it_says_so(server: RedisServer) -> None:
    """Where CONFIG is forbidden, as on managed servers, the check tells what it cannot see, and goes on."""
    findings = await _with_rights(server, *RIGHTS.split())
    assert {severity for severity, _ in _bad(findings)} == {Severity.WARNING}
    assert any("cannot be read" in text for _, text in _bad(findings))
    assert any("begun, kept and ended" in finding.text for finding in findings)


@pytest.mark.parametrize("right", [right for right in RIGHTS.split() if right not in {"+select", "+client|setname"}])
async def test_every_right_is_needed(server: RedisServer, right: str) -> None:
    """Without any one of them there is an error or, for INFO alone, a warning; an error names the rights."""
    findings = await _with_rights(server, *[each for each in RIGHTS.split() if each != right])
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    assert errors
    if right != "+ping":
        assert RIGHTS in errors[0].remedy


async def test_a_user_who_sees_other_keys_only_is_told(server: RedisServer) -> None:
    """The rights count for keys that begin with the prefix: without them no sequence can be kept."""
    server.ask("ACL", "SETUSER", "app", "reset", "on", ">word", "~other:*", *RIGHTS.split())
    findings = await _checked(server.url.replace("unix://", "unix://app:word@"))
    (refused,) = [finding for finding in findings if finding.severity is Severity.ERROR]
    assert "~ss:*" in refused.remedy


async def test_a_replica_is_refused(server: RedisServer) -> None:
    """A read-only replica is an error: nothing can be committed there."""
    async with redis.asyncio.from_url(server.url) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        texts = [text for severity, text in _bad(await _checked(server.url)) if severity is Severity.ERROR]
        await client.execute_command("REPLICAOF", "NO", "ONE")
    assert any("read-only replica" in text for text in texts)


async def test_replicas_are_counted_against_what_is_waited_for(server: RedisServer) -> None:
    """Too few are an error; just enough, and a primary that would go on alone, are told."""
    await _configure(server.url, **WELL_KEPT)
    missing = _bad(await _checked(server.url, replicas_acked=1))
    assert [severity for severity, _ in missing] == [Severity.ERROR]
    with RedisServer("--replicaof", f"127.0.0.1 {server.port}"):
        while b"state=online" not in server.ask("INFO", "replication"):
            continue
        told = [text for _, text in _bad(await _checked(server.url, replicas_acked=1))]
        assert ["one replica stops" in text for text in told] == [True, False]
        assert "cut off" in told[1]
        await _configure(server.url, min_replicas_to_write="1")
        assert len(_bad(await _checked(server.url, replicas_acked=1))) == 1
        assert any("do not wait" in finding.text for finding in await _checked(server.url))
        await _configure(server.url, min_replicas_to_write="0")


async def test_connections_that_run_out_are_told(server: RedisServer) -> None:
    """Nearly as many connections as the server allows are a warning."""
    await _configure(server.url, **WELL_KEPT, maxclients="2")
    async with redis.asyncio.from_url(server.url) as another:
        await another.ping()
        ((severity, text),) = _bad(await _checked(server.url, connections=1))
    assert severity is Severity.WARNING
    assert "connections" in text


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("redis://127.0.0.1", False),
        ("redis://localhost", False),
        ("redis://[::1]", False),
        ("unix:///run/redis.sock", False),
        ("redis://10.0.0.1", True),
        ("rediss://10.0.0.1", False),
        ("redis+sentinel://127.0.0.1,10.0.0.1/main", True),
        ("rediss+sentinel://10.0.0.1/main", False),
    ],
)
async def test_what_can_be_read_on_its_way_is_known(url: str, exposed: bool) -> None:  # noqa: FBT001
    """Without TLS a link is exposed unless it stays on this machine."""
    link = connect(url, b"", {})
    assert [master.exposed for master in await link.masters()] == [exposed]
    await link.close()


async def test_a_cluster_is_looked_at_server_by_server() -> None:
    """Each finding names its server; slots that nobody serves, and a node asked as if it were alone, are errors."""
    with RedisCluster() as cluster:
        findings = await _checked(cluster.url)
        for node in cluster.masters:
            assert any(finding.text.startswith(f"127.0.0.1:{node.port}: ") for finding in findings)
        assert {severity for severity, _ in _bad(findings)} == {Severity.WARNING}
        assert sum("takes over" in text for _, text in _bad(findings)) == 3
        alone = _bad(await _checked(f"redis://127.0.0.1:{cluster.masters[0].port}"))
        assert any("one of a cluster" in text for severity, text in alone if severity is Severity.ERROR)
        cluster.masters[2].ask("CLUSTER", "DELSLOTS", 16383)
        unserved = _bad(await _checked(cluster.url))
        assert any("16383 of 16384" in text for severity, text in unserved if severity is Severity.ERROR)


@pytest.fixture(scope="module")
def strict_url() -> Iterator[str]:
    """Address of a server, with a user that has exactly the documented rights."""
    with RedisServer() as server:
        server.ask("ACL", "SETUSER", "app", "on", ">word", "~ss:*", *RIGHTS.split())
        yield server.url.replace("unix://", "unix://app:word@")


class TestRedisStoreOfAUserWithFewRights(StoreKit):
    """The kit with a user that has exactly the documented rights."""

    @pytest.fixture
    async def store(self, strict_url: str) -> AsyncIterator[StateStore]:
        """A store of that user."""
        store = RedisStore.from_url(strict_url)
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, strict_url: str) -> AsyncIterator[StateStore]:
        """A second one."""
        store = RedisStore.from_url(strict_url)
        yield store
        await store.close()

    @pytest.fixture
    def lapse(self, strict_url: str) -> Lapse:
        """Passes time, with all rights."""
        return RedisLapse(strict_url.replace("app:word@", ""))
