"""Export of networks, for those who have the extra `train`; a client needs none of it.

The exporter lives in `models`, which the client must not import, not even for its types: it would bring torch with it.
So it is looked up by name when it is called. The signatures stand here once more for editors and type checkers; a test
holds that they are those of the exporter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class Exported(Protocol):
    """A written model. As text it is the report that a person reads."""

    @property
    def folder(self) -> Path:
        """Where it is: `<into>/<name>/<version>`."""
        ...

    @property
    def manifest(self) -> Any:  # noqa: ANN401 - its type is of `models`
        """Its description: inputs, outputs, states, digests."""
        ...

    @property
    def report(self) -> Any:  # noqa: ANN401 - as above
        """What was compared, and what came out."""
        ...

    @property
    def graph(self) -> Literal["direct", "scan", "adopted"]:
        """Recurrent layers as nodes of their own, a loop over time around the whole network, or as it was."""
        ...


class ModelOptions(TypedDict, total=False):
    """What :func:`export` and :func:`adopt` both take by name; all of it may be left out."""

    version: str
    """Of the model, "1" by default; a running server keeps sequences on the version they began on."""
    into: str | os.PathLike[str]
    """Folder of all models, "artefacts" by default; the model is put into `<into>/<name>/<version>/`."""
    draw: Callable[[Any, int], dict[str, Any]]
    """Makes the inputs of one sequence of T timesteps for the comparisons, from a numpy generator and T."""
    chunk_timesteps_max: int
    """Longest chunk that a server takes at once, 256 by default."""
    idle_timeout_s: float
    """How long a sequence may rest before it is dropped, an hour by default."""
    lifetime_s: float
    """How long it may live in all, a day by default."""
    durability: Literal["none", "step", "checkpoint"]
    """Whether steps are not stored, each before its reply, or (the default) every now and then."""
    task: str
    """Service that the model is for, "inference" by default."""
    options: Mapping[str, bool | int | float | str]
    """Facts for that service."""
    files: Sequence[str | os.PathLike[str]]
    """Files that belong to the model, a vocabulary for instance."""
    metrics: Mapping[str, float]
    """Measured figures."""
    data: Sequence[object]
    """Data sets that it was trained on, each a dict of name, licence and url."""
    training: object
    """A dict of command, seed, epochs and libraries that make the same weights."""
    tolerance: float
    """Largest difference that passes as rounding, 1e-4 by default."""
    allow_inexact: bool
    """Whether answers may depend in their last bits on batch and chunks; no by default."""
    overwrite: bool
    """Whether a version that is there may be replaced; no by default."""
    seed: int
    """Of the random inputs of the comparison."""
    echo: Callable[[str], None] | None
    """Takes the report as text, `print` by default; None for silence."""


def export(
    module: object,
    example: object,
    *,
    name: str,
    state: object = None,
    batch_first: bool = False,
    cell: bool = False,
    outputs: Sequence[str] | None = None,
    **options: Unpack[ModelOptions],
) -> Exported:
    """Export a torch network that carries state, checked, ready to serve, and print a report.

    The network is copied; the given one is not touched. docs/export.md tells how its state is found, and what is
    refused.

    Args:
        module: the network, a `torch.nn.Module`.
        example: example inputs of `forward` as a tensor, a tuple of them, or a dict by name; (T, N, ...) each, or
            (N, T, ...) with `batch_first`. An int tensor (N,) named `lengths` is the true lengths of the rows.
        name: of the model; clients ask for it.
        state: what a sequence starts with, where `forward` takes and returns its state: a tensor, or a tuple, list,
            dict or named tuple of them, with the rows of the example, all rows alike; or a dict of `forward`'s
            arguments; or only the names of those arguments, where leaving them out means zeros. None finds it:
            arguments named as a state that may be left out, and what is kept inside by LSTM, GRU, RNN and their cells.
        batch_first: whether the network's inputs have the batch before time; the wire never does.
        cell: whether `forward` takes a single timestep, (N, ...), and a loop over time has to be put around it.
        outputs: names for the outputs, in order; else those of a dict or named tuple, or `y`, or `y_0`, `y_1`...
        options: see :class:`ModelOptions`.

    Raises:
        ExportError: the network cannot stream, cannot be exported, or an argument is wrong; nothing is written.
        ImportError: torch or another package of the extra `train` is not installed.
    """
    function: Callable[..., Exported] = exporter("network").export
    return function(
        module, example, name=name, state=state, batch_first=batch_first, cell=cell, outputs=outputs, **options
    )


def adopt(
    path: str | os.PathLike[str],
    *,
    name: str,
    state: Mapping[str, str] | None = None,
    initial: Mapping[str, object] | None = None,
    **options: Unpack[ModelOptions],
) -> Exported:
    """Take a ready ONNX file with state inputs, checked, ready to serve, and print a report; needs no torch.

    Args:
        path: the file; its weights have to be inside it.
        name: of the model; clients ask for it.
        state: state input -> state output; None pairs them by name, `h` with `h_next`, `state_in` with `state_out`.
        initial: state input -> what a sequence starts with, a number or an array without the batch axis; else zeros.
        options: see :class:`ModelOptions`.

    Raises:
        ExportError: the file cannot be served, or an argument is wrong; nothing is written.
        ImportError: a package of the extra `train` is not installed.
    """
    function: Callable[..., Exported] = exporter("adopt").adopt
    return function(path, name=name, state=state, initial=initial, **options)


def exporter(module: str) -> Any:  # noqa: ANN401 - a module, whose types are not known here
    """A module of the exporter.

    Raises:
        ImportError: a package that it needs is not installed.
    """
    try:
        return importlib.import_module(f"models.common.export.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ImportError(
            f"export needs {missing or 'a package'}, which is not installed: pip install 'statestream[train]', or "
            "'.[train]' in the checkout",
            name=error.name,
        ) from error
