"""What a transaction runs itself: which reads that makes, what it shows, and that the writer agrees.

The bodies that it sends are taken apart, so these tests know more than a user can.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from forms import new_run
from lines import at_every_line

import inmem
from inmem import scopes
from inmem.client import batch, pipeline, tracking
from inmem.client import transaction as client
from inmem.commit import workspace
from inmem.keys import Key
from inmem.primitives.cells import facade as state_cell
from inmem.primitives.cells import procedures as cell_procedures
from inmem.primitives.events import facade as event_log
from inmem.primitives.events import procedures as event_procedures
from inmem.primitives.kv import facade as kv
from inmem.primitives.kv import procedures as kv_procedures
from inmem.writeset import OP_CALL, WriteSet, decode


class Sent:
    """What transactions of this process have sent."""

    def __init__(self) -> None:
        self.bodies: list[WriteSet] = []

    @property
    def last(self) -> WriteSet:
        return self.bodies[-1]


@pytest.fixture
def run() -> str:
    return new_run()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent, encode = Sent(), client.OptimisticTransaction.prepare

    def noted(txn: client.OptimisticTransaction) -> bytes | None:
        body = encode(txn)
        if body is not None:
            sent.bodies.append(decode(body))
        return body

    monkeypatch.setattr(client.OptimisticTransaction, "prepare", noted)
    return sent


def calls(body: WriteSet) -> list[tuple[str, bool]]:
    """The procedures of a commit, and whether the transaction had run them."""
    return [(op[1], len(op) == 4) for op in body.ops if op[0] == OP_CALL]


BLIND: dict[str, Callable[[Any], Any]] = {
    "add": lambda txn: txn.kv.add("n", 2),
    "merge": lambda txn: txn.kv.merge("d", {"a": 1}),
    "append": lambda txn: txn.events.append("t"),
    "set": lambda txn: txn.cells.set("c", 1),
    "put": lambda txn: txn.kv.put("n", 1),
    "discard": lambda txn: txn.kv.discard("n"),
    "clear": lambda txn: txn.kv.clear("n"),
}


class TestReads:
    @pytest.mark.parametrize("name", BLIND)
    def test_a_blind_write_reads_nothing(
        self, shared_db: inmem.Database, wire: Sent, run: str, name: str
    ) -> None:
        with shared_db.transaction(run) as txn:
            BLIND[name](txn)
            BLIND[name](txn)
        assert (wire.last.reads, wire.last.ranges, wire.last.expiry_us) == ({}, [], 0)
        assert not any(ran for _, ran in calls(wire.last))

    @pytest.mark.parametrize("name", BLIND)
    def test_reads_of_something_else_leave_it_blind(
        self, shared_db: inmem.Database, wire: Sent, run: str, name: str
    ) -> None:
        shared_db.events.append("other", "t")
        with shared_db.transaction(run) as txn:
            txn.kv.get("else")
            txn.cells.read("else")
            txn.at("other").events.count()
            txn.traces.count()
            BLIND[name](txn)
            txn.kv.get("else too")
            txn.at("other").events.count()
        assert not any(ran for _, ran in calls(wire.last))
        keys = [bytes(Key(key)) for key in wire.last.reads]
        assert all(b"else" in key for key in keys), keys

    @pytest.mark.parametrize("early", [True, False])
    @pytest.mark.parametrize(("name", "look"), [
        ("add", lambda txn: txn.kv.get("n")), ("add", lambda txn: txn.kv.list()),
        ("add", lambda txn: txn.kv.get_many(["m", "n"])), ("add", lambda txn: txn.kv.count("n")),
        ("merge", lambda txn: txn.kv.exists("d")), ("append", lambda txn: txn.events.count()),
        ("append", lambda txn: txn.events.read(0)), ("append", lambda txn: txn.events.read(7)),
        ("append", lambda txn: txn.events.query_by_type("t")), ("set", lambda txn: txn.cells.read("c")),
        ("set", lambda txn: txn.cells.list("c")), ("set", lambda txn: txn.cells.exists("c")),
    ])
    def test_a_look_at_what_it_concerns_makes_it_run_here(
        self, shared_db: inmem.Database, wire: Sent, run: str, name: str, look: Any, early: bool
    ) -> None:
        with shared_db.transaction(run) as txn:
            if early:
                look(txn)
            BLIND[name](txn)
            if not early:
                look(txn)
        assert [ran for _, ran in calls(wire.last)] == [True]
        assert wire.last.reads or wire.last.ranges

    def test_a_cell_that_is_set_does_not_make_another_one_read(
        self, shared_db: inmem.Database, wire: Sent, run: str
    ) -> None:
        with shared_db.transaction(run) as txn:
            txn.cells.set("a", 1)
            txn.cells.set("b", 1)
            assert txn.cells.read("b").value == 1  # type: ignore[union-attr]
        assert calls(wire.last) == [("cell.set", False), ("cell.set", True)]
        assert not any(key.endswith(b"a") for key in wire.last.reads)

    def test_a_deletion_comes_after_the_sets_before_it(
        self, shared_db: inmem.Database, wire: Sent, run: str
    ) -> None:
        """A deleted cell raises the run's mark, from which the version of a new one follows."""
        shared_db.cells.set(run, "old", 1)
        for n in range(5):
            shared_db.cells.set(run, "old", n)
        with shared_db.transaction(run) as txn:
            before = txn.cells.set("a", 1)
            assert txn.cells.delete("old") is True
            after = txn.cells.set("b", 1)
            assert [txn.cells.read(name).version for name in "ab"] == [1, 7]  # type: ignore[union-attr]
        assert (before.version, after.version) == (1, 7)
        assert [shared_db.cells.read(run, name).version for name in "ab"] == [1, 7]  # type: ignore[union-attr]

    def test_what_is_overwritten_is_not_read_for_it(
        self, shared_db: inmem.Database, wire: Sent, run: str
    ) -> None:
        shared_db.kv.put(run, "n", 40)
        with shared_db.transaction(run) as txn:
            pending = txn.kv.add("n", 2)
            txn.kv.put("n", 5)
            assert txn.kv.get("n") == 5
            txn.kv.add("n", 1)
            assert txn.kv.get("n") == 6
            txn.kv.add("m", 1)
            txn.kv.discard("m")
            assert txn.kv.get("m") is None
        assert wire.last.reads == {}
        assert (pending.value, shared_db.kv.get(run, "n")) == (42, 6)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_a_scan_with_a_limit_reads_up_to_its_last_key(
        self, shared_db: inmem.Database, wire: Sent, run: str, reverse: bool, limit: int
    ) -> None:
        shared_db.kv.put_many(run, dict.fromkeys("bdfhj", 1))
        with shared_db.transaction(run) as txn:
            txn.kv.put("c", 1)
            txn.kv.put("i", 1)
            found = txn.kv.list(limit=limit, reverse=reverse)
        (start, end, met), = wire.last.ranges
        assert len(found) == limit
        last = bytes(Key.kv(shared_db.namespace, run, found[-1]))
        assert last == (start if reverse else end[:-1]), "no key beyond the last is read"
        assert met == sum(name in "bdfhj" for name in found)

    def test_the_head_is_a_read_up_to_itself(self, shared_db: inmem.Database, wire: Sent, run: str) -> None:
        shared_db.events.append_many(run, [("t", n) for n in range(100)])
        with shared_db.transaction(run) as txn:
            txn.events.append("t")
            assert txn.events.count() == 101
        assert [met for _, _, met in wire.last.ranges] == [1, 0]
        assert wire.last.reads == {}

    def test_what_changes_nothing_is_not_sent(self, shared_db: inmem.Database, wire: Sent, run: str) -> None:
        with shared_db.transaction(run) as txn:
            assert txn.kv.delete("none") is False
            assert txn.cells.delete("none") is False
        assert (wire.bodies, txn.version) == ([], None)

    def test_appends_to_a_log_travel_in_one_call(
        self, shared_db: inmem.Database, wire: Sent, run: str
    ) -> None:
        with shared_db.transaction(run) as txn:
            appended = []
            for n in range(5):
                txn.kv.put(f"k{n}", n)
                appended.append(txn.events.append("t", n))
            appended += txn.events.append_many([("u", n) for n in range(3)])
            elsewhere = txn.at("elsewhere").events.append("t")
        assert [name for name, _ in calls(wire.last)] == ["event.append"] * 2
        assert [one.sequence for one in appended] == list(range(8))
        assert [one.hash for one in appended] == [event.hash for event in shared_db.events.iter(run)]
        assert elsewhere.hash == shared_db.events.read("elsewhere", elsewhere.sequence).hash  # type: ignore[union-attr]


