"""The command as a user types it: its output, its exit codes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from forked import run_command
from support import alive, control_state, kill_writer, stop_writer, wait_until, writer_pid

import inmem
from inmem.cli import life
from inmem.errors import WriterUnavailableError
from inmem.host.control import DURABLE, VERSION
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock
from inmem.storage.wal.files import segment_files

COMMANDS = ("serve", "status", "stop", "check")
PROGRAM = [sys.executable, "-W", "error", "-c", "from inmem.cli import main; main()"]
WAIT_S = 30.0


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("INMEM_")}
    return plain | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"} | more


def inmem_command(*arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process that was forked off: see `forked`. `PROGRAM` is a real one."""
    done = run_command(arguments, env=environment(**variables))
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(inmem_command(*arguments, "--json", code=code).stdout)
    return data


def line_of(stream: IO[bytes], timeout_s: float = WAIT_S) -> str:
    """The next line that a process writes."""
    deadline = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing after {data!r}"
        byte = os.read(stream.fileno(), 1)
        assert byte, f"it ended after {data!r}"
        data += byte
    return data.decode().strip()


class Served:
    """`inmem serve`, running."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "serve", *map(str, arguments)], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return line_of(self.process.stdout)

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=WAIT_S)
        return out.decode(), err.decode()


@pytest.fixture
def served(store_path: Path) -> Iterator[Served]:
    writer = Served("-d", store_path)
    try:
        assert writer.line().startswith("serving ")
        yield writer
    finally:
        writer.end()


@pytest.fixture
def stopped(store_path: Path) -> Path:
    with inmem.open(store_path) as db:
        db.kv.put("run-1", "key", "value")
    stop_writer(store_path)
    return store_path


class TestEveryCommand:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_has_an_example(self, command: str) -> None:
        text = inmem_command(command, "--help").stdout
        assert re.search(rf"Example: inmem {command} .*-d ./data", text)
        assert "INMEM_PATH" in text and "--json" in text

    def test_the_commands_are_these(self) -> None:
        text = inmem_command("--help").stdout
        assert all(f" {command} " in text for command in COMMANDS)

    def test_the_version(self) -> None:
        shown = f"inmem {inmem.__version__}\n"
        assert inmem_command("--version").stdout == shown
        real = subprocess.run([*PROGRAM, "--version"], env=environment(), capture_output=True, text=True)
        assert (real.returncode, real.stdout, real.stderr) == (0, shown, "")

    def test_a_program_of_its_own(self, stopped: Path) -> None:
        """As all the others are that are forked off here."""
        for words, code in (("check -d {}", 0), ("status -d {}", 3), ("status", 2), ("stop -d {}/none", 1)):
            words = words.format(stopped)
            forked = inmem_command(*words.split(), code=code)
            real = subprocess.run(
                [*PROGRAM, *words.split()], env=environment(), capture_output=True, text=True
            )
            assert (real.returncode, real.stderr) == (code, forked.stderr), words
            assert real.stdout.splitlines()[:3] == forked.stdout.splitlines()[:3], words

    @pytest.mark.parametrize("command", COMMANDS)
    def test_no_path_is_wrong_usage(self, command: str) -> None:
        assert "INMEM_PATH" in inmem_command(command, code=2).stderr

    @pytest.mark.parametrize("command", ["status", "stop", "check"])
    def test_no_database_is_one_line_with_a_hint(self, command: str, scratch: Path) -> None:
        path = scratch / "nothing"
        done = inmem_command(command, "-d", path, code=1)
        assert done.stdout == ""
        assert done.stderr == (
            f"inmem: {path} holds no inmem database. "
            f"Name another with -d, or create one: inmem serve -d {path}\n"
        )
        assert document(command, "-d", path, code=1)["error"]["code"] == "invalid_input"
        assert not path.exists()

    def test_the_path_may_come_from_a_variable(self, stopped: Path) -> None:
        assert "nothing wrong" in inmem_command("check", INMEM_PATH=str(stopped)).stdout

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_directory_of_somebody_else_s_is_refused(self, command: str, stopped: Path) -> None:
        stopped.chmod(0o755)
        done = inmem_command(command, "-d", stopped, code=1)
        assert "others can enter it" in done.stderr and f"chmod 700 {stopped}" in done.stderr
        assert done.stderr.count("\n") == 1
        stopped.chmod(0o700)

    @pytest.mark.parametrize("missing", ["typer", "rich"])
    def test_without_the_extra_it_says_what_to_install(self, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from inmem.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "inmem: the command needs more than the library: pip install 'inmem[cli]'\n"

    def test_a_module_that_is_missing_for_another_reason_is_shown(self) -> None:
        code = "import sys; sys.modules['inmem.cli.life'] = None; from inmem.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "inmem.cli.life" in done.stderr


class TestServe:
    def test_it_creates_serves_and_says_where(self, store_path: Path) -> None:
        writer = Served("-d", store_path, "--durability", "sync")
        try:
            assert writer.line() == (
                f"serving {store_path} (sync) as process {writer.process.pid}; Ctrl-C stops it"
            )
            with inmem.open(store_path, autostart=False) as db:
                assert db.status().writer_pid == writer.process.pid
                assert db.status().durability == "sync"
        finally:
            out, err = writer.end(signal.SIGINT)
        assert (writer.process.returncode, out) == (0, "stopped\n")
        assert "Traceback" not in err
        state = control_state(store_path)
        assert (state.pid, state.image, state.endpoint) == (0, "", "")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_other_signals_end_it_cleanly_too(self, store_path: Path, number: int) -> None:
        writer = Served("-d", store_path)
        try:
            writer.line()
        finally:
            writer.end(number)
        assert writer.process.returncode == 0
        assert control_state(store_path).pid == 0

    def test_it_does_not_leave_with_its_last_client(self, store_path: Path, scratch: Path) -> None:
        config = scratch / "c.toml"
        config.write_text("[store]\nlinger_s = 0.0\n")
        writer = Served("-d", store_path, "--config", config)
        try:
            writer.line()
            with inmem.open(store_path, autostart=False) as db:
                db.kv.put("run-1", "first", 1, ttl=1.5)
                version = db.kv.put("run-1", "second", 1, ttl=2.5)
            # With a linger of 0 one that would leave is gone at its first tick without a client.
            # This one comes to sweep the second key, at a later tick than the first.
            wait_until(lambda: words(store_path)[VERSION] >= version + 2, "both keys are swept")
            assert writer.process.poll() is None
        finally:
            writer.end()

    def test_json_is_one_line_when_it_serves(self, store_path: Path) -> None:
        writer = Served("-d", store_path, "--json")
        try:
            told = json.loads(writer.line())
            assert told["writer_pid"] == writer.process.pid
            assert told["path"] == str(store_path) and told["epoch"] == 1
            assert Path(told["image"]).is_dir()
            assert Path(told["endpoint"].removeprefix("ipc://")).is_socket()
        finally:
            out, _ = writer.end()
        assert out == ""

    def test_a_second_one_is_refused(self, served: Served, store_path: Path) -> None:
        done = inmem_command("serve", "-d", store_path, code=1)
        assert "has a writer already" in done.stderr and f"inmem stop -d {store_path}" in done.stderr
        assert served.process.poll() is None

    def test_another_wish_than_the_stored_one_is_refused(self, stopped: Path) -> None:
        done = inmem_command("serve", "-d", stopped, "--durability", "sync", code=1)
        assert "was created with 'buffered'" in done.stderr and done.stderr.count("\n") == 1

    def test_a_wish_that_is_none_is_refused_before_anything_is_made(self, store_path: Path) -> None:
        assert "durability must be one of" in inmem_command(
            "serve", "-d", store_path, "--durability", "eternal", code=1
        ).stderr
        assert not store_path.exists()

    def test_a_directory_with_other_things_in_it_is_left_alone(self, scratch: Path) -> None:
        (scratch / "thesis.tex").write_text("...")
        done = inmem_command("serve", "-d", scratch, code=1)
        assert "is not empty and holds no inmem database" in done.stderr
        assert sorted(p.name for p in scratch.iterdir()) == ["thesis.tex"]

    def test_a_log_that_cannot_be_used_is_one_line(self, stopped: Path) -> None:
        (stopped / "settings.json").write_text("[]")
        done = inmem_command("serve", "-d", stopped, code=1)
        assert done.stderr.startswith(f"inmem: {stopped}/settings.json") and done.stderr.count("\n") == 1
        (stopped / "settings.json").unlink()


def words(path: Path) -> list[int]:
    """The control file, word by word."""
    control = DataDirectory(path).control()
    try:
        return list(control.words)
    finally:
        control.close()


class TestStatus:
    def test_of_a_served_store(self, served: Served, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.kv.put_many("run-1", {f"key-{n}": n for n in range(100)})
            data = document("status", "-d", store_path)
            assert data["serving"] is True and data["path"] == str(store_path)
            assert data["writer_pid"] == served.process.pid
            assert data["commits"] == 1 and data["clients"] == 2
            text = inmem_command("status", "-d", store_path).stdout
        rows = dict(line.split(None, 1) for line in text.splitlines() if not line.startswith(" "))
        assert rows["path"].strip() == str(store_path)
        assert rows["writer"].strip() == f"process {served.process.pid}, epoch 1"
        assert "of 1.0 GiB" in rows["image"]
        assert max(map(len, text.splitlines())) <= 100

    def test_never_starts_a_writer(self, stopped: Path) -> None:
        before = {p: p.stat().st_mtime_ns for p in stopped.rglob("*")}
        text = inmem_command("status", "-d", stopped, code=3).stdout
        assert "none, the last one left cleanly" in text
        data = document("status", "-d", stopped, code=3)
        assert (data["serving"], data["left"], data["in_memory"]) == (False, "cleanly", False)
        assert data["version"] > 0 and data["wal_segments"] == 1
        assert data["wal_bytes"] == segment_files(stopped / "wal")[0][1].stat().st_size
        assert writer_pid(stopped) == 0
        assert {p: p.stat().st_mtime_ns for p in stopped.rglob("*")} == before

    def test_after_a_kill(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="memory") as db:
            db.kv.put("run-1", "key", "value")
        kill_writer(store_path)
        data = document("status", "-d", store_path, code=3)
        assert (data["left"], data["in_memory"], data["durability"]) == ("killed", True, "memory")
        assert "was killed; the next one recovers" in inmem_command("status", "-d", store_path, code=3).stdout

    def test_of_a_memory_store_that_was_stopped(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="memory"):
            stop_writer(store_path)
            assert "it was in memory only" in inmem_command("status", "-d", store_path, code=3).stdout

    def test_a_writer_that_hangs_is_an_error_in_time(self, served: Served, store_path: Path) -> None:
        os.kill(served.process.pid, signal.SIGSTOP)
        try:
            done = inmem_command("status", "-d", store_path, "--timeout", "0.2", code=1)
        finally:
            os.kill(served.process.pid, signal.SIGCONT)
        assert "in time" in done.stderr or "0.2 s" in done.stderr


class TestStop:
    def test_it_waits_until_the_writer_is_gone(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            version = db.kv.put("run-1", "key", "value")
            assert db.kv.get("run-1", "key") == "value"
            pid = writer_pid(store_path)
            done = inmem_command("stop", "-d", store_path)
            assert not alive(pid)
            assert done.stdout == f"stopped the writer of {store_path}, process {pid}\n"
            assert words(store_path)[DURABLE] >= version
            assert db.kv.get("run-1", "key") == "value"  # reads need no writer
        assert document("stop", "-d", store_path) == {
            "path": str(store_path), "was_serving": False, "writer_pid": None
        }  # fmt: skip
        assert inmem_command("stop", "-d", store_path).stdout == f"no writer serves {store_path}\n"

    def test_a_foreground_writer(self, served: Served, store_path: Path) -> None:
        assert document("stop", "-d", store_path)["writer_pid"] == served.process.pid
        assert served.process.wait(WAIT_S) == 0

    def test_one_that_does_not_end_in_time(self, served: Served, store_path: Path) -> None:
        os.kill(served.process.pid, signal.SIGSTOP)
        try:
            done = inmem_command("stop", "-d", store_path, "--timeout", "0.1", code=1)
        finally:
            os.kill(served.process.pid, signal.SIGCONT)
        assert f"kill -KILL {served.process.pid}" in done.stderr and done.stderr.count("\n") == 1
        assert served.process.wait(WAIT_S) == 0

    def test_a_process_that_only_has_the_number_of_a_writer_is_spared(
        self, stopped: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The number that a killed writer left in the control file may be anybody's by now."""
        bystander = subprocess.Popen(["sleep", "60"])
        lock = FileLock(stopped / "writer.lock")
        try:
            assert lock.try_exclusive()  # a writer that recovers, and has not said so yet
            control = DataDirectory(stopped).control(writable=True)
            control.update(pid=bystander.pid, boot=life.boot_id())
            control.close()
            with pytest.raises(WriterUnavailableError, match="is starting"):
                life.stop_writer(DataDirectory(stopped), 0.1)
            assert bystander.poll() is None
        finally:
            lock.close()
            bystander.kill()
            bystander.wait()
        assert life.stop_writer(DataDirectory(stopped), 0.1) is None
        control = DataDirectory(stopped).control(writable=True)
        control.update(pid=0)
        control.close()


