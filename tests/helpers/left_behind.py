"""What a run of the tests leaves behind: processes, images, sockets, mounts, loop devices, open files.

Other runs of the same user may go on at the same time, so what is ours is
told by three signs: a word in the environment of all processes that we start,
detached writers included; a directory under which all our stores are; and
the stems of those stores' names in memory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path

import forked
from support import alive, runtime_entries

from inmem.errors import InmemError
from inmem.host.directory import DataDirectory, Identity

VARIABLE = "INMEM_TEST_SESSION"
# A writer leaves two seconds after its last client; a busy machine takes its time.
PATIENCE_S = float(os.environ.get("INMEM_TEST_PATIENCE_S", "10"))


class Session:
    """One run of the tests, from `begin` to `end`."""

    def __init__(self) -> None:
        # A run inside a run keeps the outer one's word: what it leaves is left by both.
        self.word = ",".join(filter(None, [os.environ.get(VARIABLE), uuid.uuid4().hex]))
        self.root = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))
        self._stems: dict[str, str] = {}  # stem -> where its store is or was
        self._seen: dict[str, tuple[int, int]] = {}  # where a store is -> its settings, when they were read
        self._before: dict[str, str | None] = {}
        self._plain_stem = DataDirectory.stem

    def begin(self) -> None:
        """From now on everything that is started or made is ours."""
        os.chmod(self.root, 0o711)  # some tests let another user in, further below
        util.get_temp_dir()  # multiprocessing removes its own when we have gone: not below our root
        changed: dict[str, str | None] = {
            VARIABLE: self.word, "TMPDIR": str(self.root),
            "PYTEST_DEBUG_TEMPROOT": os.environ.get("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()),
            # Else each process that opens a store compiles all of it again: 70 ms.
            "PYTHONDONTWRITEBYTECODE": None,
        }
        for name, value in changed.items():
            self._before[name] = os.environ.get(name)
            _set(name, value)
        tempfile.tempdir = None  # found anew, from the environment
        plain, stems = self._plain_stem, self._stems

        def noted(directory: DataDirectory, identity: Identity) -> str:
            stem = plain(directory, identity)
            if _is_inside(str(directory.path), str(self.root)):
                stems[stem] = str(directory.path)  # here, for a store may be removed before anybody looks
            return stem

        DataDirectory.stem = noted  # type: ignore[method-assign]

    def scratch(self) -> Path:
        """A new directory of our own."""
        return Path(tempfile.mkdtemp(prefix="t-", dir=self.root))

    def look(self) -> None:
        """Note the stores that are there: what they leave in memory is known by their names."""
        for path, file in self._stores():
            if self._seen.get(path) != file:
                directory = DataDirectory(Path(path))
                with contextlib.suppress(InmemError, OSError):
                    self._stems[directory.stem(directory.identity())] = path
                    self._seen[path] = file

    def _stores(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The stores that are there, each with what tells its settings from those of another store there.

        It is asked after each test. A store may be removed in the middle of it.
        """
        root = str(self.root)
        for place in [root, *_inside(root)]:
            for path in _inside(place):
                with contextlib.suppress(OSError):
                    found = os.stat(f"{path}/settings.json")
                    yield path, (found.st_ino, found.st_mtime_ns)

    def end(self) -> list[str]:
        """What is left, after some patience; it is removed, and the environment is as it was."""
        self.look()
        forked.stop()
        deadline = time.monotonic() + PATIENCE_S
        while self.found() and time.monotonic() < deadline:
            time.sleep(0.1)
        found = self.found()
        self._remove()
        DataDirectory.stem = self._plain_stem  # type: ignore[method-assign]
        for name, value in self._before.items():
            _set(name, value)
        tempfile.tempdir = None
        return found

    def found(self) -> list[str]:
        """All that is left at this moment."""
        return [
            *(f"process {pid}: {line}" for pid, line in self.processes()),
            *(f"in memory: {path}, of {where}" for path, where in self.memory()),
            *(f"mount: {path}" for path in self.mounts()),
            *(f"loop device: {path}" for path in self.loops()),
            *(f"store without an owner: {path}" for path in self.root.glob("inmem-*")),
        ]

    def processes(self) -> list[tuple[int, str]]:
        """Running processes that we, or those that we started, have started."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            pid = int(entry.name)
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                ours = parent == os.getpid() or self._word_of(entry).startswith(self.word)
            except (OSError, ValueError):
                continue
            if ours and alive(pid):
                found.append((pid, line))
        return found

    @staticmethod
    def _word_of(process: Path) -> str:
        for item in (process / "environ").read_bytes().split(b"\0"):
            name, _, value = item.partition(b"=")
            if name == VARIABLE.encode():
                return value.decode(errors="replace")
        return ""

    def memory(self) -> list[tuple[Path, str]]:
        """Images, sockets and boards of our stores in the runtime directories."""
        found = []
        for base in (f"/dev/shm/inmem-{os.geteuid()}", f"/tmp/inmem-{os.geteuid()}"):
            if Path(base).is_dir():
                for entry in Path(base).iterdir():
                    where = next((w for s, w in self._stems.items() if entry.name.startswith(s)), None)
                    if where is not None:
                        found.append((entry, where))
        return found

    def mounts(self) -> list[str]:
        """Mount points under our directory."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [where for where in (line.split()[1] for line in lines) if self._is_ours(where)]

    def loops(self) -> list[str]:
        """Loop devices whose file is under our directory."""
        found = []
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if self._is_ours(file.read_text().strip()):
                    found.append(f"/dev/{file.parts[3]}")
        return found

    def _is_ours(self, path: str) -> bool:
        return _is_inside(path, str(self.root))

    def _remove(self) -> None:
        for pid, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for entry, _ in self.memory():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        for where in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", where], check=False, capture_output=True)
        for device in self.loops():
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)
        for store in self.root.glob("inmem-*"):
            for entry in runtime_entries(store):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)


def stop_helpers() -> None:
    """End the processes that multiprocessing keeps for itself; it starts them anew when it needs them."""
    # Private, and made for this: "used by unit tests to stop the server".
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def open_files() -> Counter[str]:
    """What this process has open, by name; numbers of anonymous things left out."""
    stop_helpers()
    gc.collect()  # what an expected error still holds
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}").split(":[")[0]
            # The first: multiprocessing keeps these for the next array.
            if not target.startswith("/dev/shm/pym-") and not target.endswith("/postgres.users"):
                found[target] += 1
    return found


def _set(name: str, value: str | None) -> None:
    """Change the environment; None: without it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _inside(place: str) -> list[str]:
    """The directories in a directory; none if it has gone."""
    try:
        with os.scandir(place) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_left(before: Counter[str]) -> list[str]:
    """What is open now and was not before; waits for sockets that close in the background."""
    deadline = time.monotonic() + 2.0
    while (more := open_files() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"{count} x {name}" for name, count in sorted(more.items())]
