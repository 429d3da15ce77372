"""The parity report as a person reads it (no torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from models.common.manifest import Dim, Manifest
    from models.common.parity import ParityReport

_GRAPHS = {
    "direct": "one pass over time; recurrent layers are single nodes of the graph",
    "scan": "a loop over time around the whole network",
    "adopted": "as it was given",
}


def summary(manifest: Manifest, report: ParityReport, graph: str, where: str) -> str:
    """A short table of what was written and of what was found out about it."""
    return "\n".join(_lines(manifest, report, graph, where))


def _lines(manifest: Manifest, report: ParityReport, graph: str, where: str) -> Iterator[str]:
    yield f"{manifest.name} {manifest.version} -> {where}"
    yield f"  graph     {_GRAPHS[graph]}"
    for spec in manifest.inputs:
        yield f"  input     {spec.name}: {spec.dtype} {_dims(spec.dims)}"
    causal = {output.name: output.causal for output in report.outputs}
    for spec in manifest.outputs:
        kind = f"one row a {spec.per}" + (", causal" if causal.get(spec.name) else "")
        yield f"  output    {spec.name}: {spec.dtype} {_dims(spec.dims)}, {kind}"
    for spec in manifest.states:
        start = "learnt or given values" if isinstance(spec.initial, tuple) else f"{spec.initial:g}"
        yield f"  state     {spec.name}: {spec.dtype} {_dims(spec.dims)}, starts from {start}"
    if not manifest.states:
        yield "  state     none: each timestep stands for itself"
    yield f"  sequence  {manifest.state_bytes:,} bytes of state, durability {manifest.sequence.durability}"
    sizes = report.batch_sizes
    yield (
        f"  compared  {report.sequences} sequences of {report.lengths[0]} to {report.lengths[1]} timesteps, "
        f"in batches of {min(sizes)} to {max(sizes)}, {report.runs} runs"
    )
    yield f"  batched = alone   {_verdict(report.batched_difference_max, equal=report.batched_equal)}"
    yield f"  chunked = whole   {_verdict(report.chunked_difference_max, equal=report.chunked_equal)}"
    if report.torch_difference_max is not None:
        off = f"differ by {report.torch_difference_max:.2g} at most, tolerance {report.torch_tolerance:g}"
        yield f"  torch = ONNX      {off}"


def _verdict(off: float, *, equal: bool) -> str:
    return "the same bits" if equal else f"differ by {off:.2g} at most (accepted)"


def _dims(dims: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, dims))}]"
