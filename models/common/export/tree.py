"""Tensors in tuples, lists, dicts and named tuples: taken apart and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Tree = Any
"""A tensor, None, or a tuple, list, dict or named tuple of trees."""


def leaves(tree: Tree, name: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor with its name: ``name`` and the way to it, joined by dots.

    Raises:
        ExportError: something in it is no tensor, or a key of a dict is no string.
    """
    if isinstance(tree, Tensor):
        return [(name, tree)]
    if tree is None:
        return []
    found: list[tuple[str, Tensor]] = []
    for key, part in children(tree, name):
        found += leaves(part, f"{name}.{key}" if name else key)
    return found


def children(tree: Tree, name: str = "") -> list[tuple[str, Tree]]:
    """The parts of a tuple, list, dict or named tuple with their names.

    Raises:
        ExportError: it is none of them, or a key of a dict is no string.
    """
    if isinstance(tree, dict):
        items: list[tuple[Any, Tree]] = list(tree.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        wrong = [key for key, _ in items if not isinstance(key, str)]
        if wrong:
            raise ExportError(f"{name or 'the result'}: the key {wrong[0]!r} is no string")
        return items
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        named: Any = tree
        return list(zip(named._fields, named, strict=True))
    if isinstance(tree, tuple | list):
        parts: Sequence[Tree] = tree  # pyright: ignore[reportUnknownVariableType]
        return [(str(index), part) for index, part in enumerate(parts)]
    raise ExportError(
        f"{name or 'the result'}: {type(tree).__name__}, but tensors in tuples, lists or dicts are needed"
    )


def rebuild(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """The same structure with other tensors, in the order of :func:`leaves`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if tree is None:
        return None
    if isinstance(tree, dict):
        items: Mapping[str, Tree] = tree  # pyright: ignore[reportUnknownVariableType]
        return {key: rebuild(part, tensors) for key, part in items.items()}
    parts = [rebuild(part, tensors) for _, part in children(tree)]
    if hasattr(tree, "_fields"):
        return type(tree)(*parts)
    return tuple(parts) if isinstance(tree, tuple) else parts
