"""The deadline that a client gave its call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import grpc

    from services.runtime.core.clock import Clock


def deadline_of(context: grpc.aio.ServicerContext[Any, Any], clock: Clock) -> float | None:
    """Monotonic time in seconds; None where the client gave no deadline (which the stubs of grpc do not say)."""
    remaining = cast("float | None", context.time_remaining())
    return None if remaining is None else clock.monotonic() + remaining
