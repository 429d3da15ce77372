"""Sequences kept in Redis 7 or later: any replica goes on where another one stopped.

What a sequence costs does not grow with its length:

- A commit is one call, in which the server carries out four commands: TIME, HMGET, HSET, PEXPIREAT. A load is one call,
  too: HMGET and TIME.
- A commit that makes a checkpoint copies a record inside the server, which takes up to four commands more (HGET, twice
  HSET, HDEL) and no bandwidth. The commits between two checkpoints only have the list of them to look at.
- In memory: the record (state, kept replies, at most one previous state), as many more as checkpoints are kept, and
  some 600 bytes; Redis rounds each record up, by a quarter at most. The record is bounded, because the number and the
  size of kept replies are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Self, Unpack

from services.runtime.core.errors import StateCorrupt, StoreUnavailable
from services.runtime.state.format import RecordFormat
from services.runtime.state.redis.check import Finding, findings
from services.runtime.state.redis.connect import connect
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.library import LIBRARY, Library
from services.runtime.state.redis.link import packed
from services.runtime.state.redis.names import Listing
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Stored

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.redis.connect import LinkOptions
    from services.runtime.state.redis.link import StoreLink
    from services.runtime.state.store import Page
    from services.runtime.state.types import Position, Record, Terms

_FLAGS: Final = (b"$1\r\n0\r\n", b"$1\r\n1\r\n")
"""No and yes as packed arguments."""


class RedisStore:
    """A `StateStore` on Redis.

    `commit` is one call of a function that compares and sets, `load` is one, too; both go by the server's clock. All
    that is asked in one turn of the event loop leaves in one write.

    `link` leads to the server or servers, and bounds every call; it knows the functions of `library`. `records`
    writes and reads the records. `prefix` keeps installations apart that share a server.
    """

    def __init__(
        self, link: StoreLink, *, records: RecordFormat | None = None, prefix: str = "ss", library: Library = LIBRARY
    ) -> None:
        self._link = link
        self._library = library
        self._format = records or RecordFormat()
        self._prefix = prefix

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        records: RecordFormat | None = None,
        prefix: str = "ss",
        library: Library = LIBRARY,
        **options: Unpack[LinkOptions],
    ) -> Self:
        """A store on Redis at `url`, one of `redis_address.FORMS`.

        Raises:
            ValueError: `url` cannot be read; its text is not repeated, for it may hold a password.
        """
        link = connect(url, library.source, options)
        return cls(link, records=records, prefix=prefix, library=library)

    async def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        key = sequence_key(self._prefix, name)
        call = self._link.call(b"%b$%d\r\n%b\r\n" % (self._library.load, len(key), key), key=key, acked=True)
        found = await call.reply
        return Absence.UNKNOWN if found is None else self._stored(name, found)

    async def commit(
        self,
        name: SequenceName,
        expected: Position | None,
        record: Record,
        terms: Terms,
        *,
        continues: bool = False,
        keep: int = 0,
    ) -> Conflict | None:
        """See `StateStore`."""
        key = sequence_key(self._prefix, name)
        data = self._format.encode(name, record)
        before = b"" if expected is None else b"%d:%d" % expected
        after = b"%d:%d" % record.position
        ended = record.ended
        head = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b%b%b$%d\r\n" % (
            self._library.end if ended else self._library.commit,
            len(key),
            key,
            len(before),
            before,
            len(after),
            after,
            _FLAGS[expected is None or not (continues or expected.epoch == record.position.epoch)],
            _FLAGS[ended],
            _numbers(keep, terms),
            len(data),
        )
        call = self._link.call(head, data, b"\r\n", key=key, acked=True)
        found = await call.reply
        if found == 1:
            return None
        if found is None:
            return Conflict(Absence.UNKNOWN)
        if call.repeated and found[0] == data:
            # The first sending was applied before its connection broke; what stands there is ours.
            return None
        return Conflict(self._stored(name, found))

    async def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """See `StateStore`."""
        key = sequence_key(self._prefix, name)
        text = b"%d" % step
        call = self._link.call(
            b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n" % (self._library.checkpoint, len(key), key, len(text), text), key=key
        )
        found = await call.reply
        if found is None:
            return Absence.UNKNOWN
        data, _, expires_at_ms, expired, _ = _checked(found)
        record = self._format.decode(name, data)
        if record.position.step != step:
            raise StateCorrupt("the stored checkpoint is not at the step that it is kept for")
        return Stored(record, _seconds(expires_at_ms), len(data), bool(expired))

    async def names(self, tenant: str, model: str, *, cursor: str | None = None, count: int = 100) -> Page:
        """See `StateStore`. A cursor is refused once another server took the place of the one that gave it."""
        listing = Listing(self._link, self._library, self._prefix, tenant, model)
        return await listing.page(cursor, count)

    async def ping(self) -> None:
        """See `StateStore`."""
        await self._link.call(packed(b"PING")).reply

    async def close(self) -> None:
        """See `StateStore`."""
        await self._link.close()

    async def check(self) -> list[Finding]:
        """What an operator should know about the server; made for `statestream doctor`. Raises nothing."""
        return await findings(self._link, self)

    def _stored(self, name: SequenceName, found: object) -> Stored:
        data, position, expires_at_ms, expired, checkpoints = _checked(found)
        try:
            return Stored(
                self._record(name, data, position),
                _seconds(expires_at_ms),
                len(data),
                bool(expired),
                _steps(checkpoints) if checkpoints else (),
            )
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


class _Found(NamedTuple):
    """What `load` and its like answer."""

    data: bytes
    position: bytes
    expires_at_ms: bytes
    expired: int
    checkpoints: bytes


def _checked(found: object) -> _Found:
    match found:
        case [bytes(data), bytes(position), bytes(expires_at_ms), int(expired), bytes(checkpoints)]:
            return _Found(data, position, expires_at_ms, expired, checkpoints)
        case _:
            raise StoreUnavailable("the state store gave an impossible answer")


def _seconds(milliseconds: bytes) -> float:
    try:
        return int(milliseconds) / 1000
    except ValueError:
        raise StateCorrupt("the time when the stored record expires is damaged") from None


def _steps(checkpoints: bytes) -> tuple[int, ...]:
    try:
        return tuple([int(step) for step in checkpoints.split()])
    except ValueError:
        raise StateCorrupt("the list of the stored checkpoints is damaged") from None


@lru_cache(256)
def _numbers(keep: int, terms: Terms) -> bytes:
    """Checkpoints to keep, idle, lifetime and retention time as packed arguments."""
    texts = [b"%d" % each for each in (keep, terms.idle_ms, terms.lifetime_ms, terms.retention_ms)]
    return b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])
