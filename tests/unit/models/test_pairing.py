"""Which output belongs to which state, by name."""

import pytest

from models.common.export.pairing import partner


@pytest.mark.parametrize(
    ("name", "outputs", "wanted"),
    [
        ("h", ["y", "h_next"], "h_next"),
        ("h", ["next_h", "y"], "next_h"),
        ("h", ["y", "hn", "cn"], "hn"),
        ("h0", ["y", "hn", "cn"], "hn"),
        ("h_0", ["y", "h_n", "c_n"], "h_n"),
        ("c0", ["y", "hn", "cn"], "cn"),
        ("state_in", ["y", "state_out"], "state_out"),
        ("encoder_state_input", ["y", "encoder_state_output"], "encoder_state_output"),
        ("encoder.lstm.h", ["y", "encoder.lstm.h_next", "decoder.lstm.h_next"], "encoder.lstm.h_next"),
        ("prev_cell", ["y", "cell"], "cell"),
        ("hidden", ["y", "new_hidden"], "new_hidden"),
        ("past_1", ["present_0", "present_1"], "present_1"),
        ("H_in", ["y", "h_out"], "h_out"),
        ("state", ["y", "state"], "state"),
        ("a", ["y", "b"], None),
        ("h", [], None),
    ],
)
def test_partner(name: str, outputs: list[str], wanted: str | None) -> None:
    """The usual conventions, and nothing where none of them fits."""
    assert partner(name, outputs) == wanted
