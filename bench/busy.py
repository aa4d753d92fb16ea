"""Processes that compute without end: what a machine is like that others use too.

They end with the block, whatever ends that; if the starter is killed, they
see that it has gone, and end too.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_TURNS = 100_000  # between two looks for the starter: some milliseconds
_COMPUTE = f"""
import os
parent = os.getppid()
os.write(1, b"!")
while os.getppid() == parent:
    for _ in range({_TURNS}):
        pass
"""


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """`count` processes that compute, all of them when the block begins; their ids."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _COMPUTE], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,  # as everybody else: see `bench.measuring`
            ))  # fmt: skip
        for process in running:
            assert process.stdout is not None
            if process.stdout.read(1) != b"!":
                raise RuntimeError(f"the busy process {process.pid} did not begin")
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
