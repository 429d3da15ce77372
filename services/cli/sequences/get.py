"""`statestream sequences get`."""

from __future__ import annotations

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, server_at, show, timeout_option


@click.command(name="get", short_help="Tell where a sequence stands.")
@click.argument("model")
@click.argument("sequence_id")
@json_option
@timeout_option
@address_option
def command(model: str, sequence_id: str, address: str, timeout_s: float, *, as_json: bool) -> None:
    """Tell where the sequence SEQUENCE_ID of MODEL stands, as far as it is committed."""
    with server_at(address, timeout_s) as client:
        show([client.sequences.get(model, sequence_id)], as_json=as_json)
