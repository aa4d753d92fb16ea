"""The checker of histories: it finds every kind of anomaly, and none where there is none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from histories.damage import DAMAGES, Damage, copied
from histories.simulated import Simulation
from hypothesis import given
from hypothesis import strategies as st

from workers.judge.history import OK, REFUSED, UNKNOWN, History, HistoryError, path_of
from workers.judge.serializability import ADD, APPEND, KINDS, READ, VALUE, Txn, Verdict, check, from_history


def txn(name: str, *steps: tuple[str, str, Any], at: tuple[int, int | None] = (0, None),
        version: int | None = None, outcome: str = OK) -> Txn:
    """`txn("1.0", ...)` is the first of worker 1; without times nothing comes before anything."""
    worker, n = map(int, name.split("."))
    return Txn(worker, n, outcome, list(steps), at[0], at[1], version)


def a(key: str, element: Any) -> tuple[str, str, Any]:
    return APPEND, key, element


def r(key: str, *elements: Any) -> tuple[str, str, Any]:
    return READ, key, list(elements)


def add(key: str, delta: int) -> tuple[str, str, Any]:
    return ADD, key, delta


def v(key: str, number: int) -> tuple[str, str, Any]:
    return VALUE, key, number


HAND_MADE: list[tuple[str, set[str], list[Txn], dict[str, Any] | None]] = [
    ("interleaved writes", {"G0"}, [
        txn("1.0", a("x", 1), a("y", 1)), txn("2.0", a("x", 2), a("y", 2)),
    ], {"x": [1, 2], "y": [2, 1]}),
    ("two that see each other", {"G1c"}, [
        txn("1.0", a("x", 1), r("y", 2)), txn("2.0", a("y", 2), r("x", 1)),
    ], {"x": [1], "y": [2]}),
    ("a refused write is read", {"G1a"}, [
        txn("1.0", a("x", 1), outcome=REFUSED), txn("2.0", r("x", 1)),
    ], None),
    ("a refused write stays", {"G1a"}, [
        txn("1.0", a("x", 1), outcome=REFUSED), txn("2.0", r("x")),
    ], {"x": [1]}),
    ("half of a transaction is read", {"G1b", "G-single"}, [
        txn("1.0", a("x", 1), a("x", 2)), txn("2.0", r("x", 1)),
    ], {"x": [1, 2]}),
    ("half of an unanswered transaction is read", {"G1b"}, [
        txn("1.0", a("x", 1), a("x", 2), outcome=UNKNOWN), txn("2.0", r("x", 1)),
    ], {"x": [1]}),
    ("lost update", {"G-single"}, [
        txn("1.0", r("x"), a("x", 1)), txn("2.0", r("x"), a("x", 2)),
    ], {"x": [1, 2]}),
    ("lost update that overwrites", {"lost", "G-single"}, [
        txn("1.0", r("x"), a("x", 1)), txn("2.0", r("x"), a("x", 2)),
    ], {"x": [2]}),
    ("read skew", {"G-single"}, [
        txn("1.0", a("x", 1), a("y", 1)), txn("2.0", r("x", 1), r("y")),
    ], {"x": [1], "y": [1]}),
    ("half of an unanswered transaction, elsewhere", {"G-single"}, [
        txn("1.0", a("x", 1), a("y", 1), outcome=UNKNOWN), txn("2.0", r("x", 1), r("y")),
    ], {"x": [1], "y": [1]}),
    ("write skew", {"G2"}, [
        txn("1.0", r("x"), r("y"), a("x", 1)), txn("2.0", r("x"), r("y"), a("y", 2)),
    ], {"x": [1], "y": [2]}),
    ("phantom: each scans three rows and adds one", {"G2"}, [
        txn("1.0", r("row0"), r("row1"), r("row2"), a("row0", 1)),
        txn("2.0", r("row0"), r("row1"), r("row2"), a("row1", 2)),
        txn("3.0", r("row0"), r("row1"), r("row2"), a("row2", 3)),
    ], {"row0": [1], "row1": [2], "row2": [3]}),
    ("two readers see two writes in two orders", {"G2"}, [
        txn("1.0", a("x", 1)), txn("2.0", a("y", 2)),
        txn("3.0", r("x", 1), r("y")), txn("4.0", r("x"), r("y", 2)),
    ], {"x": [1], "y": [2]}),
    ("an acknowledged append that no read saw is later than all reads", {"G2"}, [
        txn("1.0", r("y"), a("x", 1)), txn("2.0", r("x"), a("y", 2)),
    ], None),
    ("a worker does not see what it saw", {"G-single-session"}, [
        txn("1.0", a("x", 1)), txn("2.0", r("x", 1)), txn("2.1", r("x")),
    ], None),
    ("a worker does not see what it wrote", {"G-single-session"}, [
        txn("1.0", a("x", 1)), txn("1.1", r("x")),
    ], None),
    ("writes of a worker change places", {"G0-session"}, [
        txn("1.0", a("x", 1)), txn("1.1", a("x", 2)),
    ], {"x": [2, 1]}),
    ("a read from before its question", {"G-single-real-time"}, [
        txn("1.0", a("x", 1), at=(1, 2)), txn("2.0", r("x"), at=(3, 4)),
    ], {"x": [1]}),
    ("a read from after its answer", {"G1c-real-time"}, [
        txn("1.0", r("x", 1), at=(1, 2)), txn("2.0", a("x", 1), at=(3, 4)),
    ], {"x": [1]}),
    ("writes change places against their answers", {"G0-real-time"}, [
        txn("1.0", a("x", 1), at=(1, 2)), txn("2.0", a("y", 1), at=(3, 6)), txn("3.0", a("x", 2), at=(4, 5)),
    ], {"x": [2, 1], "y": [1]}),
    ("an acknowledged append is gone", {"lost"}, [txn("1.0", a("x", 1)), txn("1.1", r("y"))], {}),
    ("appended once, there twice", {"duplicate"}, [txn("1.0", a("x", 1))], {"x": [1, 1]}),
    ("appended by two", {"duplicate"}, [txn("1.0", a("x", 1)), txn("2.0", a("x", 1))], {"x": [1]}),
    ("nobody wrote it", {"garbage"}, [txn("1.0", r("x", 7))], None),
    ("written to another list", {"garbage", "lost"}, [txn("1.0", a("x", 1))], {"y": [1]}),
    ("two orders", {"order"}, [
        txn("1.0", a("x", 1)), txn("2.0", a("x", 2)), txn("3.0", r("x", 2, 1)),
    ], {"x": [1, 2]}),
    ("a read in the middle", {"order"}, [
        txn("1.0", a("x", 1)), txn("2.0", a("x", 2)), txn("3.0", r("x", 2)),
    ], {"x": [1, 2]}),
    ("a transaction does not see its own append", {"internal"}, [txn("1.0", a("x", 1), r("x"))], {"x": [1]}),
    ("a snapshot that moves", {"internal"}, [
        txn("1.0", a("x", 1)), txn("2.0", r("x"), r("x", 1)),
    ], {"x": [1]}),
    ("a counter that moves", {"internal"}, [txn("1.0", v("n", 0), add("n", 1), v("n", 2))], None),
    ("lost count", {"total"}, [txn("1.0", add("n", 1)), txn("2.0", add("n", 1))], {"n": 1}),
    ("counted twice", {"total"}, [txn("1.0", add("n", 1))], {"n": 2}),
    ("not what any of the unanswered can explain", {"total"}, [
        txn("1.0", add("n", 3), outcome=UNKNOWN), txn("2.0", add("n", 5), outcome=UNKNOWN),
        txn("3.0", r("x")),
    ], {"n": 4}),
    ("read before it was asked", {"bounds"}, [
        txn("1.0", v("n", 2), at=(1, 2)), txn("2.0", add("n", 2), at=(3, 4)),
    ], None),
    ("not read after it was answered", {"bounds"}, [
        txn("1.0", add("n", 2), at=(1, 2)), txn("2.0", v("n", 0), at=(3, 4)),
    ], None),
    ("two counted on the same number", {"replay"}, [
        txn("1.0", v("n", 0), add("n", 1), version=1), txn("2.0", v("n", 0), add("n", 1), version=2),
    ], None),
    ("a snapshot without its version", {"replay"}, [
        txn("1.0", a("x", 1), version=5), txn("2.0", r("x"), version=5),
    ], {"x": [1]}),
    ("a snapshot with a later version", {"replay"}, [
        txn("1.0", a("x", 1), version=5), txn("2.0", r("x", 1), version=4),
    ], {"x": [1]}),
    ("versions are not the order of a list", {"replay"}, [
        txn("1.0", a("x", 1), version=2), txn("2.0", a("x", 2), version=1),
    ], {"x": [1, 2]}),
    ("a version of two", {"version"}, [
        txn("1.0", a("x", 1), version=3), txn("2.0", a("y", 1), version=3),
    ], None),
    ("a version below one that was told before", {"version"}, [
        txn("1.0", a("x", 1), at=(1, 2), version=8), txn("2.0", a("y", 1), at=(3, 4), version=7),
    ], None),
    ("a snapshot older than an answer", {"version"}, [
        txn("1.0", a("x", 1), at=(1, 2), version=8), txn("2.0", r("y"), at=(3, 4), version=7),
    ], None),
]


@pytest.mark.parametrize(
    ("kinds", "txns", "final"), [made[1:] for made in HAND_MADE], ids=[made[0] for made in HAND_MADE]
)
def test_an_anomaly_is_found_and_named(
    kinds: set[str], txns: list[Txn], final: dict[str, Any] | None
) -> None:
    verdict = check(txns, final)
    assert verdict.kinds >= kinds, verdict.summary()
    assert verdict.kinds - kinds <= {"replay"}, verdict.summary()  # the other judge may see it too
    assert not verdict.ok


def test_every_kind_has_a_history_that_shows_it() -> None:
    shown = {kind for _, kinds, _, _ in HAND_MADE for kind in kinds}
    assert shown >= KINDS.keys()
    assert {kind.removesuffix("-session").removesuffix("-real-time") for kind in shown} == KINDS.keys()


def test_a_cycle_names_its_transactions_and_why_each_comes_before_the_next() -> None:
    verdict = check([txn("1.0", r("x"), r("y"), a("x", 1)), txn("2.0", r("x"), r("y"), a("y", 2))])
    (anomaly,) = verdict.anomalies
    assert sorted(anomaly.txns) == ["1.0", "2.0"]
    assert "1.0 -rw y-> 2.0 -rw x-> 1.0" in str(anomaly)


@pytest.mark.parametrize("name", ["a worker does not see what it saw", "writes of a worker change places"])
def test_the_order_of_sessions_can_be_switched_off(name: str) -> None:
    ((txns, final),) = [(m[2], m[3]) for m in HAND_MADE if m[0] == name]
    assert check(txns, final, session_order=False).anomalies == []


@pytest.mark.parametrize("name", [
    "a read from before its question", "writes change places against their answers",
    "not read after it was answered",
])
def test_the_order_of_time_can_be_switched_off(name: str) -> None:
    ((txns, final),) = [(m[2], m[3]) for m in HAND_MADE if m[0] == name]
    assert check(txns, final, real_time=False).anomalies == []


VALID: list[tuple[str, list[Txn], dict[str, Any] | None]] = [
    ("reads see own appends", [
        txn("1.0", r("x"), a("x", 1), r("x", 1), a("x", 2), r("x", 1, 2)),
    ], {"x": [1, 2]}),
    ("overlapping, in either order", [
        txn("1.0", a("x", 1), at=(1, 4)), txn("2.0", r("x"), at=(2, 3)), txn("3.0", r("x", 1), at=(2, 3)),
    ], {"x": [1]}),
    ("unanswered and done", [txn("1.0", a("x", 1), outcome=UNKNOWN), txn("2.0", r("x", 1))], {"x": [1]}),
    ("unanswered and not done", [txn("1.0", a("x", 1), outcome=UNKNOWN), txn("2.0", r("x"))], {}),
    ("unanswered and done later than what its worker did next", [
        txn("1.0", a("x", 1), at=(1, None), outcome=UNKNOWN), txn("1.1", r("x"), at=(2, 3)),
        txn("1.2", r("x", 1), at=(4, 5)),
    ], {"x": [1]}),
    ("refused and seen by itself alone", [
        txn("1.0", a("x", 1), r("x", 1), outcome=REFUSED), txn("2.0", r("x")),
    ], {"x": []}),
    ("one of the unanswered was counted", [
        txn("1.0", add("n", 3), outcome=UNKNOWN), txn("2.0", add("n", 5), outcome=UNKNOWN),
        txn("3.0", v("n", 5)),
    ], {"n": 5}),
    ("without a version, between two with one", [
        txn("1.0", a("x", 1), version=1), txn("2.0", a("x", 2)), txn("3.0", a("x", 3), version=2),
        txn("4.0", r("x", 1), version=1), txn("5.0", r("x", 1, 2, 3), version=2),
    ], {"x": [1, 2, 3]}),
    ("unanswered, and whole when it is first needed", [
        txn("1.0", a("x", 1), a("y", 1), outcome=UNKNOWN), txn("2.0", r("x", 1), r("y", 1), version=4),
        txn("3.0", r("x"), r("y"), version=3),
    ], {"x": [1], "y": [1]}),
]


@pytest.mark.parametrize(("txns", "final"), [m[1:] for m in VALID], ids=[m[0] for m in VALID])
def test_what_is_valid_passes(txns: list[Txn], final: dict[str, Any] | None) -> None:
    verdict = check(txns, final)
    assert verdict.ok, verdict.summary()


def test_nothing_acknowledged_is_no_pass() -> None:
    assert not check([]).ok
    assert not check([txn("1.0", a("x", 1), outcome=UNKNOWN)]).ok


def test_a_long_cycle_needs_no_recursion() -> None:
    count = 5_000
    ring = [txn(f"{i}.0", a(f"k{i}", i), r(f"k{(i + 1) % count}", (i + 1) % count)) for i in range(count)]
    verdict = check(ring)
    assert [len(anomaly.txns) for anomaly in verdict.anomalies] == [count]
    assert verdict.kinds == {"G1c"}


# --- generated -----------------------------------------------------------------------------------


def simulated(seed: int, count: int, **options: Any) -> tuple[list[Txn], dict[str, Any]]:
    rng = random.Random(seed)
    return Simulation(rng, workers=rng.randint(1, 8), **options).run(count)


@given(st.integers(0, 2**32), st.integers(1, 120), st.booleans(), st.booleans())
def test_any_valid_history_passes(seed: int, count: int, overlap: bool, troubled: bool) -> None:
    txns, final = simulated(seed, count, overlap=overlap, troubled=troubled)
    verdict = check(txns, final)
    assert verdict.anomalies == [], verdict.summary()
    assert check(txns).anomalies == [], "without the final state less is known, and nothing is wrong"
    assert verdict.transactions == count


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@given(seed=st.integers(0, 2**32))
def test_damage_is_found(damage: Damage, seed: int) -> None:
    txns, final = simulated(seed, 60)
    damaged, end = copied(txns, final)
    expected = damage(damaged, end, random.Random(seed))
    if expected:
        verdict = check(damaged, end)
        assert verdict.kinds & expected, verdict.summary()


def test_there_is_something_to_damage() -> None:
    """The damages of the test above find their place in nearly every history."""
    done = dict.fromkeys((damage.__name__ for damage in DAMAGES), 0)
    for seed in range(50):
        for damage in DAMAGES:
            txns, final = simulated(seed, 60)
            done[damage.__name__] += bool(damage(txns, final, random.Random(seed)))
    print(done)
    assert min(done.values()) >= 10, done


def test_the_graph_alone_finds_isolation_that_is_too_weak() -> None:
    """Snapshot isolation and read committed are told from serializability without versions or times."""
    found = {}
    for level in ("serializable", "snapshot", "committed"):
        found[level] = 0
        for seed in range(40):
            verdict = weakly_isolated(random.Random(seed), level)
            kinds = {kind.split("-s")[0] for kind in verdict.kinds}
            assert kinds <= {"G2", "G-single", "G"}, verdict.summary()
            found[level] += not verdict.ok
    print(found)
    assert found["serializable"] == 0
    assert found["snapshot"] > 20 and found["committed"] > 20


def weakly_isolated(rng: random.Random, level: str) -> Verdict:
    """Two at a time, each reading two lists and appending to one; judged by the graph alone."""
    state: dict[str, list[str]] = {key: [] for key in "abc"}
    txns = []
    for n in range(20):
        before = {key: list(value) for key, value in state.items()}
        for worker in range(2):
            seen = {"serializable": state, "snapshot": before, "committed": before}[level]
            keys = rng.sample("abc", 2)
            target = rng.choice(keys)
            if level == "snapshot" and len(state[target]) != len(before[target]):
                continue  # the first committer wins
            steps = [r(key, *seen[key]) for key in keys]
            if level == "committed":
                steps[1] = r(keys[1], *state[keys[1]])
            state[target] = [*state[target], f"{worker}.{n}"]
            txns.append(txn(f"{worker}.{n}", *steps, a(target, f"{worker}.{n}")))
    return check(txns, state, session_order=False, real_time=False, replay=False)


# --- files ------------------------------------------------------------------------------------------


def test_histories_in_files(tmp_path: Path) -> None:
    with History(path_of(tmp_path, 3)) as file:
        number = file.asked("txn", "run", {"steps": [["append", "x", "e"]]})
        file.acknowledged(number, {"steps": [["read", "x", []], ["append", "x", "e"]], "version": 7})
        file.refused(file.asked("txn", "run", {"steps": [["append", "x", "f"]]}), "ConflictError", {})
        file.unknown(file.asked("txn", "run", {"steps": [["add", "n", 2]]}))
        file.acknowledged(file.asked("other", "run", {}), None)
        file.asked("txn", "run", {"steps": [["append", "x", "g"]]})  # and then it was killed
    txns = from_history([path_of(tmp_path, 3)])
    assert [(t.worker, t.n, t.outcome, t.version) for t in txns] == [
        (3, 0, OK, 7), (3, 1, REFUSED, None), (3, 2, UNKNOWN, None), (3, 4, UNKNOWN, None),
    ]
    assert txns[0].asked_at < (txns[0].answered_at or 0) < txns[1].asked_at
    assert txns[3].answered_at is None
    assert check(txns, {"x": ["e", "g"], "n": 0}).ok
    assert check(txns, {"x": ["e", "f"], "n": 2}).kinds >= {"G1a"}

    other = tmp_path / "history.jsonl"
    other.write_text(json.dumps({"n": 0, "at": 1, "op": "txn", "run": "r", "args": {"steps": []}}) + "\n")
    with pytest.raises(HistoryError, match="history"):
        from_history([other])
