"""Finds the tasks: every sub-package of `services` that has a `servicer.py`. To add a task is to add a folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import services

if TYPE_CHECKING:
    from collections.abc import Collection

    from services.runtime.transport.task import Task


def task_names() -> tuple[str, ...]:
    """Names of all tasks, sorted; imports none of them."""
    folders = (Path(path) for path in services.__path__)
    return tuple(sorted(found.parent.name for folder in folders for found in folder.glob("*/servicer.py")))


def modules(names: Collection[str] | None = None) -> tuple[str, ...]:
    """Modules with the `TASK` of the named tasks, of all if None, in the order of their names; imports none of them.

    Raises:
        ValueError: a name is not that of a task.
    """
    known = task_names()
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"no such task: {', '.join(unknown)}; there are: {', '.join(known)}")
    return tuple(f"services.{name}.servicer" for name in known if names is None or name in names)


def discover(names: Collection[str] | None = None) -> tuple[Task, ...]:
    """The named tasks, all if None, in the order of their names; imports their servicers and nothing else.

    Raises:
        ValueError: a name is not that of a task.
    """
    return tuple(cast("Task", import_module(module).TASK) for module in modules(names))
