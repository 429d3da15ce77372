"""`statestream sequences end`."""

from __future__ import annotations

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, server_at, show, timeout_option


@click.command(name="end", short_help="End a sequence without a last step.")
@click.argument("model")
@click.argument("sequence_id")
@json_option
@timeout_option
@address_option
def command(model: str, sequence_id: str, address: str, timeout_s: float, *, as_json: bool) -> None:
    """End SEQUENCE_ID of MODEL: its state is dropped, recent replies stay for a while."""
    with server_at(address, timeout_s) as client:
        show([client.sequences.end(model, sequence_id)], as_json=as_json)
