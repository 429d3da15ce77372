"""`statestream serve`."""

from __future__ import annotations

import sys

import click

from services.cli.settings import read_settings
from services.cli.tasks import discover
from services.runtime.app import run


@click.command(name="serve", short_help="Serve until SIGTERM or SIGINT, then drain.")
@click.option("--task", "names", multiple=True, metavar="NAME", help="Task to serve; repeat for more. Default: all.")
@click.option("--listen", metavar="HOST:PORT", help="gRPC address; port 0 takes a free one.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Prometheus address; empty for none.")
@click.option("--store", type=click.Choice(["memory", "redis"]), help="Where sequences are kept.")
@click.option(
    "--redis-url",
    metavar="URL",
    help="Redis. A password in it shows in the process list: rather set STATESTREAM_REDIS_URL.",
)
def command(names: tuple[str, ...], **given: str | None) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Everything can be set by environment variables, STATESTREAM_LISTEN and so on (docs/operations.md has them all); an
    option given here goes before its variable.
    """
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    try:
        tasks = discover(names or None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(run(settings, tasks))