class TestCheck:
    def test_a_pass(self, stopped: Path) -> None:
        done = inmem_command("check", "-d", stopped)
        assert done.stdout.splitlines()[-1] == "nothing wrong was found"
        data = document("check", "-d", stopped)
        assert data["ok"] is True and data["problems"] == [] and data["records"] == 1

    def test_problems(self, stopped: Path) -> None:
        file = segment_files(stopped / "wal")[0][1]
        os.truncate(file, file.stat().st_size - 1)
        lines = inmem_command("check", "-d", stopped, code=1).stdout.splitlines()
        assert [line for line in lines if line.startswith("problem: ") and str(file) in line]
        assert lines[-1] == "2 problems"
        data = document("check", "-d", stopped, code=1)
        assert data["ok"] is False and len(data["problems"]) == 2

    def test_a_served_store(self, served: Served, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.events.append("run-1", "seen")
        assert document("check", "-d", store_path)["events"] == 1

    def test_ctrl_c_ends_it_without_a_trace(self, stopped: Path) -> None:
        code = (
            "import inmem.maintenance.check_report as m; m._PROGRAM = ['-c', 'import time; time.sleep(60)']\n"
            "from inmem.cli import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "check", str(stopped)], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            child = int(wait_until(lambda: children.read_text(), "the check runs").split()[0])
            wait_until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes(), "it sleeps")
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, out) == (130, b"")
        assert b"Traceback" not in err
        wait_until(lambda: not alive(child), "the check is gone")
