"""What the kernel says of a process: its memory and its open files."""

from __future__ import annotations

import os
from pathlib import Path


def memory_kib(pid: int, name: str = "RssAnon") -> int:
    """Memory of a process, from its status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in the status of {pid}")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptors_text(pid: int) -> str:
    return str(descriptors(pid)) if Path(f"/proc/{pid}/fd").exists() else "none"
