"""Statuses of simulated calls, and the errors that `grpc.aio` makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from grpc import aio


class Status(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: tuple[tuple[str, Any], ...] = ()


def broken() -> Status:
    """The connection was lost."""
    return Status(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def refused() -> Status:
    """Nobody listens there."""
    return Status(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")


def rpc_error(status: Status) -> aio.AioRpcError:
    """What a client is raised."""
    return aio.AioRpcError(status.code, aio.Metadata(), aio.Metadata(*status.trailing), details=status.details)
