"""`statestream models list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from models.common.manifest import MODEL_FILE, ArtefactError, load_manifest
from services.cli.models.folder import folder_option, versions_in

if TYPE_CHECKING:
    from pathlib import Path

_ROW = "{:<12} {:<8} {:>9} {:>11}  {:<12}  {}"


@click.command(name="list", short_help="List the exported models.")
@folder_option
def command(roots: tuple[Path, ...]) -> None:
    """List the exported models."""
    click.echo(_ROW.format("model", "version", "size", "state", "digest", "made"))
    for folder in versions_in(roots):
        try:
            manifest = load_manifest(folder)
            size = (folder / MODEL_FILE).stat().st_size
        except (ArtefactError, OSError) as error:
            raise click.ClickException(f"{error}") from error
        click.echo(
            _ROW.format(
                manifest.name,
                manifest.version,
                f"{size / 1e6:.1f} MB",
                f"{manifest.state_bytes:,} B",
                manifest.weights_digest[:12],
                f"{manifest.created:%Y-%m-%d}",
            )
        )
