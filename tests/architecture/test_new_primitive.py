"""A new primitive is a folder, a line in the server table, its tags and attributes: all else then knows it.

`tests/helpers/notes` is the folder. What goes over records is driven by the
primitive's procedures; its facades are tried in a copy of the package.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from adding_notes import ENVIRONMENT, LINES, added, package_with_notes
from architecture.known import CIRCLES
from architecture.modules import circles, import_graph, imports_of, modules_of, real_modules
from architecture.test_imports import primitive_of, violations
from notes.procedures import FOOTPRINTS, PROCEDURES
from notes.records import RECORD_TYPES
from notes.rules import COLORS, NOTE, NOTE_BY_COLOR, index_keys, note_key
from support import control_state, kill_writer, stop_writer

import inmem
from inmem.client.direct import commit_call
from inmem.errors import BusyError, CorruptionError, FormatVersionError, InvariantError, RunDeletedError
from inmem.exchange import export_runs, import_runs, unfinished_imports
from inmem.exchange.import_ import RunLoader
from inmem.exchange.line_reader import LineReader, LineRecord, RunEnd, RunStart
from inmem.exchange.reading import source_of
from inmem.host.directory import DataDirectory
from inmem.keys import Key, Namespace
from inmem.maintenance.backup import backup
from inmem.maintenance.check import check
from inmem.maintenance.check_report import check_in_process
from inmem.maintenance.restore import restore
from inmem.maintenance.salvage import salvage
from inmem.primitives import server
from inmem.reading.database_source import DatabaseSource
from inmem.reading.run import StoredRun
from inmem.reading.source import loaded
from inmem.record import pack, payload_of
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.format import DELETE, PUT

GOLDEN = Path(__file__).parents[1] / "fleet" / "export_v1.jsonl"
HOME = Namespace()
RUN = HOME.run_prefix("run")
COUNT = 6


@pytest.fixture(autouse=True)
def with_notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with added():
        yield


def put(db: inmem.Database, run: str, name: str, text: str = "text", color: str = "red") -> Any:
    prefix = HOME.run_prefix(run)
    return commit_call(db.engine.attachment, "notes.put", [prefix, name.encode(), text, color], 10.0)[0]


def fill(db: inmem.Database) -> None:
    for number in range(COUNT):
        assert put(db, "run", f"note-{number}", f"text {number}", COLORS[number % 2]) is True
    db.kv.put("run", "key", 1)
    db.events.append("run", "event", 1)
    db.kv.put("other", "key", 1)


def notes_of(run: StoredRun) -> dict[str, list[str]]:
    """All notes by name."""
    found = {name.decode(): msgpack.unpackb(payload_of(record)) for name, record in run.records(NOTE)}
    by_color = sorted(name.partition(b"\0")[2].decode() for name, _ in run.records(NOTE_BY_COLOR))
    assert by_color == list(found), "the index leads to all of them"
    return found


EXPECTED = {f"note-{n}": [f"text {n}", COLORS[n % 2]] for n in range(COUNT)}


def without_zeros(counts: Mapping[str, int]) -> dict[str, int]:
    """Of what is counted, what is there: which primitives there are besides does not matter."""
    return {name: count for name, count in counts.items() if count}


def stored(path: Path, run: str = "run") -> dict[str, list[str]]:
    with DatabaseSource(DataDirectory(path), HOME) as source:
        return notes_of(source.run(run))


def damage(path: Path, *ops: tuple[Any, ...]) -> None:
    """Change the image that a killed writer has left."""
    store = Store(Path(control_state(path).image), max_readers=1024, quota_bytes=1 << 30)
    txn = store.begin()
    txn.apply(ops)
    assert store.position is not None
    txn.publish(store.position)
    store.close()


def test_its_records_are_counted_and_deleted_with_their_run(db: inmem.Database) -> None:
    fill(db)
    counts = {"kv": 1, "events": 1, "notes": COUNT}
    assert without_zeros(StoredRun(source_of(db), HOME, "run").counts()) == counts
    deleted = db.runs.delete_run("run")
    assert deleted == inmem.DeletedRun("run", 1, 1, 0, 0, False, {"notes": COUNT})
    assert deleted.total == COUNT + 2
    with pytest.raises(RunDeletedError):
        put(db, "run", "late")
    assert db.runs.delete_run("other") == inmem.DeletedRun("other", 1, 0, 0, 0, False)
    assert db.check().problems == []


class TestCheckAndRepair:
    def test_a_damaged_record_is_found(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            fill(db)
            assert db.check().problems == []
        kill_writer(store_path)
        key = note_key(RUN, b"note-0")
        damage(store_path, (PUT, int(Table.DATA), key, pack(1, 1, 0, msgpack.packb(["text", "pink"]))))
        problems = check_in_process(store_path).problems
        assert f"{Key(key)!r}: is no note" in problems
        assert any("the index NOTE_BY_COLOR has" in problem for problem in problems)

    @pytest.mark.parametrize("kind", ["removed", "added"])
    def test_a_damaged_index_is_found_and_repaired(self, store_path: Path, kind: str) -> None:
        with inmem.open(store_path) as db:
            fill(db)
        kill_writer(store_path)
        (entry,) = index_keys(RUN, b"note-1", msgpack.packb(["", "red" if kind == "removed" else "blue"]))
        op = (DELETE, int(Table.DATA), entry) if kind == "removed" else (
            PUT, int(Table.DATA), entry, pack(1, 1, 0, b"")
        )
        damage(store_path, op)
        assert "the index NOTE_BY_COLOR has" in check_in_process(store_path).problems[0]
        with inmem.open(store_path) as db:
            report = db.repair_indices("run")
            assert (report.added, report.removed) == ((1, 0) if kind == "removed" else (0, 1))
            assert db.check().problems == []
            assert notes_of(StoredRun(source_of(db), HOME, "run")) == EXPECTED


class TestExport:
    def test_there_and_back(self, scratch: Path) -> None:
        file, again = scratch / "1.jsonl", scratch / "2.jsonl"
        with inmem.open(scratch / "one") as one, inmem.open(scratch / "two") as two:
            fill(one)
            report = export_runs(one, file)
            assert without_zeros(report.counts) == {"kv": 2, "events": 1, "notes": COUNT}
            assert import_runs(two, file).counts == report.counts
            assert import_runs(two, file).unchanged == ["other", "run"]
            assert import_runs(two, file, rename={"run": "copy"}).runs == 1
            export_runs(two, again, ["other", "run"])
            assert again.read_bytes() == file.read_bytes()
            assert two.check().problems == []
            assert notes_of(StoredRun(source_of(two), HOME, "copy")) == EXPECTED
        head, *lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert head == {"schema": "inmem-export", "version": 3}
        ends = {line["run_id"]: line for line in lines if line["kind"] == "end"}
        assert ends["run"]["notes"] == COUNT and "notes" not in ends["other"]

    def test_a_release_without_it_refuses_the_file(self, db: inmem.Database, scratch: Path) -> None:
        fill(db)
        out = io.BytesIO()
        export_runs(db, out)
        assert sum(isinstance(part, LineRecord) for part in LineReader(io.BytesIO(out.getvalue()), "x")) == 9
        del server.RECORD_TYPES[NOTE]
        try:
            with pytest.raises(FormatVersionError, match="an export of version 3"):
                list(LineReader(io.BytesIO(out.getvalue()), "x"))
        finally:
            server.add(RECORD_TYPES, PROCEDURES, FOOTPRINTS)

    def test_a_file_that_claims_the_first_version_cannot_have_it(self, db: inmem.Database) -> None:
        fill(db)
        out = io.BytesIO()
        export_runs(db, out)
        data = out.getvalue().replace(b'"version":3', b'"version":1', 1)
        with pytest.raises(CorruptionError, match="has no end before this"):
            list(LineReader(io.BytesIO(data), "x"))

    def test_the_first_of_them_during_an_export_is_refused(
        self, db: inmem.Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The head of the file says already that there are none."""
        fill(db)
        monkeypatch.setattr("inmem.exchange.export._version_for", lambda *_: 1)
        with pytest.raises(BusyError, match="its first note during the export"):
            export_runs(db, io.BytesIO())

    def test_other_runs_are_exported_as_they_always_were(self, db: inmem.Database, scratch: Path) -> None:
        import_runs(db, GOLDEN)
        put(db, "run", "note")
        with GOLDEN.open("rb") as file:
            runs = [part.run_id for part in LineReader(file, "x") if isinstance(part, RunStart)]
        export_runs(db, scratch / "again.jsonl", runs)
        assert (scratch / "again.jsonl").read_bytes() == GOLDEN.read_bytes()

    def test_an_import_that_was_killed_is_begun_anew(self, db: inmem.Database, scratch: Path) -> None:
        fill(db)
        file = scratch / "runs.jsonl"
        export_runs(db, file, ["run"])
        with file.open("rb") as stream:
            parts = iter(LineReader(stream, "x"))
            start = next(parts)
            assert isinstance(start, RunStart)
            loader = RunLoader(db, db.engine.attachment.session().take(), "copy", start, {})
            for part in parts:
                if isinstance(part, LineRecord):
                    loader.take(part)
            loader._send()
            while loader._sent:
                loader._settle()
        with pytest.raises(BusyError):
            put(db, "copy", "mine")
        assert unfinished_imports(db) == ["copy"]
        assert import_runs(db, file, rename={"run": "copy"}).cleared == ["copy"]
        assert notes_of(StoredRun(source_of(db), HOME, "copy")) == EXPECTED

    def test_a_wrong_number_of_them_is_refused(self, db: inmem.Database, scratch: Path) -> None:
        fill(db)
        file = scratch / "runs.jsonl"
        export_runs(db, file, ["run"])
        with file.open("rb") as stream:
            parts = list(LineReader(stream, "x"))
        start, end = parts[0], parts[-1]
        assert isinstance(start, RunStart) and isinstance(end, RunEnd)
        loader = RunLoader(db, db.engine.attachment.session().take(), "copy", start, {})
        with pytest.raises(InvariantError, match="is not whole"):
            loader.finish(end)


