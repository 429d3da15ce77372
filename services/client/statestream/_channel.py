"""The connection under a client: one channel, and the calls of every task on it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc import aio

from statestream._replay import ReplayBounds
from statestream._retry import RetryPolicy, Timing, with_retries
from statestream._status import to_error
from statestream.errors import CallCancelled

if TYPE_CHECKING:
    from collections.abc import Generator

    from google.protobuf.message import Message

_CLOSED = "the client is closed"

Request = TypeVar("Request", bound="Message")
Response = TypeVar("Response", bound="Message")

MESSAGE_BYTES_MAX = 16 * 2**20
"""Largest reply taken: 256 results and their headers need far less."""

_OPTIONS = (
    # Retries are made here, where it is known which calls may be repeated; gRPC's own would multiply them.
    ("grpc.enable_retries", 0),
    # A name with several addresses is spread over them, and a lost one costs only the calls on it.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # gRPC waits a second after a failed connection before it tries again, and fails every call meanwhile: a server
    # that is back is to be found by the next attempts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that vanished without closing is noticed when sent bytes stay unacknowledged. More frequent pings than
    # one in five minutes would be taken for abuse by a server that does not allow them.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
)


@contextmanager
def grpc_errors() -> Generator[None]:
    """Inside, whatever gRPC raises becomes an error of this package."""
    try:
        yield
    except grpc.RpcError as error:
        raise to_error(error) from error
    except aio.UsageError as error:
        raise RuntimeError(_CLOSED) from error
    except asyncio.CancelledError as error:
        # grpc.aio raises this also where the peer has cancelled the call; let through, it would look as if somebody
        # had cancelled this task.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise CallCancelled("cancelled by the server, a proxy, or the closing of the client") from error


class Connection:
    """One channel with the habits of this client; tasks make their stubs on it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        credentials: grpc.ChannelCredentials | None,
        policy: RetryPolicy,
        timing: Timing,
        replay: ReplayBounds | None = None,
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: must be more than 0, is {timeout_s:g}")
        self.address = address
        self.timeout_s = timeout_s
        self.policy = policy
        self.timing = timing
        self.replay = replay or ReplayBounds()
        self._credentials = credentials
        self._channel: aio.Channel | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    @property
    def channel(self) -> aio.Channel:
        """The channel; made on first use, because gRPC binds it to the event loop that runs then.

        Raises:
            RuntimeError: the client is closed.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._channel is None:
            if self._credentials is None:
                self._channel = aio.insecure_channel(self.address, options=_OPTIONS)
            else:
                self._channel = aio.secure_channel(self.address, self._credentials, options=_OPTIONS)
        return self._channel

    async def unary(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
    ) -> Response:
        """The answer to a call that changes nothing when it is repeated.

        Args:
            method: of a stub on `channel`.
            request: to send.
            timeout_s: seconds for all attempts together; None: the client's.

        Raises:
            StatestreamError: see `statestream.errors`.
        """

        async def attempt(left_s: float) -> Response:
            with grpc_errors():
                return await method(request, timeout=left_s)

        return await with_retries(attempt, timeout_s=self.seconds(timeout_s), policy=self.policy, timing=self.timing)

    def seconds(self, timeout_s: float | None) -> float:
        """The time-out of one call, `timeout_s` or else the client's."""
        return self.timeout_s if timeout_s is None else timeout_s

    async def close(self) -> None:
        """Ends the calls in progress and gives the connections back."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
