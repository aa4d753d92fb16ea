"""`writer.log`: one line for each event, the same form for all, and never what is stored."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import kill_writer, stop_writer, wait_until
from unit.test_cli_look import document

import inmem
from inmem.config import STORED, Settings, check_stored
from inmem.host.directory import DataDirectory
from inmem.writer.journal import NAME, LineFormatter, line_of

PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |\Z)')
SECRET = "what-an-agent-stored"


def parsed(line: str) -> dict[str, str]:
    """The fields of a line; fails if there is anything else in it."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(line):
        match = PAIR.match(line, at)
        assert match, line[at:]
        name, value = match.groups()
        assert name not in fields
        fields[name] = json.loads(value) if value.startswith('"') else value
        at = match.end()
    return fields


def events(path: Path) -> list[dict[str, str]]:
    return [parsed(line) for line in (path / "writer.log").read_text().splitlines()]


@given(st.text(), st.integers(), st.booleans())
def test_a_line_is_one_line_and_can_be_read_back(text: str, number: int, flag: bool) -> None:
    line = line_of({"event": "some", "text": text, "number": number, "flag": flag})
    assert line.isprintable() and line.isascii()
    assert parsed(line) == {"event": "some", "text": text, "number": str(number), "flag": str(flag)}


def test_what_others_log_and_traces_are_lines_too() -> None:
    try:
        raise ValueError("some\nlines")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("other", logging.WARNING, "file", 1, "%s\nof two", ("a message",), info)
    fields = parsed(LineFormatter().format(record))
    assert (fields["level"], fields["event"], fields["logger"]) == ("warning", "message", "other")
    assert fields["text"] == "a message\nof two" and fields["trace"].endswith("ValueError: some\nlines")
    own = logging.LogRecord(NAME, logging.INFO, "file", 1, "%s", (line_of({"event": "own"}),), None)
    assert parsed(LineFormatter().format(own))["event"] == "own"


def test_the_life_of_a_writer(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put("run-1", f"key {SECRET}", SECRET)
        db.events.append("run-1", f"type-{SECRET}", {"text": SECRET})
        db.cells.init("run-1", "cell", SECRET)
        with pytest.raises(inmem.CellExistsError):
            db.cells.init("run-1", "cell", SECRET)
        db.checkpoint()
        kill_writer(store_path)
        db.kv.put("run-1", "key", SECRET)
        stop_writer(store_path)
    told = events(store_path)
    assert [e["event"] for e in told if e["event"] != "refused"] == [
        "starting", "recovered", "serving", "checkpoint", "starting", "recovered", "serving", "stopped"
    ]
    assert all({"time", "level", "pid"} <= e.keys() for e in told)
    assert [e["adopted"] for e in told if e["event"] == "recovered"] == ["False", "True"]
    assert SECRET not in (store_path / "writer.log").read_text()


def test_refusals_are_told_together(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.cells.init("run-1", "cell", 1)
        for _ in range(50):
            with pytest.raises(inmem.CellExistsError):
                db.cells.init("run-1", "cell", 1)
        stop_writer(store_path)
    told = [e for e in events(store_path) if e["event"] == "refused"]
    assert sum(int(e["failures"]) for e in told) == 50 and len(told) <= 3


def test_slow_groups_are_told_and_levels_kept(store_path: Path) -> None:
    with inmem.open(store_path):
        pass
    stop_writer(store_path)
    assert document("config", "set", "slow_commit_ms", "1", store_path)["value"] == 1
    with inmem.open(store_path) as db:
        db.kv.put_many("run-1", {f"key-{n:06}": SECRET for n in range(10_000)})
        wait_until(lambda: any(e["event"] == "slow" for e in events(store_path)), "it is told")
    slow = next(e for e in events(store_path) if e["event"] == "slow")
    assert slow["commits"] == "1" and float(slow["seconds"]) > 0.001 and int(slow["bytes"]) > 300_000
    stop_writer(store_path)
    assert document("config", "set", "log_level", "error", store_path)["old"] == "info"
    before = len(events(store_path))
    with inmem.open(store_path) as db:
        db.kv.put_many("run-1", {f"key-{n:06}": SECRET for n in range(10_000)})
    stop_writer(store_path)
    assert len(events(store_path)) == before


def test_a_directory_made_before_these_settings_has_their_defaults(store_path: Path) -> None:
    with inmem.open(store_path):
        pass
    stop_writer(store_path)
    file = store_path / "settings.json"
    content = json.loads(file.read_text())
    for name in ("log_level", "slow_commit_ms"):
        del content["settings"][name]
    file.write_text(json.dumps(content))
    assert DataDirectory(store_path).identity().settings == Settings()
    assert list(check_stored(content["settings"], "here")) == list(STORED)
    assert document("config", "set", "log_level", "debug", store_path)["old"] == "info"
    with inmem.open(store_path, autostart=True) as db:
        assert db.status().epoch == 2
