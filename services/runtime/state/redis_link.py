"""Commands to Redis, many at a time: all that are given in one turn of the event loop leave in one write.

redis-py makes the connections (TLS, users, Sentinel) and parses replies. Its client is left out: each caller would pay
for a round trip of its own, and it would send a commit again without telling. Measured with uvloop for commits of
2.5 KB, encoding not counted: about 30 us of CPU for one alone, 7 us each for 32 at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from services.runtime.core.errors import CapacityExceeded, StateCorrupt, StatestreamError, StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool
    from redis.asyncio.connection import AbstractConnection

_CALLS_TOGETHER_MAX: Final = 256
"""Commands in one write: more would only keep the first replies waiting."""

_CALLS_WAITING_MAX: Final = 16_384
"""Commands that may wait for a connection; more are refused at once."""


_ALREADY_THERE: Final = "already exists"


class StoreLink(Protocol):
    """What a `RedisStore` asks of its way to Redis, be it to one server or to many."""

    def call(self, *pieces: bytes, key: bytes | None = None, writes: bool = False) -> Call:
        """Sends a packed command, given in one or more pieces, with all others of this turn of the loop.

        `key` says which server is meant where there are several; without one any will do. `writes` says that the
        command may change something: its reply then waits for as many replicas as are configured.

        The `reply` of what is returned is there within the time-out, or fails with `StoreUnavailable`; it may be
        cancelled at any time.

        Raises:
            StoreUnavailable: closed, or too many are waiting.
        """
        ...

    async def masters(self) -> list[RedisLink]:
        """The servers that take writes, each with a link of its own, in an order that lasts.

        Raises:
            StoreUnavailable: nobody says which they are.
        """
        ...

    async def close(self) -> None:
        """Waits for what is on its way, which is bounded by the time-out, and disconnects."""
        ...


class RefusedError(StoreUnavailable):
    """The server answered with an error; `code` is its first word, such as NOPERM."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the state store refused a command: {code}")
        self.code = code


class Call:
    """One command on its way. `repeated`: it was sent twice, and the first may have had its effect."""

    __slots__ = ("pieces", "repeated", "reply")

    def __init__(self, pieces: tuple[bytes, ...], reply: asyncio.Future[Any]) -> None:
        self.pieces = pieces
        self.reply = reply
        self.repeated = False

    def fail(self, error: StatestreamError) -> None:
        """Ends it with `error`, unless it has ended or its caller has gone."""
        if not self.reply.done():
            self.reply.set_exception(error)


class _Turn:
    """The commands given in one turn of the event loop; they share a deadline."""

    __slots__ = ("calls", "deadline", "timer")

    def __init__(self, deadline: float) -> None:
        self.calls: list[Call] = []
        self.deadline = deadline
        self.timer: asyncio.TimerHandle | None = None


