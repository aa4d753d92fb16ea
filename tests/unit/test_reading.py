"""Reading without a facade: moments, pages, and listings that go on from where one stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import kill_writer, stop_writer

import inmem
from inmem.errors import InvalidKeyError, InvalidRunIdError, SnapshotTooOldError
from inmem.exchange.reading import source_of
from inmem.host.directory import DataDirectory
from inmem.keys import Namespace, TypeTag, range_of
from inmem.maintenance.backup import backup
from inmem.primitives.runs.rules import RunMetadata
from inmem.primitives.traces.rules import Trace
from inmem.reading import moment as module
from inmem.reading.database_source import DatabaseSource
from inmem.reading.moment import Moment
from inmem.reading.run import StoredRun
from inmem.reading.runs import RunFinder, run_ids
from inmem.reading.source import Source, loaded
from inmem.storage.checkpoint import newest_checkpoint

HOME = Namespace()
COUNT = 600  # of entries and events: more than two pages
START, END = range_of(HOME.run_prefix("run"), TypeTag.KV)


def fill(path: Path) -> None:
    with inmem.open(path) as db:
        db.kv.put_many("run", {f"key-{n:03}": n for n in range(COUNT)})
        db.kv.put("run", "gone", 1, ttl=1e-6)
        db.events.append_many("run", [("odd" if n % 2 else "even", n) for n in range(COUNT)])
        for number in range(5):
            db.cells.init("run", f"cell-{number}", number)
            db.traces.record("run", inmem.Thought(str(number)), id=f"t{number}", timestamp=7)
        for number in range(5):
            db.runs.create_run(run_id=f"run-{number}", tags=["x"])
        db.shared("agent").kv.put("all", 1)


@pytest.fixture(scope="module", params=["served", "killed", "stopped", "backup", "checkpoint"])
def source(request: pytest.FixtureRequest, module_scratch: Path) -> Iterator[Source]:
    """The same data, wherever it may be read from."""
    scratch = module_scratch / request.param
    scratch.mkdir()
    store_path = scratch / "store"
    fill(store_path)
    directory = DataDirectory(store_path)
    if request.param == "served":
        with DatabaseSource(directory, HOME) as found:
            assert found.name == "image"
            yield found
        return
    if request.param == "checkpoint":
        with inmem.open(store_path) as db:
            db.checkpoint()
    (kill_writer if request.param == "killed" else stop_writer)(store_path)
    if request.param in ("killed", "stopped"):
        with DatabaseSource(directory, HOME) as found:
            assert found.name == ("image" if request.param == "killed" else "replay")
            yield found
        return
    file: Path | None = scratch / "file"
    if request.param == "backup":
        backup(store_path, scratch / "file")
    else:
        file = newest_checkpoint(directory.checkpoints)
    assert file is not None
    with loaded(file) as copy:
        yield copy


def test_what_is_read_does_not_depend_on_where_it_is(source: Source) -> None:
    run = StoredRun(source, HOME, "run")
    counts = {"kv": COUNT, "cells": 5, "events": COUNT, "traces": 5}
    assert {name: count for name, count in run.counts().items() if count} == counts
    assert [entry.value for entry in run.entries()] == list(range(COUNT))
    assert [cell.value for cell in run.cells()] == list(range(5))
    assert [logged.event.payload for logged in run.events()] == list(range(COUNT))
    assert [trace.id for trace in run.traces()] == [f"t{n}" for n in range(5)]
    assert run.verify().is_valid and run.length() == COUNT
    assert [e.key for e in StoredRun(source, HOME, "@agent").entries()] == ["all"]
    assert list(run_ids(source, HOME)) == ["run", *(f"run-{n}" for n in range(5))]
    found = RunFinder(source, HOME, tags=("x",)).find()
    assert [one.run_id for one in found] == [f"run-{n}" for n in reversed(range(5))]


class TestPages:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("limit", [1, 7, COUNT - 1, COUNT, COUNT + 1])
    def test_together_they_are_everything_once(self, source: Source, limit: int, reverse: bool) -> None:
        found: list[bytes] = []
        position: bytes | None = None
        while True:
            page = source.page(START, END, start_after=position, limit=limit, reverse=reverse)
            assert len(page.items) <= limit
            found += [key for key, _ in page.items]
            position = page.position
            if position is None:
                break
            assert len(page.items) == limit and position == page.items[-1][0]
        assert found == sorted(found, reverse=reverse) and len(set(found)) == len(found) == COUNT
        assert found == [key for key, _ in source.walk(START, END, reverse=reverse)]

    def test_they_are_bounded_by_bytes(self, db: inmem.Database) -> None:
        for number in range(10):
            db.kv.put("run", str(number), b"x" * 1000)
        db.kv.put("run", "5", b"x" * 100_000)
        with _moment(db) as moment:
            sizes = []
            position: bytes | None = None
            while True:
                page = moment.page(START, END, start_after=position, max_bytes=3000)
                sizes.append(len(page.items))
                position = page.position
                if position is None:
                    break
        assert sizes == [3, 3, 3, 1], "a record is never cut, however large"

    def test_an_empty_range_is_an_empty_page(self, source: Source) -> None:
        start, end = range_of(HOME.run_prefix("nobody"), TypeTag.KV)
        assert source.page(start, end) == ([], None)
        assert source.page(START, END, start_after=END) == ([], None)
        assert source.first(start, end) is None and list(source.walk(start, end)) == []

    def test_an_image_that_is_replaced_while_a_page_is_read_is_read_again(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = Moment.page
        failures = [SnapshotTooOldError("replaced"), SnapshotTooOldError("replaced")]

        def failing(self: Moment, *arguments: Any, **named: Any) -> Any:
            if failures:
                raise failures.pop()
            return page(self, *arguments, **named)

        monkeypatch.setattr(module.Moment, "page", failing)
        assert len(list(source.walk(START, END))) == COUNT and not failures


class TestGoingOn:
    def test_entries_and_cells(self, source: Source) -> None:
        run = StoredRun(source, HOME, "run")
        after = [entry.value for entry in run.entries(start_after="key-123")]
        assert after == list(range(124, COUNT))
        assert [e.value for e in run.entries("key-12", start_after="key-123")] == list(range(124, 130))
        assert [e.value for e in run.entries("key-12", start_after="key-2")] == []
        assert [e.value for e in run.entries("key-12", start_after="a")] == list(range(120, 130))
        assert [cell.name for cell in run.cells(start_after="cell-2")] == ["cell-3", "cell-4"]
        with pytest.raises(InvalidKeyError, match="start_after"):
            next(run.entries(start_after="a\0"))

    def test_traces_of_one_time(self, source: Source) -> None:
        run = StoredRun(source, HOME, "run")

        def following(traces: Callable[..., Iterator[Trace]], reverse: bool) -> list[str]:
            found: list[str] = []
            last: Trace | None = None
            while (last := next(traces(start_after=last, reverse=reverse), None)) is not None:
                found.append(last.id)
            return found

        for traces in (run.traces, lambda **more: run.traces_below("", **more)):
            assert following(traces, False) == [f"t{n}" for n in range(5)]
            assert following(traces, True) == [f"t{n}" for n in reversed(range(5))]

    @pytest.mark.parametrize("oldest_first", [False, True])
    def test_runs(self, source: Source, oldest_first: bool) -> None:
        finder = RunFinder(source, HOME)
        found: list[str] = []
        last: RunMetadata | None = None
        while True:
            last = next(finder.find(oldest_first=oldest_first, start_after=last), None)
            if last is None:
                break
            found.append(last.run_id)
        names = [f"run-{n}" for n in range(5)]
        assert found == (names if oldest_first else names[::-1])


def test_one_moment_does_not_change(db: inmem.Database) -> None:
    version = db.kv.put("run", "a", 1)
    with _moment(db) as moment:
        db.kv.put("run", "b", 2)
        run = StoredRun(moment, HOME, "run")
        assert moment.version == version and [entry.key for entry in run.entries()] == ["a"]
        assert run.entry("b") is None and run.head() is None


def test_names_are_checked(db: inmem.Database) -> None:
    with _moment(db) as moment:
        with pytest.raises(InvalidRunIdError):
            StoredRun(moment, HOME, "no/run")
        with pytest.raises(inmem.InvalidInputError):
            StoredRun(moment, HOME, "@nobody")


def _moment(db: inmem.Database) -> Any:
    return source_of(db).moment()
