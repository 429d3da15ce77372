"""`statestream sequences export`."""

from __future__ import annotations

import sys

import click

from services.cli.address import address_option
from services.cli.sequences.common import next_step_option, server_at, timeout_option


@click.command(name="export", short_help="Write a signed snapshot of a sequence.")
@click.argument("model")
@click.argument("sequence_id")
@click.argument("file", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@next_step_option
@timeout_option
@address_option
def command(model: str, sequence_id: str, file: str, next_step: int | None, timeout_s: float, address: str) -> None:
    """Write a snapshot of SEQUENCE_ID of MODEL to FILE; - is standard output.

    It is signed, not encrypted, and holds what the model remembers of its input. The sequence stays as it is.
    """
    if file == "-" and sys.stdout.isatty():
        raise click.UsageError("a snapshot is not for a terminal; name a file, or send it on")
    with server_at(address, timeout_s) as client:
        snapshot = client.sequences.export(model, sequence_id, next_step=next_step)
    try:
        # A file that is there is replaced only by a whole one.
        with click.open_file(file, "wb", atomic=file != "-") as output:
            output.write(snapshot)
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    click.echo(f"{len(snapshot)} bytes written to {file}", err=True)
