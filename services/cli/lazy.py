"""A group of commands that imports a command only when it is run, so that `--help` and health probes are fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

from services.cli.packages import INSTALL

if TYPE_CHECKING:
    from collections.abc import Mapping

OURS = ("services", "models", "statestream")


class Entry(NamedTuple):
    """Where a command is: `module` has a `command`, `help` is its short help (a test holds that they agree)."""

    module: str
    help: str


class LazyGroup(click.Group):
    """Commands by name, imported on use."""

    def __init__(self, *, name: str, doc: str, entries: Mapping[str, Entry]) -> None:
        super().__init__(name=name, help=doc, context_settings={"help_option_names": ["-h", "--help"]})
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        """Names in the order of the table."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Imports one command.

        Raises:
            click.ClickException: it needs a package that is not installed.
        """
        if cmd_name not in self.entries:
            return None
        try:
            command: click.Command = import_module(self.entries[cmd_name].module).command
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in OURS:
                raise
            raise click.ClickException(
                f"{cmd_name} needs {missing}, which is not installed; mend it {INSTALL}"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """The table of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])
