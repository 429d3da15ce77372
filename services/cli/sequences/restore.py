"""`statestream sequences import`; `import` itself is no name for a module."""

from __future__ import annotations

from typing import BinaryIO

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, server_at, show, timeout_option


@click.command(name="import", short_help="Make a sequence of a snapshot.")
@click.argument("file", type=click.File("rb"))
@click.option("--sequence-id", default="", metavar="ID", help="What to call it. Default: as it was called.")
@json_option
@timeout_option
@address_option
def command(file: BinaryIO, sequence_id: str, address: str, timeout_s: float, *, as_json: bool) -> None:
    """Make a sequence of the snapshot in FILE; - is standard input.

    The server needs the key that the snapshot was signed with, and exactly the model of the sequence.
    """
    with server_at(address, timeout_s) as client:
        show([client.sequences.import_(file.read(), sequence_id)], as_json=as_json)
