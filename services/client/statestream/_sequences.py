"""Looks at, ends, forks, rewinds and moves sequences of any model, without taking a step."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from statestream._types import Sequence, sequence
from statestream.common.v1 import lifecycle_service_pb2 as wire
from statestream.common.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from statestream._channel import Connection
    from statestream._portal import Portal
    from statestream.common.v1.lifecycle_service_pb2_grpc import LifecycleServiceAsyncStub


class AsyncSequences:
    """The caller's own sequences.

    Of every call: `model` is that of the sequence, for example "sentiment", `sequence_id` its name there, and
    `timeout_s` the seconds for all attempts together, None for the client's. Beside the errors that a call names, each
    raises `SequenceNotFound` or its siblings where there is no such sequence, and whatever else `statestream.errors`
    has.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def _stub(self) -> LifecycleServiceAsyncStub:
        return LifecycleServiceStub(self._connection.channel)

    async def get(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """Where a sequence stands, as far as it is committed."""
        request = wire.GetSequenceRequest(model=model, sequence_id=sequence_id)
        response = await self._connection.unary(self._stub.GetSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)

    async def list(
        self, model: str, *, live_only: bool = False, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence]:
        """All sequences of a model, in no order; pages are fetched as they are needed.

        A sequence that is started, moved or ended meanwhile may be missing or come twice. Those of `Durability.NONE`,
        which one replica alone knows, are left out.

        Args:
            model: see above.
            live_only: leaves out those that have ended.
            page_size: about how many the server is asked for at once, up to 1000; 0: as many as it likes.
            timeout_s: seconds for each page.
        """
        request = wire.ListSequencesRequest(model=model, live_only=live_only, page_size=page_size)
        while True:
            response = await self._connection.unary(self._stub.ListSequences, request, timeout_s=timeout_s)
            for message in response.sequences:
                yield sequence(message)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def fork(
        self,
        model: str,
        sequence_id: str,
        *new_ids: str,
        next_step: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Sequence, ...]:
        """Makes new sequences that go on from a committed point of one, which stays as it is.

        Args:
            model: see above.
            sequence_id: of the sequence to fork.
            new_ids: names of the sequences to make, up to 64; with none given one is made under a new name.
            next_step: the point: the step that the new ones take next, out of `Sequence.checkpoint_steps` or the
                sequence's own; None: its own.
            timeout_s: see above.

        Raises:
            SequenceExists: one of the names is that of a live sequence; none was made.
            CheckpointNotFound: nothing is kept at that point; `kept` says where something is.
        """
        request = wire.ForkSequenceRequest(
            model=model,
            sequence_id=sequence_id,
            next_step=next_step,
            new_sequence_ids=new_ids or (self._connection.timing.unique(),),
        )
        response = await self._connection.unary(self._stub.ForkSequence, request, timeout_s=timeout_s)
        return tuple(sequence(message) for message in response.sequences)

    async def rewind(self, model: str, sequence_id: str, next_step: int, *, timeout_s: float | None = None) -> Sequence:
        """Puts a live sequence back to a kept checkpoint; what came after it is dropped.

        A stream that is open on the sequence then raises `StepConflict`, and has to be opened anew.

        Args:
            model: see above.
            sequence_id: see above.
            next_step: the step that it is to take next: one of `Sequence.checkpoint_steps`, or its own, which drops
                what is not committed.
            timeout_s: see above.

        Raises:
            CheckpointNotFound: nothing is kept at that point; `kept` says where something is.
        """
        request = wire.RewindSequenceRequest(model=model, sequence_id=sequence_id, next_step=next_step)
        response = await self._connection.unary(self._stub.RewindSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)

    async def export(
        self, model: str, sequence_id: str, *, next_step: int | None = None, timeout_s: float | None = None
    ) -> bytes:
        """A snapshot of a sequence for `import_`; the sequence stays as it is.

        It is signed, not encrypted, and holds what the model remembers of its input.

        Args:
            model: see above.
            sequence_id: see above.
            next_step: the point to export, as for `fork`.
            timeout_s: see above.

        Raises:
            CheckpointNotFound: nothing is kept at that point; `kept` says where something is.
            SnapshotsDisabled: the server has no key to sign with.
        """
        request = wire.ExportSequenceRequest(model=model, sequence_id=sequence_id, next_step=next_step)
        response = await self._connection.unary(self._stub.ExportSequence, request, timeout_s=timeout_s)
        return response.snapshot

    async def import_(self, snapshot: bytes, sequence_id: str = "", *, timeout_s: float | None = None) -> Sequence:
        """Makes a new sequence of a snapshot, in another installation too, if that has the same key and model.

        Args:
            snapshot: as `export` gave it.
            sequence_id: name of the sequence to make; empty: that of the one which was exported.
            timeout_s: see above.

        Raises:
            InvalidInput: the snapshot is damaged, or was signed with another key.
            SequenceExists: the name is that of a live sequence.
            SnapshotsDisabled: the server has no key to check it with.
        """
        request = wire.ImportSequenceRequest(snapshot=snapshot, sequence_id=sequence_id)
        response = await self._connection.unary(self._stub.ImportSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)

    async def end(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """Drops the state of a sequence without a last step; to end an ended one does nothing."""
        request = wire.EndSequenceRequest(model=model, sequence_id=sequence_id)
        response = await self._connection.unary(self._stub.EndSequence, request, timeout_s=timeout_s)
        return sequence(response.sequence)


class Sequences:
    """The caller's own sequences; each call blocks until it is answered. Arguments are those of `AsyncSequences`."""

    def __init__(self, portal: Portal, inner: AsyncSequences) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.get`."""
        return self._portal.run(self._inner.get(model, sequence_id, timeout_s=timeout_s))

    def list(
        self, model: str, *, live_only: bool = False, page_size: int = 0, timeout_s: float | None = None
    ) -> Iterator[Sequence]:
        """As `AsyncSequences.list`."""
        found = self._inner.list(model, live_only=live_only, page_size=page_size, timeout_s=timeout_s)

        async def following() -> Sequence | None:
            return await anext(found, None)

        try:
            while (one := self._portal.run(following())) is not None:
                yield one
        finally:
            if not self._portal.closed:
                self._portal.run(found.aclose())

    def fork(
        self,
        model: str,
        sequence_id: str,
        *new_ids: str,
        next_step: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Sequence, ...]:
        """As `AsyncSequences.fork`."""
        forked = self._inner.fork(model, sequence_id, *new_ids, next_step=next_step, timeout_s=timeout_s)
        return self._portal.run(forked)

    def rewind(self, model: str, sequence_id: str, next_step: int, *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.rewind`."""
        return self._portal.run(self._inner.rewind(model, sequence_id, next_step, timeout_s=timeout_s))

    def export(
        self, model: str, sequence_id: str, *, next_step: int | None = None, timeout_s: float | None = None
    ) -> bytes:
        """As `AsyncSequences.export`."""
        return self._portal.run(self._inner.export(model, sequence_id, next_step=next_step, timeout_s=timeout_s))

    def import_(self, snapshot: bytes, sequence_id: str = "", *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.import_`."""
        return self._portal.run(self._inner.import_(snapshot, sequence_id, timeout_s=timeout_s))

    def end(self, model: str, sequence_id: str, *, timeout_s: float | None = None) -> Sequence:
        """As `AsyncSequences.end`."""
        return self._portal.run(self._inner.end(model, sequence_id, timeout_s=timeout_s))
