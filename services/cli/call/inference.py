"""`statestream call inference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from statestream import Client, StatestreamError, errors

from services.cli.address import address_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

SHOWN = 4
"""Elements of an output that are printed."""


@click.command(name="inference", short_help="Feed arrays to any model.")
@click.argument("model")
@click.option(
    "--input", "inputs", multiple=True, required=True, metavar="NAME=FILE", help="An array in a .npy file, (T, ...)."
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="An output; repeat for more. Default: all.")
@click.option("--chunk", type=click.IntRange(min=1), metavar="T", help="Send a sequence in chunks of T timesteps.")
@click.option("--sequence-id", metavar="ID", help="Name the sequence, and leave it open at the end.")
@click.option("--resume", is_flag=True, help="Go on with the sequence of that name.")
@click.option("--end", is_flag=True, help="Close the named sequence at the end.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the outputs as .npz, those of a sequence as NAME.STEP.",
)
@click.option("--model-version", default="", metavar="V", help="Version of the model; default: the newest.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, metavar="S", help="Seconds for each answer.")
@address_option
def command(  # noqa: PLR0913 - one for each option
    *,
    model: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    chunk: int | None,
    sequence_id: str | None,
    resume: bool,
    end: bool,
    save: Path | None,
    model_version: str,
    timeout_s: float,
    address: str,
) -> None:
    r"""Feed arrays to MODEL: whole, or with --chunk as a sequence.

    \b
      statestream call inference lstm --input x=frames.npy --save y.npz
      statestream call inference lstm --input x=frames.npy --chunk 10 --sequence-id call-7
    """
    if (resume or end or sequence_id) and not chunk:
        raise click.UsageError("--sequence-id, --resume and --end need --chunk")
    if (resume or end) and not sequence_id:
        raise click.UsageError("--resume and --end need --sequence-id")
    arrays = dict(_read(one) for one in inputs)
    try:
        with Client(address, timeout_s=timeout_s) as client:
            if chunk is None:
                whole = client.inference.infer(model, arrays, outputs=outputs, model_version=model_version)
                _save(save, _named(whole.outputs, ""))
                return
            stream = client.inference.stream(
                model, sequence_id, outputs=outputs, resume=resume, model_version=model_version
            )
            timesteps = len(next(iter(arrays.values())))
            saved: Arrays = {}
            with stream as sequence:
                for at in range(0, timesteps, chunk):
                    piece = {name: array[at : at + chunk] for name, array in arrays.items()}
                    update = sequence.send(piece, end=end and at + chunk >= timesteps)
                    saved |= _named(update.outputs, f".{update.header.step}")
            _save(save, saved)
            if sequence_id and not end:
                click.echo(f"the sequence stays open: go on with --sequence-id {sequence_id} --resume")
    except errors.Unavailable as error:
        raise click.ClickException(
            f"{error}\nno server serves at {address}; start one with: statestream serve"
        ) from error
    except StatestreamError as error:
        raise click.ClickException(str(error)) from error


def _read(option: str) -> tuple[str, npt.NDArray[Any]]:
    name, _, file = option.partition("=")
    try:
        return name, np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{name}: {file or 'no file'} is no array in a .npy file") from error


def _named(outputs: Mapping[str, npt.NDArray[Any]], suffix: str) -> Arrays:
    """Outputs by their names and the step that they are of; printed as they come."""
    named = {name + suffix: array for name, array in outputs.items()}
    for name, array in named.items():
        click.echo(_line(name, array))
    return named


def _line(name: str, array: npt.NDArray[Any]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in array.reshape(-1)[:SHOWN])
    return f"{name} {array.dtype} {list(array.shape)}: {shown}{', ...' if array.size > SHOWN else ''}"


def _save(file: Path | None, arrays: Arrays) -> None:
    if file is not None:
        write: Any = np.savez  # its stubs take the names of arrays for its own options
        write(file, **arrays)
