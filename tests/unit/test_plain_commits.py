"""Commits of puts alone have a way of their own: log and image are as the general one would make them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from committing import Bench, append, body, delete, kv_key, put
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem.commit.decide as deciding
from inmem.keys import MAX_KEY_BYTES

KEYS = [kv_key(run, name) for run in ("r", "s") for name in ("a", "b", "c", "long" * 20)]
KEYS += [b"no/such/prefix/of/any/run\0\2abcdefgh", b"x\0\1" + b"k" * (MAX_KEY_BYTES - 3)]
VALUES = st.one_of(st.integers(-5, 5), st.text(max_size=20), st.binary(max_size=3000))
EXPIRIES = st.sampled_from([0, 0, -1, -5_000_000, 2_000_000_000_000_000])
PUTS = st.builds(put, st.sampled_from(KEYS), VALUES, EXPIRIES)
OTHERS = st.one_of(
    st.builds(delete, st.sampled_from(KEYS[:4])),
    st.builds(lambda n: append("r", ("e", n)), st.integers(0, 9)),
)
COMMITS = st.lists(st.lists(PUTS, min_size=1, max_size=5), min_size=1, max_size=4)
MIXED = st.lists(st.lists(st.one_of(PUTS, PUTS, OTHERS), min_size=1, max_size=4), min_size=1, max_size=4)


def outcome(commits: list[list[list[Any]]], place: Path) -> tuple[Any, ...]:
    """What a group of commits leaves behind: answers, log, image."""
    bench = Bench(place)
    try:
        clients = [bench.client(f"c{number}") for number in range(len(commits))]
        requests = [
            client.request(body(*ops)) for client, ops in zip(clients, commits, strict=True)
        ]
        answers = bench.commit(*requests)
        bench.assert_log_is_image()
        bench.now += 1
        again = bench.commit(clients[0].request(body(*commits[0])))
        return answers, again, bench.log.records, bench.records(), bench.committer.counters.numbers()
    finally:
        bench.close()


@settings(max_examples=60, deadline=None)
@given(st.one_of(COMMITS, MIXED))
def test_both_ways_give_the_same_bytes(commits: list[list[list[Any]]]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        taken = 0
        plain = deciding._plain

        def counted(*arguments: Any) -> Any:
            nonlocal taken
            found = plain(*arguments)
            taken += found is not None
            return found

        patch.setattr(deciding, "_plain", counted)
        with_it = outcome(commits, Path(place) / "with")
        patch.setattr(deciding, "_plain", lambda *_: None)
        without = outcome(commits, Path(place) / "without")
    assert with_it == without
    are_plain = all(op[0] == 0 and op[1] in KEYS and KEYS.index(op[1]) < 8 for ops in commits for op in ops)
    assert taken or not are_plain
