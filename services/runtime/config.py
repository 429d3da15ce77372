"""Settings of a server, read from the environment (`STATESTREAM_...`) and validated once."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    FilePath,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.runtime.core.cores import usable_cores
from services.runtime.core.redis_address import parse_redis_address

_ARTEFACTS = Path(__file__).parents[2] / "models" / "artefacts"


THREADS_MAX = 4
"""More runs at once of one model than that do not make up for what they take from the event loop."""

ELSEWHERE = {"STATESTREAM_ADDRESS", "STATESTREAM_DATA", "STATESTREAM_VERSION"}
"""Variables that the commands which call a server, training, and docker-compose.yml read."""


class Settings(BaseSettings):
    """Everything an operator can set; `docs/operations.md` has the table.

    Raises:
        pydantic.ValidationError: names the variable that cannot be used.
    """

    model_config = SettingsConfigDict(env_prefix="STATESTREAM_", extra="forbid", frozen=True, hide_input_in_errors=True)

    # What is served, and where.
    artefacts: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(_ARTEFACTS,),
        min_length=1,
        description="Folders of exported models, <model>/<version>/ each, separated like those of PATH",
    )
    model_control_mode: Literal["none", "poll", "explicit"] = Field(
        default="none",
        description="Models are loaded at the start; or as they come and go in the folders; or by calls",
    )
    repository_poll_s: PositiveFloat = Field(
        default=15.0, description="Seconds between two looks at the folders; not in mode none"
    )
    load_models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Models that mode explicit loads at the start, separated by commas; *: all"
    )
    versions_kept: NonNegativeInt = Field(
        default=0, description="Newest versions of a model on which sequences can be started; 0: all in the folders"
    )
    rollout_s: PositiveFloat = Field(
        default=300.0,
        description="How long a sequence of a version that is not here yet is told to try again, "
        "before the version counts as gone",
    )
    listen: str = Field(default="127.0.0.1:50051", description="gRPC address; port 0 takes a free one")
    metrics_listen: str = Field(default="127.0.0.1:9464", description="Prometheus address; empty: no metrics endpoint")
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=1, description="Processes that serve on one address; 0 or auto: one a core. All but 1 need store redis"
    )
    worker_start_s: PositiveFloat = Field(default=120.0, description="How long a worker may take to serve")
    drain_s: PositiveFloat = Field(default=20.0, description="How long calls in flight may take after SIGTERM")
    message_bytes_max: PositiveInt = Field(default=4 * 2**20, description="Largest gRPC message taken")
    streams_max: PositiveInt = Field(default=4096, description="Streams open at once")
    calls_max: PositiveInt = Field(default=1024, description="Unary calls in progress at once")

    # Where sequences are kept.
    store: Literal["memory", "redis"] = Field(default="memory", description="State store")
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis, with user and password; see below for the forms",
    )
    redis_timeout_s: PositiveFloat = Field(default=2.0, description="Bound on every call to Redis")
    redis_connections: PositiveInt = Field(default=2, description="Connections to each server of Redis")
    redis_replicas_acked: NonNegativeInt = Field(
        default=0, description="Replicas of Redis that a commit waits for; 0: none"
    )
    redis_tls_ca: FilePath | None = Field(
        default=None, description="PEM file of who may sign Redis' certificate; unset: the system's authorities"
    )
    redis_tls_certificate: FilePath | None = Field(
        default=None, description="PEM file with a certificate to show to Redis"
    )
    redis_tls_key: FilePath | None = Field(default=None, description="PEM file with the key of that certificate")
    record_key: SecretStr | None = Field(
        default=None, description="Key that signs stored records; unset: checksum only"
    )
    record_key_before: SecretStr | None = Field(
        default=None, description="The key before that one, while records signed with it are still there"
    )
    record_format: Literal[1, 2] = Field(
        default=2, description="Version in which records are written; 1 while replicas that read no other still run"
    )
    snapshot_key: SecretStr | None = Field(
        default=None, description="Key that signs exported sequences; unset: none is exported or imported"
    )
    memory_bytes_max: PositiveInt = Field(default=256 * 2**20, description="Bound on state kept in memory")
    sequences_max: PositiveInt = Field(default=100_000, description="Bound on sequences kept in memory")
    cache_sequences: int = Field(
        default=10_000, ge=0, description="Recently used sequences that a replica keeps at hand"
    )
    replies_kept: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="Replies kept for retries, per sequence"
    )
    reply_bytes_max: PositiveInt = Field(
        default=65_536, description="Largest reply kept for retries; a larger one is computed again"
    )
    retention_s: PositiveFloat = Field(default=300.0, description="How long an ended sequence answers retries")
    step_waiters_max: PositiveInt = Field(default=16, description="Requests that may wait for one sequence")

    # How far sequences of durability CHECKPOINT run ahead of the store, and what is kept to go back to.
    commit_steps: PositiveInt = Field(default=32, description="Steps of a sequence after which it is committed")
    commit_interval_ms: PositiveFloat = Field(
        default=100.0, description="Milliseconds after which what was answered is committed"
    )
    uncommitted_steps_max: PositiveInt = Field(
        default=128, description="Steps of a sequence that may wait for their commit; more wait for it, or are refused"
    )
    heads_max: PositiveInt = Field(default=10_000, description="Sequences that may run ahead of the store at once")
    checkpoints_kept: Annotated[int, Field(ge=0, le=64)] = Field(
        default=2, description="Earlier points kept of a sequence, to rewind to or to fork from"
    )
    checkpoint_steps: PositiveInt = Field(
        default=64, description="About how many steps lie between two points that are kept"
    )

    # How models run.
    batch_size_max: PositiveInt = Field(default=64, description="Sequences in one run")
    batch_cells_max: PositiveInt = Field(default=4096, description="Timesteps times sequences in one run")
    batch_delay_ms_max: float = Field(default=0.0, ge=0, le=1000, description="Longest wait for batch-mates; 0: none")
    gather_us_max: float = Field(
        default=1000.0,
        ge=0,
        le=10_000,
        description="Longest wait, in microseconds, for sequences that took part in the small runs just before, but "
        "not longer than half a run; an idle model waits for nobody",
    )
    queue_max: PositiveInt = Field(default=1024, description="Steps that may wait for a run, per model")
    inline_run_us_max: float = Field(
        default=3000.0,
        ge=0,
        description="Runs expected to be shorter, in microseconds, take no thread; 0: all take one",
    )
    run_threads: NonNegativeInt = Field(
        default=0, description="Runs of one model at the same time; 0: as many as there are cores, at most 4"
    )
    lone_run_threads: NonNegativeInt = Field(
        default=0,
        description="Threads of a small run that is alone, where they give the same bytes; 0: as above. "
        "More than 1 keep each model in memory twice",
    )

    # What is told.
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="Form of the log lines")

    @field_validator("artefacts", mode="before")
    @classmethod
    def _folders_are_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(folder) for folder in value.split(os.pathsep) if folder)
        return (value,) if isinstance(value, Path) else value

    @field_validator("load_models", mode="before")
    @classmethod
    def _names_are_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_can_be_found(cls, url: SecretStr) -> SecretStr:
        parse_redis_address(url.get_secret_value())
        return url

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_may_be_left_to_the_machine(cls, value: object) -> object:
        return 0 if value == "auto" else value

    @model_validator(mode="after")
    def _workers_share_what_they_serve(self) -> Self:
        if self.workers != 1 and self.store == "memory":
            raise ValueError("workers: more than one need store redis; with store memory each has sequences of its own")
        if self.workers != 1 and self.model_control_mode == "explicit":
            raise ValueError("workers: more than one need model_control_mode poll or none; a call to load reaches one")
        return self

    @model_validator(mode="after")
    def _files_of_tls_can_be_used(self) -> Self:
        files = {name: getattr(self, name) for name in ("redis_tls_ca", "redis_tls_certificate", "redis_tls_key")}
        given = [name for name, file in files.items() if file is not None]
        if given and not parse_redis_address(self.redis_url.get_secret_value()).tls:
            raise ValueError(f"{given[0]}: for connections to Redis that are encrypted redis_url begins with rediss")
        if (self.redis_tls_certificate is None) != (self.redis_tls_key is None):
            raise ValueError("redis_tls_certificate: needs redis_tls_key, and it needs a certificate")
        try:
            context = ssl.create_default_context(cafile=self.redis_tls_ca)
            if self.redis_tls_certificate is not None:
                context.load_cert_chain(self.redis_tls_certificate, self.redis_tls_key)
        except OSError as error:
            raise ValueError(f"{' and '.join(given)}: no certificate and key of one another in PEM form") from error
        return self

    @model_validator(mode="after")
    def _models_are_listed_where_calls_load(self) -> Self:
        if self.load_models and self.model_control_mode != "explicit":
            raise ValueError("load_models: needs model_control_mode=explicit; in the other modes all are loaded")
        return self

    @model_validator(mode="after")
    def _keys_are_in_order(self) -> Self:
        if self.record_key_before and not self.record_key:
            raise ValueError("record_key_before: needs record_key, the one that takes its place")
        return self

    @model_validator(mode="after")
    def _addresses_have_ports(self) -> Self:
        for name in ("listen", "metrics_listen"):
            value: str = getattr(self, name)
            if value and not value.rpartition(":")[2].isdigit():
                raise ValueError(f"{name}: must be host:port")
        return self


def threads(wanted: int) -> int:
    """A number of threads as set; where it was left to the machine, its cores, at most THREADS_MAX."""
    return wanted or min(usable_cores(), THREADS_MAX)


def unknown_variables() -> list[str]:
    """Names in the environment that look like settings and are none: most likely misspelt."""
    known = {f"STATESTREAM_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE
    return sorted(name for name in os.environ if name.startswith("STATESTREAM_") and name.upper() not in known)
