"""Keeps the event loop free of work that takes milliseconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

SMALL_BYTES = 4096
"""Input up to this size is worked off at once: handing it to a thread would take longer."""


async def sized(size_bytes: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of `work`, a pure function of an input of `size_bytes`; a large one does not hold up other requests."""
    if size_bytes <= SMALL_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
