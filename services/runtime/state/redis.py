"""Sequences kept in Redis 7 or later: any replica goes on where another one stopped."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.runtime.core.errors import StateCorrupt, StoreUnavailable
from services.runtime.state.format import RecordFormat
from services.runtime.state.redis_check import Finding, findings
from services.runtime.state.redis_link import RedisLink, packed
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Stored

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Position, Record, Terms

_TEXT: Final = Path(__file__).with_name("sequences.lua").read_bytes()
_VERSION: Final = b"statestream_v1"
_LIBRARY: Final = _VERSION + b"_" + hashlib.sha256(_TEXT).hexdigest()[:8].encode()
"""Changes with the text, so replicas of different versions share one server and nothing is ever replaced."""

_SOURCE: Final = _TEXT.replace(_VERSION, _LIBRARY)


def _head(command: bytes, function: bytes, arguments: int) -> bytes:
    """The beginning of a packed call of `function` with one key and `arguments`, up to the key."""
    called = packed(command, _LIBRARY + function, b"1")
    return b"*%d\r\n" % (4 + arguments) + called.partition(b"\r\n")[2]


_LOAD: Final = _head(b"FCALL_RO", b"_load", 0)
_COMMIT: Final = _head(b"FCALL", b"_commit", 8)
_END: Final = _head(b"FCALL", b"_end", 8)
_NEW_EPOCH: Final = (b"$1\r\n0\r\n", b"$1\r\n1\r\n")
_ENDED: Final = (b"$1\r\n0\r\n", b"$1\r\n1\r\n")


class RedisStore:
    """A `StateStore` on Redis.

    `commit` is one call of a function that compares and sets, `load` is one, too; both go by the server's clock. All
    that is asked in one turn of the event loop leaves in one write.

    `pool` makes the connections, without time-outs and retries of its own and with RESP2; `from_url` makes one for a
    standalone server, and a `SentinelConnectionPool` does as well. Every call ends within `timeout_s` seconds. With
    `record_key` records are signed. `prefix` keeps installations apart that share a server.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout_s: float = 2.0,
        connections: int = 2,
        record_key: bytes | None = None,
        prefix: str = "ss",
    ) -> None:
        self._link = RedisLink(pool, connections=connections, timeout_s=timeout_s, library=_SOURCE)
        self._format = RecordFormat(record_key)
        self._prefix = prefix

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_s: float = 2.0,
        connections: int = 2,
        record_key: bytes | None = None,
        prefix: str = "ss",
    ) -> Self:
        """A store on the server at `url`: `redis://`, `rediss://` (TLS) or `unix://`, with user and password.

        Raises:
            ValueError: `url` cannot be read; its text is not repeated, for it may hold a password.
        """
        try:
            pool = ConnectionPool.from_url(
                url,
                protocol=2,
                client_name="statestream",
                max_connections=connections,
                # The link bounds every call as a whole, and knows what may be sent twice.
                socket_timeout=None,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except Exception:  # noqa: BLE001 - a part of the password may be in any text of redis-py's or urllib's
            raise ValueError("the address of Redis cannot be read: redis://user:password@host:port/database") from None
        return cls(pool, timeout_s=timeout_s, connections=connections, record_key=record_key, prefix=prefix)

    async def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        key = sequence_key(self._prefix, name)
        call = self._link.call(b"%b$%d\r\n%b\r\n" % (_LOAD, len(key), key), key=key)
        found = await call.reply
        return Absence.UNKNOWN if found is None else self._stored(name, found)

    async def commit(
        self, name: SequenceName, expected: Position | None, record: Record, terms: Terms
    ) -> Conflict | None:
        """See `StateStore`."""
        key = sequence_key(self._prefix, name)
        data = self._format.encode(name, record)
        before = b"" if expected is None else b"%d:%d" % expected
        after = b"%d:%d" % record.position
        ended = record.ended
        head = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b%b%b$%d\r\n" % (
            _END if ended else _COMMIT,
            len(key),
            key,
            len(before),
            before,
            len(after),
            after,
            _NEW_EPOCH[expected is None or expected.epoch != record.position.epoch],
            _ENDED[ended],
            _durations(terms),
            len(data),
        )
        call = self._link.call(head, data, b"\r\n", key=key, writes=True)
        found = await call.reply
        if found == 1:
            return None
        if found is None:
            return Conflict(Absence.UNKNOWN)
        if call.repeated and found[0] == data:
            # The first sending was applied before its connection broke; what stands there is ours.
            return None
        return Conflict(self._stored(name, found))

    async def ping(self) -> None:
        """See `StateStore`."""
        await self._link.call(packed(b"PING")).reply

    async def close(self) -> None:
        """See `StateStore`."""
        await self._link.close()

    async def check(self) -> list[Finding]:
        """What an operator should know about the server; made for `statestream doctor`. Raises nothing."""
        return await findings(self._link)

    def _stored(self, name: SequenceName, found: list[bytes | int]) -> Stored:
        data, position, expires_at_ms, expired = found
        if not (isinstance(data, bytes) and isinstance(position, bytes) and isinstance(expires_at_ms, bytes)):
            raise StoreUnavailable("the state store gave an impossible answer")
        try:
            return Stored(self._record(name, data, position), int(expires_at_ms) / 1000, len(data), bool(expired))
        except ValueError:
            raise StateCorrupt("the time when the stored record expires is damaged") from None
        except StateCorrupt as error:
            # Who starts the sequence anew has to name this position to replace what is damaged.
            epoch, _, step = position.partition(b":")
            if epoch.isdigit() and step.isdigit():
                error.metadata.update(epoch=epoch.decode(), step=step.decode())
            raise

    def _record(self, name: SequenceName, data: bytes, position: bytes) -> Record:
        record = self._format.decode(name, data)
        if b"%d:%d" % record.position != position:
            raise StateCorrupt("the stored record is not at the position that stands beside it")
        return record


def sequence_key(prefix: str, name: SequenceName) -> bytes:
    """The key of the hash that holds the sequence `name`."""
    tenant, model, sequence_id = name
    # Quoted, nothing holds ":" or "{": names stay apart, and Redis Cluster spreads them over all of its slots.
    if not (sequence_id.isascii() and sequence_id.isalnum()):
        sequence_id = quote(sequence_id, safe="")
    return f"{_owner(prefix, tenant, model)}{sequence_id}".encode()


@lru_cache(1024)
def _owner(prefix: str, tenant: str, model: str) -> str:
    return "".join(f"{quote(part, safe='')}:" for part in (prefix, tenant, model))


@lru_cache(256)
def _durations(terms: Terms) -> bytes:
    """Idle, lifetime and retention time as packed arguments."""
    texts = [b"%d" % each for each in (terms.idle_ms, terms.lifetime_ms, terms.retention_ms)]
    return b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])
