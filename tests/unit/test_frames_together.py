"""Many frames in one: what comes out is what went in, and a frame that is not whole ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inmem import wire

FRAMES = st.lists(st.binary(max_size=300), max_size=20)


@given(FRAMES)
def test_they_come_apart_as_they_were(frames: list[bytes]) -> None:
    many = wire.together(wire.COMMITS, frames)
    assert many[0] == wire.COMMITS and list(wire.apart(many)) == frames


@given(FRAMES, st.data())
def test_one_that_is_cut_gives_those_before_it(frames: list[bytes], data: st.DataObject) -> None:
    many = wire.together(wire.ANSWERS, frames)
    cut = data.draw(st.integers(1, len(many)))
    whole = list(wire.apart(many[:cut]))
    assert whole == frames[: len(whole)]
    assert sum(4 + len(frame) for frame in whole) <= cut - 1


@given(st.binary(min_size=1, max_size=100))
def test_any_bytes_come_to_an_end(data: bytes) -> None:
    assert sum(4 + len(frame) for frame in wire.apart(data)) <= len(data) - 1
