"""The sentiment artefact: its signature, and how a trained network becomes the folder that serving loads."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.common.export import Signature, export_onnx
from models.common.manifest import (
    MODEL_FILE,
    InputSpec,
    Manifest,
    OutputSpec,
    StateSpec,
    Training,
    digest_of,
    save_manifest,
)
from models.common.parity import Features, ParityReport, Step, check_parity
from models.common.training import library_versions
from models.sentiment.data import SOURCES
from models.sentiment.net import PEAK_INITIAL, SentimentNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.sentiment.config import Config
    from models.sentiment.features import Vocabulary

NAME, VERSION = "sentiment", "1"
VOCABULARY_FILE = "vocabulary.json"
CHUNK_WORDS_MAX = 256


def signature(config: Config) -> Signature:
    """Graph inputs and outputs in the order of ``SentimentNet.forward``."""
    initial = {"h": 0.0, "c": 0.0, "peak": PEAK_INITIAL}
    return Signature(
        inputs=(
            InputSpec(name="words", dtype="int64", dims=("time", "batch"), role="features"),
            InputSpec(name="lengths", dtype="int32", dims=("batch",), role="lengths"),
        ),
        outputs=(OutputSpec(name="logits", dtype="float32", dims=("batch", 2)),),
        states=tuple(
            StateSpec(
                name=name,
                input=name,
                output=f"{name}_next",
                dtype="float32",
                dims=(1, "batch", config.hidden_size),
                initial=value,
            )
            for name, value in initial.items()
        ),
    )


def describe(folder: Path, config: Config, epochs: int) -> Manifest:
    """The manifest of the files in ``folder``; metrics are added by ``models.sentiment.evaluate``."""
    graph = signature(config)
    files = {name: digest_of(folder / name) for name in (MODEL_FILE, VOCABULARY_FILE)}
    return Manifest(
        name=NAME,
        version=VERSION,
        task="sentiment",
        inputs=graph.inputs,
        outputs=graph.outputs,
        states=graph.states,
        chunk_timesteps_max=CHUNK_WORDS_MAX,
        options={"vocabulary": VOCABULARY_FILE, "labels": "negative,positive"},
        files=files,
        weights_digest=files[MODEL_FILE],
        state_bytes=sum(state.byte_count for state in graph.states),
        data=SOURCES,
        training=Training(
            command=f"python -m models.sentiment.train --config {config.name}",
            seed=config.seed,
            epochs=epochs,
            libraries=library_versions(),
        ),
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
    )


def write_artefact(
    folder: Path, net: SentimentNet, vocabulary: Vocabulary, config: Config, *, epochs: int
) -> tuple[Manifest, ParityReport]:
    """Export, describe and check; the folder is complete but for the metrics.

    Raises:
        RuntimeError: the graph breaks a promise of ``models.common.parity``; the report is there to read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(net, signature(config), folder / MODEL_FILE)
    vocabulary.save(folder / VOCABULARY_FILE)
    manifest = describe(folder, config, epochs)
    report = check_parity(folder, manifest, drawer(len(vocabulary)), reference(net))
    report.save(folder)
    if not report.passed:
        raise RuntimeError(f"{folder.name}: parity broken: {asdict(report)}")
    save_manifest(folder, manifest)
    return manifest, report


def drawer(vocabulary_rows: int) -> Callable[[np.random.Generator, int], Features]:
    """Random words for the parity check."""

    def draw(generator: np.random.Generator, count: int) -> Features:
        return {"words": generator.integers(0, vocabulary_rows, count, dtype=np.int64)}

    return draw


def reference(net: SentimentNet) -> Callable[[Features], Step]:
    """The torch network on one whole sequence, for the parity check."""
    net.eval()
    specs = signature(net.config).states

    @torch.no_grad()
    def run(features: Features) -> Step:
        words = torch.from_numpy(features["words"])[:, None]  # (T, 1)
        states = [torch.from_numpy(spec.initial_array())[:, None] for spec in specs]  # (1, 1, H)
        logits, *new = net(words, torch.tensor([len(words)], dtype=torch.int32), *states)
        names = (spec.name for spec in specs)
        return Step({"logits": logits[0].numpy()}, {n: t[:, 0].numpy() for n, t in zip(names, new, strict=True)})

    return run
