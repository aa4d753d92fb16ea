"""The commands that export and import runs, and those that were recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from exchanging import PROGRAM, called, command, environment, recorded
from exporting import fill
from support import wait_until
from test_trajectories import tau_run

import inmem
from inmem.errors import InvalidInputError
from inmem.exchange import export_runs
from inmem.exchange import recorded as recorded_runs
from inmem.exchange.recorded import import_recorded, rebuild
from workers.judge.values import same

# --- recorded runs --------------------------------------------------------------------------------


class TestRecorded:
    def test_the_formats(self, db: inmem.Database, scratch: Path) -> None:
        swe, chats = recorded(scratch)
        assert import_recorded(db, swe, "swe-agent").new == 1
        assert import_recorded(db, [chats], "openai-chat").new == 2
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        sources: dict[str, Any] = {
            "one.json": {"model": "m", "messages": messages, "more": [1]}, "bare.json": messages,
            "list.json": [{"messages": messages, "id": "x"}, tau_run(task_id=3)],
        }
        for name, source in sources.items():
            (scratch / name).write_text(json.dumps(source))
        (scratch / "lines.jsonl").write_text(
            "\n".join(json.dumps({"messages": messages, "n": n}) for n in range(3)) + "\n\n"
        )
        files = [*(scratch / name for name in sources), scratch / "lines.jsonl"]
        report = import_recorded(db, files, "openai-chat")
        assert (report.files, report.new, report.rejected) == (4, 7, [])
        rebuilt = [rebuild((e.event_type, e.payload) for e in db.events.iter(run)) for run in report.run_ids]
        wanted = [sources["one.json"], messages, *sources["list.json"]]
        wanted += [{"messages": messages, "n": n} for n in range(3)]
        assert all(same(*pair) for pair in zip(rebuilt, wanted, strict=True))
        again = import_recorded(db, files, "openai-chat")
        assert (again.new, again.complete, again.steps) == (0, 7, 0)
        assert len(db.runs.query_runs(tags=["model:m"])) == 1

    def test_what_is_no_run_is_named(self, db: inmem.Database, scratch: Path) -> None:
        bad = scratch / "bad.jsonl"
        bad.write_text('{"messages": []}\n{"role": "user"}\nnot JSON\n{"messages": [{"role": "user"}]}\n')
        report = import_recorded(db, [bad, scratch / "absent.json"], "openai-chat")
        assert report.new == 1
        assert [one.source.rpartition("/")[2] for one in report.rejected] == [
            "bad.jsonl[0]", "bad.jsonl[1]", "bad.jsonl[2]", "absent.json"
        ]
        with pytest.raises(InvalidInputError, match="format must be one of"):
            import_recorded(db, [bad], "else")


    def test_the_names_beside_export_and_import_are_deprecated(self) -> None:
        for name in recorded_runs.__all__:
            with pytest.warns(DeprecationWarning, match=rf"inmem\.exchange\.{name} is deprecated"):
                assert getattr(inmem.exchange, name) is getattr(recorded_runs, name)
        assert not hasattr(inmem.exchange, "nothing_of_the_kind")


def links(directory: Path) -> list[str]:
    """What is open in a process."""
    found = []
    for entry in directory.iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


# --- the commands ---------------------------------------------------------------------------------


class TestCommands:
    @pytest.mark.parametrize("name", ["export", "import"])
    def test_help(self, name: str) -> None:
        assert f"Example: inmem {name} triage-7" in called(name, "--help").stdout

    def test_there_and_back(self, scratch: Path) -> None:
        one, two, file = scratch / "one", scratch / "two", scratch / "f.jsonl"
        with inmem.open(one) as db:
            fill(db)
        done = command("export", "-d", one, "-o", file)
        assert done.stderr == b"" and b"4 runs" in done.stdout
        report = json.loads(command("import", "-d", two, file, "--json").stdout)[0]
        assert (report["runs"], report["unchanged"]) == (4, [])
        assert "there already, and the same: Archived, child" in called("import", "-d", two, file).stdout
        again = json.loads(called("export", "-d", two, "-o", scratch / "g.jsonl", "--json").stdout)
        assert again["runs"] == 4 and (scratch / "g.jsonl").read_bytes() == file.read_bytes()
        piped = subprocess.run(
            [*PROGRAM, "import", "-", "--rename", "child=kid"], input=file.read_bytes(),
            env=environment() | {"INMEM_PATH": str(two)}, capture_output=True, timeout=60,
        )  # fmt: skip
        assert piped.returncode == 0, piped.stderr
        some = subprocess.run(
            [*PROGRAM, "export", "kid", "-o", "-"], env=environment() | {"INMEM_PATH": str(two)},
            capture_output=True, timeout=60,
        )  # fmt: skip
        assert some.stdout.count(b'"run_id":"kid"') == 2 and some.stderr.count(b"\n") == 1

    def test_failures_are_one_line_with_a_hint(self, scratch: Path) -> None:
        store, file = scratch / "one", scratch / "f.jsonl"
        with inmem.open(store) as db:
            db.kv.put("r", "k", 1)
        called("export", "-d", store, "-o", file)
        with inmem.open(store) as db:
            db.kv.put("r", "k", 2)
        for arguments, text in (
            (("import", "-d", store, file), "run r exists, and is not what"),
            (("import", "-d", store, "--discard", "r"), "no import of run r is unfinished"),
            (("export", "-d", store, "nobody", "-o", file), "there is no run nobody"),
            (("export", "-d", scratch / "nothing", "-o", file), "holds no inmem database"),
            (("import", "-d", store, scratch / "absent"), "No such file"),
            (("export", "-d", store, "-o", scratch / "no" / "f"), "No such file"),
        ):
            done = called(*arguments, code=1)
            assert text in done.stderr and done.stderr.count("\n") == 1, done.stderr
            assert done.stdout == ""
            document = json.loads(called(*arguments, "--json", code=1).stdout)
            assert text in document["error"]["message"] and document["error"]["hint"]
        for wrong in (("export",), ("import",), ("import", file, "--format", "x")):
            called(*wrong, "-d", store, code=2)

    def test_what_is_no_file_is_written_to_and_a_link_is_followed(self, scratch: Path) -> None:
        with inmem.open(scratch / "one") as db:
            db.kv.put("r", "k", 1)
            os.mkfifo(scratch / "pipe")
            reader = threading.Thread(target=lambda: read.append((scratch / "pipe").read_bytes()))
            read: list[bytes] = []
            reader.start()
            export_runs(db, scratch / "pipe")
            reader.join()
            (scratch / "link").symlink_to("f.jsonl")
            export_runs(db, scratch / "link")
        assert (scratch / "link").is_symlink() and (scratch / "f.jsonl").read_bytes() == read[0]
        assert b'"kind":"close"' in read[0]

    @pytest.mark.parametrize("command", [["export"], ["report", "r"]], ids=" ".join)
    def test_the_command_writes_to_what_is_no_file(self, scratch: Path, command: list[str]) -> None:
        """As root it would take a device away from all programs."""
        with inmem.open(scratch / "one") as db:
            db.kv.put("r", "k", 1)
        os.mkfifo(scratch / "pipe")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append((scratch / "pipe").read_bytes()), daemon=True)
        reader.start()
        called(*command, "-d", scratch / "one", "-o", scratch / "pipe")
        reader.join(10.0)
        assert (scratch / "pipe").is_fifo() and read and read[0]
        (scratch / "link").symlink_to("file")
        called(*command, "-d", scratch / "one", "-o", scratch / "link")
        assert (scratch / "link").is_symlink() and (scratch / "file").stat().st_size > 100

    def test_ctrl_c_leaves_no_file(self, scratch: Path) -> None:
        store = scratch / "one"
        with inmem.open(store) as db:
            with db.pipeline() as p:
                for number in range(20_000):
                    p.kv.put("r", f"{number}", number)
            process = subprocess.Popen(
                [*PROGRAM, "export", "-d", str(store), "-o", str(scratch / "f.jsonl")], env=environment(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            begun = Path(f"/proc/{process.pid}/fd")
            wait_until(
                lambda: process.poll() is not None or any("(deleted)" in name for name in links(begun)),
                "it has begun",
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130)
        assert not list(scratch.glob(".f.jsonl.*"))
        assert (scratch / "f.jsonl").exists() is (process.returncode == 0)

    def test_recorded_runs(self, scratch: Path) -> None:
        swe, chats = recorded(scratch)
        store = scratch / "one"
        assert "1 new runs" in called("import", "-d", store, *swe, "--format", "swe-agent").stdout
        done = called("import", "-d", store, chats, *swe, "--format", "openai-chat", code=1)
        assert "2 new runs" in done.stdout and "a.traj is no recorded run" in done.stderr
        assert "--format is deprecated" in done.stderr
