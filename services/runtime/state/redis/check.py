"""What is wrong, or may become wrong, with the Redis servers that keep sequences."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from services.runtime.core.errors import StatestreamError
from services.runtime.core.ids import ModelId, SequenceName, new_sequence_id
from services.runtime.state.redis.cluster import ClusterLink
from services.runtime.state.redis.errors import RefusedError
from services.runtime.state.redis.line import packed
from services.runtime.state.types import Carry, Durability, Position, Record, Terms

if TYPE_CHECKING:
    from services.runtime.state.redis.link import RedisLink, StoreLink
    from services.runtime.state.store import StateStore

VERSION_MIN: Final = 7

RIGHTS: Final = (
    "+ping +client|setname +select +fcall +fcall_ro +function|load "
    "+time +hmget +hget +hset +hdel +pexpireat +scan +info"
)
"""Rules of an access list with all that a server calls, on the keys that begin with the prefix, `~ss:*`."""

RIGHTS_CLUSTER: Final = "+cluster|slots +asking"
"""What a cluster takes besides."""

RIGHTS_REPLICAS: Final = "+wait +publish &statestream"
"""What it takes besides to wait for replicas."""

RIGHTS_DOCTOR: Final = "+config|get +cluster|info"
"""What the doctor looks at besides."""

_LOOKED_AT: Final = (b"save", b"appendfsync", b"min-replicas-to-write")
_CLIENTS_SHARE: Final = 0.8
_TRIAL_TERMS: Final = Terms(idle_ms=60_000, lifetime_ms=60_000, retention_ms=1)


class Severity(Enum):
    """How bad a finding is."""

    GOOD = "good"
    WARNING = "warning"
    """It works; something may be lost one day."""
    ERROR = "error"
    """It does not work, or sequences will be lost."""


class Finding(NamedTuple):
    """One thing found; `remedy` says how to mend it and is empty where nothing is to be done."""

    severity: Severity
    text: str
    remedy: str = ""


def _good(text: str) -> Finding:
    return Finding(Severity.GOOD, text)


def _warning(text: str, remedy: str) -> Finding:
    return Finding(Severity.WARNING, text, remedy)


def _error(text: str, remedy: str) -> Finding:
    return Finding(Severity.ERROR, text, remedy)


async def findings(link: StoreLink, store: StateStore) -> list[Finding]:
    """All that can be found out with the rights that we have; `store` is the one that uses `link`. Raises nothing."""
    try:
        masters = await link.masters()
    except StatestreamError as error:
        return [_error(error.message, "check STATESTREAM_REDIS_URL, and that the servers run")]
    in_cluster = isinstance(link, ClusterLink)
    found: list[Finding] = []
    for master in masters:
        told = await _of_one(master, in_cluster=in_cluster)
        found += [each._replace(text=f"{master.node}: {each.text}") if in_cluster else each for each in told]
    if not any(each.severity is Severity.ERROR for each in found):
        found.append(await _trial(store))
    return found


async def _of_one(link: RedisLink, *, in_cluster: bool) -> list[Finding]:
    try:
        await link.call(packed(b"PING")).reply
        known = await _known(link)
        told = [
            _exposure(link),
            _version(known),
            _eviction(known),
            _memory(known),
            *_persistence(known),
            _role(known),
            *_replicas(known, link.replicas_acked),
            _clients(known),
            await _cluster(link, known, in_cluster=in_cluster),
        ]
    except StatestreamError as error:
        return [_error(error.message, "check STATESTREAM_REDIS_URL, and that the servers run")]
    told.append(await _functions(link))
    return [finding for finding in told if finding is not None]


async def _known(link: RedisLink) -> dict[str, str]:
    """What INFO and CONFIG tell; a part is missing where the user may not ask."""
    known = await _pairs(link, b"INFO")
    try:
        kept = await link.call(packed(b"CONFIG", b"GET", *_LOOKED_AT)).reply
        texts = [bytes(each).decode(errors="replace") for each in kept]
        known.update(zip(texts[::2], texts[1::2], strict=True))
    except RefusedError:
        pass  # managed servers forbid CONFIG; INFO tells most of it
    return known


async def _pairs(link: RedisLink, *command: bytes) -> dict[str, str]:
    """The lines of `key:value` that a command answers; none where the user may not ask."""
    try:
        text = bytes(await link.call(packed(*command)).reply).decode(errors="replace")
    except RefusedError:
        return {}
    return {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}


def _exposure(link: RedisLink) -> Finding | None:
    if link.exposed:
        return _warning(
            "what is sent there, the password among it, can be read on its way",
            "use an address that begins with rediss, unless the network is trusted",
        )
    return None


def _version(known: dict[str, str]) -> Finding:
    version = known.get("redis_version")
    if version is None:
        return _warning(
            "the server's version cannot be read: the user may not call INFO",
            f"grant +info, or make sure that it is {VERSION_MIN} or later",
        )
    if int(version.partition(".")[0]) < VERSION_MIN:
        return _error(f"Redis {version} has no functions", f"install Redis {VERSION_MIN}, or Valkey, or later")
    return _good(f"Redis {version}")


def _eviction(known: dict[str, str]) -> Finding | None:
    policy = known.get("maxmemory_policy")
    if policy is None:
        return None
    if policy != "noeviction":
        # Every sequence has a time to live, so the policies that spare keys without one spare none.
        return _error(
            f"maxmemory-policy is {policy}: a full server drops live sequences",
            "set maxmemory-policy noeviction: a full server then refuses new sequences",
        )
    return _good("live sequences are never dropped for want of memory")


def _memory(known: dict[str, str]) -> Finding | None:
    if known.get("maxmemory") == "0":
        return _warning(
            "maxmemory is not set: a server that outgrows its machine is killed by it",
            "set maxmemory to half of what the server may take: rewriting its file copies pages",
        )
    return None


def _persistence(known: dict[str, str]) -> list[Finding]:
    if known.get("aof_enabled") == "1":
        if known.get("aof_last_write_status", "ok") != "ok" or known.get("aof_last_bgrewrite_status", "ok") != "ok":
            return [_error("the server cannot write its append-only file", "look at its log and its disk")]
        return [_flushing(known.get("appendfsync"))]
    if known.get("save"):
        return [
            _warning(
                "a crash of the server loses the steps since its last snapshot",
                "set appendonly yes and appendfsync everysec, or always",
            )
        ]
    if "aof_enabled" not in known or "save" not in known:
        return [
            _warning(
                "whether sequences survive a restart of the server cannot be read",
                "grant +info and +config|get, or make sure that appendonly is on",
            )
        ]
    return [
        _warning(
            "nothing is written to disk: a restart of the server loses all sequences",
            "set appendonly yes and appendfsync everysec, or always",
        )
    ]


def _flushing(appendfsync: str | None) -> Finding:
    if appendfsync == "always":
        return _good("a step is on disk before its reply leaves (appendfsync always)")
    if appendfsync == "everysec":
        return _good("a crash of the server loses two seconds of steps at most (appendfsync everysec)")
    if appendfsync is None:
        return _good("sequences survive a restart of the server (append-only file)")
    return _warning(
        f"a crash of the machine loses what it has not flushed by itself (appendfsync {appendfsync})",
        "set appendfsync everysec, or always",
    )


def _role(known: dict[str, str]) -> Finding | None:
    if known.get("role") == "slave":
        return _error("the server is a read-only replica", "connect to the primary")
    return None


def _replicas(known: dict[str, str], acked: int) -> list[Finding]:
    if "connected_slaves" not in known:
        return []
    connected = int(known["connected_slaves"])
    if connected < acked:
        return [
            _error(
                f"commits wait for {acked} replicas and {connected} are connected: all of them fail",
                "start replicas, or lower STATESTREAM_REDIS_REPLICAS_ACKED",
            )
        ]
    if not acked:
        return [_good(f"{connected} replicas, which commits do not wait for")] if connected else []
    found = [_good(f"commits wait for {acked} of {connected} replicas")]
    if connected == acked:
        found.append(_warning("the loss of one replica stops all commits", "start one replica more"))
    if int(known.get("min-replicas-to-write", acked)) < acked:
        found.append(
            _warning(
                "a primary that is cut off from its replicas goes on taking writes, and loses them",
                f"set min-replicas-to-write {acked} and min-replicas-max-lag 10",
            )
        )
    return found


def _clients(known: dict[str, str]) -> Finding | None:
    connected, most = known.get("connected_clients"), known.get("maxclients")
    if connected and most and int(connected) > _CLIENTS_SHARE * int(most):
        return _warning(
            f"{connected} of {most} possible connections are open",
            "raise maxclients, or lower STATESTREAM_REDIS_CONNECTIONS",
        )
    return None


async def _cluster(link: RedisLink, known: dict[str, str], *, in_cluster: bool) -> Finding | None:
    if not in_cluster:
        if known.get("cluster_enabled") == "1":
            return _error("the server is one of a cluster", "use an address that begins with redis+cluster")
        return None
    told = await _pairs(link, b"CLUSTER", b"INFO")
    state, slots = told.get("cluster_state"), told.get("cluster_slots_ok")
    if state is None:
        return None
    if state != "ok" or slots != "16384":
        return _error(f"the cluster is {state}, {slots} of 16384 slots are served", "redis-cli --cluster fix")
    if known.get("connected_slaves") == "0":
        return _warning("nobody takes over when this master dies", "give it a replica")
    return _good("all slots of the cluster are served")


async def _functions(link: RedisLink) -> Finding:
    try:
        await link.load_library()
    except RefusedError as error:
        return _error(f"the functions cannot be loaded: {error.code}", f"grant {RIGHTS}")
    except StatestreamError as error:
        return _error(f"the functions cannot be loaded: {error.message}", "see the server's log")
    return _good("the functions are loaded")


async def _trial(store: StateStore) -> Finding:
    """Begins a sequence, goes on with it, looks at it and ends it, as a server does."""
    name = SequenceName("statestream", "doctor", new_sequence_id())
    model = ModelId(name.model, "0", "")
    before: Position | None = None
    try:
        for step, carry in enumerate((Carry((), b""), Carry((), b""), None), 1):
            record = Record(Position(1, step), model, Durability.STEP, carry, ())
            await store.commit(name, before, record, _TRIAL_TERMS, keep=1)
            await store.load(name)
            await store.load_checkpoint(name, 1)
            before = record.position
        await store.names(name.tenant, name.model)
    except RefusedError as error:
        besides = f"; with a cluster {RIGHTS_CLUSTER}; with replicas that are waited for {RIGHTS_REPLICAS}"
        return _error(f"a sequence cannot be kept: {error.code}", f"grant {RIGHTS} on ~ss:*{besides}")
    except StatestreamError as error:
        return _error(f"a sequence cannot be kept: {error.message}", "see the server's log")
    return _good("a sequence was begun, kept and ended")
