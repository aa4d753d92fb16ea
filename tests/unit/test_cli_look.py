"""The commands that look into runs: what they show, what they keep from a terminal, what they leave alone."""

from __future__ import annotations

import json
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import control_state, kill_writer, leftovers, stop_writer, wait_until, writer_pid
from typer.testing import CliRunner

import inmem
from inmem.cli import text as cli_text
from inmem.cli.app import app
from inmem.cli.listing import Listing
from inmem.cli.tree import drawn
from inmem.host.directory import DataDirectory
from inmem.keys import Key, Namespace
from inmem.reading.database_source import DatabaseSource
from inmem.reading.moment import Moment
from inmem.storage.store import Store

RUN = "trip"
# A terminal would clear its screen, change its title, go on backwards, or begin a new line.
EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eback\u2066\u200b\r\nnext\x00"[:-1]
LONG = "x" * 5000


def fill(path: Path) -> None:
    with inmem.open(path) as db:
        db.runs.create_run(run_id=RUN, tags=["nightly", EVIL[:60]], metadata={"model": EVIL})
        for number in range(3):
            db.runs.create_run(run_id=f"{RUN}.{number}", parent_run=RUN, tags=["child"])
        db.runs.create_run(run_id=f"{RUN}.0.deep", parent_run=f"{RUN}.0")
        db.runs.complete_run(f"{RUN}.1")
        db.runs.fail_run(f"{RUN}.2", f"it broke {EVIL}")
        db.runs.create_run(run_id="hidden")
        db.runs.archive_run("hidden")
        run = db.run(RUN)
        run.kv.put_many({"goal": {"city": "Oslo"}, "raw": b"\x00\xff", EVIL: EVIL, "long": LONG})
        run.kv.put("nan", float("nan"))
        run.kv.put("soon", 1, ttl=1000)
        run.events.append_many([("even" if n % 2 == 0 else "odd", {"n": n}) for n in range(600)])
        run.events.append(f"type {EVIL}", EVIL)
        run.cells.init("phase", "planning")
        run.cells.set("phase", "booking")
        run.cells.init(f"cell {EVIL}", [EVIL])
        run.traces.record(inmem.Thought("where to?", 0.5), id="root", tags=["plan"])
        run.traces.record_child("root", inmem.ToolCall("search", {"q": EVIL}, None, 1500.0), id="call")
        run.traces.record_child("call", inmem.ErrorTrace("Timeout", EVIL, True), id="error", tags=[EVIL[:60]])
        run.traces.record_child("root", inmem.Custom(f"own {EVIL}", {"a": 1}), id="own")
        run.traces.record(inmem.Query("flights", "OSL", 12), id="second")
        db.shared("agent").kv.put("all", 1)


