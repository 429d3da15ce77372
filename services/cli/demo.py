"""`statestream demo`: the main job on one screen, against a real server in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import click
from statestream import Client, Label, StatestreamError

from services.cli.show import bar, last_part, one_line

if TYPE_CHECKING:
    from collections.abc import Generator

    from statestream import Sentiment

START_S_MAX = 60.0
STOP_S_MAX = 30.0

SCALE_CHARS = 33
"""Width of the scale and the percentage before the words."""

REVIEW = """\
The first half hour had me looking at my watch. The plot takes its time, the hero mumbles, and I was sure that this \
would be another dull and pretentious film. Then the old woman opens the door, and everything changes. From there on \
it is tense, funny and deeply moving, the acting is superb, and the last scene is one of the most beautiful I have \
seen in years. I left the cinema smiling. Wonderful.
"""

TEXTS = (
    "A warm, clever comedy; I have not laughed like this for a long time.",
    "Two hours of noise, a script without one idea, and the worst ending of the year.",
    "Not bad at all, though I would not watch it twice.",
    "I wanted to love it, but it was boring from start to finish.",
)


@click.command(name="demo", short_help="Start a server, send it a review, and show the answer as it comes.")
@click.option("--pace", "pace_s", type=float, metavar="S", help="Seconds between words; default: 0.12 in a terminal.")
def command(pace_s: float | None) -> None:
    """Start a server, send it a review, and show the answer as it comes.

    The server keeps its sequences in memory, and is stopped at the end.
    """
    terminal = sys.stdout.isatty()
    pace_s = (0.12 if terminal else 0.0) if pace_s is None else pace_s
    click.echo("Starting a server: one process, state in memory, the model that came with the program.")
    try:
        with _server() as address, Client(address) as client:
            click.echo(f"It serves on {address}.\n")
            click.echo("A review, sent word by word over one gRPC stream, and how it stands after each word:\n")
            click.echo("   negative     positive")
            _stream(client, terminal=terminal, pace_s=pace_s)
            click.echo("\nWhole texts, all in one call:\n")
            for text, result in zip(TEXTS, client.sentiment.classify(TEXTS), strict=True):
                click.echo(f"{_scale(result)}  {one_line(text, 85)}")
    except StatestreamError as error:
        raise click.ClickException(str(error)) from error
    program = _program()
    click.echo("\nThe server is stopped. To start one that stays, and to call it from another shell:\n")
    click.echo(f"  {program} serve")
    click.echo(f'  {program} call sentiment --text "I laughed until it hurt."')
    click.echo(f"  {program} call sentiment --stream -      # type, and see the sentiment change")


def _stream(client: Client, *, terminal: bool, pace_s: float) -> None:
    """Sends the review; in a terminal one line is painted over, elsewhere each word has its line."""
    pause = threading.Event()  # never set: it only waits
    read = ""
    with client.sentiment.stream() as stream:
        for word in REVIEW.split():
            read = f"{read} {word}"
            update = stream.send(f"{word} ")
            scale = _scale(update.sentiment)
            if terminal:
                # Painted over and over, so it must not wrap.
                room = shutil.get_terminal_size().columns - SCALE_CHARS
                click.echo(f"\r{scale}  {last_part(read, room)}", nl=False)
            else:
                click.echo(f"{scale}  {word}")
            if pace_s:
                pause.wait(pace_s)
        final = stream.end().sentiment
    if terminal:
        click.echo()
    click.echo(
        f"\n  The whole review, {final.word_count} words and marks, is {final.label}: "
        f"the probability of positive is {final.positive_probability:.1%}."
    )


def _scale(result: Sentiment) -> str:
    colour = "green" if result.label == Label.POSITIVE else "red"
    return f"  {click.style(bar(result.positive_probability), fg=colour)} {result.positive_probability:4.0%}"


@contextmanager
def _server() -> Generator[str]:
    """The address of a server in a child process, once it says that it serves; stops it on leaving.

    Raises:
        click.ClickException: it does not start; the text has the end of its log.
    """
    address = f"127.0.0.1:{_free_port()}"
    arguments = ["--listen", address, "--metrics-listen", "", "--store", "memory", "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "services.cli", "serve", *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            _wait(child, address, log)
            yield address
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(child: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    pause = threading.Event()
    with Client(address) as client:
        for _ in range(int(START_S_MAX / 0.1)):
            if client.ready(timeout_s=1.0):
                return
            if child.poll() is not None:
                break
            pause.wait(0.1)
    log.seek(0)
    told = "\n".join(log.read().decode(errors="replace").splitlines()[-10:])
    raise click.ClickException(f"the server did not start:\n{told}\n`{_program()} doctor` says what is missing")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _program() -> str:
    """How this program was called, so that the commands shown can be copied."""
    path = sys.argv[0]
    if os.path.basename(path) != "statestream":  # noqa: PTH119 - only its last part
        return "statestream"
    near = os.path.relpath(path)
    return near if len(near) < len(path) else path
