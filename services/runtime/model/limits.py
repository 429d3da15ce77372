"""What an operator sets for one model: `<folder>/<model>/serving.json`, beside the folders of its versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from models.common.manifest import ArtefactError

if TYPE_CHECKING:
    from pathlib import Path

SERVING_FILE: Final = "serving.json"


class ServingFile(BaseModel):
    """Settings of one model; what is not given is as for all models, or as the manifest has it.

    Attributes:
        batch_size_max, batch_cells_max, batch_delay_ms_max, queue_max, run_threads: in place of the setting of that
            name.
        sequences_max: live sequences; a further one is refused.
        state_bytes_max: bytes that live sequences take; a further one is refused.
        durability, idle_timeout_s, lifetime_s: in place of what the manifest says under `sequence`.
    """

    # Infinity and NaN are not JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    batch_size_max: PositiveInt | None = None
    batch_cells_max: PositiveInt | None = None
    batch_delay_ms_max: Annotated[float, Field(ge=0, le=1000)] | None = None
    queue_max: PositiveInt | None = None
    run_threads: PositiveInt | None = None
    sequences_max: PositiveInt | None = None
    state_bytes_max: PositiveInt | None = None
    durability: Literal["none", "step", "checkpoint"] | None = None
    idle_timeout_s: PositiveFloat | None = None
    lifetime_s: PositiveFloat | None = None


def load_serving_file(path: Path) -> ServingFile:
    """Reads and checks a file.

    Raises:
        ArtefactError: it cannot be read, is not JSON, or a field (named in `where`) is wrong or unknown.
    """
    try:
        return ServingFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtefactError(str(path), error.strerror or "cannot be read") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: {field}" if field else str(path), first["msg"]) from error
