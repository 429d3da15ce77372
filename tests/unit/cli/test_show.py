from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cli.show import BAR_CHARS, TEXT_CHARS_MAX, bar, last_part, one_line


def test_a_bar_points_to_its_side() -> None:
    """The mark stands at the probability, and the way from the middle to it is drawn."""
    assert bar(0.0) == "[+=========|----------]"
    assert bar(0.5) == "[----------+----------]"
    assert bar(1.0) == "[----------|=========+]"


@given(st.floats(0, 1))
def test_every_bar_has_the_same_width(probability: float) -> None:
    """Bars stand below each other, whatever they show."""
    assert len(bar(probability)) == BAR_CHARS + 2
    assert bar(probability).count("+") == 1


@given(st.text())
def test_a_line_is_safe_to_print(text: str) -> None:
    """Nothing of a text reaches the terminal that it would obey, and no line is too long."""
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= TEXT_CHARS_MAX


@given(st.text(), st.integers(-5, 80))
def test_the_end_of_a_text_has_a_fixed_width(text: str, chars: int) -> None:
    """A line that is painted over always covers the one before, even in a terminal without room."""
    assert len(last_part(text, chars)) == max(chars, 4)


def test_long_texts_lose_the_other_end() -> None:
    """`one_line` keeps the beginning, `last_part` the end."""
    assert one_line("a" * 100).endswith("...")
    assert last_part("abcdefgh" * 9, 7) == "...efgh"
