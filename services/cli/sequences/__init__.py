"""`statestream sequences`."""

from __future__ import annotations

from services.cli.lazy import Entry, LazyGroup

command = LazyGroup(
    name="sequences",
    doc="List, show, fork, rewind, move and end sequences of a running server.",
    entries={
        "list": Entry("services.cli.sequences.list", "List the sequences of a model."),
        "get": Entry("services.cli.sequences.get", "Tell where a sequence stands."),
        "fork": Entry("services.cli.sequences.fork", "Make sequences that go on from a point of another one."),
        "rewind": Entry("services.cli.sequences.rewind", "Put a sequence back to a kept checkpoint."),
        "export": Entry("services.cli.sequences.export", "Write a signed snapshot of a sequence."),
        "import": Entry("services.cli.sequences.restore", "Make a sequence of a snapshot."),
        "end": Entry("services.cli.sequences.end", "End a sequence without a last step."),
    },
)
