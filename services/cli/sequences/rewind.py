"""`statestream sequences rewind`."""

from __future__ import annotations

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, server_at, show, timeout_option


@click.command(name="rewind", short_help="Put a sequence back to a kept checkpoint.")
@click.argument("model")
@click.argument("sequence_id")
@click.argument("next_step", type=click.IntRange(min=0))
@json_option
@timeout_option
@address_option
def command(model: str, sequence_id: str, next_step: int, address: str, timeout_s: float, *, as_json: bool) -> None:
    """Put SEQUENCE_ID of MODEL back to where it took NEXT_STEP next: one of its checkpoints.

    What came after is dropped, and streams that are open on the sequence have to take it up anew.
    """
    with server_at(address, timeout_s) as client:
        show([client.sequences.rewind(model, sequence_id, next_step)], as_json=as_json)
