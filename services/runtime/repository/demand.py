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
        self._wanted: dict[tuple[str, str], ModelId | None] = {}

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
        self._want((model_id.name, model_id.version), model_id)
        return NotReady(f"{what}, is not loaded here yet", retry_delay_s=_RETRY_S)

    def of_any(self, versions: Sequence[Version], version: str, *, start: bool) -> NotReady | None:
        """What to tell who asks for `version`, "": any, where none is served; None: there is none to wait for."""
        asked = [each for each in versions if version in ("", each.version)]
        if any(each.loading for each in asked):
            return NotReady("the model is being loaded", retry_delay_s=_RETRY_S)
        at_hand = [each for each in asked if each.loadable]
        if start or not at_hand:
            return None
        # Whoever goes on with a sequence is only known by the model's name so far.
        newest = at_hand[-1]
        self._want((newest.name, newest.version), None)
        return NotReady("the model is not loaded here yet", retry_delay_s=_RETRY_S)

    @property
    def waiting(self) -> bool:
        """True if somebody waits for a version to be loaded."""
        return bool(self._wanted)

    def take(self) -> Iterable[tuple[str, str, ModelId | None]]:
        """What somebody waits for: name, version, and the exact model where it is known."""
        wanted, self._wanted = self._wanted, {}
        return [(name, version, model_id) for (name, version), model_id in wanted.items()]

    def loaded(self, model_id: ModelId) -> None:
        """It is here."""
        self._since.pop(model_id, None)
        self._gone.pop(model_id, None)

    def gone(self, model_id: ModelId) -> None:
        """It was here, and is here no longer."""
        _put(self._gone, model_id, None)

    def _want(self, what: tuple[str, str], model_id: ModelId | None) -> None:
        if len(self._wanted) < _KEPT_MAX:
            self._wanted[what] = model_id


def _put(kept: OrderedDict[ModelId, T], model_id: ModelId, value: T) -> None:
    kept[model_id] = value
    if len(kept) > _KEPT_MAX:
        kept.popitem(last=False)