class TestCopies:
    def test_backup_and_restore(self, store_path: Path, scratch: Path) -> None:
        with inmem.open(store_path) as db:
            fill(db)
        stop_writer(store_path)
        backup(store_path, scratch / "file")
        assert check(scratch / "file").problems == []
        with loaded(scratch / "file") as source:
            assert notes_of(StoredRun(source, HOME, "run")) == EXPECTED
        restore(scratch / "file", scratch / "new")
        assert check(scratch / "new").problems == [] and stored(scratch / "new") == EXPECTED
        with inmem.open(scratch / "new") as db:
            assert put(db, "run", "note-0") is False

    def test_a_killed_writer_is_recovered(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            fill(db)
            kill_writer(store_path)
            assert put(db, "run", "note-0", *EXPECTED["note-0"]) is False
            assert notes_of(StoredRun(source_of(db), HOME, "run")) == EXPECTED
            assert db.check().problems == []

    def test_salvage(self, store_path: Path, scratch: Path) -> None:
        """Of a log with a hole in it the part before is saved; what is lost is named by its kind."""
        with inmem.open(store_path) as db:
            fill(db)
            before = stored_size(store_path)
            put(db, "run", "damaged")
            hole = stored_size(store_path) - 10
            put(db, "run", "lost")
        stop_writer(store_path)
        (log,) = (file for _, file in segment_files(store_path / "wal"))
        data = bytearray(log.read_bytes())
        assert before < hole < len(data)
        data[hole] ^= 0xFF
        log.write_bytes(data)
        report = salvage(store_path, scratch / "new")
        assert report.problems == [] and report.lost_runs == {RUN.decode(): ["note"]}
        assert stored(scratch / "new") == EXPECTED


def stored_size(path: Path) -> int:
    return sum(file.stat().st_size for _, file in segment_files(path / "wal"))


# --- its facades ------------------------------------------------------------------------------------

EVERY_FORM = """
from typing import assert_type

import inmem


def use(path: str) -> None:
    with inmem.open(path) as db:
        scope = db.run("run")
        assert_type(scope.notes.put("a", "first"), bool)
        assert_type(db.notes.put("run", "b", text="second", color="blue"), bool)
        assert db.notes.put("run", "b", "again") is False
        assert_type(db.notes.get("run", "a"), str | None)
        with db.snapshot("run") as view:
            assert scope.notes.put("c", "third") is True
            assert (view.notes.get("c"), scope.notes.get("c")) == (None, "third")
            assert_type(view.notes.of_color("red"), list[str])
        with db.transaction("run") as txn:
            late = txn.notes.put("d", "fourth", "blue")
            assert_type(late, inmem.Pending[bool])
            assert txn.notes.of_color("blue") == ["d"]
            assert late.value is True
            assert repr(txn.at("other").notes.put("d", "waits")) == "Pending(None)"
        with db.pipeline() as pipe:
            piped = [pipe.notes.put("run", "p", "x"), pipe.run("run").notes.put("d", "x")]
        assert [one.value for one in piped] == [True, False]
        assert scope.notes.of_color("red") == ["a", "b", "c", "d", "p"]
        assert db.runs.delete_run("run").others == {"notes": 5}
        assert db.check().problems == []


if __name__ == "__main__":
    import sys

    use(sys.argv[1])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that has the primitive."""
    home = package_with_notes(tmp_path_factory.mktemp("package"))
    (home / "every_form.py").write_text(EVERY_FORM, "utf-8")
    return home


class TestFacades:
    def test_they_work_in_every_form(
        self, home: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("INMEM_TEST_PRIMITIVE")
        monkeypatch.setenv("PYTHONPATH", str(home))
        done = subprocess.run(
            [sys.executable, str(home / "every_form.py"), str(store_path)], capture_output=True, text=True,
            timeout=60, cwd=home,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_they_are_typed_in_full(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MYPYPATH", str(home))
        root = Path(__file__).parents[2]
        if (root / ".mypy_cache").is_dir():  # it goes by what files hold: most of these are the same
            shutil.copytree(root / ".mypy_cache", home / ".mypy_cache", dirs_exist_ok=True)
        config = ["--config-file", str(root / "pyproject.toml")]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", *config, "every_form.py"], capture_output=True,
            text=True, timeout=110, cwd=home,
        )
        assert done.returncode == 0, done.stdout

    def test_their_twins_for_asyncio_are_written(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("INMEM_TEST_PRIMITIVE")
        monkeypatch.setenv("PYTHONPATH", str(home))
        write = [sys.executable, "-m", "inmem.aio.generate"]
        done = subprocess.run(write, capture_output=True, text=True, timeout=60, cwd=home)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "facades/notes.py written\nfacade_sets.py written\n"
        text = (home / "inmem" / "aio" / "facades" / "notes.py").read_text("utf-8")
        assert "class AsyncNoteStore(ByRun[AsyncRunNotes]):" in text
        assert "async def put(self, name: str, text: str, color: str = \"red\") -> B:" in text
        used = "import inmem.aio.facade_sets as s; print(*s.AsyncScopeFacades.__slots__)"
        done = subprocess.run(
            [sys.executable, "-c", used], capture_output=True, text=True, timeout=60, cwd=home
        )
        assert (done.stdout, done.stderr) == ("notes cells events kv leases queues runs traces\n", "")

    def test_the_order_of_imports_is_kept(self, home: Path) -> None:
        modules = modules_of(home / "inmem")
        assert "inmem.primitives.notes.facade" in modules
        assert violations(modules) == [] and circles(import_graph(modules)) == CIRCLES


def test_what_a_new_primitive_changes() -> None:
    """Three files, besides `exports`, `__init__`, its page and the screens of the command line."""
    assert set(LINES) == {"keys.py", "primitives/server.py", "primitives/facades.py"}


# Who knows a single primitive, besides its own folder, the tables of `primitives`, the command line and
# `exports`: (module, primitive).
KNOWS_A_PRIMITIVE: Final[frozenset[tuple[str, str]]] = frozenset({
    # The numbers of the chains, which are a setting of the store.
    ("inmem.engines.local", "events"),
    ("inmem.engines.postgres.store", "events"),
    ("inmem.writer.loop", "events"),
    # The lines that begin and end a run of an export: its record, its head of the chain, its mark of cells.
    ("inmem.exchange.export", "cells"),
    ("inmem.exchange.export", "events"),
    ("inmem.exchange.line_reader", "events"),
    ("inmem.exchange.line_reader", "runs"),
    ("inmem.exchange.lines", "events"),
    ("inmem.exchange.lines", "runs"),
    # Who works on a run.
    ("inmem.steps", "leases"),
    ("inmem.steps", "runs"),
    # Deprecated: recorded runs of agents become traces.
    ("inmem.exchange.recorded.traces", "traces"),
    ("inmem.exchange.recorded.trajectory", "traces"),
    # What the screens show of a run, and the list of runs.
    ("inmem.reading.run", "cells"),
    ("inmem.reading.run", "events"),
    ("inmem.reading.run", "runs"),
    ("inmem.reading.run", "traces"),
    ("inmem.reading.runs", "runs"),
    # A transaction may be made under a lease.
    ("inmem.database", "leases"),
    ("inmem.scopes", "leases"),
    ("inmem.aio.database", "leases"),
    ("inmem.aio.scopes", "leases"),
    # What a block of a coroutine holds: the twin of a class that is no facade.
    ("inmem.aio.held", "leases"),
})


WRITTEN: Final = "inmem.aio.facades."  # by `inmem.aio.generate`, which knows none


def test_who_knows_single_primitives() -> None:
    found = {
        (module, name) for module, source in real_modules().items()
        if not module.startswith(("inmem.primitives.", "inmem.cli.", "inmem.web.", "inmem.exports", WRITTEN))
        for _, target in imports_of(module, source, frozenset(real_modules()))
        if (name := primitive_of(target))
    }
    assert found == KNOWS_A_PRIMITIVE


def test_what_goes_over_the_table_names_no_primitive() -> None:
    """Names of single type tags belong to primitives, and to the screens of the command line."""
    package = Path(inmem.__file__).parent
    files = [
        *(package / "maintenance").glob("*.py"), *(package / "primitives").glob("*.py"),
        package / "exchange" / "import_.py", package / "exchange" / "line_reader.py",
        package / "primitives" / "runs" / "procedures.py",
    ]
    assert len(files) > 12
    for file in files:
        named = re.findall(r"TypeTag\.\w+", file.read_text("utf-8"))
        assert named == [], file
