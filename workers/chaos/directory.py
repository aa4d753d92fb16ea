"""Where a chaos takes place: a directory of its own, perhaps a disk of its own, and one store.

Invariant: the store is made here and belongs to nobody else; at the end its
processes, sockets and memory are gone, and so is the directory, unless it is
to be kept because something is wrong.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from workers.stores import left_after, running_with

PREFIX: Final = "inmem-chaos-"
LINGER_S: Final = 0.5  # of the writer: nobody comes after the chaos
SEGMENT_BYTES: Final = 4 << 20  # small, so that the log has many segments
MIB: Final = 1 << 20


class ChaosDirectory:
    """The directory; remove it with `close`."""

    def __init__(self, base: str | None, quota_mib: int, disk_mib: int | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        self.journals = self.path / "journals"
        self.journals.mkdir()
        self.config = self.path / "store.toml"
        self.config.write_text(
            f"[store]\nquota_bytes = {quota_mib * MIB}\nsegment_bytes = {SEGMENT_BYTES}\n"
            f"linger_s = {LINGER_S}\n"
        )
        self.disk: Path | None = None
        self.refused = ""  # why there is no disk, although it was asked for
        if disk_mib is not None:
            self._mount(disk_mib)
        self.store = (self.disk or self.path) / "store"

    def _mount(self, disk_mib: int) -> None:
        if os.geteuid() != 0:
            self.refused = "disk not filled: only root may mount one to fill"
            return
        disk = self.path / "disk"
        disk.mkdir()
        asked = ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m,mode=0700", "chaos", str(disk)]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        except OSError as error:
            self.refused = f"disk not filled: {error}"
            return
        if done.returncode:
            self.refused = f"disk not filled: {done.stderr.strip()}"
            return
        self.disk = disk

    def memory(self) -> list[Path]:
        """What the store has in the directories of images and sockets."""
        try:
            name = json.loads((self.store / "settings.json").read_text())["database_id"][:16]
        except (OSError, ValueError, KeyError):
            return []
        user = os.geteuid()
        places = [Path(f"/dev/shm/inmem-{user}"), Path(f"/tmp/inmem-{user}"), self.store]
        return [found for place in places if place.is_dir() for found in place.glob(f"*{name}*")]

    def left(self) -> list[str]:
        """What of the store is still there, some time after its last client has left."""
        return left_after(
            lambda: [f"process {pid}" for pid in running_with(os.fsencode(self.path))]
            + [str(path) for path in self.memory()]
        )

    def close(self, keep: bool) -> None:
        """Unmount the disk; remove the directory unless it is to be kept, what was on the disk included."""
        if self.disk is not None:
            if keep and self.store.is_dir():
                shutil.copytree(self.store, self.path / "store")
            _unmount(self.disk)
        if not keep:
            shutil.rmtree(self.path)


def _unmount(disk: Path) -> None:
    def refused() -> list[str]:
        done = subprocess.run(["umount", str(disk)], capture_output=True, text=True, check=False)
        return [done.stderr.strip()] if done.returncode else []

    gc.collect()  # a database that was closed keeps the control file mapped until it is collected
    if why := left_after(refused):
        raise OSError(errno.EBUSY, why[0], str(disk))
    disk.rmdir()