class _Line:
    """One connection of redis-py's, and how to break it."""

    __slots__ = ("_transport", "connection")

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self._transport: asyncio.WriteTransport | None = None

    async def open(self) -> None:
        """Connects, unless connected."""
        if not self.connection.is_connected:
            await self.connection.connect()
            # No public way leads to the transport; without it `abandon` is a little less thorough.
            writer: asyncio.StreamWriter | None = getattr(self.connection, "_writer", None)
            self._transport = writer.transport if writer is not None else None

    async def abandon(self) -> None:
        """Disconnects without waiting. A mere close would wait for a server that hangs to read what is unsent."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        await self.connection.disconnect(nowait=True)


def packed(*arguments: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(arguments) + b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments])


class RedisLink:
    """Sends commands over a few connections and hands each its own reply.

    `library` is the text of the functions that the commands call; it is loaded whenever the server does not know them:
    the first time, after a fail-over to a bare server, after FUNCTION FLUSH.
    """

    def __init__(self, pool: ConnectionPool, *, connections: int, timeout_s: float, library: bytes) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._library = library
        self._idle = [_Line(pool.make_connection()) for _ in range(connections)]
        self._turn: _Turn | None = None
        self._waiting: deque[_Turn] = deque()
        self._waiting_calls = 0
        self._exchanges: set[asyncio.Task[None]] = set()
        self._closed = False

    def call(self, *pieces: bytes, key: bytes | None = None, writes: bool = False) -> Call:  # noqa: ARG002
        """See `StoreLink`."""
        if self._closed or self._waiting_calls >= _CALLS_WAITING_MAX:
            raise StoreUnavailable("the state store is closed" if self._closed else "the state store is overloaded")
        loop = asyncio.get_running_loop()
        if self._turn is None:
            self._turn = _Turn(loop.time() + self._timeout_s)
            loop.call_soon(self._end_turn)
        call = Call(pieces, loop.create_future())
        self._turn.calls.append(call)
        self._waiting_calls += 1
        return call

    async def masters(self) -> list[RedisLink]:
        """See `StoreLink`: the one server there is."""
        return [self]

    async def load_library(self) -> None:
        """Makes the functions known to the server; nothing happens if they are."""
        try:
            await self.call(packed(b"FUNCTION", b"LOAD", self._library)).reply
        except RefusedError as error:
            if error.code != _ALREADY_THERE:
                raise

    async def close(self) -> None:
        """Waits for what is on its way, which is bounded by the time-out, and disconnects."""
        self._closed = True
        self._end_turn()
        while self._exchanges:
            await asyncio.wait(self._exchanges)
        for line in self._idle:
            await line.connection.disconnect()
        await self._pool.disconnect()

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        turn.timer = asyncio.get_running_loop().call_at(turn.deadline, self._give_up, turn)
        self._waiting.append(turn)
        self._send_waiting()

    def _give_up(self, turn: _Turn) -> None:
        """The time of `turn` is over, whether it was sent or not. It may have left together with younger ones."""
        for call in turn.calls:
            call.fail(_late())

    def _send_waiting(self) -> None:
        while self._waiting and self._idle:
            turns: list[_Turn] = []
            count = 0
            while self._waiting and (not count or count + len(self._waiting[0].calls) <= _CALLS_TOGETHER_MAX):
                turns.append(self._waiting.popleft())
                count += len(turns[-1].calls)
            self._waiting_calls -= count
            line = self._idle.pop()
            task = asyncio.get_running_loop().create_task(self._exchange(line, turns))
            self._exchanges.add(task)
            task.add_done_callback(partial(self._exchanged, line, turns))

    def _exchanged(self, line: _Line, turns: list[_Turn], task: asyncio.Task[None]) -> None:
        self._exchanges.discard(task)
        self._idle.append(line)
        if task.cancelled():
            # The loop is being taken down, and everything with it; the task may not even have begun.
            self._closed = True
            turns = [*turns, *self._waiting]
            self._waiting.clear()
            for turn in turns:
                for call in turn.calls:
                    call.fail(StoreUnavailable("the state store is closed"))
        for turn in turns:
            if turn.timer is not None:
                turn.timer.cancel()
        self._send_waiting()

    async def _exchange(self, line: _Line, turns: list[_Turn]) -> None:
        calls = [call for turn in turns for call in turn.calls if not call.reply.done()]
        failure: StatestreamError | None = None
        try:
            # As long as the newest may wait. The timers of the older ones go off by themselves.
            async with asyncio.timeout_at(turns[-1].deadline):
                await self._converse(line, calls)
        except TimeoutError:
            failure = _late()
        except (RedisError, OSError) as error:
            failure = told(error)
        except StatestreamError as error:
            failure = error
        except Exception:
            failure = StoreUnavailable("the state store failed")
            raise
        except asyncio.CancelledError:
            await line.abandon()
            raise
        finally:
            if failure is not None:
                await line.abandon()
                for call in calls:
                    call.fail(failure)

    async def _converse(self, line: _Line, calls: list[Call]) -> None:
        if not calls:
            return
        used_before = line.connection.is_connected
        try:
            unknown = await self._round(line, calls)
        except (RedisConnectionError, OSError) as error:
            # A connection that was good once may have been closed while it lay idle. One more try, on a new one, for
            # those without an answer. Whoever made a call that changes something looks at `repeated`.
            if not used_before or isinstance(error, BusyLoadingError) or _is_refusal_of_user(error):
                raise
            await line.abandon()
            calls = [call for call in calls if not call.reply.done()]
            for call in calls:
                call.repeated = True
            unknown = await self._round(line, calls)
        if unknown:
            await self._load_library_over(line.connection)
            if await self._round(line, unknown):
                raise StoreUnavailable("the state store does not keep the functions that it was given")

    async def _round(self, line: _Line, calls: list[Call]) -> list[Call]:
        """Sends `calls`, hands out the replies, and returns those whose function the server does not know."""
        await line.open()
        connection = line.connection
        await connection.send_packed_command([piece for call in calls for piece in call.pieces], check_health=False)
        unknown: list[Call] = []
        stale = False
        for call in calls:
            try:
                reply = cast("object", await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                if "function not found" in str(error).lower():
                    unknown.append(call)
                else:
                    stale = stale or isinstance(error, ReadOnlyError)
                    call.fail(told(error))
                continue
            if not call.reply.done():
                call.reply.set_result(reply)
        if stale:
            # This server is no longer the one that takes writes: connect anew, by name, next time.
            await line.abandon()
        return unknown

    async def _load_library_over(self, connection: AbstractConnection) -> None:
        await connection.send_packed_command(packed(b"FUNCTION", b"LOAD", self._library), check_health=False)
        try:
            await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            if _code(error) != _ALREADY_THERE:
                raise


def told(error: RedisError | OSError) -> StatestreamError:
    """`error` in our words: without addresses, users or anything else of the server's."""
    if isinstance(error, OutOfMemoryError):
        return CapacityExceeded("the state store is out of memory", retry_delay_s=1.0)
    if isinstance(error, ResponseError):
        code = _code(error)
        if code == "WRONGTYPE":
            return StateCorrupt("the stored record is not one of ours")
        return RefusedError(code)
    if _is_refusal_of_user(error):
        return StoreUnavailable("the state store does not take the configured user and password", retry_delay_s=5.0)
    if isinstance(error, BusyLoadingError):
        return StoreUnavailable("the state store is still loading its data", retry_delay_s=1.0)
    return StoreUnavailable("the connection to the state store failed")


def _is_refusal_of_user(error: RedisError | OSError) -> bool:
    # While it connects redis-py turns its AuthenticationError into a ConnectionError with the same text.
    text = str(error)
    return isinstance(error, AuthenticationError) or "username-password" in text or "Authentication required" in text


def _code(error: ResponseError) -> str:
    text = str(error)
    if _ALREADY_THERE in text:
        return _ALREADY_THERE
    # redis-py takes the word off those errors that it has a class for.
    if isinstance(error, NoPermissionError):
        return "NOPERM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    word = text.partition(" ")[0]
    return word if word.isupper() else type(error).__name__


def _late() -> StoreUnavailable:
    return StoreUnavailable("the state store did not answer in time")
