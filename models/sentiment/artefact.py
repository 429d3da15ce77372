"""The sentiment artefact: how a trained network becomes the folder that serving loads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.common.export.network import export
from models.common.manifest import Training
from models.common.training import library_versions
from models.sentiment.data import SOURCES
from models.sentiment.net import PEAK_INITIAL, SentimentNet

if TYPE_CHECKING:
    from models.common.export.write import Exported
    from models.sentiment.config import Config
    from models.sentiment.features import Vocabulary

NAME, VERSION = "sentiment", "1"
VOCABULARY_FILE = "vocabulary.json"
CHUNK_WORDS_MAX = 256
_TIMESTEPS, _ROWS = 4, 2


def write_artefact(into: Path, net: SentimentNet, vocabulary: Vocabulary, config: Config, *, epochs: int) -> Exported:
    """Export to ``into/sentiment/1``, which is replaced; metrics are added by ``models.sentiment.evaluate``.

    Raises:
        ExportError: the graph breaks a promise of ``models.common.parity``.
    """
    empty = torch.zeros(1, _ROWS, config.hidden_size)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / VOCABULARY_FILE
        vocabulary.save(words)
        return export(
            net,
            {
                "words": torch.zeros(_TIMESTEPS, _ROWS, dtype=torch.int64),
                "lengths": torch.full((_ROWS,), _TIMESTEPS, dtype=torch.int32),
            },
            name=NAME,
            version=VERSION,
            into=into,
            state={"h": empty, "c": empty, "peak": torch.full_like(empty, PEAK_INITIAL)},
            outputs=["logits"],
            chunk_timesteps_max=CHUNK_WORDS_MAX,
            task="sentiment",
            options={"vocabulary": VOCABULARY_FILE, "labels": "negative,positive"},
            files=[words],
            data=SOURCES,
            training=Training(
                command=f"python -m models.sentiment.train --config {config.name}",
                seed=config.seed,
                epochs=epochs,
                libraries=library_versions(),
            ),
            overwrite=True,
            echo=None,
        )
