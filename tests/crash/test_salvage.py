"""Salvage: of a damaged store exactly what can be proved good, and a true list of the rest.

The history is known, commit by commit: what a salvage makes of a damaged log
must be one of its states, the one before the damage, and never another.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN
from damaged_store import Bench, History, flip, make_history, segment
from support import control_state, copied, kill_writer, stop_writer, writer_pid

import inmem
from inmem import values
from inmem.errors import AlreadyExistsError, BusyError, CorruptionError, InvalidInputError
from inmem.host.directory import DataDirectory
from inmem.keys import Key, TypeTag
from inmem.maintenance import salvage as module
from inmem.maintenance.check import check
from inmem.maintenance.salvage import salvage, salvage_in_process
from inmem.maintenance.salvage_report import SalvageReport
from inmem.record import payload_of
from inmem.storage.checkpoint import checkpoint_files, verify_checkpoint
from inmem.storage.environment import Table
from inmem.storage.rebuild import replay_privately
from inmem.storage.store import Store
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.scan import scan

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))


def files_of(path: Path) -> dict[str, bytes]:
    """Every file, but for locks, which have nothing in them."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def remove_image(path: Path) -> None:
    shutil.rmtree(control_state(path).image)


def kv_of(store: Store) -> dict[str, Any]:
    """All KV entries by key."""
    found = {}
    for key, record in store.items(Table.DATA):
        _, tag, rest = Key(key).split_key()
        if tag == TypeTag.KV:
            found[rest.decode()] = values.decode(payload_of(bytes(record)))
    return found


class Salvaged:
    """One salvage, its report and what is in the new store, straight from its records."""

    def __init__(self, path: Path, target: Path) -> None:
        before = files_of(path)
        self.report = salvage(path, target)
        assert files_of(path) == before, "the damaged store is not changed"
        assert self.report.problems == [] and self.report.target == str(target)
        self.path = target
        directory = DataDirectory(target)
        with replay_privately(directory, directory.identity()) as store:
            self.state = kv_of(store)

    def dropped(self) -> list[tuple[str, int]]:
        return [(Path(one.file).name, one.offset) for one in self.report.dropped]


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    """A stopped store with a known history; to be copied."""
    path = tmp_path_factory.mktemp("known") / "store"
    print(f"seed {SEED}")
    return path, make_history(path, random.Random(SEED))


@pytest.fixture
def bench(
    known: tuple[Path, History], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bench, History]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power fails here, and there are many
    return Bench(known[0], scratch / "copy", monkeypatch), known[1]


def test_damage_anywhere_gives_the_state_before_it(
    bench: tuple[Bench, History], scratch: Path, rng: random.Random
) -> None:
    store, history = bench
    ends = [end for end, _ in history.states]
    path, size = store.directory.path, len(store.whole)
    published = history.states[-1]
    for number, offset in enumerate(sorted(rng.sample(range(64, size), 25))):
        store.log.write_bytes(store.whole)
        flip(store.log, offset)
        done = Salvaged(path, scratch / f"new-{number}")
        record = max([64, *(end for end in ends if end <= offset)])
        assert done.state == history.at(record), offset
        report = done.report
        assert report.version <= report.durable == report.published and report.replayed <= len(ends) + 3
        first = report.dropped[0]
        assert Path(first.file) == store.log and first.offset <= offset < first.end
        # Byte by byte, from the damage on, all is accounted for, and later records are named as such.
        assert [one.end for one in report.dropped[:-1]] == [one.offset for one in report.dropped[1:]]
        assert report.dropped[-1].end == size
        if len(report.dropped) > 1:
            assert all(one.records and one.first_version > report.version for one in report.dropped[1:])
            assert report.lost_runs in ({f"default/default/default/{RUN}": ["kv"]}, {})
        assert any("are lost" in note for note in report.notes)
    assert published[1] != history.at(64)


def test_a_log_that_lost_its_end(bench: tuple[Bench, History], scratch: Path) -> None:
    """It opens no more, since the control file knows better; the prefix is all there is."""
    store, history = bench
    cut = history.states[11][0] + 20
    store.log.write_bytes(store.whole[:cut])
    done = Salvaged(store.directory.path, scratch / "new")
    assert done.state == history.at(cut)
    (torn,) = done.report.dropped
    assert (torn.offset, torn.end) == (history.states[11][0], cut) and "recovery" not in torn.what
    assert done.report.version < done.report.durable


