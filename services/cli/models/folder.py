"""Exported models as they lie in folders: `<model>/<version>/manifest.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import models

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT = Path(models.__path__[0]) / "artefacts"

folder_option = click.option(
    "--artefacts",
    "roots",
    envvar="STATESTREAM_ARTEFACTS",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=[DEFAULT],
    help="Folder of exported models, repeat for more; also from STATESTREAM_ARTEFACTS, separated like those of PATH. "
    "Default: those that came with the program.",
)


def versions_in(roots: Sequence[Path], name: str = "") -> list[Path]:
    """Folders of all versions of a model, or of every model, in order of their names.

    Of two folders with the same version that of the earlier root counts, as for a server.

    Raises:
        click.ClickException: there is none.
    """
    found: dict[tuple[str, str], Path] = {}
    for root in roots:
        for path in root.glob(f"{name or '*'}/*/manifest.json"):
            found.setdefault((path.parent.parent.name, path.parent.name), path.parent)
    if not found:
        where = " and ".join(str(root / name) for root in roots)
        raise click.ClickException(f"{where}: holds no exported model (<version>/manifest.json)")
    return [found[each] for each in sorted(found)]
