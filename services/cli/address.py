"""The option that says which server to talk to."""

from __future__ import annotations

import click

DEFAULT = "127.0.0.1:50051"

address_option = click.option(
    "--address",
    envvar="STATESTREAM_ADDRESS",
    default=DEFAULT,
    show_default=True,
    metavar="HOST:PORT",
    help="Server or balancer, also from STATESTREAM_ADDRESS.",
)
