"""One version of one model in the repository: what is known of its files, and what was made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.runtime.repository.contract import IndexEntry, ModelState

if TYPE_CHECKING:
    from services.runtime.engine.served import ServedModel
    from services.runtime.model.registry import Fingerprint, VersionFiles
    from services.runtime.repository.loader import Opened

QUIET_S: Final = 2.0
"""A version that no sequence is live on is given so long to finish what is on its way: a start, or a unary call."""

COPYING: Final = "it has no manifest.json yet, which is written last"


class Retirement:
    """How long a version that takes no further sequence goes on with those that it has.

    A sequence is as old as its last step at most idle, and as its start at most alive; so when no step has come for the
    one time, or the other is over since the last start, none can go on. Where this process knows of all sequences, and
    none is left, it need not wait. Who works on it is noticed by the runs of its batcher, which costs a step nothing.
    """

    def __init__(self, served: ServedModel, now: float) -> None:
        self._served = served
        self._began = self._used = now
        self._runs = served.batcher.runs

    def on(self, served: ServedModel) -> Retirement:
        """The same of a version that runs within other limits since."""
        after = Retirement(served, self._began)
        after._used = self._used
        return after

    def is_over(self, now: float, live: int | None) -> bool:
        """True if the version may be unloaded; `live` are its sequences, None: nobody here knows."""
        batcher, terms = self._served.batcher, self._served.sequence
        if batcher.busy or batcher.runs != self._runs:
            self._runs, self._used = batcher.runs, now
        if batcher.busy:
            return False
        idle_s = now - self._used
        return (
            idle_s >= terms.idle_timeout_s or now - self._began >= terms.lifetime_s or (live == 0 and idle_s >= QUIET_S)
        )


@dataclass(slots=True, eq=False)
class Version:
    """What the repository knows of a version.

    Attributes:
        files: as they were last seen; None: they are gone.
        judged: the state of the files that `reason`, `digest`, and what was loaded, are of.
        digest: of the weights, once the manifest was read; empty before.
        reason: why it is not loaded, or what is wrong with its files since; for a person.
        failed: its files cannot be served as they are.
    """

    name: str
    version: str
    files: VersionFiles | None = None
    judged: Fingerprint = ()
    digest: str = ""
    reason: str = ""
    failed: bool = False
    loading: bool = False
    opened: Opened | None = None
    served: ServedModel | None = None
    retirement: Retirement | None = None

    @property
    def state(self) -> ModelState:
        """See `ModelState`."""
        if self.served is None:
            return ModelState.LOADING if self.loading else ModelState.UNAVAILABLE
        return ModelState.READY if self.retirement is None else ModelState.UNLOADING

    @property
    def changed(self) -> bool:
        """True if its files are not as they were when they were last judged."""
        return self.files is not None and self.files.fingerprint != self.judged

    @property
    def loadable(self) -> bool:
        """True if there are files that may be good."""
        return self.files is not None and self.files.complete and (self.changed or not self.failed)

    def entry(self) -> IndexEntry:
        """Its line of the index."""
        reason = self.reason
        if not reason and self.state is ModelState.UNAVAILABLE:
            reason = "not loaded" if self.files is None or self.files.complete else COPYING
        return IndexEntry(self.name, self.version, self.state, reason)