class TestRefusals:
    def test_a_refused_call_leaves_nothing_behind(
        self, shared_db: inmem.Database, wire: Sent, run: str
    ) -> None:
        shared_db.kv.put(run, "text", "no number")
        shared_db.runs.create_run(run_id=run)
        with shared_db.transaction(run) as txn:
            txn.kv.get("text")
            for refused, call in (
                (inmem.InvalidValueError, lambda: txn.kv.add("text")),
                (inmem.InvalidTransitionError, lambda: txn.runs.resume_run()),
                (inmem.RunExistsError, lambda: txn.runs.create_run()),
                (inmem.CellNotFoundError, lambda: txn.cells.cas("none", 1, 1)),
                (inmem.TraceNotFoundError, lambda: txn.traces.record_many([
                    inmem.NewTrace(inmem.Thought("x"), id="first", tags=["tag"]),
                    inmem.NewTrace(inmem.Thought("x"), parent_id="none"),
                ])),
            ):
                with pytest.raises(refused):
                    call()
            assert txn.traces.count() == 0 and txn.traces.query_by_tag("tag") == []
            txn.kv.put("k", 1)
        assert calls(wire.last) == []
        assert shared_db.kv.get(run, "k") == 1

    def test_a_call_that_was_put_off_is_refused_where_it_is_looked_at(
        self, shared_db: inmem.Database, run: str
    ) -> None:
        shared_db.kv.put(run, "text", "no number")
        txn = shared_db.transaction(run)
        txn.kv.add("text")
        for _ in range(2):
            with pytest.raises(inmem.InvalidValueError):
                txn.kv.get("text")
        with pytest.raises(inmem.InvalidValueError):
            txn.commit()

    def test_results_of_what_was_not_committed_are_taken_back(
        self, shared_db: inmem.Database, run: str
    ) -> None:
        for end in ("abort", "conflict"):
            txn = shared_db.transaction(run)
            waiting = [txn.events.append("t"), txn.cells.set("c", 1), txn.kv.add("n")]
            assert (txn.events.count(), txn.cells.read("c").version) == (1, 1)  # type: ignore[union-attr]
            assert txn.kv.get("n") == waiting[2].value == 1
            if end == "abort":
                txn.abort()
            else:
                shared_db.kv.put(run, "n", "mine")
                with pytest.raises(inmem.ConflictError):
                    txn.commit()
            for pending in waiting:
                with pytest.raises(inmem.InvariantError, match="after the commit"):
                    _ = pending.value


