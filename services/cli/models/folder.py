"""Exported models as they lie in a folder: `<task>/<version>/manifest.json`."""

from __future__ import annotations

from pathlib import Path

import click

import models

DEFAULT = Path(models.__path__[0]) / "artefacts"

folder_option = click.option(
    "--artefacts",
    "root",
    envvar="STATESTREAM_ARTEFACTS",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=DEFAULT,
    help="Folder of exported models, also from STATESTREAM_ARTEFACTS. Default: those that came with the program.",
)


def versions_in(root: Path, name: str = "") -> list[Path]:
    """Folders of all versions of a model, or of every model, in order of their names.

    Raises:
        click.ClickException: there is none.
    """
    found = sorted(path.parent for path in root.glob(f"{name or '*'}/*/manifest.json"))
    if not found:
        raise click.ClickException(f"{root / name}: holds no exported model (<version>/manifest.json)")
    return found
