"""`statestream models`."""

from __future__ import annotations

from services.cli.lazy import Entry, LazyGroup

command = LazyGroup(
    name="models",
    doc="List, show and verify exported models.",
    entries={
        "list": Entry("services.cli.models.list", "List the exported models."),
        "show": Entry("services.cli.models.show", "Show what an exported model is, and how good."),
        "verify": Entry("services.cli.models.verify", "Check that exported models are undamaged and run."),
    },
)
