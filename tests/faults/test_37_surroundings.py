"""Whatever surrounds a program, it works, or gets one typed error that names the cause, within a second."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer
from small_disks import needs_root
from support import kill_writer, some_of, stop_writer, wait_until, writer_pid
from unit.test_cli import PROGRAM, environment

import inmem

REAL_PROGRAMS = True  # what a program inherits is what is tested

USE = """
import json, sys, time
began = time.monotonic()
try:
    import inmem
    with inmem.open(sys.argv[1]) as db:
        db.kv.put("r", "k", 1)
        found = db.kv.get("r", "k"), db.status().writer_pid
    said = {"found": found}
except inmem.InmemError as error:
    said = {"code": error.code, "message": str(error), "hint": error.hint}
said["seconds"] = time.monotonic() - began
open(sys.argv[2], "w").write(json.dumps(said))
"""
SLACK_S = float(os.environ.get("INMEM_TEST_SLACK_S", "8"))  # a second, where nothing else runs


def used(path: Path, before: str = "", *, prepare: Callable[[], Any] | None = None) -> dict[str, Any]:
    """What a program says that opens a store, after some lines of its own."""
    told = path.parent / "told"
    told.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", before + USE, str(path), str(told)], preexec_fn=prepare, env=environment(),
        stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    assert told.exists(), (done.returncode, done.stderr)
    said: dict[str, Any] = json.loads(told.read_text())
    assert said["seconds"] < SLACK_S, said
    return said


def status_of(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(name + ":"))


# --- standard streams -----------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_closed_streams_do_not_matter_to_a_program(store_path: Path, closed: tuple[int, ...]) -> None:
    said = used(store_path, prepare=lambda: [os.close(number) for number in closed])
    assert said["found"][0] == 1
    stop_writer(store_path)


@pytest.fixture(scope="module")
def written(module_scratch: Path) -> Path:
    path = module_scratch / "store"
    with inmem.open(path) as db:
        db.kv.put("r", "before", 1)
    return path


@pytest.mark.parametrize(
    ("command", "closed"),
    some_of(
        12, ["kv put r k 1", "kv ls r", "status", "export -o {}", "start", "check"],
        [(0,), (1,), (2,), (0, 1, 2)],
    ),
    ids=str,
)
def test_nor_to_a_command(written: Path, scratch: Path, command: str, closed: tuple[int, ...]) -> None:
    store_path = written
    if command not in ("kv ls r", "export -o {}"):  # which would start one as the first of these does
        stop_writer(store_path)
    before = (store_path / "control").stat().st_size, (store_path / "settings.json").read_bytes()
    done = subprocess.run(
        [*PROGRAM, *command.format(scratch / "out").split(), "-d", str(store_path)], env=environment(),
        preexec_fn=lambda: [os.close(number) for number in closed], check=False, timeout=60,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode in ((3,) if command == "status" else (0,)), done
    assert b"Traceback" not in done.stderr
    if command == "kv ls r" and closed == (0,):
        assert b"before" in done.stdout
    assert before == ((store_path / "control").stat().st_size, (store_path / "settings.json").read_bytes())


# --- what a writer does not inherit ---------------------------------------------------------------


def test_a_blocked_mask_and_ignored_signals_stay_with_the_starter(store_path: Path) -> None:
    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert used(store_path, prepare=prepare)["found"][0] == 1
    pid = writer_pid(store_path)
    assert int(status_of(pid, "SigBlk"), 16) == 0
    assert not int(status_of(pid, "SigIgn"), 16) & 1 << (signal.SIGCHLD - 1)
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: writer_pid(store_path) == 0, "it ends as it is asked to")
    assert time.monotonic() - began < SLACK_S


@needs_root
def test_the_nice_value_stays_with_the_starter(store_path: Path) -> None:
    assert used(store_path, prepare=lambda: os.nice(10))["found"][0] == 1
    assert os.getpriority(os.PRIO_PROCESS, writer_pid(store_path)) == 0
    stop_writer(store_path)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("RLIMIT_FSIZE", 1 << 20, "ulimit -f"), ("RLIMIT_CPU", 5, "ulimit -t"),
     ("RLIMIT_DATA", 400 << 20, "")],
)  # fmt: skip
@pytest.mark.parametrize("is_hard", [False, True])
def test_limits_stay_with_the_starter(
    store_path: Path, name: str, value: int, word: str, is_hard: bool
) -> None:
    kind = getattr(resource, name)
    hard = value if is_hard else resource.getrlimit(kind)[1]
    said = used(store_path, prepare=lambda: resource.setrlimit(kind, (value, hard)))
    if "found" in said:
        limit = resource.prlimit(writer_pid(store_path), kind)[0]
        assert limit == resource.RLIM_INFINITY or (is_hard and not word)
        stop_writer(store_path)
    else:  # a hard limit, and no privilege to raise it
        assert is_hard and word and word in said["message"] and said["code"] == "limit", said


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("RLIMIT_FSIZE", 1 << 20, "ulimit -f"), ("RLIMIT_CPU", 5, "ulimit -t"),
     ("RLIMIT_AS", 3 << 30, "ulimit -v"), ("RLIMIT_DATA", 50 << 20, "ulimit -d")],
)  # fmt: skip
def test_one_that_a_writer_cannot_leave_is_named(store_path: Path, name: str, value: int, word: str) -> None:
    """A writer without privileges: it cannot raise what is a hard limit."""
    from inmem.config import Settings
    from inmem.writer import surroundings

    kind = getattr(resource, name)
    pid = os.fork()
    if not pid:  # the limit would stay with the tests
        code = 1
        try:
            resource.setrlimit(kind, (value, value))
            surroundings.check_limits(Settings())
        except inmem.LimitError as error:
            code = 0 if word in str(error) and error.hint else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_too_little_address_space_is_named_to_whom_it_concerns(store_path: Path) -> None:
    limit = (4 << 30, 4 << 30)
    said = used(store_path, prepare=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    assert said["code"] == "limit" and "ulimit -v" in said["message"], said
    with inmem.open(store_path) as db:
        db.kv.put("r", "k", 1)
        for command in ("kv get r k", "runs", "export -o -"):
            done = subprocess.run(
                [*PROGRAM, *command.split(), "-d", str(store_path)], env=environment(), check=False,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 1 and "ulimit -v" in done.stderr, done.stderr
        assert db.kv.get("r", "k") == 1, "others go on"
    stop_writer(store_path)


# --- programs that are no Python ------------------------------------------------------------------


@pytest.mark.parametrize(
    "executable", ["None", "''", "'/usr/sbin/uwsgi'", "'/bin/true'", "'/nowhere/python3'"]
)
def test_a_program_that_embeds_python_finds_the_one_beside_it(store_path: Path, executable: str) -> None:
    said = used(store_path, f"import sys; sys.executable = {executable}\n")
    assert said.get("found", [0])[0] == 1, said
    stop_writer(store_path)


FROZEN = "import sys; sys.frozen = True; sys.executable = '/bin/true'\n"


def test_a_frozen_one_says_what_to_do_and_is_not_started_again(store_path: Path) -> None:
    said = used(store_path, FROZEN)
    assert "no Python interpreter" in said["message"] and "INMEM_PYTHON" in said["hint"]
    said = used(store_path, FROZEN + f"import os; os.environ['INMEM_PYTHON'] = {sys.executable!r}\n")
    assert said["found"][0] == 1
    stop_writer(store_path)


def test_a_writer_that_cannot_start_passes_its_reason_on(store_path: Path, scratch: Path) -> None:
    broken = scratch / "broken" / "zmq"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libzmq.so.5 is not there')\n")
    (scratch / "broken" / "zmq" / "error.py").touch()
    said = used(store_path, f"import os; os.environ['PYTHONPATH'] = {str(broken.parent)!r}\n")
    assert said["code"] == "writer_unavailable" and "libzmq.so.5 is not there" in said["message"]
    said = used(store_path, "import os; os.environ['INMEM_PYTHON'] = '/nowhere/python3'\n")
    assert "/nowhere/python3" in said["message"]


# --- elsewhere ------------------------------------------------------------------------------------


GEVENT = """
import gevent.monkey; gevent.monkey.patch_all()
import gevent
"""
GREENLETS = GEVENT + """
import json, sys, inmem
def work(number):
    for n in range(20):
        db.kv.add("r", "count")
        gevent.sleep(0)
