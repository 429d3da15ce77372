"""What `RedisStore.check` finds out about a server, for `statestream doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from services.runtime.state.redis import RedisStore
from services.runtime.state.redis_check import Finding, Severity
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may configure."""
    with RedisServer() as server:
        yield server


async def _checked(url: str) -> list[Finding]:
    store = RedisStore.from_url(url, timeout_s=1.0)
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


async def test_a_well_kept_server_has_nothing_to_mend(server: RedisServer) -> None:
    """With an append-only file and no eviction all findings are good, and there are some."""
    await _configure(server.url, appendonly="yes")
    findings = await _checked(server.url)
    assert len(findings) >= 4
    assert _bad(findings) == []


async def test_eviction_is_an_error_where_memory_is_bounded(server: RedisServer) -> None:
    """A policy that drops keys is a warning, and an error once a bound makes it happen."""
    await _configure(server.url, appendonly="yes", maxmemory_policy="allkeys-lru")
    (unbounded,) = _bad(await _checked(server.url))
    await _configure(server.url, maxmemory="100mb")
    (bounded,) = _bad(await _checked(server.url))
    assert (unbounded[0], bounded[0]) == (Severity.WARNING, Severity.ERROR)
    assert "allkeys-lru" in bounded[1]


@pytest.mark.parametrize(("save", "said"), [("", "nothing is written"), ("60 1", "since its last snapshot")])
async def test_persistence_is_told(server: RedisServer, save: str, said: str) -> None:
    """No disk at all and snapshots alone are warnings that say what is lost."""
    await _configure(server.url, save=save)
    ((severity, text),) = _bad(await _checked(server.url))
    assert severity is Severity.WARNING
    assert said in text


async def test_an_unreachable_server_is_one_error() -> None:
    """Where nobody listens the check says that, and does not fail itself."""
    ((severity, _),) = _bad(await _checked("redis://127.0.0.1:1/0"))
    assert severity is Severity.ERROR


async def _with_rights(server: RedisServer, *rules: str) -> list[Finding]:
    async with redis.asyncio.from_url(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "app", "on", ">word", "~*", *rules)
    return await _checked(server.url.replace("unix://", "unix://app:word@"))


async def test_a_user_with_few_rights_is_enough(server: RedisServer) -> None:
    """Where CONFIG and INFO are forbidden the check warns of what it cannot see."""
    rights = [
        "-@all",
        "+ping",
        "+fcall",
        "+fcall_ro",
        "+function|load",
        "+hmget",
        "+hset",
        "+hget",
        "+pexpireat",
        "+time",
    ]
    findings = await _with_rights(server, *rights, "+client")
    assert {severity for severity, _ in _bad(findings)} == {Severity.WARNING}
    assert any("functions are loaded" in finding.text for finding in findings)


async def test_a_user_who_may_not_load_functions_is_told(server: RedisServer) -> None:
    """Without the right to load functions nothing works; the remedy names the right."""
    findings = await _with_rights(server, "+@all", "-function")
    (refused,) = [finding for finding in findings if finding.severity is Severity.ERROR]
    assert "NOPERM" in refused.text
    assert "+function|load" in refused.remedy


async def test_a_replica_is_refused(server: RedisServer) -> None:
    """A read-only replica is an error: nothing can be committed there."""
    async with redis.asyncio.from_url(server.url) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        texts = [text for severity, text in _bad(await _checked(server.url)) if severity is Severity.ERROR]
        await client.execute_command("REPLICAOF", "NO", "ONE")
    assert any("read-only replica" in text for text in texts)
