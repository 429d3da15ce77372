"""Where data sets are found, and how they are fetched (no torch).

Readers look for a file in ``STATESTREAM_DATA`` if that is set, in ``../shared/data`` beside the repository if
that exists, and in the user's cache; else the official archive is downloaded, once, with its licence shown.
Nothing found here is ever copied into the repository.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = "STATESTREAM_DATA"
_SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True, slots=True)
class Archive:
    """The official archive of a data set: ``folder/file`` below a data root.

    ``checksum`` is ``"md5:..."`` or ``"sha256:..."``.
    """

    folder: str
    file: str
    url: str
    checksum: str
    licence: str


def cache_folder() -> Path:
    """The per-user folder for downloads; it may not exist yet."""
    import pooch  # noqa: PLC0415 - only who downloads needs it

    return Path(pooch.os_cache("statestream"))


def data_roots() -> list[Path]:
    """Folders to look in, best first; the last one is where downloads go."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return [Path(named)]
    return [*([_SHARED] if _SHARED.is_dir() else []), cache_folder()]


def locate(relative: str) -> Path | None:
    """The first data root's file of that name, or None."""
    return next((root / relative for root in data_roots() if (root / relative).is_file()), None)


def fetch(archive: Archive) -> Path:
    """Path of the archive, downloaded with a progress bar and its licence shown if it is nowhere yet.

    Raises:
        ValueError: what came does not have the published checksum; it is not kept.
        OSError: no connection, no room.
    """
    found = locate(f"{archive.folder}/{archive.file}")
    if found is not None:
        return found
    import pooch  # noqa: PLC0415

    sys.stderr.write(f"{archive.file}: fetching {archive.url}\nlicence: {archive.licence}\n")
    path = pooch.retrieve(
        archive.url,
        known_hash=archive.checksum,
        fname=archive.file,
        path=data_roots()[-1] / archive.folder,
        progressbar=True,
    )
    return Path(path)


def read_text(path: Path) -> str:
    """The text of an xz-compressed UTF-8 file."""
    with lzma.open(path) as file:
        return file.read().decode("utf-8")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of an xz-compressed JSON Lines file."""
    # Not splitlines(): the texts hold U+0085 and U+2028, which it takes for ends of lines.
    for line in read_text(path).split("\n"):
        if line:
            yield json.loads(line)
