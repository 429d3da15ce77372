"""Collation: stack and unstack are inverses, for any lengths and batch sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.engine.collate import Row, finite_rows, output_names, stack, unsound_rows, unstack
from tests.kit.toy import toy_manifest

MANIFEST = toy_manifest()


def rows_of(lengths: list[int]) -> list[Row]:
    return [
        Row(
            (np.arange(length, dtype=np.float32) + 100 * n,),
            (np.full((1, 2), n, dtype=np.float32),),
        )
        for n, length in enumerate(lengths)
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=64))
def test_unstack_gives_every_row_its_own(lengths: list[int]) -> None:
    """What goes in for a row comes out for it: features without padding, states unchanged."""
    rows = rows_of(lengths)
    feeds = stack(rows, MANIFEST)
    assert feeds["x"].shape == (max(lengths), len(lengths))
    assert feeds["s"].shape == (1, len(lengths), 2)
    assert feeds["lengths"].tolist() == lengths
    results = unstack([feeds["x"], feeds["x"][-1][:, None], feeds["s"]], rows, MANIFEST)
    for row, result in zip(rows, results, strict=True):
        assert result.outputs[0].tobytes() == row.inputs[0].tobytes()
        assert result.state[0].tobytes() == row.state[0].tobytes()


def test_results_do_not_keep_their_batch_alive() -> None:
    """Rows are copies: a state kept for hours must not hold the arrays of 63 others."""
    rows = rows_of([2, 2])
    feeds = stack(rows, MANIFEST)
    results = unstack([feeds["x"], feeds["x"][-1][:, None], feeds["s"]], rows, MANIFEST)
    for result in results:
        for array in (*result.outputs, *result.state):
            assert type(array.base) is bytes
            assert len(array.base) == array.nbytes


def test_rows_that_are_not_in_one_piece_are_joined_too() -> None:
    """A task may hand over a view; what it sees is what is run."""
    rows = rows_of([4, 4])
    apart = [Row((np.repeat(row.inputs[0], 2)[::2],), row.state) for row in rows]
    assert stack(apart, MANIFEST)["x"].tobytes() == stack(rows, MANIFEST)["x"].tobytes()


def test_unsound_rows_are_named_with_their_input() -> None:
    """NaN and infinity are found wherever they are, and only there; a large sum of finite numbers is no infinity."""
    rows = rows_of([3, 2, 3, 3])
    rows[1].inputs[0][1] = np.nan
    rows[2].inputs[0][0] = -np.inf
    rows[3].inputs[0][:] = np.finfo(np.float32).max
    assert unsound_rows(stack(rows, MANIFEST), MANIFEST) == {1: "x", 2: "x"}
    assert unsound_rows(stack(rows[3:], MANIFEST), MANIFEST) == {}


def test_padding_is_zero() -> None:
    """What stands behind the true length is zero, an index that every vocabulary has."""
    feeds = stack(rows_of([1, 3]), MANIFEST)
    assert feeds["x"][1:, 0].tolist() == [0, 0]


def test_finite_rows_names_the_bad_one() -> None:
    """Only states count, row by row."""
    state = np.zeros((1, 3, 2), dtype=np.float32)
    state[0, 1, 0] = np.inf
    outputs = np.full((1, 3), np.nan, dtype=np.float32)
    assert finite_rows([outputs, outputs, state], MANIFEST, 3).tolist() == [True, False, True]


def test_output_names_are_outputs_then_states() -> None:
    """The order that `unstack` expects."""
    assert output_names(MANIFEST) == ["sums", "sum", "s_out"]
