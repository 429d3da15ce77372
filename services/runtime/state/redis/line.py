"""One connection to Redis: many commands in one write, and each gets its own reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from services.runtime.core.errors import StatestreamError, StoreUnavailable
from services.runtime.state.redis.errors import ALREADY_THERE, code_of, is_refusal_of_user, told

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection


def packed(*arguments: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(arguments) + b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments])


_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"

_MARK: Final = packed(b"PUBLISH", b"statestream", b"")
"""Goes to the replicas and changes nothing. WAIT looks back to the last such command of its own connection: behind a
load it would wait for nothing, and what others have written would not count."""

_WAIT_SHARE: Final = 0.5
"""Share of the time left that WAIT may take: its answer, up to 0.1 s late, has to be back in time."""


class Call:
    """One command on its way. `repeated`: it was sent twice, and the first may have had its effect."""

    __slots__ = ("acked", "pieces", "repeated", "reply")

    asking: bool = False
    """True where the server has to be told that it is asked for a slot that it does not own yet."""

    def __init__(self, pieces: tuple[bytes, ...], reply: asyncio.Future[Any], *, acked: bool) -> None:
        self.pieces = pieces
        self.reply = reply
        self.acked = acked
        self.repeated = False

    def answer(self, reply: object) -> None:
        """Ends it with `reply`, unless it has ended or its caller has gone."""
        if not self.reply.done():
            self.reply.set_result(reply)

    def fail(self, error: StatestreamError) -> None:
        """Ends it with `error`, unless it has ended or its caller has gone."""
        if not self.reply.done():
            self.reply.set_exception(error)

    def redirect(self, error: ResponseError) -> None:
        """A server of a cluster says that another one is to be asked, or the same one later."""
        self.fail(told(error))


class Line:
    """A connection of redis-py's. `left` are the calls of the latest `converse` that are still its own to end.

    With `replicas_acked` above 0 the replies to calls that are to be acked are held back until so many replicas have
    all that was written before. Where they do not the calls fail, although they may have taken effect. That goes for
    those that wrote nothing, too: whoever repeats a step must not be told what is less certain than the first reply.
    """

    __slots__ = ("_connection", "_library", "_replicas_acked", "_transport", "left")

    def __init__(self, connection: AbstractConnection, library: bytes, replicas_acked: int) -> None:
        self._connection = connection
        self._library = library
        self._replicas_acked = replicas_acked
        self._transport: asyncio.WriteTransport | None = None
        self.left: list[Call] = []

    async def abandon(self) -> None:
        """Disconnects without waiting. A mere close would wait for a server that hangs to read what is unsent."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        await self._connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Disconnects."""
        await self._connection.disconnect()

    async def converse(self, calls: list[Call], deadline: float) -> None:
        """Sends `calls` and ends each of them; `deadline`, by the loop's clock, is when the last is given up.

        Raises:
            RedisError, OSError: the connection failed; `left` are without an answer.
            StatestreamError: likewise, for another reason.
        """
        self.left = calls
        used_before = self._connection.is_connected
        try:
            unknown = await self._round(calls, deadline)
        except (RedisConnectionError, OSError) as error:
            # A connection that was good once may have been closed while it lay idle. One more try, on a new one, for
            # those without an answer. Whoever made a call that changes something looks at `repeated`.
            if not used_before or isinstance(error, BusyLoadingError) or is_refusal_of_user(error):
                raise
            await self.abandon()
            self.left = [call for call in calls if not call.reply.done()]
            for call in self.left:
                call.repeated = True
            unknown = await self._round(self.left, deadline)
        self.left = unknown
        if unknown:
            await self._load_library()
            if await self._round(unknown, deadline):
                raise StoreUnavailable("the state store does not keep the functions that it was given")

    async def _open(self) -> None:
        if not self._connection.is_connected:
            await self._connection.connect()
            # No public way leads to the transport; without it `abandon` is a little less thorough.
            writer: asyncio.StreamWriter | None = getattr(self._connection, "_writer", None)
            self._transport = writer.transport if writer is not None else None

    async def _send(self, pieces: list[bytes]) -> None:
        await self._connection.send_packed_command(pieces, check_health=False)

    async def _read(self) -> object:
        return cast("object", await self._connection.read_response(disable_decoding=True))

    async def _round(self, calls: list[Call], deadline: float) -> list[Call]:
        """Sends `calls`, hands out the replies, and returns those whose function the server does not know."""
        await self._open()
        waits = self._replicas_acked > 0 and any(call.acked for call in calls)
        pieces = [piece for call in calls for piece in ((_ASKING, *call.pieces) if call.asking else call.pieces)]
        if waits:
            pieces += (_MARK, self._wait(deadline))
        await self._send(pieces)
        refused: list[tuple[Call, ResponseError]] = []
        held: list[tuple[Call, object]] = []
        for call in calls:
            try:
                reply = await self._read_reply(call)
            except ResponseError as error:
                refused.append((call, error))
                continue
            if waits and call.acked:
                held.append((call, reply))
            else:
                call.answer(reply)
        if waits:
            await self._release(held)
        # Last of all: from here on others may send these again, so they must not be `left` when something fails.
        unknown = _sorted_out(refused)
        if any(isinstance(error, ReadOnlyError) for _, error in refused):
            # This server is no longer the one that takes writes: connect anew, by name, next time.
            await self.abandon()
        return unknown

    async def _read_reply(self, call: Call) -> object:
        if call.asking:
            with suppress(ResponseError):
                await self._read()
        return await self._read()

    def _wait(self, deadline: float) -> bytes:
        left_s = deadline - asyncio.get_running_loop().time()
        # 0 would be for ever.
        return packed(b"WAIT", b"%d" % self._replicas_acked, b"%d" % max(1, int(left_s * _WAIT_SHARE * 1000)))

    async def _release(self, held: list[tuple[Call, object]]) -> None:
        """Reads how many replicas have what was written, and ends those that waited for it."""
        failure: StatestreamError | None = None
        refused: list[ResponseError] = []
        acked: object = None
        for _ in (_MARK, "WAIT"):
            try:
                acked = await self._read()
            except ResponseError as error:
                refused.append(error)
        if refused:
            failure = told(refused[0])
        elif not isinstance(acked, int) or acked < self._replicas_acked:
            failure = StoreUnavailable("too few replicas of the state store have what was written")
        for call, reply in held:
            if failure is not None:
                call.fail(failure)
            else:
                call.answer(reply)

    async def _load_library(self) -> None:
        await self._send([packed(b"FUNCTION", b"LOAD", self._library)])
        try:
            await self._read()
        except ResponseError as error:
            if code_of(error) != ALREADY_THERE:
                raise


def _sorted_out(refused: list[tuple[Call, ResponseError]]) -> list[Call]:
    """Ends or redirects the calls; returns those whose function the server does not know."""
    unknown: list[Call] = []
    for call, error in refused:
        if "function not found" in str(error).lower():
            unknown.append(call)
        elif isinstance(error, (AskError, TryAgainError, ClusterDownError)):
            call.redirect(error)
        else:
            call.fail(told(error))
    return unknown
