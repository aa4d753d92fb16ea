"""Fault 49: what has a usual innocent cause is named by it: a file that a tool rewrote, or another one."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import lzma
import os
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.errors import CorruptionError, InvalidInputError
from inmem.exchange import export_runs, import_runs
from inmem.host.files import write_durably


@pytest.fixture
def exported(scratch: Path, db: inmem.Database) -> Path:
    """A run in a file."""
    db.runs.create_run(run_id="run")
    db.events.append_many("run", [("t", {"n": number, "text": "é" * 20}) for number in range(300)])
    export_runs(db, scratch / "runs.jsonl")
    return scratch / "runs.jsonl"


@pytest.fixture
def other(scratch: Path) -> inmem.Database:  # type: ignore[misc]
    """Where it is imported."""
    with inmem.open(scratch / "other") as database:
        yield database


def _zipped(data: bytes, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("runs.jsonl", data)


def _sqlite(_data: bytes, file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()


def _written(change: Callable[[bytes], bytes]) -> Callable[[bytes, Path], None]:
    def write(data: bytes, file: Path) -> None:
        file.write_bytes(change(data))

    return write


WRONG = {
    "byte order mark": (_written(lambda d: b"\xef\xbb\xbf" + d), "byte order mark"),
    "UTF-16": (_written(lambda d: d.decode().encode("utf-16")), "UTF-16"),
    "zip": (_zipped, "zip archive"),
    "zstd": (_written(lambda d: b"\x28\xb5\x2f\xfd" + d), "zstd"),
    "SQLite": (_sqlite, "SQLite database"),
    "PDF": (_written(lambda d: b"%PDF-1.7\n"), "PDF"),
    "HTML": (_written(lambda d: b"<!doctype html><title>404</title>"), "HTML"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_another_kind_of_file(exported: Path, other: inmem.Database, scratch: Path, kind: str) -> None:
    write, named = WRONG[kind]
    file = scratch / "given"
    write(exported.read_bytes(), file)
    with pytest.raises(InvalidInputError, match=named) as raised:
        import_runs(other, file)
    assert str(file) in str(raised.value) and raised.value.hint != InvalidInputError.default_hint
    assert list(other.runs.list_runs()) == []


@pytest.mark.parametrize("at", ["all", "the last"])
def test_line_ends_of_windows(exported: Path, other: inmem.Database, scratch: Path, at: str) -> None:
    file = scratch / "given"
    data = exported.read_bytes()
    file.write_bytes(data.replace(b"\n", b"\r\n") if at == "all" else data[:-1] + b"\r\n")
    with pytest.raises(CorruptionError, match="CR LF") as raised:
        import_runs(other, file)
    assert "dos2unix" in raised.value.hint
    assert list(other.runs.list_runs()) == []


def test_a_directory(exported: Path, other: inmem.Database, scratch: Path) -> None:
    with pytest.raises(InvalidInputError, match="is a directory") as raised:
        import_runs(other, scratch / "other")
    assert "inmem export" in raised.value.hint


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_a_compressed_file_is_read(
    exported: Path, other: inmem.Database, scratch: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(exported.read_bytes())
    file = scratch / "given"
    for size in (len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(CorruptionError, match="decompressed"):
            import_runs(other, file)
    file.write_bytes(data[:-12] + bytes([data[-12] ^ 0xFF]) + data[-11:])
    with pytest.raises(CorruptionError):
        import_runs(other, file)
    assert list(other.runs.list_runs()) == []
    file.write_bytes(data)
    assert import_runs(other, file).runs == 1
    assert other.events.count("run") == 300


@pytest.mark.parametrize("file", [None, 5, b"bytes", "a\0b", NotImplemented], ids=ascii)
def test_what_is_no_file_at_all(other: inmem.Database, file: Any) -> None:
    for call in (export_runs, import_runs):
        with pytest.raises(inmem.InvalidInputError, match="file must be a path") as caught:
            call(other, file)
        assert caught.value.argument == "file"


@dataclasses.dataclass
class OtherPath:
    """A path that is no `pathlib.Path`."""

    name: str

    def __fspath__(self) -> str:
        return self.name


def test_any_kind_of_path(other: inmem.Database, scratch: Path) -> None:
    other.kv.put("one", "k", 1)
    file: Any = OtherPath(str(scratch / "one.jsonl"))
    assert export_runs(other, file).file == file.name
    assert import_runs(other, file, rename={"one": "two"}).kv == 1


def test_nothing_but_a_file_is_replaced(scratch: Path) -> None:
    pipe, file = scratch / "pipe", scratch / "file"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="not replaced"):
        write_durably(pipe, b"x")
    assert pipe.is_fifo() and os.listdir(scratch) == ["pipe"]
    write_durably(file, b"x")
    write_durably(file, b"y")
    assert file.read_bytes() == b"y"


@pytest.mark.parametrize("command", [
    ["report", "one", "-o"], ["export", "-o"], ["backup"],
], ids=" ".join)
@pytest.mark.parametrize("name", ["/", "", ".", ".."])
def test_an_output_without_a_name(
    scratch: Path, command: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says so, and not a traceback."""
    monkeypatch.chdir(scratch)
    with inmem.open(scratch / "store") as db:
        db.kv.put("one", "k", 1)
        result = CliRunner().invoke(app, [*command, name, "-d", str(scratch / "store")])
    assert result.exit_code in (1, 2) and "Traceback" not in result.output, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert os.listdir(scratch) == ["store"]