with inmem.open(sys.argv[1]) as db:
    gevent.joinall([gevent.spawn(work, n) for n in range(20)], raise_error=True)
    print(db.kv.get("r", "count"), db.check().ok)
"""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_gevent(store_path: Path) -> None:
    assert used(store_path, GEVENT)["found"][0] == 1
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, str(store_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "400 True\n", done.stderr
    stop_writer(store_path)


NATIVE = GEVENT + """
import sys, inmem
def work():
    try:
        db.kv.add("r", "count")
    except inmem.InvariantError as error:
        return "gevent" in str(error) and bool(error.hint)
def fleet(number):
    for n in range(20):
        db.kv.add("r", "count")
        gevent.sleep(0)
with inmem.open(sys.argv[1]) as db:
    pool = gevent.get_hub().threadpool
    native = [pool.spawn(work) for n in range(8)]
    gevent.joinall([gevent.spawn(fleet, n) for n in range(20)] + native, raise_error=True)
    print(db.kv.get("r", "count"), [each.get() for each in native] == [True] * 8)
"""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_gevent_and_a_server(postgres_server: PostgresServer) -> None:
    """Greenlets of one thread; what gevent has put in place of locks and queues does not serve two."""
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, postgres_server.url_of(f"gevent_{os.getpid()}")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "400 True\n", done.stderr


AS_INIT = """
import os, sys, time, inmem
assert os.getpid() == 1
for number in range(2):
    with inmem.open(sys.argv[1]) as db:
        db.kv.put("r", str(number), number)
        pid = db.status().writer_pid
        if number == 0:
            os.kill(pid, 9)
            db.kv.put("r", "again", 1)
    print(db.path)
"""


@needs_root
def test_as_the_first_process_of_a_container(store_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
         sys.executable, "-c", AS_INIT, str(store_path)],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0 and done.stdout.count(str(store_path)) == 2, done.stderr
    with inmem.open(store_path) as db:  # its writer died with the container
        assert db.kv.count("r") == 3
        kill_writer(store_path)


@needs_root
def test_a_command_as_the_first_process_ends_by_sigterm(store_path: Path) -> None:
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
         *PROGRAM, "serve", "-d", str(store_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("serving"):
            pytest.skip("no process namespace can be made here")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
