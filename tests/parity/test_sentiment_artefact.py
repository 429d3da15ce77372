"""The promises of the shipped sentiment network, checked on the file that serving loads (no torch)."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.common.manifest import MODEL_FILE, Manifest, load_manifest, verify_files
from models.common.parity import PARITY_FILE, Runner, check_parity
from models.sentiment.evaluate import ARTEFACT, Model
from models.sentiment.features import OpenText, advance


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of the shipped version."""
    return load_manifest(ARTEFACT)


@pytest.fixture(scope="module")
def model() -> Model:
    """The shipped version, ready to run."""
    return Model.load(ARTEFACT)


def test_files_are_the_exported_ones(manifest: Manifest) -> None:
    """Digests hold, the folder is named after the version, and all of it is small enough to ship."""
    verify_files(ARTEFACT, manifest)
    assert (ARTEFACT.parent.name, ARTEFACT.name) == (manifest.name, manifest.version)
    assert sum(path.stat().st_size for path in ARTEFACT.iterdir()) < 25_000_000


def test_the_report_beside_the_model_passed(manifest: Manifest) -> None:
    """The report made at export says what is asserted here, and compared with torch as well."""
    report = json.loads((ARTEFACT / PARITY_FILE).read_text())
    assert report["batched_equal"]
    assert report["chunked_equal"]
    assert 0 < report["torch_difference_max"] <= report["torch_tolerance"]
    assert {1, 64} <= set(report["batch_sizes"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batched_is_alone_and_chunked_is_whole(manifest: Manifest, model: Model, seed: int) -> None:
    """The same bytes of logits and states, whatever shares the run and wherever the text is cut."""
    rows = len(model.vocabulary)
    report = check_parity(
        ARTEFACT, manifest, lambda g, count: {"words": g.integers(0, rows, count, dtype=np.int64)}, seed=seed
    )
    assert report.passed, asdict(report)
    assert report.sequences > 200


@pytest.mark.timeout(120)
def test_every_batch_size_up_to_64(manifest: Manifest, model: Model) -> None:
    """No size takes another path through the matrix kernels that rounds otherwise."""
    rows = len(model.vocabulary)
    report = check_parity(
        ARTEFACT,
        manifest,
        lambda g, count: {"words": g.integers(0, rows, count, dtype=np.int64)},
        batch_sizes=range(1, 65),
        timesteps_max=12,
    )
    assert report.passed, asdict(report)


def test_padding_does_not_show(model: Model, manifest: Manifest) -> None:
    """What stands in the padded places of a row is of no effect on it, nor on its mates."""
    runner = Runner(ARTEFACT / MODEL_FILE, manifest)
    words = np.arange(1, 6, dtype=np.int64)
    alone = runner.whole({"words": words})
    for filler in (0, 1, len(model.vocabulary) - 1):
        long = np.full(40, filler, dtype=np.int64)
        padded = runner.run([{"words": words}, {"words": long}], [runner.initial(), runner.initial()])
        assert padded[0].same_bytes(alone)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_text_in_pieces_of_bytes_is_the_text(model: Model, data: st.DataObject) -> None:
    """From bytes to bytes: cut anywhere, inside a character too, the final logits and states are the same."""
    raw = "It\u2019s a d\u00e9j\u00e0 vu \u2013 dull, overlong, and yet \u2026 I wasn't bored! 8/10 \U0001f600".encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole, _ = advance(model.vocabulary, OpenText(), raw, final=True)
    wanted = model.runner.whole({"words": whole})
    state, open_text, step = model.runner.initial(), OpenText(), None
    for at, piece in enumerate(pieces):
        words, open_text = advance(model.vocabulary, open_text, piece, final=at == len(pieces) - 1)
        if len(words):
            step = model.runner.run([{"words": words}], [state])[0]
            state = step.states
    assert step is not None
    assert step.same_bytes(wanted)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A wonderful film, I loved every minute of it.", 1),
        ("This was a terrible waste of time; the acting is awful.", 0),
        ("Dull, boring and far too long.", 0),
        ("A moving story, beautifully acted.", 1),
    ],
)
def test_plain_opinions_are_understood(model: Model, text: str, label: int) -> None:
    """A wrong vocabulary or a label swapped on the way out would show here at once."""
    words, _ = advance(model.vocabulary, OpenText(), text.encode(), final=True)
    assert model.logits([words])[0].argmax() == label


def test_the_required_quality(manifest: Manifest) -> None:
    """The figures in the manifest, measured on this file, are within the bounds set for the task."""
    assert manifest.metrics["imdb_validation_reviews"] >= 2500
    assert manifest.metrics["imdb_validation_error_percent"] <= 12.0
    assert manifest.metrics["sst2_dev_accuracy_percent"] >= 83.0


def test_no_path_of_a_machine_is_shipped() -> None:
    """What is shipped says nothing about where it was made."""
    for path in ARTEFACT.iterdir():
        content = path.read_bytes()
        assert b"/home/" not in content
        assert str(Path(__file__).resolve().parents[2]).encode() not in content