def test_a_torn_tail_is_told_from_damage(bench: tuple[Bench, History], scratch: Path) -> None:
    store, history = bench
    store.log.write_bytes(store.whole + b"half a record")
    done = Salvaged(store.directory.path, scratch / "new")
    assert done.state == history.states[-1][1]
    (torn,) = done.report.dropped
    assert torn.offset == len(store.whole) and "recovery would cut it" in torn.what
    assert done.report.version == done.report.durable


def test_nothing_wrong_loses_nothing(bench: tuple[Bench, History], scratch: Path) -> None:
    store, history = bench
    done = Salvaged(store.directory.path, scratch / "new")
    assert done.state == history.states[-1][1] and done.report.dropped == []
    assert done.report.source == "the log" and done.report.version == done.report.published
    with inmem.open(done.path) as db:
        assert db.kv.put(RUN, "after", 1) > done.report.published
        assert db.check().problems == []


# --- with a checkpoint ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stopped store: a checkpoint in the middle of a segment, several segments after it."""
    path = tmp_path_factory.mktemp("source") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INMEM_SEGMENT_BYTES", "65536")
        with inmem.open(path, durability="sync") as db:
            for n in range(6):
                db.kv.put_many(f"run-{n}", {f"big-{k}": bytes([n]) * 600_000 for k in range(3)})
                db.events.append_many(f"run-{n}", [("early", k) for k in range(5)])
                db.kv.put(f"run-{n}", "brief", n, ttl=3600)
            db.kv.put("gone", "key", 1)
            db.runs.delete_run("gone")
            db.checkpoint()
            for k in range(20):
                for n in range(6):
                    db.events.append(f"run-{n}", "late", bytes(1000))
                    db.kv.put(f"run-{n}", "count", k)
            stop_writer(path)
    assert len(segment_files(path / "wal")) >= 3
    yield path


@pytest.fixture
def damaged(source: Path, scratch: Path) -> Path:
    """A copy to be damaged."""
    copied(source, scratch / "store")
    return scratch / "store"


def counts(path: Path, runs: int = 6) -> list[tuple[int, Any]]:
    """Of each run: how many events, and the last count."""
    with inmem.open(path) as db:
        found = []
        for n in range(runs):
            chain = db.events.verify_chain(f"run-{n}")
            assert chain.is_valid
            found.append((chain.length, db.kv.get(f"run-{n}", "count")))
        assert db.check().problems == []
    return found


