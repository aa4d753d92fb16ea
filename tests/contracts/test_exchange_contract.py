"""Export and import from one engine to another: equal to the byte, whatever serves them."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from exporting import exported, fill, fill_little
from homes import HOMES, Home, PostgresHome
from support import wait_until

import inmem
from inmem.errors import BusyError, InvalidInputError, RunDeletedError, RunExistsError, RunNotFoundError
from inmem.exchange import count_runs, discard_import, export_runs, import_runs, unfinished_imports
from inmem.exchange.import_ import RunLoader
from workers.judge.values import same

GOLDEN = Path(__file__).parents[1] / "fleet" / "export_v1.jsonl"  # what `fill` makes, from the first release

Two = tuple[inmem.Database, inmem.Database]


@pytest.fixture(
    scope="module", params=[*itertools.product(HOMES, HOMES)],
    ids=lambda pair: "-".join(one.name for one in pair),
)
def kinds(request: pytest.FixtureRequest) -> tuple[type[Home], type[Home]]:
    """From which engine to which."""
    return request.param


@pytest.fixture
def homes(kinds: tuple[type[Home], type[Home]], request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Two stores on these."""
    with ExitStack() as stack:
        made: list[Any] = []
        for kind in kinds:
            needs = [request.getfixturevalue("postgres_server")] if kind is PostgresHome else []
            made.append(kind(*needs))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture
def two(homes: list[Any]) -> Iterator[Two]:
    """A handle of each."""
    with homes[0].open() as one, homes[1].open() as other:
        yield one, other


class TestRoundTrip:
    def test_equal_to_the_byte(self, two: Two, scratch: Path) -> None:
        one, other = two
        fill(one)
        first, second = scratch / "1.jsonl", scratch / "2.jsonl"
        report = export_runs(one, first)
        assert report.bytes == first.stat().st_size and report.runs == count_runs(one) == 4
        done = import_runs(other, first)
        assert (done.runs, done.records) == (report.runs, report.records)
        export_runs(other, second)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_mode & 0o777 == 0o600
        assert other.check().problems == []
        self.assert_same(one, other)

    def assert_same(self, one: inmem.Database, other: inmem.Database) -> None:
        """By the facades, which know nothing of exports."""
        for run in one.runs.list_runs(include_archived=True):
            assert repr(other.runs.get_run(run)) == repr(one.runs.get_run(run))  # NaN differs from itself
            assert repr(other.traces.list(run)) == repr(one.traces.list(run))
        for run in (*one.runs.list_runs(include_archived=True), "never-created"):
            left, right = list(one.events.iter(run)), list(other.events.iter(run))
            assert [e.hash for e in left] == [e.hash for e in right] and len(left) == len(right)
            assert other.events.verify_chain(run).is_valid
            assert same(dict(one.kv.list_with_values(run)), dict(other.kv.list_with_values(run)))
            for name in one.cells.list(run):
                before, after = one.cells.read(run, name), other.cells.read(run, name)
                assert before is not None and after is not None and same(before.value, after.value)
                assert (before.version, before.updated_at) == (after.version, after.updated_at)
        assert one.kv.ttl("parent", "lease") == pytest.approx(other.kv.ttl("parent", "lease"), abs=5)
        # Versions that deleted cells had are remembered: none comes twice.
        assert other.cells.init("parent", "gone", 1) == one.cells.init("parent", "gone", 1)
        assert other.events.append("parent", "on").sequence == one.events.append("parent", "on").sequence
        assert [r.run_id for r in other.runs.get_child_runs("parent")] == ["child"]

    def test_a_file_of_version_1_is_read_and_written_as_ever(self, two: Two) -> None:
        """Of a store with sha256 chains, which this one does not have: a log keeps its own."""
        _, db = two
        import_runs(db, GOLDEN)
        assert exported(db) == GOLDEN.read_bytes()
        assert db.check().problems == []
        db.events.append("parent", "more")
        assert db.events.verify_chain("parent").is_valid

    def test_one_run_is_one_moment(self, homes: list[Any], two: Two) -> None:
        one, _ = two
        over = threading.Event()

        def agent() -> None:
            with homes[0].open() as db:
                while not over.is_set():
                    db.transact("r", step)

        def step(txn: Any) -> None:
            number = txn.kv.get("n", 0) + 1
            txn.kv.put("n", number)
            txn.events.append("step", number)
            txn.cells.set("n", number)

        thread = threading.Thread(target=agent)
        thread.start()
        try:
            wait_until(lambda: one.kv.get("r", "n"), "the agent has begun")
            seen: set[int] = set()
            while len(seen) < 3:
                wait_until(lambda: one.kv.get("r", "n") not in seen, "the agent goes on")
                lines = [json.loads(line) for line in exported(one, "r").splitlines()]
                (kv,) = [line["value"] for line in lines if line.get("kind") == "kv"]
                (cell,) = [line["value"] for line in lines if line.get("kind") == "cell"]
                assert kv == cell == sum(line.get("kind") == "event" for line in lines)
                seen.add(kv)
        finally:
            over.set()
            thread.join()

    def test_chosen_runs_other_names_and_namespaces(
        self, homes: list[Any], two: Two, scratch: Path
    ) -> None:
        one, other = two
        fill(one)
        file = scratch / "f.jsonl"
        assert export_runs(one, file, ["parent", "child", "parent"]).runs == 2
        with pytest.raises(RunNotFoundError, match="nobody"):
            export_runs(one, scratch / "no.jsonl", ["parent", "nobody"])
        assert not (scratch / "no.jsonl").exists()
        import_runs(other, file, rename={"parent": "elder"})
        assert other.runs.get_run("child").parent_run == "elder"
        assert other.events.verify_chain("elder").is_valid
        assert import_runs(other, file, rename={"child": "kid"}).unchanged == []
        with homes[1].open(tenant="t", app="a", agent="g") as elsewhere:
            import_runs(elsewhere, file)
            assert exported(elsewhere) == file.read_bytes()
        with homes[1].open(agent="third") as third:
            for wrong in ({"absent": "x"}, {"parent": "child"}, {"parent": "x", "child": "x"}):
                with pytest.raises(InvalidInputError, match=r"no run absent|two runs"):
                    import_runs(third, file, rename=wrong)
            assert count_runs(third) == 0

    def test_a_large_run_comes_in_many_commits(self, two: Two) -> None:
        one, other = two
        for start in range(0, 3000, 1000):
            one.kv.put_many("large", {f"{n:05}": n for n in range(start, start + 1000)})
        one.events.append_many("large", [("e", n) for n in range(1500)])
        file = io.BytesIO(exported(one))
        assert import_runs(other, file).records == 4500
        assert exported(other) == file.getvalue()
        assert other.check().problems == []

    def test_deep_traces(self, two: Two, scratch: Path) -> None:
        one, other = two
        file = scratch / "deep.jsonl"
        ids = [f"t{n}" for n in range(2000)]
        one.traces.record_many("deep", [
            inmem.NewTrace(inmem.Thought("x"), id=name, parent_id=above)
            for above, name in zip([None, *ids], ids, strict=False)
        ])
        export_runs(one, file)
        import_runs(other, file)
        assert exported(other) == file.read_bytes()


