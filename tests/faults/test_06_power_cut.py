"""The power goes: what was acknowledged as durable is there at the next boot, whole and once.

A small machine is made of what the kernel has: a file system of its own on a
loop device, a mount namespace with shared memory and a boot id of its own,
and a process id namespace, so that everything on it ends at once. The cut is
ext4's own: it shuts down, without writing anything that it still held. After
that the processes are killed, and the disk is mounted again by another boot.

What this does not see is a disk that lies: what ext4 has handed to the loop
device counts as written, whether or not ext4 asked for a flush.

The cut is the moment before ext4 is asked to shut down. An fdatasync that is
under way while it does may return as if it had worked (4 of 60 in a loop of
write and fdatasync, with no store involved): a real cut leaves nobody to be
told so. What writers were told from then on is counted apart, not judged.

`INMEM_TEST_CUTS` is the number of cuts for each durability.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import support
from power_workers import PIPED, WRITERS, machine
from support import Words, Workers, wait_until

from inmem.config import Settings
from inmem.host.control import DURABLE, VERSION, Control

CUTS = int(os.environ.get("INMEM_TEST_CUTS", "2"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
DISK_BYTES = 256 << 20  # sparse
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
NOLOGFLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: the journal is not written either
TOOLS = ("mkfs.ext4", "mount", "umount", "losetup", "unshare")
INTERVAL_S = Settings().fsync_interval_ms / 1000
# Beyond the interval a loss may be as old as the fsync before it took, and the one that was under way;
# how long these took is measured while the writers write. The rest is for two busy cores.
SCHEDULING_S = 0.1

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]


def run(*command: str | Path) -> None:
    """Run a command; skips the test with what it says if this machine does not permit it."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} does not work here: {(done.stderr or done.stdout).strip()}")


class Disk:
    """A file with an ext4 in it, mounted while the machine is on."""

    def __init__(self, scratch: Path) -> None:
        self.image = scratch / "disk.img"
        self.path = scratch / "disk"
        self.path.mkdir(mode=0o700)
        with self.image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-F", self.image)
        self._device = ""

    def mount(self) -> None:
        """Mount it on a new loop device: nothing is remembered from the time before."""
        run("mount", "-o", "loop", self.image, self.path)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            device, where, *_ = line.split()
            if where == str(self.path):
                self._device = Path(device).name
        os.chmod(self.path, 0o700)

    def cut(self) -> None:
        """From now on nothing reaches the disk, and what was on its way does not either."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        except OSError as error:
            pytest.skip(f"this kernel does not shut an ext4 down: {error}")
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount, and wait until the kernel has forgotten the file system with all its pages."""
        if not self._device:
            return
        # Whoever dies on it holds it for a moment longer than its parent waits.
        wait_until(
            lambda: subprocess.run(["umount", str(self.path)], capture_output=True, check=False)
            .returncode in (0, 32) and not os.path.ismount(self.path),
            "the disk can be unmounted",
        )
        device, self._device = self._device, ""
        wait_until(lambda: not Path(f"/proc/fs/ext4/{device}").exists(), "the file system is gone")
        wait_until(lambda: not self._is_attached(), "the loop device is free")

    def _is_attached(self) -> bool:
        done = subprocess.run(["losetup", "-j", str(self.image)], capture_output=True, text=True, check=True)
        return bool(done.stdout.strip())


class Boot:
    """One time that the machine is on: own processes, own shared memory, own boot id."""

    def __init__(self, scratch: Path, *arguments: Any) -> None:
        self._errors = scratch / "machine.err"
        boot_id = scratch / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        script = (
            f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id && "
            'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"'
        )
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script,
                 "sh", sys.executable, support.__file__, machine.__module__, machine.__name__,
                 str(scratch / "words"), str(scratch / "result"), json.dumps([str(a) for a in arguments[:2]]
                 + list(arguments[2:]))],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/",
                env=dict(os.environ) | {"INMEM_SEGMENT_BYTES": str(256 * 1024)},
            )

    def check(self) -> None:
        """Fail at once if the first process has ended."""
        if self.process.poll() is not None:
            said = self._errors.read_text(errors="replace")
            for log in self._errors.parent.glob("disk/store/writer.log"):
                said += f"\nthe end of its log:\n{log.read_text(errors='replace')[-3000:]}"
            if said.startswith(("unshare", "mount")):
                pytest.skip(f"no namespaces can be made here: {said.strip()}")
            raise AssertionError(f"the machine ended with {self.process.returncode}:\n{said}")

    def off(self) -> None:
        """Kill everything that runs on it, all at once, and wait until all has ended."""
        if self.process.poll() is None:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)  # the first process: the kernel kills all others
        self.process.wait(30)


class Lag:
    """How long commits were published and not durable, as the control file told while writers wrote."""

    def __init__(self, control: Control) -> None:
        self._words = control.words
        self._waiting: list[tuple[int, float]] = []  # version, seen first
        self.durable = 0
        self.worst_s = 0.0

    def look(self) -> None:
        """One look; the more the finer."""
        published, now = self._words[VERSION], time.monotonic()
        self.durable = self._words[DURABLE]
        if not self._waiting or published > self._waiting[-1][0]:
            self._waiting.append((published, now))
        while self._waiting and self._waiting[0][0] <= self.durable:
            self.worst_s = max(self.worst_s, now - self._waiting.pop(0)[1])