@pytest.fixture(scope="module", params=["live", "replayed"])
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A filled store: in the memory of a writer, or as files only."""
    place = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))
    store = place / "store"
    try:
        if request.param == "live":
            assert invoke("start", "-d", store).exit_code == 0
        fill(store)
        if request.param == "replayed":
            stop_writer(store)
        yield store
        found = leftovers(place)
    finally:
        leftovers(place)
        shutil.rmtree(place, ignore_errors=True)
    assert not found, found


def invoke(*arguments: object, code: int = 0, **more: Any) -> Any:
    variables = {"INMEM_PATH": None, "COLUMNS": "100"}
    done = CliRunner().invoke(app, [str(a) for a in arguments], env=variables, **more)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def lines(*arguments: object) -> list[dict[str, Any]]:
    """What a listing says to programs."""
    return [json.loads(line) for line in invoke(*arguments, "--json").stdout.splitlines()]


def document(*arguments: object, code: int = 0) -> Any:
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


LOOKS: dict[str, tuple[object, ...]] = {
    "runs": (), "run": (RUN,), "events": (RUN,), "cells": (RUN,), "traces": (RUN,), "verify": (RUN,),
    "kv ls": (RUN,), "kv get": (RUN, "goal"), "report": (RUN,), "config": (), "config show": (),
}
ALL = [*LOOKS, "kv put", "kv del", "config set", "start", "top"]


class TestEveryCommand:
    @pytest.mark.parametrize("name", [name for name in ALL if name != "config"])
    def test_help_has_an_example(self, name: str) -> None:
        shown = invoke(*name.split(), "--help").output
        assert f"Example: inmem {name.removesuffix(' show')} " in " ".join(shown.split()).replace("│ ", "")
        assert "--json" in shown and "INMEM_PATH" in shown

    @pytest.mark.parametrize("name", LOOKS)
    def test_no_database_is_one_line_with_a_hint(self, name: str, tmp_path: Path) -> None:
        done = invoke(*name.split(), *LOOKS[name], "-d", tmp_path / "none", code=1)
        assert done.stderr.count("\n") == 1 and "inmem serve" in done.stderr and not done.stdout
        error = document(*name.split(), *LOOKS[name], "-d", tmp_path / "none", code=1)
        assert error["error"]["code"] == "invalid_input"

    @pytest.mark.parametrize("name", LOOKS)
    def test_the_path_may_come_from_a_variable(self, name: str, path: Path, tmp_path: Path) -> None:
        more = ("-o", tmp_path / "r.html") if name == "report" else ()
        arguments = [str(a) for a in (*name.split(), *LOOKS[name], *more)]
        assert CliRunner().invoke(app, arguments, env={"INMEM_PATH": str(path)}).exit_code == 0

    @pytest.mark.parametrize("name", ["run", "report"])
    def test_a_run_that_is_none_is_an_error(self, name: str, path: Path) -> None:
        assert "there is no run nobody" in invoke(name, "nobody", "-d", path, code=1).stderr
        assert document(name, "nobody", "-d", path, code=1)["error"]["code"] == "run_not_found"
        assert "is not 1-64 characters" in invoke(name, "no/body", "-d", path, code=1).stderr


class TestHostileData:
    @pytest.mark.parametrize("full", [(), ("--full",)])
    @pytest.mark.parametrize(
        "arguments",
        [("runs",), ("runs", "--tree"), ("run", RUN), ("events", RUN), ("cells", RUN), ("traces", RUN),
         ("traces", RUN, "--type", "Error"), ("kv", "ls", RUN), ("kv", "get", RUN, EVIL)],
    )  # fmt: skip
    def test_nothing_that_a_terminal_obeys_comes_out(
        self, path: Path, arguments: tuple[str, ...], full: tuple[str, ...]
    ) -> None:
        done = invoke(*arguments, "-d", path, *full)
        for line in done.output.split("\n"):
            assert line.isprintable(), line
        assert "\\u001b[2J" in done.output

    def test_nor_in_json(self, path: Path) -> None:
        for arguments in (("runs",), ("events", RUN), ("kv", "ls", RUN), ("traces", RUN)):
            shown = invoke(*arguments, "-d", path, "--json").stdout
            assert all(" " <= c <= "~" or c == "\n" for c in shown)

    def test_nor_in_an_error(self, path: Path) -> None:
        assert invoke("kv", "get", RUN, f"no {EVIL}", "-d", path, code=1).stderr[:-1].isprintable()

    def test_a_raw_value_is_for_files_only(self, path: Path) -> None:
        assert invoke("kv", "get", RUN, "raw", "-d", path, "--raw").stdout_bytes == b"\x00\xff"
        assert invoke("kv", "get", RUN, EVIL, "-d", path, "--raw").stdout_bytes == EVIL.encode()
        assert "and no text or bytes" in invoke("kv", "get", RUN, "goal", "-d", path, "--raw", code=1).stderr

    @given(st.text())
    def test_plain_is_always_printable(self, text: str) -> None:
        shown = cli_text.plain(text)
        assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
        if text.isprintable():
            assert shown == text

    @given(st.text(), st.integers(1, 30))
    def test_fitted_fits(self, text: str, cells: int) -> None:
        from rich.cells import cell_len

        assert cell_len(cli_text.fitted(cli_text.plain(text), cells)) <= cells

    values = st.recursive(
        st.none() | st.booleans() | st.integers(-9, 1 << 40) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10,
    )  # fmt: skip

    @given(values, st.integers(0, 40))
    def test_a_value_is_shown_as_json_and_cut_where_it_is_told(self, value: Any, limit: int) -> None:
        whole, cut = cli_text.one_line(value)
        assert not cut and json.loads(whole) == value and "\n" not in whole
        assert json.loads(cli_text.indented(value)[0]) == value
        shown, cut = cli_text.one_line(value, limit)
        assert shown == whole[: len(shown)] and len(shown) <= limit and cut == (len(whole) > limit)


class TestRuns:
    def names(self, *arguments: object) -> list[str]:
        return [run["run_id"] for run in lines("runs", *arguments)]

    def test_the_newest_comes_first(self, path: Path) -> None:
        assert self.names("-d", path) == [f"{RUN}.0.deep", f"{RUN}.2", f"{RUN}.1", f"{RUN}.0", RUN]
        assert self.names("-d", path, "--limit", 2) == [f"{RUN}.0.deep", f"{RUN}.2"]
        assert "only the first 2" in invoke("runs", "-d", path, "--limit", 2).stderr

    def test_filters(self, path: Path) -> None:
        assert self.names("-d", path, "--status", "failed") == [f"{RUN}.2"]
        assert self.names("-d", path, "--tag", "child", "--status", "completed") == [f"{RUN}.1"]
        assert self.names("-d", path, "--tag", "nightly", "--tag", "child") == []
        assert self.names("-d", path, "--parent", f"{RUN}.0") == [f"{RUN}.0.deep"]
        assert self.names("-d", path, "--since", "1h") == self.names("-d", path)
        assert self.names("-d", path, "--until", "1h") == []
        assert "hidden" in self.names("-d", path, "--archived") and "hidden" not in self.names("-d", path)
        assert self.names("-d", path, "--agent", "other") == []
        assert "no such runs" in invoke("runs", "-d", path, "--status", "paused").stderr

    def test_a_time_that_is_none_is_an_error(self, path: Path) -> None:
        assert "is no time. Name a span" in invoke("runs", "-d", path, "--since", "soon", code=1).stderr

    def test_the_tree(self, path: Path) -> None:
        shown = invoke("runs", "-d", path, "--tree").stdout.splitlines()[1:]
        drawings = (RUN, f"├─ {RUN}.0", f"│  └─ {RUN}.0.deep", f"├─ {RUN}.1")
        for line, drawing in zip(shown, drawings, strict=False):
            assert f"s  {drawing} " in line + " "
        depths = [(run["run_id"], run["depth"]) for run in lines("runs", "-d", path, "--tree")]
        assert depths == [(RUN, 0), (f"{RUN}.0", 1), (f"{RUN}.0.deep", 2), (f"{RUN}.1", 1), (f"{RUN}.2", 1)]

    def test_a_chain_of_any_depth_is_drawn(self) -> None:
        below = {number: iter([number + 1]) if number < 5000 else iter(()) for number in range(5001)}
        drawing = list(drawn(iter([0]), lambda number: below[number]))
        assert [depth for _, _, depth in drawing] == list(range(5001))
        assert max(len(guides) for _, guides, _ in drawing) < 60


class TestRun:
    def test_it_is_summed_up(self, path: Path) -> None:
        data = document("run", RUN, "-d", path)
        counts = {"kv": 6, "events": 601, "cells": 2, "traces": 5}
        assert {name: count for name, count in data["counts"].items() if count} == counts
        assert data["children"] == 3 and data["metadata"]["status"] == "active"
        assert data["trace_types"]["ToolCall"] == 1 and data["all_trace_types"]
        shown = invoke("run", RUN, "-d", path).stdout
        assert "601, the last 5" in shown and "v2     " in shown and "ToolCall 1" in shown

    def test_what_runs_share(self, path: Path) -> None:
        assert document("run", "@agent", "-d", path)["counts"]["kv"] == 1
        assert lines("kv", "ls", "@agent", "-d", path)[0]["key"] == "all"


class TestEvents:
    def sequences(self, *arguments: object) -> list[int]:
        return [event["sequence"] for event in lines("events", RUN, *arguments)]

    def test_all_or_some(self, path: Path) -> None:
        assert self.sequences("-d", path) == list(range(601))
        assert self.sequences("-d", path, "--from", 598) == [598, 599, 600]
        assert self.sequences("-d", path, "--last", 2) == [599, 600]
        assert self.sequences("-d", path, "--limit", 3) == [0, 1, 2]
        assert self.sequences("-d", path, "--type", "odd", "--from", 300, "--limit", 2) == [301, 303]
        assert self.sequences("-d", path, "--type", "odd", "--last", 2) == [597, 599]
        assert self.sequences("-d", path, "--type", "none") == []
        refused = invoke("events", RUN, "-d", path, "--from", 1, "--last", 1, code=1)
        assert "exclude each other" in refused.stderr

    def test_a_document_has_it_all(self, path: Path) -> None:
        event = lines("events", RUN, "-d", path, "--limit", 1)[0]
        assert event["type"] == "even" and event["payload"] == {"n": 0} and len(event["hash"]) == 64

    def test_following_ends_when_there_were_enough(self, path: Path) -> None:
        assert self.sequences("-d", path, "--follow", "--limit", 3) == [591, 592, 593]

    def test_a_run_without_events_says_so(self, path: Path) -> None:
        assert "has no events" in invoke("events", f"{RUN}.1", "-d", path).stderr

    def test_one_chunk_is_read_for_the_first_of_them(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = []
        scan = Moment.walk
        monkeypatch.setattr(
            Moment, "walk",
            lambda self, *a, **k: (taken.append(item) or item for item in scan(self, *a, **k)),
        )  # fmt: skip
        with DatabaseSource(DataDirectory(path), Namespace()) as source:
            assert next(source.run(RUN).events()).event.sequence == 0
        assert len(taken) <= 256


class TestCellsTracesVerify:
    def test_cells(self, path: Path) -> None:
        cells = lines("cells", RUN, "-d", path)
        assert [(cell["name"], cell["version"]) for cell in cells] == [(f"cell {EVIL}", 1), ("phase", 2)]
        assert len(lines("cells", RUN, "-d", path, "--prefix", "ph")) == 1

    def test_traces_are_a_tree(self, path: Path) -> None:
        shown = [(trace["id"], trace["depth"]) for trace in lines("traces", RUN, "-d", path)]
        assert shown == [("root", 0), ("call", 1), ("error", 2), ("own", 1), ("second", 0)]
        below = lines("traces", RUN, "-d", path, "--root", "call")
        assert [trace["id"] for trace in below] == ["call", "error"]
        drawing = invoke("traces", RUN, "-d", path).stdout
        assert "├─ ToolCall 1.5 s search" in drawing and "│  └─ Error" in drawing and "#plan" in drawing

    def test_filtered_they_are_a_list(self, path: Path) -> None:
        assert [trace["id"] for trace in lines("traces", RUN, "-d", path, "--type", "ToolCall")] == ["call"]
        assert [trace["id"] for trace in lines("traces", RUN, "-d", path, "--tag", "plan")] == ["root"]
        assert len(lines("traces", RUN, "-d", path, "--since", "1h", "--limit", 3)) == 3
        below = lines("traces", RUN, "-d", path, "--since", "1h", "--root", "call")
        assert [trace["id"] for trace in below] == ["call", "error"]

    def test_a_whole_chain(self, path: Path) -> None:
        done = invoke("verify", RUN, "-d", path)
        assert done.stdout.startswith("whole: 601 events\nanchor: 600:")
        anchor = done.stdout.split()[-1]
        assert document("verify", RUN, "-d", path, "--anchor", anchor)["is_valid"]
        other = anchor.replace(anchor[-64:], "0" * 64)
        verdict = document("verify", RUN, "-d", path, "--anchor", other, code=1)
        assert verdict["error"] == "hash differs from the anchor"
        assert "64 hexadecimal digits" in invoke("verify", RUN, "-d", path, "--anchor", "x", code=1).stderr

    def test_a_broken_chain(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.events.append_many(RUN, [("step", {"n": n}) for n in range(9)])
        kill_writer(store_path)
        state = control_state(store_path)
        store = Store(Path(state.image), max_readers=1024, quota_bytes=1 << 30)
        txn, key = store.begin(), bytes(Key.event(Namespace(), RUN, 4))
        record = txn.get(key)
        assert record is not None and store.position is not None
        txn.apply([(0, 0, key, record.replace(b"step", b"stop"))])
        txn.publish(store.position)
        store.close()
        done = invoke("verify", RUN, "-d", store_path, code=1)
        assert done.stdout.startswith("broken at event 4: hash does not match the content\n")
        assert document("verify", RUN, "-d", store_path, code=1)["first_invalid"] == 4


class TestKV:
    def test_values(self, path: Path) -> None:
        assert json.loads(invoke("kv", "get", RUN, "goal", "-d", path).stdout) == {"city": "Oslo"}
        assert invoke("kv", "get", RUN, "raw", "-d", path).stdout == "b'\\x00\\xff'\n"
        assert document("kv", "get", RUN, "raw", "-d", path)["value"] == {"$bytes": "AP8="}
        assert document("kv", "get", RUN, "nan", "-d", path)["value"] == {"$float": "nan"}
        assert 0 < document("kv", "get", RUN, "soon", "-d", path)["ttl_s"] <= 1000
        assert "has no key 'none'. See which" in invoke("kv", "get", RUN, "none", "-d", path, code=1).stderr

    def test_listing(self, path: Path) -> None:
        assert [entry["key"] for entry in lines("kv", "ls", RUN, "-d", path)] == sorted(
            [EVIL, "goal", "long", "nan", "raw", "soon"]
        )
        assert [entry["key"] for entry in lines("kv", "ls", RUN, "-d", path, "--prefix", "g")] == ["goal"]
        assert len(lines("kv", "ls", RUN, "-d", path, "--limit", 2)) == 2

    def test_long_values_are_shortened_with_a_note(self, path: Path) -> None:
        done = invoke("kv", "ls", RUN, "-d", path)
        assert LONG not in done.stdout and "1 shortened: --full" in done.stderr
        assert LONG in invoke("kv", "ls", RUN, "-d", path, "--full").stdout

    def test_put_and_del(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "key", 0)
        assert document("kv", "put", RUN, "key", '{"a": [1, 2.5, null]}', "-d", store_path)["version"] > 0
        assert document("kv", "get", RUN, "key", "-d", store_path)["value"] == {"a": [1, 2.5, None]}
        assert "is no JSON" in invoke("kv", "put", RUN, "key", "plain", "-d", store_path, code=1).stderr
        assert "is no JSON" in invoke("kv", "put", RUN, "key", "NaN", "-d", store_path, code=1).stderr
        invoke("kv", "put", RUN, "key", "plain", "-d", store_path, "--text", "--ttl", "100")
        assert document("kv", "get", RUN, "key", "-d", store_path)["value"] == "plain"
        invoke("kv", "put", RUN, "key", "-", "-d", store_path, input='{"$bytes": "AP8="}')
        assert document("kv", "get", RUN, "key", "-d", store_path)["value"] == {"$bytes": "AP8="}
        assert invoke("kv", "del", RUN, "key", "-d", store_path).stdout == "key is removed\n"
        assert "has no key" in invoke("kv", "del", RUN, "key", "-d", store_path, code=1).stderr


class TestLeavingAlone:
    def test_told_so_looking_starts_no_writer_and_leaves_nothing(
        self, store_path: Path, tmp_path: Path
    ) -> None:
        fill(store_path)
        stop_writer(store_path)
        before = {file: file.stat().st_mtime_ns for file in store_path.rglob("*")}
        for name, arguments in LOOKS.items():
            more: tuple[object, ...] = ("-o", tmp_path / "r.html") if name == "report" else ()
            more = more if name.startswith("config") else (*more, "--no-writer")
            invoke(*name.split(), *arguments, "-d", store_path, *more)
            assert writer_pid(store_path) == 0
        assert {file: file.stat().st_mtime_ns for file in store_path.rglob("*")} == before

    def test_the_image_of_a_killed_writer_is_read(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="memory") as db:
            db.kv.put(RUN, "key", 1)
        kill_writer(store_path)
        assert document("kv", "get", RUN, "key", "-d", store_path)["value"] == 1
        assert control_state(store_path).epoch == 1 and writer_pid(store_path) == 0

    def test_a_memory_store_without_a_writer_holds_nothing(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="memory"):
            pass
        stop_writer(store_path)
        assert "was in memory only" in invoke("runs", "-d", store_path, code=1).stderr

    def test_a_damaged_log_is_refused_in_one_line(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.kv.put_many(RUN, {f"key-{n}": n for n in range(100)})
        stop_writer(store_path)
        segment = next((store_path / "wal").iterdir())
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
        done = invoke("runs", "-d", store_path, code=1)
        assert done.stderr.count("\n") == 1 and str(segment) in done.stderr


class TestStartAndConfig:
    def test_a_started_writer_stays(self, store_path: Path, tmp_path: Path) -> None:
        config = tmp_path / "c.toml"
        config.write_text("[store]\nlinger_s = 0.0\n")
        data = document("start", "-d", store_path, "--config", config, "--durability", "sync")
        assert data["was_serving"] is False and data["writer_pid"] == writer_pid(store_path)
        with inmem.open(store_path, autostart=False) as db:
            db.kv.put("run-1", "swept", 1, ttl=2.0)
            assert db.status().durability == "sync"
        before = inmem_version(store_path)
        wait_until(lambda: inmem_version(store_path) > before, "a key is swept by a writer without clients")
        again = document("start", "-d", store_path)
        assert again["was_serving"] is True and again["writer_pid"] == data["writer_pid"]
        stop_writer(store_path)

    def test_one_that_lingers_leaves(self, store_path: Path, tmp_path: Path) -> None:
        config = tmp_path / "c.toml"
        config.write_text("[store]\nlinger_s = 0.1\n")
        shown = invoke("start", "-d", store_path, "--config", config, "--linger").stdout
        assert "until 0.1 s without a client" in shown
        wait_until(lambda: not writer_pid(store_path), "it has left")

    def test_settings_and_where_they_come_from(
        self, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with inmem.open(store_path, durability="sync"):
            pass
        monkeypatch.setenv("INMEM_TIMEOUT_S", "3")
        monkeypatch.setenv("INMEM_CHAIN", "sha256")
        rows = {row["name"]: row for row in document("config", "-d", store_path)["settings"]}
        assert (rows["durability"]["value"], rows["durability"]["origin"]) == ("sync", "stored")
        assert (rows["timeout_s"]["value"], rows["timeout_s"]["origin"]) == (3.0, "variable INMEM_TIMEOUT_S")
        assert rows["pipeline_window"]["origin"] == "default"
        assert rows["chain"]["value"] == "xxh3" and "sha256" in rows["chain"]["refused"]
        assert "opening with that is refused" in invoke("config", "-d", store_path).stdout

    def test_durability_changes_while_no_writer_serves(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            version = db.kv.put(RUN, "key", 1)
            refused = invoke("config", "set", "durability", "sync", "-d", store_path, code=1)
            assert "works by the settings" in refused.stderr
        stop_writer(store_path)
        changed = invoke("config", "set", "durability", "sync", "-d", store_path)
        assert changed.stdout == "durability is sync, it was buffered\n"
        assert DataDirectory(store_path).identity().stored["durability"] == "sync"
        with inmem.open(store_path, durability="sync") as db:
            assert db.kv.get_versioned(RUN, "key").version == version
            assert db.kv.put(RUN, "key", 2) <= db.status().durable_version
            assert db.status().durability == "sync"
        stop_writer(store_path)
        assert document("config", "set", "durability", "buffered", "-d", store_path)["old"] == "sync"

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("durability", "memory", "a database in memory has no log"),
            ("durability", "eternal", "must be one of"),
            ("chain", "sha256", "keeps the hash that it began with"),
            ("quota_bytes", "8000000", "fixed when a database is created"),
            ("timeout_s", "3", "Set INMEM_TIMEOUT_S"),
            ("nonsense", "3", "there is no setting 'nonsense'"),
        ],
    )
    def test_what_cannot_be_changed_is_refused_with_the_reason(
        self, path: Path, name: str, value: str, reason: str
    ) -> None:
        before = (path / "settings.json").read_bytes()
        assert reason in invoke("config", "set", name, value, "-d", path, code=1).stderr
        assert (path / "settings.json").read_bytes() == before


def inmem_version(path: Path) -> int:
    control = DataDirectory(path).control()
    try:
        return int(control.words[6])
    finally:
        control.close()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", str(tmp_path / "none.jsonl"), "-d", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"inmem: {tmp_path / 'none.jsonl'}: No such file or directory. ")
    assert "Errno" not in result.stderr


def test_no_blanks_at_the_end_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing follows a column, its padding could begin a line of its own in a narrow terminal."""
    with Listing(as_json=False, full=False, limit=None) as listing:
        listing.words(("state  ", "green"), ("name      ", "bold"), rest="")
        listing.words(("state  ", "green"), ("name      ", "bold"), rest="words")
    assert capsys.readouterr().out.splitlines()[:2] == ["state  name", "state  name      words"]
