"""Who asks for a checkpoint, and what is there after one was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crash_workers import RUN
from support import Workers, control_state, kill_writer, launches_held, wait_until, writer_pid

import inmem
from inmem.errors import WriterUnavailableError
from inmem.maintenance.check import check
from inmem.storage.checkpoint import checkpoint_files, verify_checkpoint

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 2
RECOVERING = ("loaded", "tail", "replayed")  # without an image only


# Where the writer dies while a checkpoint is taken, and while the next one recovers.
TAKING = (
    "segment_finished", "segment_created", "segment_durable", "checkpoint_copied", "checkpoint_renamed",
    "checkpoint_durable", "segment_released", "checkpoint_released",
)  # fmt: skip


def checkpoints(path: Path) -> list[Path]:
    return checkpoint_files(path / "checkpoints")


def remove_image(path: Path) -> None:
    """What a reboot does, to a store without a writer."""
    shutil.rmtree(control_state(path).image)


def recovered(path: Path) -> dict[str, str]:
    """What the last writer says of its recovery."""
    lines = [line for line in (path / "writer.log").read_text().splitlines() if " event=recovered " in line]
    return dict(re.findall(r"(\w+)=('[^']*'|\S+)", lines[-1]))


class Asking(threading.Thread):
    """Asks for a checkpoint, and goes on asking across the deaths of writers."""

    def __init__(self, db: inmem.Database) -> None:
        super().__init__(daemon=True)
        self._db = db
        self.outcome: Any = None

    def run(self) -> None:
        deadline = time.monotonic() + 90.0
        while self.outcome is None:
            try:
                self.outcome = self._db.checkpoint(timeout_s=30.0)
            except WriterUnavailableError as error:  # nobody may start one for a while
                if time.monotonic() > deadline:
                    self.outcome = error
            except Exception as error:
                self.outcome = error


class Dying:
    """Writers that die where they are told to, while others work."""

    def __init__(self, path: Path, scratch: Path, db: inmem.Database, workers: Workers) -> None:
        self.path = path
        self.scratch = scratch
        self.db = db
        self.workers = workers
        self.deaths = 0
        self.asking: list[tuple[str, Asking]] = []

    @contextmanager
    def nobody_starts_one(self) -> Iterator[None]:
        with launches_held(self.path):
            yield

    def start(self, name: str, flag: Path) -> None:
        """A writer that dies the first time that it comes to a step; waits until it serves, or died."""
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb") as ready:
            process = subprocess.Popen(
                [sys.executable, "-m", "inmem.writer", str(self.path), "--ready-fd", str(write_fd)],
                pass_fds=[write_fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=dict(os.environ) | {"INMEM_FAILPOINT": f"{name}:1:{flag}"},
            )
            os.close(write_fd)
            said = ready.readline()
            process.wait()  # it has detached
        assert b"error" not in said, said

    def one(self, name: str, reboot: bool) -> None:
        """One death; what is on the disk then is whole, and the workers do not notice."""
        flag = self.scratch / f"{name}-{self.deaths}"
        self.deaths += 1
        (self.path / "launches").unlink(missing_ok=True)  # launching backs off when writers die one by one
        with self.nobody_starts_one():
            kill_writer(self.path)
            if name in RECOVERING:
                remove_image(self.path)
            self.start(name, flag)
            if name not in RECOVERING:
                self.asking.append((name, Asking(self.db)))
                self.asking[-1][1].start()
            wait_until(flag.exists, f"{name} is reached")
            wait_until(lambda: not writer_pid(self.path), f"the writer dies at {name}")
            assert checkpoints(self.path), f"no checkpoint is left after {name}"
            for file in checkpoints(self.path):
                verify_checkpoint(file)
            if reboot and name not in RECOVERING:
                remove_image(self.path)
                report = check(self.path)  # of checkpoint and log, replayed
                assert report.problems == [], (name, report.problems)
        progress = self.workers.words.total(WORKERS)
        wait_until(lambda: self.workers.words.total(WORKERS) > progress + WORKERS, "commits go on")
        self.workers.check()

    def all_have_been_told(self) -> None:
        """Whoever asked for a checkpoint has got one; it, or a newer one, is all that is left."""
        for name, asking in self.asking:
            asking.join(60.0)
            assert isinstance(asking.outcome, inmem.CheckpointReport), (name, asking.outcome)
        wait_until(lambda: len(checkpoints(self.path)) == 1, "the older ones are removed")
        newest = verify_checkpoint(checkpoints(self.path)[0])[0].version
        assert newest >= max(asking.outcome.version for _, asking in self.asking)


def verify_work(db: inmem.Database, acked: list[dict[str, Any]]) -> None:
    """Nothing that was acknowledged is lost or doubled."""
    assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
    assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
    for index, one in enumerate(acked):
        assert db.kv.get(RUN, f"last-{index}") == one["last"]
    stored = [[event.sequence, event.payload] for event in db.events.iter(RUN)]
    assert stored == sorted(entry for one in acked for entry in one["appended"])
    for part in range(2):
        names = Counter(event.payload for event in db.events.iter(f"{RUN}-{part}"))
        assert names == Counter(n for one in acked for n in one["piped"] if int(n[-1]) % 2 == part)