class TestAgreement:
    @pytest.mark.parametrize("name", ["kv.add", "cell.set", "event.append"])
    def test_a_difference_from_the_writer_is_an_error(
        self, shared_db: inmem.Database, run: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Planted: this program's procedures give other results than the writer's."""
        real = client.PROCEDURES[name]

        def wrong(workspace: Any, *arguments: Any) -> Any:
            result = real(workspace, *arguments)
            return [0, [b"?" * 32]] if name == "event.append" else result + 1

        monkeypatch.setattr(client, "PROCEDURES", {**client.PROCEDURES, name: wrong})
        txn = shared_db.transaction(run)
        waiting = [txn.kv.add("n"), txn.cells.set("c", 1), txn.events.append("t")]
        txn.kv.get("n"), txn.cells.read("c"), txn.events.count()
        with pytest.raises(inmem.InvariantError, match=rf"{name} gave the writer another result"):
            txn.commit()
        assert txn.version is not None, "it is committed, and the error says so"
        event = shared_db.events.read(run, 0)
        assert event is not None
        assert [waiting[0].value, waiting[1].version, waiting[2].hash] == [1, 1, event.hash]

    def test_numbers_are_compared_as_they_are_stored(self, shared_db: inmem.Database, run: str) -> None:
        with shared_db.transaction(run) as txn:
            txn.kv.get("n")
            txn.kv.add("n", float("nan"))
        assert shared_db.kv.get(run, "n") != shared_db.kv.get(run, "n")

    def test_the_program_of_the_release_before_is_understood(
        self, shared_db: inmem.Database, run: str
    ) -> None:
        """Its calls carry no time, its appends one for each event, its deletions are plain ones."""
        prefix = shared_db.run(run).prefix
        key = bytes(Key.kv(shared_db.namespace, run, "k"))
        body = msgpack.packb((0, 0, [], [], [
            [0, key, b"\x01", 0], [1, key], [2, "kv.add", [key, 2, 0]],
            [2, "event.append", [prefix, [[b"t", b"\x01", 12345]]]],
            [2, "run.create", [shared_db.namespace.prefix(), run, "", [], b"\x80"]],
        ]))
        direct: Any = shared_db.engine.direct()
        applied = direct._session().commit(body, sync=False, timeout_s=10.0)
        assert applied.results[0] == 2
        assert shared_db.events.read(run, 0).timestamp == 12345  # type: ignore[union-attr]
        assert shared_db.runs.get_run(run).created_at == applied.results[2]  # type: ignore[union-attr]


class TestTimes:
    """What a transaction shows of its own writes is what is stored, field by field."""

    WRITES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "create": (lambda t: t.runs.create_run(tags=["a"]), lambda t: t.runs.get_run()),
        "complete": (
            lambda t: (t.runs.create_run(), t.runs.complete_run()),
            lambda t: (t.runs.get_run(), t.runs.query_runs(status="completed")),
        ),
        "tags": (lambda t: (t.runs.create_run(), t.runs.add_tags(["x"])), lambda t: t.runs.get_run()),
        "metadata": (
            lambda t: (t.runs.create_run(), t.runs.update_metadata({"k": 1})), lambda t: t.runs.get_run()
        ),
        "append": (lambda t: t.events.append("t", 1), lambda t: t.events.read_range(0)),
        "append_many": (
            lambda t: t.events.append_many([("t", 1), ("u", 2)]), lambda t: list(t.events.iter())
        ),
        "init": (lambda t: t.cells.init("c", 1), lambda t: t.cells.read("c")),
        "set": (lambda t: t.cells.set("c", 1), lambda t: t.cells.read("c")),
        "cas": (lambda t: t.cells.cas("c", t.cells.init("c", 1), 2), lambda t: t.cells.read("c")),
        "transition": (
            lambda t: (t.cells.init("c", 1), t.cells.transition("c", lambda s: (s.value + 1, None))),
            lambda t: t.cells.read("c"),
        ),
        "trace": (
            lambda t: t.traces.record_child(t.traces.record(inmem.Thought("x"), id="up"), inmem.Thought("y")),
            lambda t: (t.traces.list(), t.traces.get_tree("up").walk().__next__()),
        ),
        "kv": (
            lambda t: (t.kv.put("k", 1), t.kv.add("n", 2), t.kv.merge("d", {"a": 1})),
            lambda t: (t.kv.list_with_values(), t.kv.get_many(["k", "n", "d"])),
        ),
        "add": (lambda t: t.kv.add("n", 2), lambda t: t.kv.get_versioned("n").timestamp),
    }

    @pytest.mark.parametrize("name", WRITES)
    def test_each_write_read_back(self, home: Any, run: str, name: str) -> None:
        write, read = self.WRITES[name]
        with home.open(agent=run) as db:
            with db.transaction(run) as txn:
                write(txn)
                inside = read(txn)
                time.sleep(0.002)  # the commit is at another microsecond
            assert read(db.run(run)) == inside

    def test_version_and_time_of_an_own_put_are_not_known(self, shared_db: inmem.Database, run: str) -> None:
        with shared_db.transaction(run) as txn:
            txn.kv.put("k", 1, ttl=60)
            assert txn.kv.get_versioned("k") == inmem.Versioned(1, 0, 0)


class TestOwnExpiry:
    def test_an_own_entry_lasts_from_the_commit(self, shared_db: inmem.Database, run: str) -> None:
        """However long the transaction takes, and whether it was seen in there."""
        looks: list[Callable[[inmem.Transaction], object]] = [
            lambda txn: txn.kv.get("k"), lambda txn: txn.kv.list(), lambda txn: txn.kv.add("k", 0),
            lambda txn: None,
        ]  # fmt: skip
        begun = {f"{run}-{number}": shared_db.transaction(f"{run}-{number}") for number in range(len(looks))}
        for look, txn in zip(looks, begun.values(), strict=True):
            txn.kv.put("k", 1, ttl=1.0)
            look(txn)
        time.sleep(1.1)
        for one, txn in begun.items():
            assert txn.kv.get("k") == 1 and txn.kv.list() == ["k"]
            pending = txn.kv.add("k", 5)
            txn.commit()
            left = shared_db.kv.ttl(one, "k")
            assert (pending.value, shared_db.kv.get(one, "k")) == (6, 6)
            assert left is not None and 0 < left <= 1.0

    def test_a_stored_entry_stays_as_the_snapshot_has_it(self, shared_db: inmem.Database, run: str) -> None:
        shared_db.kv.put(run, "k", 1, ttl=0.05)
        txn = shared_db.transaction(run)
        assert txn.kv.get("k") == 1
        time.sleep(0.06)
        assert txn.kv.get("k") == 1
        txn.kv.put("other", 1)
        with pytest.raises(inmem.ConflictError):
            txn.commit()


class TestNested:
    """A signal handler or finalizer that writes in the middle of a call, here at every line of it."""

    def test_in_a_pipeline_it_is_refused_or_done(self, shared_db: inmem.Database, run: str) -> None:
        made: list[int] = []
        refused: list[int] = []
        outer: list[Any] = []
        elsewhere = f"{run}-nested"
        with shared_db.pipeline() as pipe:

            def nested(number: int) -> None:
                try:
                    pipe.events.append(elsewhere, "nested", number)
                    made.append(number)
                except inmem.BusyError:
                    refused.append(number)

            def append() -> None:
                outer.append(pipe.events.append(run, "outer", len(outer)))

            lines = at_every_line({pipeline.__file__}, append, nested)
        assert made and refused and len(made) + len(refused) == lines - 1
        assert [event.payload for event in shared_db.events.iter(elsewhere)] == made
        assert [event.payload for event in shared_db.events.iter(run)] == list(range(lines))
        assert [pending.sequence for pending in outer] == list(range(lines))

    def test_an_interrupt_leaves_a_pipeline_that_works(self, shared_db: inmem.Database, run: str) -> None:
        kept: list[Any] = []
        interrupts = 0

        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        with shared_db.pipeline() as pipe:

            def append() -> None:
                nonlocal interrupts
                try:
                    kept.append(pipe.events.append(run, "t"))
                except KeyboardInterrupt:
                    interrupts += 1

            lines = at_every_line({pipeline.__file__}, append, interrupt)
            pipe.flush()
        assert interrupts == lines - 1 > 10
        sequences = [pending.sequence for pending in kept]
        assert sequences == sorted(set(sequences))
        assert shared_db.events.verify_chain(run).length >= len(kept) > 0

    @pytest.mark.parametrize("how", ["interrupt", "nested"])
    def test_at_every_line_of_a_transaction(self, shared_db: inmem.Database, how: str) -> None:
        """It happened as a whole or not at all, and the next one works."""
        runs: list[str] = []
        nested_run = new_run()
        files = {
            str(module.__file__) for module in (
                client, batch, tracking, workspace, kv_procedures, event_procedures, cell_procedures,
                scopes, kv, event_log, state_cell
            )
        }

        def step(txn: inmem.Transaction) -> None:
            txn.kv.put("steps", txn.kv.get("steps", 0) + 1)
            txn.kv.add("n")
            appended = txn.events.append("t", 1)
            assert txn.events.count() == appended.sequence + 1
            txn.cells.set("c", 1)
            txn.cells.read("c")
            txn.cells.set("c", 2)
            txn.kv.delete("none")
            assert txn.kv.get("n") == txn.kv.get("steps")

        def happens(_: int) -> None:
            if how == "interrupt":
                raise KeyboardInterrupt
            shared_db.transact(nested_run, step)

        def call() -> None:
            runs.append(new_run())
            try:
                shared_db.transact(runs[-1], step)
            except KeyboardInterrupt:
                pass

        is_far = shared_db.name.startswith("postgresql:") and "INMEM_EXHAUSTIVE" not in os.environ
        lines = at_every_line(files, call, happens, step=7 if is_far else 1)
        assert lines > 300
        for run in runs:
            done = shared_db.kv.get(run, "steps", 0)
            assert done == 1 or (how == "interrupt" and done == 0)
            cell = shared_db.cells.read(run, "c")
            assert (shared_db.kv.get(run, "n", 0), shared_db.events.count(run)) == (done, done)
            assert (cell.version if cell else 0) == 2 * done
        for run in runs[:: len(runs) // 20]:
            before = shared_db.kv.get(run, "steps", 0)
            shared_db.transact(run, step)
            assert shared_db.kv.get(run, "steps") == shared_db.events.count(run) == before + 1
        if how == "nested":
            assert shared_db.kv.get(nested_run, "steps") == len(runs) - 1
