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


SEQUENCES = "services.runtime.sequences.sequences"
COMPUTE = "services.runtime.sequences.compute"
DECIDE = "services.runtime.sequences.decide"
HEADS = "services.runtime.sequences.heads"
COMMITS = "services.runtime.sequences.commits"
STREAM = "services.runtime.transport.stream"
REPLAY = "statestream._replay"
LINK = "statestream._link"

MUTANTS = {
    "the epoch of a stream is not compared": Mutant(
        DECIDE, "fenced = request.epoch not in (None, record.position.epoch)", "fenced = False"
    ),
    "a conflict of a commit is ignored": Mutant(COMMITS, "return conflict.found", "return None"),
    "a step is committed before it is run": Mutant(
        SEQUENCES,
        "        record, reply = await self._compute.step(name, request, run, fold, committed)\n",
        "        if run.base is not None:\n"
        "            import dataclasses\n"
        "            early = dataclasses.replace(\n"
        "                run.base, position=Position(run.position.epoch, run.position.step + 1)\n"
        "            )\n"
        "            await self._commits.commit(name, run.expected, early)\n"
        "            run = run._replace(expected=early.position)\n"
        "        record, reply = await self._compute.step(name, request, run, fold, committed)\n",
    ),
    "a reply leaves before its commit": Mutant(
        SEQUENCES,
        "        found = await self._commits.commit(name, run.expected, record, continues=run.base is not None)\n",
        "        import asyncio\n"
        "        found = None\n"
        "        asyncio.get_running_loop().create_task(self._commits.commit(name, run.expected, record))\n",
    ),
    "the digest of a repeated step is not compared": Mutant(DECIDE, "if reply.digest != digest:", "if False:"),
    "who resumes fences nobody": Mutant(SEQUENCES, "fenced = self._commits.fenced(record)", "fenced = record"),
    "an epoch follows the clock alone": Mutant(
        COMMITS,
        "max(self.new_epoch(), record.position.epoch + 1 + secrets.randbelow(EPOCH_SPREAD))",
        "self.new_epoch()",
    ),
    "a step is counted twice": Mutant(
        COMPUTE,
        "Position(position.epoch, position.step + 1),",
        "Position(position.epoch, position.step + (2 if position.step == 3 else 1)),",
    ),
    "no ring of replies is kept": Mutant(DECIDE, "recent = kept[-count:]", "recent = (new._replace(reply=b''),)"),
    "the record of another sequence is committed": Mutant(
        HEADS, "            record = head.record\n", "            record = next(iter(self._heads.values())).record\n"
    ),
    "a head that was fenced off stays": Mutant(HEADS, "self.drop(head.name, error)", "pass"),
    "a head is committed over a later epoch": Mutant(
        HEADS,
        "        at, ours = found.record.position, head.record.position\n",
        "        at, ours = found.record.position, head.record.position._replace(epoch=found.record.position.epoch)\n",
    ),
    "a head that is dirty again is not committed": Mutant(
        HEADS, "        if head.dirty:\n            self._arm()", "        if head.dirty:\n            pass"
    ),
    "steps run ahead without bound": Mutant(
        SEQUENCES, "if head.uncommitted >= self._policy.uncommitted_max:", "if False:"
    ),
    "a step from a stale record is answered": Mutant(
        SEQUENCES,
        "            if found is None:\n                return taken\n",
        "            if found is None or not fresh:\n                return taken\n",
    ),
    "a reply is computed again from the wrong carry": Mutant(
        COMPUTE, "await fold(context, record.previous)", "await fold(context, record.carry or record.previous)"
    ),
    "the version of a sequence is not pinned": Mutant(
        COMPUTE,
        "model = self._catalogue.pinned(base.model if base else request.model)",
        "model = self._catalogue.find(request.model.name)",
    ),
    "a loss is not told": Mutant(SEQUENCES, "lost=told is not None and at.step <= told.committed_step", "lost=False"),
    "what is told as committed is one too many": Mutant(
        SEQUENCES, "fold, head.committed_step)", "fold, (head.committed_step or 0) + 1)"
    ),
    "a replica that drains does not commit": Mutant(
        STREAM, "committed_step = await runtime.sequences.settle(opened.name, opened.at)", "committed_step = None"
    ),
    "a half-close does not commit": Mutant(
        STREAM, "    else:\n        await runtime.sequences.settle(opened.name, opened.at)", "    else:\n        pass"
    ),
    "the client trims a step too many": Mutant(
        REPLAY, "self.next_step - 1 - self._committed))", "self.next_step - 2 - self._committed))"
    ),
    "the client skips a replayed step": Mutant(
        LINK,
        "first_to_send(opening, self.buffer, ends=ends)",
        "first_to_send(opening, self.buffer, ends=ends) + 1",
    ),
    "results of a batch are mixed up": Mutant(
        "services.runtime.engine.batcher",
        "zip(job.entries, answers, strict=True)",
        "zip(job.entries, reversed(answers), strict=True)",
    ),
    "a repeated start starts anew": Mutant(DECIDE, "first.digest == request.digest and not found.expired", "False"),
    "the client does not compare histories": Mutant(
        "statestream._resume", "return bool(one and other) and one != other", "return False"
    ),
    "the server does not compare histories": Mutant(SEQUENCES, "descends(record, *been) is False", "False"),
    "heads are kept without bound": Mutant(
        HEADS,
        "        policy = self._policy\n        if len(self._heads) < policy.heads_max and",
        "        policy = self._policy\n        if len(self._heads) >= 0 and",
    ),
    "a sequence never expires": Mutant(
        "services.runtime.state.memory", "            if now >= before.expires_at:\n", "            if False:\n"
    ),
    "requests for one sequence are not taken one by one": Mutant(
        "services.runtime.sequences.lanes",
        "        waiting = self._waiting.get(name)\n        if waiting is None:\n",
        "        waiting = self._waiting.get(name)\n        if True:\n",
    ),
    "the store compares epochs alone": Mutant(
        "services.runtime.state.memory",
        "before.newest.record.position != expected",
        "before.newest.record.position.epoch != expected.epoch",
    ),
}
"""By what each of them does."""


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
