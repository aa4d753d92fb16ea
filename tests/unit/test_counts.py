"""Counts of records: maps, and their form in messages."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inmem.primitives import counts, server
from inmem.primitives.counts import FIRST, FIRST_DELETED, add, pack, unpack

names = st.sampled_from([*FIRST, "notes", "queues"])


def test_the_examples() -> None:
    assert doctest.testmod(counts).failed == 0


@given(st.dictionaries(names, st.integers(0, 1 << 40)))
def test_there_and_back(some: dict[str, int]) -> None:
    assert unpack(pack(some)) == {name: count for name, count in some.items() if count}


def test_the_places_of_the_first_release_are_kept() -> None:
    some = {"kv": 1, "cells": 2, "events": 3, "traces": 4}
    assert pack(some) == [1, 2, 3, 4] and unpack([1, 2, 3, 4]) == some
    assert set(FIRST) == set(FIRST_DELETED) < {name for name, _ in server.counted()}


@pytest.mark.parametrize("bad", [
    None, 7, {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, {}, {}], [1, 2, 3, "4"], [1, 2, 3, -1],
    [1, 2, 3, True], [1, 2, 3, 4, {"a": -1}], [1, 2, 3, 4, {5: 1}], [1, 2, 3, 4, []],
])  # fmt: skip
def test_what_is_no_counts(bad: Any) -> None:
    with pytest.raises(ValueError, match="counts"):
        unpack(bad)


def test_adding() -> None:
    some: dict[str, int] = {}
    assert add(add(some, "kv", 2), "kv", 3) == {"kv": 5} and some == {}
    assert add({"kv": 1}, "cells", 0) == {"kv": 1}
