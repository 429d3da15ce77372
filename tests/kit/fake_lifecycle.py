"""The lifecycle service of the fake: the same store, without a step."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, NoReturn

from grpc import StatusCode
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, model_pb2

from tests.kit.fake_store import Fail, StoredSequence, abort

if TYPE_CHECKING:
    from grpc import aio

MODEL = model_pb2.ModelVersion(name="sentiment", version="1", weights_digest="0" * 64)


class FakeLifecycle(lifecycle_service_pb2_grpc.LifecycleServiceServicer):
    """Every call first meets the next fault, if there is one."""

    store: dict[str, StoredSequence]

    async def fault(self, context: aio.ServicerContext[Any, Any]) -> None:
        """Fails as told."""
        raise NotImplementedError

    async def GetSequence(  # noqa: N802 - named by the contract
        self, request: lifecycle_service_pb2.GetSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.GetSequenceResponse:
        """Looks into the store."""
        await self.fault(context)
        await self._found(request.sequence_id, context)
        return lifecycle_service_pb2.GetSequenceResponse(sequence=self._described(request.sequence_id))

    async def ListSequences(  # noqa: N802
        self, request: lifecycle_service_pb2.ListSequencesRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.ListSequencesResponse:
        """One page, by name; the token is the number of names before it. A page of those that have ended is empty."""
        await self.fault(context)
        begin, names = int(request.page_token or 0), sorted(self.store)
        end = begin + (request.page_size or 2)
        return lifecycle_service_pb2.ListSequencesResponse(
            sequences=[
                self._described(name) for name in names[begin:end] if not (request.live_only and self.store[name].ended)
            ],
            next_page_token=str(end) if end < len(names) else "",
        )

    async def ForkSequence(  # noqa: N802
        self, request: lifecycle_service_pb2.ForkSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.ForkSequenceResponse:
        """Copies."""
        await self.fault(context)
        found = await self._found(request.sequence_id, context)
        next_step = request.next_step if request.HasField("next_step") else found.committed
        await self._is_kept(found, next_step, context)
        for name in request.new_sequence_ids:
            if name in self.store and not self.store[name].ended:
                await abort(context, Fail(StatusCode.ALREADY_EXISTS, "SEQUENCE_EXISTS"))
        for name in request.new_sequence_ids:
            made = self.store[name] = copy.deepcopy(found)
            made.roll_back(next_step)
        return lifecycle_service_pb2.ForkSequenceResponse(
            sequences=[self._described(name) for name in request.new_sequence_ids]
        )

    async def RewindSequence(  # noqa: N802
        self, request: lifecycle_service_pb2.RewindSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.RewindSequenceResponse:
        """Under a new epoch, and with another history."""
        await self.fault(context)
        found = await self._found(request.sequence_id, context)
        await self._is_kept(found, request.next_step, context)
        found.roll_back(request.next_step)
        found.epoch += 1
        found.start_key += "rewound"
        return lifecycle_service_pb2.RewindSequenceResponse(sequence=self._described(request.sequence_id))

    async def ExportSequence(  # noqa: N802
        self, request: lifecycle_service_pb2.ExportSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.ExportSequenceResponse:
        """A snapshot that says where it is from; the contents stay here."""
        await self.fault(context)
        found = await self._found(request.sequence_id, context)
        next_step = request.next_step if request.HasField("next_step") else found.committed
        await self._is_kept(found, next_step, context)
        return lifecycle_service_pb2.ExportSequenceResponse(
            snapshot=json.dumps([request.sequence_id, next_step]).encode(),
            sequence=self._described(request.sequence_id),
        )

    async def ImportSequence(  # noqa: N802
        self, request: lifecycle_service_pb2.ImportSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.ImportSequenceResponse:
        """The sequence that the snapshot is from, as it was."""
        await self.fault(context)
        name, next_step = json.loads(request.snapshot)
        made = copy.deepcopy(self.store[name])
        made.roll_back(next_step)
        new = request.sequence_id or name
        if new in self.store and not self.store[new].ended:
            await abort(context, Fail(StatusCode.ALREADY_EXISTS, "SEQUENCE_EXISTS"))
        self.store[new] = made
        return lifecycle_service_pb2.ImportSequenceResponse(sequence=self._described(new))

    async def EndSequence(  # noqa: N802
        self, request: lifecycle_service_pb2.EndSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.EndSequenceResponse:
        """Ends without a step."""
        await self.fault(context)
        found = await self._found(request.sequence_id, context)
        if not found.ended:
            found.ended = True
            found.epoch += 1
        return lifecycle_service_pb2.EndSequenceResponse(sequence=self._described(request.sequence_id))

    async def _found(self, name: str, context: aio.ServicerContext[Any, Any]) -> StoredSequence:
        if name not in self.store:
            await not_found(context)
        return self.store[name]

    async def _is_kept(self, found: StoredSequence, step: int, context: aio.ServicerContext[Any, Any]) -> None:
        if step not in {*found.checkpoints, found.committed}:
            kept = {"checkpoint_steps": ",".join(map(str, found.checkpoints))}
            await abort(context, Fail(StatusCode.FAILED_PRECONDITION, "CHECKPOINT_NOT_FOUND", metadata=kept))

    def _described(self, name: str) -> lifecycle_pb2.Sequence:
        found = self.store[name]
        described = lifecycle_pb2.Sequence(
            sequence_id=name,
            status=lifecycle_pb2.SEQUENCE_STATUS_ENDED if found.ended else lifecycle_pb2.SEQUENCE_STATUS_LIVE,
            epoch=found.epoch,
            next_step=len(found.replies),
            durability=found.durability,  # pyright: ignore[reportArgumentType] - a number of the enum
            model=MODEL,
            state_bytes=1024,
            checkpoint_steps=found.checkpoints,
            history_digest=found.digest(len(found.replies)),
        )
        described.expire_time.FromSeconds(1_700_000_000)
        return described


async def not_found(context: aio.ServicerContext[Any, Any]) -> NoReturn:
    """The store has no such name."""
    await abort(context, Fail(StatusCode.NOT_FOUND, "SEQUENCE_NOT_FOUND"))
