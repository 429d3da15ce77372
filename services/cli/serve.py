"""`statestream serve`."""

from __future__ import annotations

import sys

import click
from pydantic import ValidationError

from services.cli.settings import wrong_settings
from services.cli.tasks import modules
from services.runtime.start import start


@click.command(name="serve", short_help="Serve until SIGTERM or SIGINT, then drain.")
@click.option("--task", "names", multiple=True, metavar="NAME", help="Task to serve; repeat for more. Default: all.")
@click.option(
    "--artefacts",
    "roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder of exported models; repeat for more. Default: those that came with the program.",
)
@click.option("--listen", metavar="HOST:PORT", help="gRPC address; port 0 takes a free one.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Prometheus address; empty for none.")
@click.option("--workers", metavar="N", help="Processes that serve on one address; auto: one a core.")
@click.option("--store", type=click.Choice(["memory", "redis"]), help="Where sequences are kept.")
@click.option(
    "--redis-url",
    metavar="URL",
    help="Redis. A password in it shows in the process list: rather set STATESTREAM_REDIS_URL.",
)
def command(names: tuple[str, ...], roots: tuple[str, ...], **given: object) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Everything can be set by environment variables, STATESTREAM_LISTEN and so on (docs/operations.md has them all); an
    option given here goes before its variable.
    """
    try:
        tasks = modules(names or None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    given["artefacts"] = list(roots) or None
    try:
        status = start(tasks, {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise click.ClickException("\n".join(wrong_settings(error))) from error
    sys.exit(status)
