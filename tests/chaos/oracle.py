"""What every reply has to be: the shipped ONNX file, run step by step in this process, alone and undisturbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from statestream import Label
from statestream._sentiment import _LABELS

from models.common.manifest import MODEL_FILE, load_manifest
from models.common.parity import Runner
from models.sentiment.evaluate import ARTEFACT
from models.sentiment.features import OpenText, Vocabulary, advance
from services.sentiment import codec
from tests.chaos.log import Answer
from tests.chaos.texts import Text

if TYPE_CHECKING:
    from collections.abc import Iterator


class Oracle:
    """Knows the answers; `seed` is that of the texts."""

    def __init__(self, seed: int) -> None:
        manifest = load_manifest(ARTEFACT)
        self._seed = seed
        self._timesteps_max = manifest.chunk_timesteps_max
        self._runner = Runner(ARTEFACT / MODEL_FILE, manifest)
        self._vocabulary = Vocabulary.load(ARTEFACT / "vocabulary.json")

    def answers(self, stream: int, number: int, steps: int, *, ended: bool) -> Iterator[Answer]:
        """The answer to each of so many steps of a sequence, of which the last one ends it or does not."""
        text = Text(self._seed, stream, number)
        open_text, state, logits, word_count = OpenText(), self._runner.initial(), (0.0, 0.0), 0
        for step in range(steps):
            final = ended and step == steps - 1
            piece = text.last(step) if final else text.piece(step)
            indices, open_text = advance(self._vocabulary, open_text, piece, final=final)
            for chunk in codec.chunks(indices, self._timesteps_max):
                run = self._runner.run([{"words": np.asarray(chunk)}], [state])[0]
                state = run.states
                logits = (float(run.outputs["logits"][0]), float(run.outputs["logits"][1]))
            word_count += len(indices)
            message = codec.sentiment(logits, word_count)
            label = _LABELS.get(message.label, Label.UNDECIDED)
            yield Answer(label, message.positive_probability.hex(), message.word_count)
