"""Faults put into the code under test on purpose: the simulation has to find each of them.

A mutant is a piece of source that is replaced while its module is imported, so it has to be applied first, in a process
of its own. Where the source has changed so that the piece is gone, `apply` says so: then write the mutant anew.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class Mutant(NamedTuple):
    """In `module` the text `good` becomes `bad`."""

    module: str
    good: str
    bad: str


MUTANTS: dict[str, Mutant] = {}


def apply(mutant: Mutant) -> None:
    """Changes the code that this process is going to import.

    Raises:
        RuntimeError: the module has been imported already.
    """
    if mutant.module in sys.modules:
        raise RuntimeError(f"{mutant.module} has been imported already")
    sys.meta_path.insert(0, _Finder(mutant))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._mutant)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> object:
        source, mutant = self.get_data(self.path).decode(), self._mutant
        if source.count(mutant.good) != 1:
            raise RuntimeError(f"{mutant.module} does not hold this once, so write the mutant anew: {mutant.good}")
        return compile(source.replace(mutant.good, mutant.bad), self.path, "exec", dont_inherit=True)
