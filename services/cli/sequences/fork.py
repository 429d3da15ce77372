"""`statestream sequences fork`."""

from __future__ import annotations

import click

from services.cli.address import address_option
from services.cli.sequences.common import json_option, next_step_option, server_at, show, timeout_option


@click.command(name="fork", short_help="Make sequences that go on from a point of another one.")
@click.argument("model")
@click.argument("sequence_id")
@click.argument("new_ids", nargs=-1, required=True, metavar="NEW_ID...")
@next_step_option
@json_option
@timeout_option
@address_option
def command(
    *,
    model: str,
    sequence_id: str,
    new_ids: tuple[str, ...],
    next_step: int | None,
    as_json: bool,
    timeout_s: float,
    address: str,
) -> None:
    """Make sequences NEW_ID... that go on from a point of SEQUENCE_ID of MODEL, which stays as it is.

    All of them or, where a name is taken, none.
    """
    with server_at(address, timeout_s) as client:
        show(client.sequences.fork(model, sequence_id, *new_ids, next_step=next_step), as_json=as_json)