class TestThere:
    @pytest.fixture
    def file(self, two: Two, scratch: Path) -> Path:
        fill_little(two[0])
        export_runs(two[0], scratch / "good.jsonl")
        return scratch / "good.jsonl"

    def test_what_is_there_already(self, file: Path, two: Two) -> None:
        _, db = two
        db.kv.put("b", "k", "else")
        with pytest.raises(RunExistsError, match="run b exists, and is not what") as caught:
            import_runs(db, file)
        assert caught.value.run_id == "b" and "--skip-existing" in caught.value.hint
        assert db.runs.list_runs() == []
        done = import_runs(db, file, skip_existing=True)
        assert (done.runs, done.skipped, done.unchanged) == (1, ["b"], [])
        assert db.kv.get("b", "k") == "else"
        again = import_runs(db, file, skip_existing=True)
        assert (again.runs, again.skipped, again.unchanged) == (0, ["b"], ["a"])
        db.runs.add_tags("a", ["more"])
        with pytest.raises(RunExistsError, match="run a exists"):
            import_runs(db, file)

    def test_a_deleted_run_does_not_come_back(self, file: Path, two: Two) -> None:
        _, db = two
        db.kv.put("b", "k", 1)
        db.runs.delete_run("b")
        with pytest.raises(RunDeletedError) as caught:
            import_runs(db, file)
        assert caught.value.run_id == "b" and "--rename" in caught.value.hint
        assert db.runs.list_runs() == []
        assert import_runs(db, file, rename={"b": "b2"}).runs == 2

    def test_one_that_was_killed_is_begun_anew_or_discarded(
        self, file: Path, two: Two, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, db = two

        class Killed(BaseException):
            pass

        def killed(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(RunLoader, "finish", killed)
            patched.setattr(RunLoader, "abort", lambda *_: None)
            patched.setattr("inmem.exchange.import_._GROUP", 1)
            for _ in range(2):
                with pytest.raises(Killed):
                    import_runs(db, file)
                assert unfinished_imports(db) == ["a"] and count_runs(db) == 1
        with pytest.raises(BusyError):
            db.kv.put("a", "mine", 1)
        with pytest.raises(BusyError):
            export_runs(db, file.with_name("no.jsonl"), ["a"])
        assert db.check().problems == []
        assert import_runs(db, file).cleared == ["a"]
        assert exported(db) == file.read_bytes()
        db.runs.delete_run("b")
        with monkeypatch.context() as patched:
            patched.setattr(RunLoader, "finish", killed)
            patched.setattr(RunLoader, "abort", lambda *_: None)
            patched.setattr("inmem.exchange.import_._GROUP", 1)
            with pytest.raises(Killed):
                import_runs(db, file, rename={"a": "c", "b": "d"})
        discard_import(db, "c")
        assert unfinished_imports(db) == []
        with pytest.raises(RunNotFoundError):
            discard_import(db, "c")
        db.kv.put("c", "free", 1)
        assert db.check().problems == []
