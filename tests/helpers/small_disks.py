"""File systems of a few MiB, what fills them, and directories that cannot be written into."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and chown need root")


@contextmanager
def tmpfs(path: Path, size: int) -> Iterator[Path]:
    """A file system of a few MiB; goes when the block ends, after all stores in it were stopped."""
    path.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)],
        capture_output=True, text=True, check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        gc.collect()  # what an expected error still holds may have a file mapped
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def ballast(path: Path, leave: int) -> Path:
    """A file that fills a file system but for so many bytes."""
    file = path / "ballast"
    with file.open("wb") as out:
        while (left := free_bytes(path) - leave) > 0:
            out.write(bytes(min(left, MIB)))
            out.flush()
    return file


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A directory that nobody can write into while the block lasts: as root, who no mode keeps out."""
    subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
