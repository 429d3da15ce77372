"""Which versions of which models a server has, and how they come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.runtime.repository.contract import IndexEntry


class Repository:
    """The models of a server, version by version."""

    def index(self) -> list[IndexEntry]:
        """Every version that is loaded or was found, by name, and from the oldest version to the newest."""
        raise NotImplementedError

    async def load(self, name: str) -> None:
        """Looks into the folders and loads what is there of a model; returns once its newest version is served.

        Raises:
            ModelControlDisabled: the control mode is not `explicit`.
            UnknownModel: the folders have no model of that name.
            ModelNotLoaded: the newest version cannot be served; what was served before goes on.
        """
        raise NotImplementedError

    async def unload(self, name: str) -> None:
        """Starts no further sequence of a model; each version goes when its sequences have ended or their time is up.

        Returns without waiting for that; `index` says UNLOADING until then.

        Raises:
            ModelControlDisabled: the control mode is not `explicit`.
            UnknownModel: no version of it is loaded.
        """
        raise NotImplementedError