@dataclass
class Told:
    """What one writer tried and was told in one boot."""

    tried: int = 0
    durable: int = 0
    acked: list[tuple[int, int, float]] = field(default_factory=list)  # number, version, when
    newest: int = 0  # the highest version that it was told of, also after the cut
    after: int = 0  # answers after the cut

    @classmethod
    def read(cls, file: Path, cut: float) -> Told:
        told = cls()
        for line in file.read_text().splitlines() if file.exists() else []:
            kind, n, *more = json.loads(line)
            if kind == "try":
                told.tried = n
            elif kind == "durable":
                told.durable = n if more[0] < cut else told.durable
            else:
                version, when = more
                told.newest = max(told.newest, version)
                if when < cut:
                    told.acked.append((n, version, when))
                else:
                    told.after += 1
        return told


@dataclass
class Figures:
    cuts: int = 0
    acked: int = 0
    durable: int = 0
    lost: int = 0
    after: int = 0
    worst_ms: float = 0.0
    lag_ms: float = 0.0


@pytest.fixture
def disk(scratch: Path) -> Iterator[Disk]:
    some = Disk(scratch)
    try:
        yield some
    finally:
        some.unmount()


@pytest.mark.timeout(120 + 15 * CUTS)
@pytest.mark.parametrize("durability", ["sync", "buffered"])
def test_the_power_goes(scratch: Path, disk: Disk, workers: Workers, durability: str) -> None:
    """Writers in several processes; a cut at a random moment; another boot judges. Again and again."""
    print(f"seed {SEED}")
    rng = random.Random(f"{SEED} {durability}")
    journals = scratch / "journals"
    journals.mkdir()
    words = workers.words
    figures = Figures()
    before: list[Told] | None = None
    cut, durable = 0.0, 0  # when the last cut was, and up to which version the log was durable then
    newest = 0  # the highest version that anyone was ever told of
    lasts = [0] * WRITERS

    for boot in range(CUTS + 1):
        disk.mount()
        on = Boot(scratch, disk.path / "store", journals, boot, durability, rng.randrange(1 << 30))
        try:
            report = journals / f"found-{boot}.json"
            wait_until(lambda: on.check() or report.exists(), "the machine is up", 60.0)  # noqa: B023
            found = json.loads(report.read_text())
            assert found["problems"] == []
            assert found["version"] > newest, "a version that was lost came back with another meaning"
            newest = found["version"]
            if before is not None:
                judge(durability, before, lasts, found["last"], cut, durable, figures)
            lasts = found["last"]
            if boot == CUTS:
                break
            cut, durable = work_and_cut(on, disk, words, lasts, journals, rng, figures)
        finally:
            on.off()
            disk.unmount()
        before = [Told.read(journals / f"{boot}-{index}.txt", cut) for index in range(WRITERS)]
        newest = max([newest, *(told.newest for told in before)])

    assert figures.cuts == CUTS and figures.acked > 0
    assert durability == "buffered" or figures.lost == 0
    print(
        f"{durability}: {figures.cuts} cuts, {figures.acked} acknowledged, of these {figures.durable} as "
        f"durable, lost {figures.lost}, worst loss {figures.worst_ms:.0f} ms before the cut (interval "
        f"{INTERVAL_S * 1000:.0f} ms, longest wait for an fsync without a cut {figures.lag_ms:.0f} ms); "
        f"{figures.after} answers came after the cut"
    )


def work_and_cut(
    on: Boot, disk: Disk, words: Words, lasts: list[int], journals: Path, rng: random.Random,
    figures: Figures,
) -> tuple[float, int]:
    """Let all writers get going, cut at a random moment; when that was, and what was durable then."""
    for index in range(WRITERS):
        words[index] = 0  # an earlier boot may have come further, and lost it
    control = Control(disk.path / "store" / "control")
    try:
        lag = Lag(control)
        wait_until(
            lambda: lag.look() or on.check() or all(words[i] > lasts[i] for i in range(WRITERS)),
            "all writers write",
        )
        cut_at = time.monotonic() + rng.uniform(0.0, 0.6)
        while time.monotonic() < cut_at:
            lag.look()
            time.sleep(0.0005)
        lag.look()
        failed = [file.read_text() for file in journals.glob("*.failed")]
        assert not failed, f"a writer failed before the cut:\n{failed[0]}"
        durable, cut = lag.durable, time.monotonic()
        disk.cut()
    finally:
        control.close()
    figures.cuts += 1
    figures.lag_ms = max(figures.lag_ms, lag.worst_s * 1000)
    # Those on it run on for a moment: whatever they are told now is not on the disk.
    time.sleep(rng.uniform(0.0, 0.05))
    on.off()
    for file in journals.glob("*.failed"):
        file.unlink()  # after the cut that is no surprise
    return cut, durable


def judge(
    durability: str, before: list[Told], lasts: list[int], found: list[int],
    cut: float, durable: int, figures: Figures,
) -> None:
    """Compare what writers were told before the cut with what the next boot found."""
    slow_s = max(0.0, figures.lag_ms / 1000 - INTERVAL_S)
    window_s = INTERVAL_S + 2 * slow_s + SCHEDULING_S
    for index, (told, last, there) in enumerate(zip(before, lasts, found, strict=True)):
        assert last <= there <= max(last, told.tried), f"writer {index}: more than it ever asked for"
        assert there >= told.durable, f"writer {index}: {told.durable} was durable, {there} is there"
        lost = [(n, version, when) for n, version, when in told.acked if n > there]
        if durability == "sync":
            assert not lost, f"writer {index}: {len(lost)} acknowledged commits lost, first {lost[0]}"
            figures.durable += len(told.acked)
        else:
            figures.durable += sum(n <= told.durable for n, _, _ in told.acked)
        figures.acked += len(told.acked)
        figures.lost += len(lost)
        figures.after += told.after
        for n, version, when in lost:
            assert index == PIPED or version > durable, f"{n}: lost, though the control file said durable"
            assert cut - when <= window_s, f"{n}: lost, {(cut - when) * 1000:.0f} ms after its answer"
            figures.worst_ms = max(figures.worst_ms, (cut - when) * 1000)
