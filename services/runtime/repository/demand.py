"""What is asked for and not loaded: what to tell who asks, and what to load for it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeVar

from services.runtime.core.errors import ModelVersionGone, NotReady
from services.runtime.model.registry import version_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId
    from services.runtime.repository.version import Version

T = TypeVar("T")

_KEPT_MAX: Final = 256
"""Models that were unloaded, or asked for, that are remembered."""

_RETRY_S: Final = 0.5
"""After which it is sensible to ask for a model again that is being loaded."""


class Demand:
    """A version that is on its way here is worth a retry, for at most `rollout_s`; one that has gone is not.

    On its way is what the folders hold, and what is newer than all that this replica has seen: during an update another
    replica had it earlier.
    """

    def __init__(self, rollout_s: float, clock: Clock) -> None:
        self._rollout_s = rollout_s
        self._clock = clock
        self._since: OrderedDict[ModelId, float] = OrderedDict()
        self._gone: OrderedDict[ModelId, None] = OrderedDict()
        self._wanted: dict[ModelId, None] = {}  # bounded in `of_sequence`

    def of_sequence(self, versions: Sequence[Version], model_id: ModelId) -> NotReady | ModelVersionGone:
        """What to tell who goes on with a sequence of `model_id`; `versions` are those known of the model."""
        what = f"version {model_id.version} of model {model_id.name}, which the sequence began on"
        here = next((version for version in versions if version.version == model_id.version), None)
        coming = here is not None and here.files is not None and here.digest in ("", model_id.weights_digest)
        if not coming:
            key = version_key(model_id.version)
            coming = model_id not in self._gone and all(key > version_key(each.version) for each in versions)
        if coming:
            now = self._clock.monotonic()
            _put(self._since, model_id, self._since.get(model_id, now))
            coming = now - self._since[model_id] < self._rollout_s
        if not coming:
            return ModelVersionGone(what)
        if len(self._wanted) < _KEPT_MAX:
            self._wanted[model_id] = None
        return NotReady(f"{what}, is not loaded here yet", retry_delay_s=_RETRY_S)

    def of_any(self, versions: Sequence[Version], version: str, *, start: bool) -> NotReady | None:
        """What to tell who asks for `version`, "": any, where none is served; None: there is none to wait for."""
        if any(each.loading for each in versions if version in ("", each.version)):
            return NotReady("the model is being loaded", retry_delay_s=_RETRY_S)
        if not start and any(each.loadable for each in versions):
            # Not loaded for it: anybody can name a model, but only a sequence that is stored has one.
            return NotReady("the model is not loaded here", retry_delay_s=_RETRY_S)
        return None

    @property
    def waiting(self) -> bool:
        """True if somebody waits for a version to be loaded."""
        return bool(self._wanted)

    def take(self) -> Iterable[ModelId]:
        """What sequences wait for."""
        wanted, self._wanted = self._wanted, {}
        return wanted

    def loaded(self, model_id: ModelId) -> None:
        """It is here."""
        self._since.pop(model_id, None)
        self._gone.pop(model_id, None)

    def gone(self, model_id: ModelId) -> None:
        """It was here, and is here no longer."""
        _put(self._gone, model_id, None)


def _put(kept: OrderedDict[ModelId, T], model_id: ModelId, value: T) -> None:
    kept[model_id] = value
    if len(kept) > _KEPT_MAX:
        kept.popitem(last=False)
