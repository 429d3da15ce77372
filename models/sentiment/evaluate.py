"""Measure the exported network: the ONNX file itself, not the torch one it came from (no torch).

    python -m models.sentiment.evaluate            measure
    python -m models.sentiment.evaluate --write    measure and write the figures into the manifest

Texts go the way they go in serving: bytes, ``features.advance``, the graph in chunks. All figures are
validation figures: held-out films of the IMDB training set, and the SST-2 dev sentences.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.common.manifest import MODEL_FILE, Manifest, load_manifest, save_manifest, verify_files
from models.common.parity import Runner
from models.sentiment.config import CONFIGS
from models.sentiment.data import binary, hold_out, read_imdb, read_sst
from models.sentiment.features import OpenText, Vocabulary, advance

if TYPE_CHECKING:
    from collections.abc import Sequence

ARTEFACT = Path(__file__).resolve().parents[1] / "artefacts" / "sentiment" / "1"
SHARES = (0.25, 0.5, 0.75, 1.0)
_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Model:
    """An artefact, loaded and verified."""

    manifest: Manifest
    vocabulary: Vocabulary
    runner: Runner

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Raises ArtefactError where the folder does not hold what its manifest says."""
        manifest = load_manifest(folder)
        verify_files(folder, manifest)
        vocabulary = Vocabulary.load(folder / str(manifest.options["vocabulary"]))
        return cls(manifest, vocabulary, Runner(folder / MODEL_FILE, manifest))

    def logits(self, texts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Logits (N, 2) at the end of N texts of word indices (T_i,), none empty, run together in chunks."""
        size = self.manifest.chunk_timesteps_max
        states = [self.runner.initial() for _ in texts]
        logits = np.zeros((len(texts), 2), dtype=np.float32)
        for start in range(0, max(map(len, texts)), size):
            live = [row for row, words in enumerate(texts) if len(words) > start]
            steps = self.runner.run(
                [{"words": texts[row][start : start + size]} for row in live], [states[row] for row in live]
            )
            for row, step in zip(live, steps, strict=True):
                states[row], logits[row] = step.states, step.outputs["logits"]
        return logits


def wrong_share(model: Model, pairs: Sequence[tuple[str, int]], share: float = 1.0) -> float:
    """Share (0 to 1) of (text, label) judged wrongly after the first ``share`` of their words, one at least."""
    read: list[tuple[npt.NDArray[np.int64], int]] = []
    for text, label in pairs:
        words, _ = advance(model.vocabulary, OpenText(), text.encode(), final=True)
        read.append((words[: max(1, round(share * len(words)))], label))
    read.sort(key=lambda pair: len(pair[0]))
    wrong = 0
    for start in range(0, len(read), _BATCH_SIZE):
        batch = read[start : start + _BATCH_SIZE]
        labels = np.array([label for _, label in batch])
        wrong += int((model.logits([words for words, _ in batch]).argmax(-1) != labels).sum())
    return wrong / len(read)


def measure(model: Model, config_name: str) -> dict[str, float]:
    """Figures by name: errors and accuracies in per cent, counts of texts."""
    config = CONFIGS[config_name]
    _, held = hold_out(read_imdb(), count=config.held_out_reviews, seed=config.split_seed)
    reviews = [(review.text, review.label) for review in held]
    sentences = binary(read_sst("dev"), roots_only=True)
    figures: dict[str, float] = {"imdb_validation_reviews": len(reviews), "sst2_dev_sentences": len(sentences)}
    for share in SHARES:
        name = "imdb_validation_error_percent" + ("" if share == 1.0 else f"_at_{share * 100:.0f}_percent_of_words")
        figures[name] = round(100 * wrong_share(model, reviews, share), 2)
    figures["sst2_dev_accuracy_percent"] = round(100 - 100 * wrong_share(model, sentences), 2)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artefact", type=Path, default=ARTEFACT)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="full", help="whose held-out reviews to take")
    parser.add_argument("--write", action="store_true", help="write the figures into the manifest")
    arguments = parser.parse_args()
    model = Model.load(arguments.artefact)
    figures = measure(model, arguments.config)
    for name, value in figures.items():
        sys.stdout.write(f"{name}: {value:g}\n")
    if arguments.write:
        save_manifest(arguments.artefact, model.manifest.model_copy(update={"metrics": figures}))


if __name__ == "__main__":
    main()
