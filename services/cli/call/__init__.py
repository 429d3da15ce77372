"""`statestream call`: one file here for each task."""

from __future__ import annotations

from services.cli.lazy import Entry, LazyGroup

command = LazyGroup(
    name="call",
    doc="Call a task of a running server.",
    entries={
        "inference": Entry("services.cli.call.inference", "Feed arrays to any model."),
        "sentiment": Entry("services.cli.call.sentiment", "Tell whether texts are positive or negative."),
    },
)