def test_damage_between_a_checkpoint_and_the_end(damaged: Path, scratch: Path) -> None:
    (_, first), (_, second), *_ = segment_files(damaged / "wal")
    flip(second, second.stat().st_size // 2)
    with pytest.raises(CorruptionError) as caught:
        inmem.open(damaged)
    done = Salvaged(damaged, scratch / "new")
    report = done.report
    assert "the checkpoint" in report.source and report.replayed > 10
    assert done.dropped()[0] == (second.name, caught.value.offset), "what refuses is what is dropped"
    assert {name for name, _ in done.dropped()[1:]} >= {second.name}
    assert first.name not in {name for name, _ in done.dropped()}
    found = counts(done.path)
    assert all(5 < length < 25 for length, _ in found)
    assert max(found)[0] - min(found)[0] <= 1, "one moment of all runs"
    assert set(report.lost_runs["default/default/default/run-3"]) == {"kv", "event"}


def test_damage_in_the_log_before_the_checkpoint_does_no_harm(damaged: Path, scratch: Path) -> None:
    """What the checkpoint holds is not needed of the log, though opening refuses it."""
    ((_, first), *_) = segment_files(damaged / "wal")
    identity = DataDirectory(damaged).identity()
    found = scan(damaged / "wal", identity.database_id)
    header = verify_checkpoint(checkpoint_files(damaged / "checkpoints")[0])[0]
    at = found.find(header.version, header.checksum)
    assert at is not None and at.segment == found.segments[0].number
    flip(first, 20)  # the header of the segment
    with pytest.raises(CorruptionError):
        inmem.open(damaged)
    done = Salvaged(damaged, scratch / "new")
    assert done.report.dropped == [] and done.report.version == done.report.published
    assert any(first.name in note and "the result has what was there" in note for note in done.report.notes)
    assert counts(done.path) == [(25, 19)] * 6


def test_a_segment_that_is_missing(damaged: Path, scratch: Path) -> None:
    segments = [path for _, path in segment_files(damaged / "wal")]
    segments[1].unlink()
    done = Salvaged(damaged, scratch / "new")
    assert done.dropped()[0] == (segments[1].name, 0) and "is missing" in done.report.dropped[0].what
    assert {name for name, _ in done.dropped()} == {path.name for path in segments[1:]}
    found = counts(done.path)
    assert max(found)[0] - min(found)[0] <= 1 and max(found)[0] < 25


def test_a_damaged_checkpoint_gives_the_runs_that_are_whole_in_it(damaged: Path, scratch: Path) -> None:
    """One frame of several is hit: what may have been in it is left out, the rest is as it was last."""
    (file,) = checkpoint_files(damaged / "checkpoints")
    at = file.read_bytes().index(bytes([3]) * 1000)
    flip(file, at + 500)
    with pytest.raises(CorruptionError):
        inmem.open(damaged)
    done = Salvaged(damaged, scratch / "new")
    report = done.report
    assert "whole frames" in report.source and report.version == report.published
    assert [Path(one.file) for one in report.dropped] == [file]
    assert report.dropped[0].offset <= at < report.dropped[0].end
    lost = {n for n in range(6) if f"default/default/default/run-{n}" in report.lost_runs}
    assert 3 in lost and len(lost) < 4, report.lost_runs
    with inmem.open(done.path) as db:
        for n in range(6):
            if n in lost:
                assert db.kv.count(f"run-{n}") == 0 and db.events.count(f"run-{n}") == 0
            else:
                assert db.events.verify_chain(f"run-{n}").length == 25
                assert db.kv.get(f"run-{n}", "count") == 19 and db.kv.count(f"run-{n}") == 5
                assert db.kv.get(f"run-{n}", "big-2") == bytes([n]) * 600_000
                assert db.kv.ttl(f"run-{n}", "brief") > 3000, "the order of expiry is found again"
        with pytest.raises(inmem.RunDeletedError):
            db.kv.put("gone", "key", 1)
        assert db.check().problems == []
    assert any("left out" in note for note in report.notes)


def test_an_older_checkpoint_that_is_whole_is_better_than_a_part(damaged: Path, scratch: Path) -> None:
    """Killed before the old one went: it leads, with the log, as far as the damaged one would have."""
    path = scratch / "two"
    with inmem.open(path, durability="sync") as db:
        db.kv.put(RUN, "k", 1)
        db.checkpoint()
        older = checkpoint_files(path / "checkpoints")[0]
        kept = older.read_bytes()
        logs = {file: file.read_bytes() for _, file in segment_files(path / "wal")}
        db.kv.put(RUN, "k", 2)
        logs = {file: file.read_bytes() for file in logs}
        db.checkpoint()
        db.kv.put(RUN, "k", 3)
    stop_writer(path)
    for file, data in {**logs, older: kept}.items():
        file.write_bytes(data)
    (_, newer) = checkpoint_files(path / "checkpoints")
    flip(newer, newer.stat().st_size - 30)
    done = Salvaged(path, scratch / "new")
    assert older.name in done.report.source and done.report.dropped == []
    assert done.state["k"] == 3


def test_a_checkpoint_of_which_nothing_can_be_said(damaged: Path, scratch: Path) -> None:
    """Without the first frame nothing says whose it is: nothing is guessed, nothing is made."""
    (file,) = checkpoint_files(damaged / "checkpoints")
    flip(file, 60)
    with pytest.raises(CorruptionError, match="can be proved good") as caught:
        salvage(damaged, scratch / "new")
    assert "restore" in caught.value.hint and file.name in str(caught.value)
    assert sorted(os.listdir(scratch)) == ["store"]


# --- the image ------------------------------------------------------------------------------------


@pytest.fixture
def killed(store_path: Path) -> Path:
    """A store whose writer was killed; then its log was damaged in the middle."""
    with inmem.open(store_path, durability="sync") as db:
        for n in range(30):
            db.kv.put(RUN, "n", n)
            db.events.append(RUN, "note", n)
    kill_writer(store_path)
    flip(segment(store_path), 3000)
    with pytest.raises(CorruptionError):
        inmem.open(store_path)
    return store_path


def test_the_image_in_memory_is_the_best_source(killed: Path, scratch: Path) -> None:
    image = Path(control_state(killed).image)
    report = salvage_in_process(killed, scratch / "new")
    assert isinstance(report, SalvageReport) and report.source == "the image in memory"
    assert report.dropped == [] and report.problems == [] and report.version >= report.durable
    assert any("the result has what was there" in note for note in report.notes)
    assert image.is_dir(), "it stays for another attempt"
    with inmem.open(scratch / "new") as db:
        assert db.kv.get(RUN, "n") == 29 and db.events.verify_chain(RUN).length == 30


def test_an_image_that_is_damaged_is_not_used(killed: Path, scratch: Path) -> None:
    """Its tables are checked first; then the log has to do."""
    data = Path(control_state(killed).image) / "data.mdb"
    whole = bytearray(data.read_bytes())
    spots = [n for n in range(len(whole) - 4) if whole[n : n + 4] == b"note"]
    for spot in spots:
        whole[spot : spot + 4] = b"nope"
    data.write_bytes(whole)
    done = Salvaged(killed, scratch / "new")
    assert done.report.source == "the log" and len(done.report.dropped) > 1
    assert any("not from memory: the image is damaged" in note for note in done.report.notes)
    assert 0 < done.state["n"] < 29


def test_an_image_that_ends_the_process_is_not_used(
    killed: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is none can be fatal to whoever reads it: then it is tried again without."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from inmem.maintenance import salvage as m, salvage_start as s\n"
        "s.problems_in = lambda source: os.kill(os.getpid(), 11)\n"
        "sys.exit(m.main(*map(Path, sys.argv[1:])))"
    )
    monkeypatch.setattr(module, "_PROGRAM", ["-c", code])
    told: list[str] = []
    report = salvage_in_process(killed, scratch / "new", told.append)
    assert report.source == "the log" and any("SIGSEGV" in text for text in told)
    assert any("was not used" in note for note in report.notes)
    assert sorted(os.listdir(scratch)) == ["new", "store"], "what the dead one began is gone, too"
    assert check(scratch / "new").problems == []


def test_the_image_of_another_store_is_not_used(killed: Path, scratch: Path) -> None:
    """A copy of the directory is another one: the image is of the original."""
    shutil.copytree(killed, scratch / "copy")
    done = Salvaged(scratch / "copy", scratch / "new")
    assert done.report.source == "the log"
    assert any("not from memory" in note for note in done.report.notes)


def test_a_memory_store_whose_writer_was_killed(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path, durability="memory") as db:
        db.kv.put(RUN, "k", 1)
    kill_writer(store_path)
    report = salvage(store_path, scratch / "new")
    assert report.source == "the image in memory" and any("buffered" in note for note in report.notes)
    with inmem.open(scratch / "new", durability="buffered") as db:
        assert db.kv.get(RUN, "k") == 1


# --- refused --------------------------------------------------------------------------------------


def test_a_store_that_is_served_is_refused(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        with pytest.raises(BusyError, match="a writer serves") as caught:
            salvage(store_path, scratch / "new")
        assert "inmem backup" in caught.value.hint and writer_pid(store_path) == pid
        assert db.kv.put(RUN, "k", 2)
    assert not (scratch / "new").exists()


def test_targets_that_hold_something_and_sources_that_are_none(source: Path, scratch: Path) -> None:
    (scratch / "full").mkdir()
    (scratch / "full" / "precious").touch()
    for target in (scratch / "full", scratch / "full" / "precious", source):
        with pytest.raises(AlreadyExistsError):
            salvage(source, target)
    with pytest.raises(InvalidInputError):
        salvage(scratch, scratch / "new")
    assert sorted(os.listdir(scratch)) == ["full"]


# --- the control file -----------------------------------------------------------------------------


def test_without_a_control_file(bench: tuple[Bench, History], scratch: Path) -> None:
    """It says less, and makes the same."""
    store, history = bench
    (store.directory.path / "control").write_bytes(b"short")
    done = Salvaged(store.directory.path, scratch / "new")
    assert done.state == history.states[-1][1] and done.report.durable == 0
    assert any("control file cannot be read" in note for note in done.report.notes)
