"""What the commands on sequences share: how to reach the server, and how a sequence looks."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from statestream import Client, StatestreamError, errors

from services.cli.show import one_line

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from statestream import Sequence

_ROW = "{:<32} {:<6} {:>9} {:<10} {:<8} {:>9} {:<20} {}"

timeout_option = click.option(
    "--timeout", "timeout_s", default=10.0, show_default=True, metavar="S", help="Seconds to wait for an answer."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
next_step_option = click.option(
    "--next-step",
    type=click.IntRange(min=0),
    metavar="N",
    help="The point, as the number of the step taken next there: one of the checkpoints. Default: where it stands.",
)


@contextmanager
def server_at(address: str, timeout_s: float) -> Generator[Client]:
    """A client; what goes wrong becomes a message for a person.

    Raises:
        click.ClickException: a call failed.
    """
    try:
        with Client(address, timeout_s=timeout_s) as client:
            yield client
    except errors.Unavailable as error:
        raise click.ClickException(
            f"{error}\nno server serves at {address}; start one with: statestream serve"
        ) from error
    except StatestreamError as error:
        raise click.ClickException(str(error)) from error


def show(sequences: Iterable[Sequence], *, as_json: bool) -> None:
    """Prints sequences as they come: a table, or a JSON object a line."""
    if not as_json:
        head = ("sequence", "status", "next step", "durability", "version", "bytes", "dropped (UTC)", "checkpoints")
        click.echo(_ROW.format(*head).rstrip())
    for one in sequences:
        click.echo(json.dumps(_facts(one)) if as_json else _line(one))


def _facts(one: Sequence) -> dict[str, str | int | list[int] | None]:
    return {
        "sequence_id": one.sequence_id,
        "status": str(one.status),
        "epoch": one.epoch,
        "next_step": one.next_step,
        "durability": one.durability.name.lower(),
        "model": one.model.name,
        "model_version": one.model.version,
        "weights_digest": one.model.weights_digest,
        "state_bytes": one.state_bytes,
        "expires_at": one.expires_at.isoformat() if one.expires_at else None,
        "checkpoint_steps": list(one.checkpoint_steps),
        "history_digest": one.history_digest.hex(),
    }


def _line(one: Sequence) -> str:
    expires = f"{one.expires_at:%Y-%m-%d %H:%M:%S}" if one.expires_at else "-"
    return _ROW.format(
        one_line(one.sequence_id, 128),
        one.status,
        one.next_step,
        one.durability.name.lower(),
        one.model.version,
        one.state_bytes,
        expires,
        " ".join(map(str, one.checkpoint_steps)) or "-",
    )
