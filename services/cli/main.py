"""The command `statestream`."""

from __future__ import annotations

import os

import click

from services.cli.lazy import Entry, LazyGroup

command = LazyGroup(
    name="statestream",
    doc="Serves recurrent networks, and talks to what serves them.",
    entries={
        "demo": Entry("services.cli.demo", "Start a server, send it a review, and show the answer as it comes."),
        "serve": Entry("services.cli.serve", "Serve until SIGTERM or SIGINT, then drain."),
        "call": Entry("services.cli.call", "Call a task of a running server."),
        "sequences": Entry(
            "services.cli.sequences", "List, show, fork, rewind, move and end sequences of a running server."
        ),
        "export": Entry("services.cli.export", "Make a servable model of a torch network or an ONNX file."),
        "models": Entry("services.cli.models", "List, show and verify exported models."),
        "doctor": Entry("services.cli.doctor", "Say what is missing here, and how to mend it."),
        "health": Entry("services.cli.health", "Ask a server whether it serves; for probes."),
    },
)

# Looks the version up only when it is asked for.
click.version_option(package_name="statestream")(command)


def main() -> None:
    """Entry point of the console script."""
    # The C core of gRPC reports each lost connection on standard error; the commands say it in their own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    command.main(prog_name="statestream")
