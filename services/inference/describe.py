"""What is told of models: their tensors and configuration in Triton's words (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.inference.datatypes import datatype_of
from services.inference.limits import ROWS_MAX
from services.inference.wire import infer_pb2, management_pb2, model_config_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from models.common.manifest import Dim, StateSpec
    from services.runtime.engine.served import ServedModel
    from services.runtime.engine.statistics import Total

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
ANY = -1
"""A size that each request chooses."""

EXTENSIONS = ("model_configuration", "model_repository", "schedule_policy", "sequence", "statistics")
"""Those of Triton's extensions that are served."""


def metadata(model: ServedModel, versions: Iterable[str]) -> infer_pb2.ModelMetadataResponse:
    """The tensors of a model, with N first."""
    tensor = infer_pb2.ModelMetadataResponse.TensorMetadata
    manifest = model.manifest
    return infer_pb2.ModelMetadataResponse(
        name=model.model_id.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(name=spec.name, datatype=datatype_of(spec.dtype).name, shape=[ANY, *_without_batch(spec.dims)])
            for spec in manifest.features()
        ],
        outputs=[
            tensor(name=spec.name, datatype=datatype_of(spec.dtype).name, shape=[ANY, *_without_batch(spec.dims)])
            for spec in manifest.outputs
        ],
    )


def config(model: ServedModel) -> model_config_pb2.ModelConfig:
    """The configuration of a model; `max_batch_size` says that dims leave out N."""
    manifest = model.manifest
    facts = {
        "version": model.model_id.version,
        "weights_digest": model.model_id.weights_digest,
        "chunk_timesteps_max": str(manifest.chunk_timesteps_max),
        "durability": model.sequence.durability.upper(),
    }
    described = model_config_pb2.ModelConfig(
        name=model.model_id.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=ROWS_MAX,
        version_policy=model_config_pb2.ModelVersionPolicy(all=model_config_pb2.ModelVersionPolicy.All()),
        default_model_filename="model.onnx",
        input=[
            model_config_pb2.ModelInput(
                name=spec.name,
                data_type=datatype_of(spec.dtype).config,
                dims=_without_batch(spec.dims) if spec.role == "features" else [1],
                optional=spec.role != "features",
            )
            for spec in manifest.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(
                name=spec.name, data_type=datatype_of(spec.dtype).config, dims=_without_batch(spec.dims)
            )
            for spec in manifest.outputs
        ],
        parameters={key: model_config_pb2.ModelParameter(string_value=value) for key, value in facts.items()},
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )
    if manifest.states:
        described.sequence_batching.CopyFrom(_sequence_batching(model))
    else:
        described.dynamic_batching.SetInParent()
    return described


def _sequence_batching(model: ServedModel) -> model_config_pb2.ModelSequenceBatching:
    return model_config_pb2.ModelSequenceBatching(
        oldest=model_config_pb2.ModelSequenceBatching.StrategyOldest(preserve_ordering=False),
        max_sequence_idle_microseconds=round(model.sequence.idle_timeout_s * 1e6),
        state=[_state(spec) for spec in model.manifest.states],
    )


def _state(spec: StateSpec) -> model_config_pb2.ModelSequenceBatching.State:
    data_type, dims = datatype_of(spec.dtype).config, spec.shape()
    initial = model_config_pb2.ModelSequenceBatching.InitialState(name=spec.name, data_type=data_type, dims=dims)
    if not spec.initial_array().any():
        initial.zero_data = True
    return model_config_pb2.ModelSequenceBatching.State(
        input_name=spec.input, output_name=spec.output, data_type=data_type, dims=dims, initial_state=[initial]
    )


def _without_batch(dims: tuple[Dim, ...]) -> list[int]:
    return [ANY if dim == "time" else dim for dim in dims if dim != "batch"]


def statistics(model: ServedModel) -> management_pb2.ModelStatistics:
    """How much a version was used since it was loaded."""
    counted = model.batcher.statistics
    zero = management_pb2.StatisticDuration(count=counted.computed.count)
    runs = sorted(counted.runs.items())
    return management_pb2.ModelStatistics(
        name=model.model_id.name,
        version=model.model_id.version,
        last_inference=round(counted.last_at * 1000),
        inference_count=counted.computed.count,
        execution_count=sum(total.count for _, total in runs),
        inference_stats=management_pb2.InferStatistics(
            success=_duration(counted.succeeded),
            fail=_duration(counted.failed),
            queue=_duration(counted.queued),
            compute_input=zero,
            compute_infer=_duration(counted.computed),
            compute_output=zero,
        ),
        batch_stats=[
            management_pb2.InferBatchStatistics(
                batch_size=size,
                compute_input=management_pb2.StatisticDuration(count=total.count),
                compute_infer=_duration(total),
                compute_output=management_pb2.StatisticDuration(count=total.count),
            )
            for size, total in runs
        ],
    )


def _duration(total: Total) -> management_pb2.StatisticDuration:
    return management_pb2.StatisticDuration(count=total.count, ns=round(total.seconds * 1e9))
