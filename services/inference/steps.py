"""What a request does: a step of a sequence, whole inputs, or asking where a sequence stands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from services.inference import encode
from services.inference.codec import CARRY_TAG, owns
from services.inference.limits import ROWS_AT_ONCE, ROWS_MAX
from services.inference.wire.infer_pb2 import ModelInferResponse
from services.runtime.core.errors import InvalidInput
from services.runtime.sequences.contract import Told
from services.runtime.sequences.decide import StepRequest
from services.runtime.state.types import Carry, Durability

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.inference.codec import Ask
    from services.inference.tensors import Head, Plan
    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.collate import Array
    from services.runtime.engine.served import ServedModel
    from services.runtime.sequences.contract import Fold, Standing, StepContext


def earlier(deadline: float | None, timeout_us: int, clock: Clock) -> float | None:
    """The deadline of a call, or that of a request on it if it comes first."""
    if not timeout_us:
        return deadline
    own = clock.monotonic() + timeout_us / 1e6
    return own if deadline is None else min(deadline, own)


def step_request(
    ask: Ask, durability: Durability, model: ModelId, *, epoch: int | None = None, at_least: int = 0
) -> StepRequest:
    """The step that a request asks for, on a stream that is at `epoch` and `at_least`."""
    parameters = ask.parameters
    keyed = bool(ask.id) and parameters.step is None
    start_key = parameters.start_key if parameters.start else ""
    # By their places, which takes a third of the time that names take: this is done for every step.
    return StepRequest(
        parameters.start, start_key, parameters.step, parameters.end, ask.digest(), durability, model, epoch, at_least,
        keyed, owns,
    )  # fmt: skip


def fold_step(ask: Ask, deadline: float | None) -> Fold:
    """The step of a sequence that a request of the Open Inference Protocol takes."""

    async def fold(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        model = context.model
        if ask.model_version and ask.model_version != model.model_id.version:
            raise InvalidInput("model_version", f"the sequence began on version {model.model_id.version}")
        plan = ask.head.plan(model)
        if not plan.rows:
            return plan.reply((), context), unmoved(context, carry)
        inputs = step_inputs(model, plan, ask.blobs, ask.field)
        try:
            outputs, state = await model.batcher.step(inputs, carry.tensors, deadline=deadline)
        except InvalidInput as error:
            raise plan.named(error, ask.head, ask.field) from None
        return plan.reply(plan.contents(outputs), context), Carry(state, CARRY_TAG)

    return fold


def unmoved(context: StepContext, carry: Carry) -> Carry:
    """The carry after a step without inputs.

    Raises:
        InvalidInput: it does not end the sequence.
    """
    if not context.end:
        raise InvalidInput("inputs", "are missing; only a request that ends its sequence may have none")
    return Carry(carry.tensors, CARRY_TAG)


def step_inputs(model: ServedModel, plan: Plan, blobs: Sequence[bytes], field: str) -> tuple[Array, ...]:
    """What a step of a sequence feeds to its model, (T, ...) each.

    Raises:
        InvalidInput: more than one row, more timesteps than the model takes at once, or elements that it does not take.
    """
    if plan.rows > 1:
        raise InvalidInput("inputs[0].shape", f"has {plan.rows} rows; a step of a sequence has one")
    if plan.timesteps > model.manifest.chunk_timesteps_max:
        most = model.manifest.chunk_timesteps_max
        raise InvalidInput("inputs[0].shape", f"has {plan.timesteps} timesteps; a step has at most {most}")
    inputs = plan.arrays(blobs, field)
    if plan.lengths_index is not None:
        length = plan.lengths(blobs, field)[0]
        inputs = tuple(array[:length] for array in inputs)
    return inputs


async def run_whole(
    model: ServedModel, head: Head, blobs: Sequence[bytes], field: str, deadline: float | None
) -> tuple[Plan, list[bytes]]:
    """The elements of the outputs that were asked for, all rows together; the rows share runs of the model.

    Raises:
        InvalidInput: no inputs, too many rows, or tensors that the model does not take.
    """
    plan = head.plan(model)
    if not plan.rows:
        raise InvalidInput("inputs", "are missing")
    if plan.rows > ROWS_MAX:
        raise InvalidInput("inputs[0].shape", f"has {plan.rows} rows; a request has at most {ROWS_MAX}")
    arrays, lengths = plan.arrays(blobs, field), plan.lengths(blobs, field)
    try:
        return plan, await _run_rows(model, plan, arrays, lengths, deadline)
    except InvalidInput as error:
        raise plan.named(error, head, field) from None


async def _run_rows(
    model: ServedModel, plan: Plan, arrays: tuple[Array, ...], lengths: list[int], deadline: float | None
) -> list[bytes]:
    if plan.rows == 1:
        return plan.contents(await _run_row(model, tuple(array[: lengths[0]] for array in arrays), deadline))
    turns = asyncio.Semaphore(ROWS_AT_ONCE)

    async def row(n: int) -> list[bytes]:
        async with turns:
            outputs = await _run_row(model, tuple(array[n, : lengths[n]] for array in arrays), deadline)
        return plan.contents(outputs)

    try:
        async with asyncio.TaskGroup() as group:
            rows = [group.create_task(row(n)) for n in range(plan.rows)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [b"".join(column) for column in zip(*(task.result() for task in rows), strict=True)]


async def _run_row(model: ServedModel, inputs: tuple[Array, ...], deadline: float | None) -> list[Array]:
    """All outputs for one row, (T, ...) or (...), fed in parts that the model takes at once."""
    most, timesteps, state = model.manifest.chunk_timesteps_max, inputs[0].shape[0], model.initial_state
    parts: list[tuple[Array, ...]] = []
    for at in range(0, timesteps, most):
        chunk = tuple(array[at : at + most] for array in inputs)
        outputs, state = await model.batcher.step(chunk, state, deadline=deadline)
        parts.append(outputs)
    if len(parts) == 1:
        return list(parts[0])
    return [
        np.concatenate([part[i] for part in parts]) if spec.per == "timestep" else parts[-1][i]
        for i, spec in enumerate(model.manifest.outputs)
    ]


def told_by(ask: Ask) -> Told | None:
    """What the client of a request that resumes says that it was told."""
    parameters = ask.parameters
    if parameters.committed_step is None:
        return None
    return Told(parameters.epoch, parameters.committed_step)


def standing_reply(standing: Standing) -> bytes:
    """The answer to a request that resumes: where the sequence stands, and no outputs."""
    record = standing.record
    response = ModelInferResponse(model_name=record.model.name, model_version=record.model.version)
    parts = [
        response.SerializeToString(),
        encode.int_parameter("next_step", record.position.step),
        encode.epoch_parameter(record.position.epoch),
        encode.bool_parameter("lost", value=standing.lost),
    ]
    if record.durability is not Durability.NONE:
        parts.append(encode.committed_parameter(record.position.step - 1))
    if record.ended:
        parts.append(encode.END)
    return b"".join(parts)
