"""`statestream models show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from models.common.manifest import ArtefactError, Manifest, load_manifest
from services.cli.models.folder import folder_option, versions_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.command(name="show", short_help="Show what an exported model is, and how good.")
@click.argument("name")
@click.argument("version", default="")
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is.")
@folder_option
def command(name: str, version: str, roots: tuple[Path, ...], *, as_json: bool) -> None:
    """Show what an exported model is, and how good: version VERSION of model NAME, or all of its versions."""
    try:
        found = [load_manifest(folder) for folder in versions_in(roots, name)]
    except ArtefactError as error:
        raise click.ClickException(str(error)) from error
    wanted = [manifest for manifest in found if version in ("", manifest.version)]
    if not wanted:
        there = ", ".join(manifest.version for manifest in found)
        raise click.ClickException(f"model {name} has no version {version}; there are: {there}")
    for manifest in wanted:
        click.echo(manifest.dumps() if as_json else "\n".join(_lines(manifest)))


def _lines(manifest: Manifest) -> Iterator[str]:
    yield f"{manifest.name} {manifest.version}, task {manifest.task}, made {manifest.created:%Y-%m-%d}"
    yield f"  weights   sha256 {manifest.weights_digest}"
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs), ("state", manifest.states)):
        for spec in specs:
            yield f"  {kind:<9} {spec.name}: {spec.dtype} [{', '.join(str(dim) for dim in spec.dims)}]"
    terms = manifest.sequence
    yield f"  sequence  {manifest.state_bytes:,} bytes of state, durability {terms.durability}"
    yield f"  dropped   when idle for {terms.idle_timeout_s:g} s, or {terms.lifetime_s:g} s after the start"
    yield f"  chunk     at most {manifest.chunk_timesteps_max} timesteps in a run"
    for name, value in manifest.metrics.items():
        yield f"  measured  {name} {value:g}"
    for source in manifest.data:
        yield f"  data      {source.name} ({source.licence}): {source.url}"
    if manifest.training is not None:
        yield f"  trained   {manifest.training.command} (seed {manifest.training.seed})"
    if not manifest.bit_equal:
        yield "  bits      a reply may differ in its last bits with the batch or the chunks that it is computed in"
