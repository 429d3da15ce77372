"""Looks at and ends sequences of any model, without taking a step."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from statestream._types import Sequence, sequence
from statestream.common.v1 import lifecycle_service_pb2 as wire
from statestream.common.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub

if TYPE_CHECKING:
    from statestream._channel import Connection
    from statestream._portal import Portal
    from statestream.common.v1.lifecycle_service_pb2_grpc import LifecycleServiceAsyncStub


class AsyncSequences:
    """The caller's own sequences."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def _stub(self) -> LifecycleServiceAsyncStub:
        return LifecycleServiceStub(self._connection.channel)

    async def get(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """Where a sequence stands.

        Args:
            model: of the sequence, for example "sentiment".
            sequence_id: its name there.
            timeout_s: seconds for all attempts together; None: the client's.

        Raises:
            SequenceNotFound: and its siblings, where there is none to look at.
            StatestreamError: see `statestream.errors`.
        """
        request = wire.GetSequenceRequest(model=model, sequence_id=sequence_id)
        response = await self._connection.unary(self._stub.GetSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)

    async def end(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """Drops the state of a sequence without a last step; to end an ended one does nothing.

        Raises:
            StatestreamError: as `get`.
        """
        request = wire.EndSequenceRequest(model=model, sequence_id=sequence_id)
        response = await self._connection.unary(self._stub.EndSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)


class Sequences:
    """The caller's own sequences; each call blocks until it is answered."""

    def __init__(self, portal: Portal, inner: AsyncSequences) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.get`."""
        return self._portal.run(self._inner.get(model, sequence_id, timeout_s=timeout_s))

    def end(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.end`."""
        return self._portal.run(self._inner.end(model, sequence_id, timeout_s=timeout_s))
