"""The asyncio client: what it is made of, and nothing that a task would have to add to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from grpc_health.v1 import health_pb2

from statestream._channel import Connection, grpc_errors
from statestream._inference import AsyncInferencePart
from statestream._retry import RetryPolicy, Timing
from statestream._sentiment import AsyncSentimentPart
from statestream._sequences import AsyncSequences
from statestream.errors import DeadlineExceeded, StatestreamError

if TYPE_CHECKING:
    from types import TracebackType

    import grpc
    from grpc import aio

    from statestream._replay import ReplayBounds

    _HealthCheck = aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

TIMEOUT_S = 10.0
"""Default time of a call, its repeats included, in seconds."""

_POLL_S = 0.05


class AsyncClient:
    """A Statestream server, for asyncio.

        async with AsyncClient("127.0.0.1:50051") as client:
            [result] = await client.sentiment.classify(["What a film."])

    Args:
        address: of the server or of a balancer: `host:port`, or any gRPC target.
        timeout_s: seconds that a call, or a step of a stream, may take with all its repeats.
        credentials: for TLS; None connects without.
        retry: when failed attempts are made again.
        replay: how much a stream keeps in order to send it again; `stream` can be given its own.
        timing: the clock, sleep, random numbers and unique names that are used; for tests.

    Making a client does not connect. One client is for one event loop, and for any number of calls at a time.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy | None = None,
        replay: ReplayBounds | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._connection = Connection(
            address,
            timeout_s=timeout_s,
            credentials=credentials,
            policy=retry or RetryPolicy(),
            timing=timing or Timing(),
            replay=replay,
        )
        self.sequences = AsyncSequences(self._connection)
        # One line for each task.
        self.inference = AsyncInferencePart(self._connection)
        self.sentiment = AsyncSentimentPart(self._connection)

    async def ready(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """True if the server says now that it serves; asks once.

        Args:
            service: full name of one gRPC service; empty: the server as a whole.
            timeout_s: seconds to wait for the answer; None: the client's.
        """
        request, seconds = health_pb2.HealthCheckRequest(service=service), self._connection.seconds(timeout_s)
        # Made here, because the generated stub of the health service has no types.
        check: _HealthCheck = self._connection.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            with grpc_errors():
                # A gateway with several services behind it cannot see in the path which one is meant.
                named = (("statestream-service", service),) if service else None
                answer = await check(request, timeout=seconds, metadata=named)
        except StatestreamError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def wait_ready(self, service: str = "", *, timeout_s: float | None = None) -> None:
        """Returns as soon as the server says that it serves.

        Raises:
            DeadlineExceeded: it has not said so within `timeout_s` seconds; None: the client's time.
        """
        timing, seconds = self._connection.timing, self._connection.seconds(timeout_s)
        deadline = timing.clock() + seconds
        while not await self.ready(service, timeout_s=max(deadline - timing.clock(), _POLL_S)):
            if timing.clock() + _POLL_S >= deadline:
                raise DeadlineExceeded(f"{self._connection.address} does not serve after {seconds:g} s")
            await timing.sleep(_POLL_S)

    async def close(self) -> None:
        """Ends the calls in progress and disconnects; no call may follow."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
