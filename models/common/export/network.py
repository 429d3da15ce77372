"""A torch network becomes an artefact in one call."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from models.common.export.analyse import build, check_layers
from models.common.export.choose import choose
from models.common.export.errors import ExportError
from models.common.export.example import Drawer, Layout, read_example
from models.common.export.facts import make_facts
from models.common.export.graph import direct_graph, scan_graph
from models.common.export.probe import check_streams
from models.common.export.write import Exported, describe, put_files, write_artefact
from models.common.parity import Draw, Features, ParityReport, Step, check_parity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Literal, Unpack

    from models.common.export.facts import FactOptions, Facts
    from models.common.export.streamed import Streamed
    from models.common.export.tree import Tree
    from models.common.manifest import Manifest


def export(  # noqa: PLR0913 - every one but the first two is by name, and has a default where there is a good one
    module: nn.Module,
    example: Tree,
    *,
    name: str,
    state: Tree = None,
    batch_first: bool = False,
    cell: bool = False,
    outputs: Sequence[str] | None = None,
    draw: Draw | None = None,
    tolerance: float = 1e-4,
    allow_inexact: bool = False,
    seed: int = 0,
    echo: Callable[[str], None] | None = print,
    **options: Unpack[FactOptions],
) -> Exported:
    """Export a network that carries state, check it against itself, and write ``<into>/<name>/<version>/``.

    The network is copied, and the copy put on the CPU and into eval mode; the given one is not touched.

    Args:
        module: the network.
        example: example inputs of ``forward`` as a tensor, a tuple of them, or a dict by name; (T, N, ...) each, or
            (N, T, ...) with ``batch_first``. An int tensor (N,) named ``lengths`` is the true lengths of the rows.
        name: of the model; clients ask for it.
        state: what a sequence starts with, where ``forward`` takes and returns its state: a tensor, or a tuple, list,
            dict or named tuple of them, with the rows of the example, all rows alike; or a dict of ``forward``'s
            arguments; or only the names of those arguments, where leaving them out means zeros. None finds it:
            arguments named as a state that may be left out, and what is kept inside by LSTM, GRU, RNN and their cells.
        batch_first: whether the network's inputs have the batch before time; the wire never does.
        cell: whether ``forward`` takes a single timestep, (N, ...), and a loop over time has to be put around it.
        outputs: names for the outputs, in order; else those of a dict or named tuple, or ``y``, or ``y_0``, ``y_1``...
        draw: makes the inputs of one sequence of T timesteps, from a generator and T; else they are random, with the
            mean and spread of the example.
        tolerance: largest difference that passes as rounding.
        allow_inexact: whether answers may depend in their last bits on batch and chunks.
        seed: of the random inputs of the comparison.
        echo: takes the report as text; None for silence.
        options: facts for the manifest.

    Raises:
        ExportError: the network cannot stream, cannot be exported, or an argument is wrong; nothing is written.
    """
    facts = make_facts(name, options)
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - not everybody checks types
        raise ExportError(f"module: {type(module).__name__}, but a torch.nn.Module is needed")
    layout = _layout(module, batch_first=batch_first, cell=cell)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _one_thread(), warnings.catch_warnings():
        # Which library computes it in torch; the graph has operations of its own.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        read = read_example(module, example, layout)
        draw_one = Drawer(read, draw)
        streamed = build(_copied(module), read, draw_one, state, outputs)
        check_streams(streamed, draw_one, tolerance)
        reference = _reference(streamed)
        graph, model = choose(
            _candidates(streamed, draw_one), _described(streamed, facts), draw_one, reference, tolerance
        )

        def make(folder: Path) -> tuple[Manifest, ParityReport]:
            manifest = _described(streamed, facts, put_files(model, facts, folder))
            report = check_parity(folder, manifest, draw_one, reference, seed=seed, tolerance=tolerance)
            return manifest, report

        manifest, report = write_artefact(facts, make, allow_inexact=allow_inexact)
    exported = Exported(facts.folder, manifest, report, graph)
    if echo is not None:
        echo(str(exported))
    return exported


@contextmanager
def _one_thread() -> Generator[None]:
    """Sequences are run one by one here: more threads only wait for one another, long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _layout(module: nn.Module, *, batch_first: bool, cell: bool) -> Layout:
    if isinstance(module, nn.RNNCellBase):
        return Layout(batch_first=False, cell=True)
    if cell and batch_first:
        raise ExportError("batch_first: a cell takes a single timestep, which starts with the batch in any case")
    return Layout(batch_first or (isinstance(module, nn.RNNBase) and module.batch_first), cell)


def _copied(module: nn.Module) -> nn.Module:
    """On the CPU and in eval mode; whoever gave the module keeps it as it is."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError("module: is scripted; give the module that it was made from")
    try:
        net = copy.deepcopy(module).cpu().eval()
    except Exception as error:  # whatever its parts raise
        raise ExportError(f"module: cannot be copied: {error}") from error
    check_layers(net)
    return net


def _candidates(streamed: Streamed, draw: Drawer) -> Iterator[tuple[Literal["direct", "scan"], Callable[[], bytes]]]:
    """Recurrent layers as nodes, where that may be; else a loop over time around the whole network."""
    signature = streamed.signature()

    def direct() -> bytes:
        return direct_graph(streamed, signature, _arguments(streamed, draw, 4)).SerializeToString()

    def scan() -> bytes:
        streamed.carrier.decomposed = True
        try:
            return scan_graph(streamed, signature, _arguments(streamed, draw, 1)).SerializeToString()
        finally:
            streamed.carrier.decomposed = False

    if _may_be_direct(streamed):
        yield "direct", direct
    yield "scan", scan


def _may_be_direct(streamed: Streamed) -> bool:
    """Whether the exporter and ONNX Runtime have the layers: no cells, no projections, no float64."""
    inner = [layer for layer in streamed.net.modules() if isinstance(layer, nn.RNNBase | nn.RNNCellBase)]
    return not streamed.layout.cell and all(
        isinstance(layer, nn.RNNBase) and not layer.proj_size and layer.weight_hh_l0.dtype == torch.float32
        for layer in inner
    )


def _arguments(streamed: Streamed, draw: Drawer, timesteps: int) -> list[Tensor]:
    rows = 2
    features = draw.batch(np.random.default_rng(0), timesteps, rows)
    lengths = torch.full((rows,), timesteps, dtype=torch.int32)
    return [*features.values(), lengths, *(state.start(rows) for state in streamed.states)]


def _described(streamed: Streamed, facts: Facts, digests: Mapping[str, str] | None = None) -> Manifest:
    signature = streamed.signature()
    return describe(facts, signature.inputs, signature.outputs, signature.states, digests)


def _reference(streamed: Streamed) -> Callable[[Features], Step]:
    """The torch network on one whole sequence, starting by itself."""

    def run(features: Features) -> Step:
        x = {name: torch.from_numpy(array)[:, None] for name, array in features.items()}
        outputs, states = streamed.whole(x, None)
        found = zip(streamed.outputs, outputs, strict=True)
        return Step(
            {o.name: (t[:, 0] if o.spec().per == "timestep" else t[0]).numpy() for o, t in found},
            {s.name: t[:, 0].numpy() for s, t in zip(streamed.states, states, strict=True)},
        )

    return run
