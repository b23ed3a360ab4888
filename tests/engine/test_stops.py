"""Stop strings, in whatever pieces the text comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgerun.engine.stops import StopMatcher

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that ends first."""
    places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(places)[1]] if places else text


@given(LETTERS, STOPS, st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_any_division_gives_the_text_before_the_first_stop(text: str, stops: list[str], sizes: list[int]) -> None:
    matcher = StopMatcher(stops)
    out, rest = "", text
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        out += matcher.push(piece)
        assert cut(text, stops).startswith(out), "showed text that a stop string takes away"
    if matcher.matched is None:
        out += matcher.flush()
    assert out == cut(text, stops)
    assert (matcher.matched is not None) == any(stop in text for stop in stops)


def test_holds_back_no_more_than_it_must() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hi.\nUs") == "Hi."
    assert matcher.push("ually") == "\nUsually"
    assert matcher.push(" ok\n") == " ok"
    assert matcher.push("User: more") == ""
    assert matcher.matched == "\nUser:"
    assert matcher.push("more") == ""
