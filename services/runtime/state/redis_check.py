"""What is wrong, or may become wrong, with a Redis server that keeps sequences."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from services.runtime.core.errors import StatestreamError
from services.runtime.state.redis_errors import RefusedError
from services.runtime.state.redis_line import packed

if TYPE_CHECKING:
    from services.runtime.state.redis_link import RedisLink, StoreLink

VERSION_MIN = 7


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


async def findings(link: StoreLink) -> list[Finding]:
    """All that can be found out with the rights that we have. Raises nothing."""
    try:
        return [finding for master in await link.masters() for finding in await _of_one(master)]
    except StatestreamError as error:
        return [Finding(Severity.ERROR, error.message, "check STATESTREAM_REDIS_URL, and that the servers run")]


async def _of_one(link: RedisLink) -> list[Finding]:
    try:
        await link.call(packed(b"PING")).reply
        known = await _known(link)
    except StatestreamError as error:
        return [Finding(Severity.ERROR, error.message, "check STATESTREAM_REDIS_URL, and that the server runs")]
    told = [_version(known), _eviction(known), _persistence(known), _role(known)]
    told.append(await _functions(link))
    return [finding for finding in told if finding is not None]


async def _known(link: RedisLink) -> dict[str, str]:
    """What INFO and CONFIG tell; a part is missing where the user may not ask."""
    known: dict[str, str] = {}
    try:
        for line in bytes(await link.call(packed(b"INFO")).reply).decode(errors="replace").splitlines():
            key, _, value = line.partition(":")
            known[key] = value
    except RefusedError:
        pass
    try:
        saves = await link.call(packed(b"CONFIG", b"GET", b"save")).reply
        known["save"] = bytes(saves[1]).decode(errors="replace") if saves else ""
    except RefusedError:
        pass  # managed servers forbid CONFIG; INFO tells most of it
    return known


def _version(known: dict[str, str]) -> Finding:
    version = known.get("redis_version")
    if version is None:
        return Finding(
            Severity.WARNING,
            "the server's version cannot be read: the user may not call INFO",
            f"grant +info, or make sure that it is {VERSION_MIN} or later",
        )
    if int(version.partition(".")[0]) < VERSION_MIN:
        return Finding(
            Severity.ERROR, f"Redis {version} has no functions", f"install Redis {VERSION_MIN}, or Valkey, or later"
        )
    return Finding(Severity.GOOD, f"Redis {version}")


def _eviction(known: dict[str, str]) -> Finding | None:
    policy = known.get("maxmemory_policy")
    if policy is None:
        return None
    if policy != "noeviction":
        return Finding(
            Severity.ERROR if known.get("maxmemory", "0") != "0" else Severity.WARNING,
            f"maxmemory-policy is {policy}: a full server drops live sequences",
            "set maxmemory-policy noeviction: a full server then refuses new sequences",
        )
    return Finding(Severity.GOOD, "live sequences are never dropped for want of memory")


def _persistence(known: dict[str, str]) -> Finding | None:
    if known.get("aof_enabled") == "1":
        return Finding(Severity.GOOD, "sequences survive a restart of the server (append-only file)")
    if known.get("save"):
        return Finding(
            Severity.WARNING,
            "a crash of the server loses the steps since its last snapshot",
            "set appendonly yes and appendfsync everysec",
        )
    if "aof_enabled" not in known or "save" not in known:
        return Finding(
            Severity.WARNING,
            "whether sequences survive a restart of the server cannot be read",
            "grant +info and +config|get, or make sure that appendonly is on",
        )
    return Finding(
        Severity.WARNING,
        "nothing is written to disk: a restart of the server loses all sequences",
        "set appendonly yes and appendfsync everysec",
    )


def _role(known: dict[str, str]) -> Finding | None:
    if known.get("role") == "slave":
        return Finding(Severity.ERROR, "the server is a read-only replica", "connect to the primary")
    return None


async def _functions(link: RedisLink) -> Finding:
    try:
        await link.load_library()
    except RefusedError as error:
        return Finding(
            Severity.ERROR,
            f"the functions cannot be loaded: {error.code}",
            "grant +function|load, +fcall and +fcall_ro, and all keys that begin with the prefix",
        )
    except StatestreamError as error:
        return Finding(Severity.ERROR, f"the functions cannot be loaded: {error.message}", "see the server's log")
    return Finding(Severity.GOOD, "the functions are loaded")
