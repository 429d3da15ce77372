"""Tensors in tuples, lists, dicts and named tuples: taken apart and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    parts: Any = tree
    if isinstance(tree, dict):
        wrong = [key for key in parts if not isinstance(key, str)]
        if wrong:
            raise ExportError(f"{name or 'the result'}: the key {wrong[0]!r} is no string")
        return list(parts.items())
    if has_fields(tree):
        return list(zip(parts._fields, parts, strict=True))
    if isinstance(tree, tuple | list):
        return [(str(index), part) for index, part in enumerate(parts)]
    raise ExportError(
        f"{name or 'the result'}: {type(tree).__name__}, but tensors in tuples, lists or dicts are needed"
    )


def has_fields(tree: Tree) -> bool:
    """Whether it is a named tuple."""
    return hasattr(tree, "_fields")


def rebuild(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """The same structure with other tensors, in the order of :func:`leaves`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if tree is None:
        return None
    parts = [(key, rebuild(part, tensors)) for key, part in children(tree)]
    if isinstance(tree, dict):
        return dict(parts)
    values = [part for _, part in parts]
    if has_fields(tree):
        return type(tree)(*values)
    return tuple(values) if isinstance(tree, tuple) else values
