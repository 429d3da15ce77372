"""`statestream sequences list`."""

from __future__ import annotations

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, server_at, show, timeout_option


@click.command(name="list", short_help="List the sequences of a model.")
@click.argument("model")
@click.option("--live", "live_only", is_flag=True, help="Leave out those that have ended.")
@json_option
@timeout_option
@address_option
def command(model: str, address: str, timeout_s: float, *, live_only: bool, as_json: bool) -> None:
    """List the sequences of MODEL, in no order.

    Those of durability none are left out: one replica alone knows them.
    """
    with server_at(address, timeout_s) as client:
        show(client.sequences.list(model, live_only=live_only), as_json=as_json)
