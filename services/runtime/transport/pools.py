"""Descriptors for reflection that do not all live in one pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import descriptor_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.descriptor_pool import DescriptorPool

T = TypeVar("T")


class Pools:
    """Several pools as one, as far as reflection asks; those given come before protobuf's default pool."""

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
        self._pools = (*pools, descriptor_pool.Default())

    def _first(self, find: Callable[[Any], T]) -> T:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(self._pools[-1])

    def FindFileByName(self, name: str) -> object:  # noqa: N802 - named by protobuf, as those below
        """See `DescriptorPool`. Raises KeyError."""
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> object:  # noqa: N802
        """See `DescriptorPool`. Raises KeyError."""
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> object:  # noqa: N802
        """See `DescriptorPool`. Raises KeyError."""
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: object, number: int) -> object:  # noqa: N802
        """See `DescriptorPool`. Raises KeyError."""
        return self._pools[-1].FindExtensionByNumber(message, number)  # pyright: ignore[reportArgumentType]

    def FindAllExtensions(self, message: object) -> object:  # noqa: N802
        """See `DescriptorPool`; ours have none."""
        return self._pools[-1].FindAllExtensions(message)  # pyright: ignore[reportArgumentType]
