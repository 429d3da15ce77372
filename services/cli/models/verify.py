"""`statestream models verify`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from models.common.manifest import MODEL_FILE, ArtefactError, load_manifest, verify_files
from services.cli.models.folder import folder_option, versions_in
from services.runtime.model.session import OnnxModel

if TYPE_CHECKING:
    from pathlib import Path


@click.command(name="verify", short_help="Check that exported models are undamaged and run.")
@click.argument("name", default="")
@folder_option
def command(name: str, roots: tuple[Path, ...]) -> None:
    """Check that exported models are undamaged and run: those of model NAME, or all.

    Compares every file with the digest in its manifest, then loads the network and runs it once. Exit status 1 if one
    is damaged, which is named.
    """
    folders = versions_in(roots, name)
    damages = [damage(folder) for folder in folders]
    for folder, found in zip(folders, damages, strict=True):
        where = f"{folder.parent.name}/{folder.name}"
        click.echo(f"{where}: DAMAGED: {found}" if found else f"{where}: good")
    sys.exit(any(damages))


def damage(folder: Path) -> str:
    """What is wrong with an exported model, naming the file; empty where nothing is."""
    try:
        manifest = load_manifest(folder)
        verify_files(folder, manifest)
    except ArtefactError as error:
        return str(error)
    try:
        OnnxModel(folder, manifest).warm_up([1])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has no class for all that it raises
        return f"{folder / MODEL_FILE}: does not run: {str(error).splitlines()[0]}"
    return ""
