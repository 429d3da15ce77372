"""`statestream call sentiment`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, BinaryIO

import click
from statestream import Client, SentimentUpdate, StatestreamError, errors

from services.cli.address import address_option
from services.cli.show import bar, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statestream import Sentiment

READ_BYTES_MAX = 16_384
"""Bytes read at a time, and so the longest piece: well below what a server takes."""

_UNITS = {"word": re.compile(rb"\s*\S+\s+"), "line": re.compile(rb"[^\n]*\n")}


@click.command(name="sentiment", short_help="Tell whether texts are positive or negative.")
@click.option("--text", "texts", multiple=True, help="A whole text; repeat for more.")
@click.option("--stream", type=click.File("rb"), metavar="FILE", help="Read one text as it comes; - is standard input.")
@click.option("--by", type=click.Choice(list(_UNITS)), default="word", show_default=True, help="What is sent at once.")
@click.option("--sequence-id", metavar="ID", help="Name the streamed text, and leave it open at the end.")
@click.option("--resume", is_flag=True, help="Go on with the text of that name.")
@click.option("--end", is_flag=True, help="Close the named text at the end.")
@click.option("--model-version", default="", metavar="V", help="Version of the model; default: the newest.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, metavar="S", help="Seconds for each answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@address_option
def command(  # noqa: PLR0913 - one for each option
    *,
    texts: tuple[str, ...],
    stream: BinaryIO | None,
    by: str,
    sequence_id: str | None,
    resume: bool,
    end: bool,
    model_version: str,
    timeout_s: float,
    as_json: bool,
    address: str,
) -> None:
    r"""Tell whether texts are positive or negative.

    \b
      statestream call sentiment --text "A film to fall asleep in."
      echo "I laughed until it hurt." | statestream call sentiment --stream -
    """
    if bool(texts) == bool(stream):
        raise click.UsageError("give either --text, once or more, or --stream")
    if (resume or end) and not (stream and sequence_id):
        raise click.UsageError("--resume and --end need --stream and --sequence-id")
    try:
        with Client(address, timeout_s=timeout_s) as client:
            if stream is None:
                for text, result in zip(
                    texts, client.sentiment.classify(texts, model_version=model_version), strict=True
                ):
                    click.echo(json.dumps(_facts(result)) if as_json else _line(result, text))
                return
            pieces = pieces_of(stream, by)
            with client.sentiment.stream(sequence_id, resume=resume, model_version=model_version) as sequence:
                for piece in pieces:
                    _show(sequence.send(piece), piece, as_json=as_json)
                if end or sequence_id is None:
                    _show(sequence.end(), b"", as_json=as_json)
                elif not as_json:
                    click.echo(f"the text stays open: go on with --sequence-id {sequence.sequence_id} --resume")
    except errors.Unavailable as error:
        raise click.ClickException(
            f"{error}\nno server serves at {address}; start one with: statestream serve"
        ) from error
    except StatestreamError as error:
        raise click.ClickException(str(error)) from error


def pieces_of(stream: BinaryIO, by: str) -> Iterator[bytes]:
    """Cuts what comes into words with the white space after them, or lines; each as soon as it is complete.

    What has no white space is cut all the same once it is long; the server takes cuts anywhere.
    """
    unit, rest = _UNITS[by], b""
    # A buffered file would wait until it has as much as was asked for.
    read = getattr(stream, "read1", stream.read)
    while data := read(READ_BYTES_MAX):
        rest += data
        done = 0
        for found in unit.finditer(rest):
            # White space at the very end may go on in what comes next; it belongs to nobody, so it goes now.
            yield from _bounded(found.group())
            done = found.end()
        rest = rest[done:]
        if len(rest) >= READ_BYTES_MAX:
            yield from _bounded(rest)
            rest = b""
    if rest:
        yield from _bounded(rest)


def _bounded(piece: bytes) -> Iterator[bytes]:
    return (piece[i : i + READ_BYTES_MAX] for i in range(0, len(piece), READ_BYTES_MAX))


def _show(update: SentimentUpdate, piece: bytes, *, as_json: bool) -> None:
    if as_json:
        header = update.header
        where = {"sequence_id": header.sequence_id, "step": header.step, "final": update.final}
        click.echo(json.dumps(where | _facts(update.sentiment)))
    elif update.final:
        click.echo(f"{_line(update.sentiment, 'final')}, after {update.sentiment.word_count} words")
    else:
        click.echo(_line(update.sentiment, piece.decode(errors="replace")))


def _facts(result: Sentiment) -> dict[str, str | float]:
    return {
        "label": result.label,
        "positive_probability": result.positive_probability,
        "word_count": result.word_count,
        "model_version": result.model.version,
    }


def _line(result: Sentiment, text: str) -> str:
    return f"{bar(result.positive_probability)} {result.positive_probability:5.3f} {result.label:<9}  {one_line(text)}"
