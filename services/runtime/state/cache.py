"""Recently used records at hand, to spare the load; only the commit proves that one is fresh."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from services.runtime.state.memory import record_bytes

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Record


class RecordCache:
    """The records used last, bounded by number and by bytes; 0 for either keeps none. Does no I/O.

    What it gives may be out of date: another replica may have gone on. A commit against a stale position conflicts
    and tells the current record, so nothing wrong comes of it.
    """

    def __init__(self, sequences_max: int, bytes_max: int) -> None:
        self._sequences_max = sequences_max
        self._bytes_max = bytes_max
        self._kept: OrderedDict[SequenceName, tuple[Record, int]] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """About how much memory the records take."""
        return self._size_bytes

    def get(self, name: SequenceName) -> Record | None:
        """The record of `name`, if it is at hand."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        self._kept.move_to_end(name)
        return kept[0]

    def put(self, name: SequenceName, record: Record) -> None:
        """Keeps `record`; what was used longest ago gives way. One that is over the bounds by itself is not kept."""
        self.drop(name)
        if self._sequences_max < 1:
            return
        size_bytes = record_bytes(record)
        if size_bytes > self._bytes_max:
            return
        self._kept[name] = (record, size_bytes)
        self._size_bytes += size_bytes
        while len(self._kept) > self._sequences_max or self._size_bytes > self._bytes_max:
            self.drop(next(iter(self._kept)))

    def drop(self, name: SequenceName) -> None:
        """Forgets `name`, if it is there."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._size_bytes -= kept[1]

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()
        self._size_bytes = 0
