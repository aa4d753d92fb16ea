"""Will a store work on this machine, under the limits of this process? It changes nothing.

Cost: one start of the interpreter that a writer would have, half a second at most on an idle machine.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from inmem.config import FORMAT_VERSION, MAP_BYTES, MIB, Settings
from inmem.errors import StoreFullError
from inmem.host.directory import file_system, runtime_place
from inmem.host.files import (
    check_private_dir,
    check_spare_files,
    hint_of,
    python_environment,
    python_program,
)
from inmem.maintenance.diagnosis import Diagnosis
from inmem.version import __version__

PACKAGES: Final = ("lmdb", "pyzmq", "msgpack", "sortedcontainers", "xxhash", "typer", "rich")
_FEW_FILES: Final = 256  # a writer has one for each thread that commits, and some for itself
_LOAD_S: Final = 30.0
_LOAD: Final = (
    "import json, platform, inmem, lmdb, zmq; print(json.dumps({"
    "'python': platform.python_version(), 'inmem': inmem.__version__, "
    "'lmdb': '.'.join(map(str, lmdb.version())), 'zmq': zmq.zmq_version()}))"
)
MORE_MEMORY: Final = (
    "Make the tmpfs on /dev/shm larger (docker run --shm-size), or the store with a lower quota_bytes."
)


def look_at_machine(diagnosis: Diagnosis) -> dict[str, Any]:
    """What there is, for programs."""
    return {
        "inmem": __version__,
        "format": FORMAT_VERSION,
        "python": platform.python_version(),
        "program": sys.executable,
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": {name: _version(name) for name in PACKAGES},
        "writer": _look_at_program(diagnosis),
        "memory": _look_at_memory(diagnosis),
        "open_files": _look_at_limits(diagnosis),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _look_at_program(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The interpreter that a writer is started with, and the versions of what it loads."""
    about = "the writer's program"
    with diagnosis.looking_at(about):
        program = python_program()
        try:
            done = subprocess.run(
                [program, "-P", "-c", _LOAD], env=python_environment(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=_LOAD_S, check=False,
            )  # fmt: skip
            found: dict[str, Any] = {"program": program} | json.loads(done.stdout or "{}")
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except (subprocess.TimeoutExpired, ValueError) as error:
            found, said = {"program": program}, str(error)
        if "zmq" not in found:
            diagnosis.problem(
                about, f"{program} cannot load what a writer needs: {said[:300]}",
                "Install inmem for it, or name another interpreter by the variable INMEM_PYTHON.",
            )
        elif found["inmem"] != __version__:
            diagnosis.problem(
                about, f"{program} has inmem {found['inmem']}, and this is {__version__}",
                "Use one release in all programs of a store; INMEM_PYTHON names the writer's interpreter.",
            )
        return found
    return None


def _look_at_memory(diagnosis: Diagnosis) -> dict[str, Any]:
    """The file system that images are in."""
    place = runtime_place()
    base = place.parent
    info = os.statvfs(base)
    if str(base) != "/dev/shm":
        diagnosis.note(
            "memory", f"/dev/shm is missing or not writable: images are in {base}",
            "Mount a tmpfs on /dev/shm that this user may write to.",
        )
    if place.exists() or place.is_symlink():
        with diagnosis.looking_at("memory"):
            check_private_dir(place)
    if not info.f_favail and info.f_files:
        diagnosis.problem("memory", f"{base} has no inodes left", StoreFullError.default_hint)
    return {
        "path": str(base), "filesystem": file_system(os.stat(base).st_dev),
        "bytes": info.f_blocks * info.f_frsize, "free_bytes": info.f_bavail * info.f_frsize,
    }


def judge_room(diagnosis: Diagnosis, place: str, free_bytes: int, quota_bytes: int) -> None:
    """Whether a new image has room in shared memory; where it has not, it is made in the data directory."""
    if free_bytes < 2 * quota_bytes:
        diagnosis.note(
            "memory", f"{place} has {free_bytes // MIB:,} MiB free, two images of the quota need "
            f"{2 * quota_bytes // MIB:,}: the image is in the data directory, and slower on a disk",
            MORE_MEMORY,
        )  # fmt: skip


def _look_at_limits(diagnosis: Diagnosis) -> dict[str, Any]:
    """Open files, for programs; what else has a limit is told only if that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with diagnosis.looking_at("open files"):
        check_spare_files()
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        diagnosis.problem(
            "open files", f"a writer may have {hard} files open, one of them for each thread that commits",
            hint_of(OSError(errno.EMFILE, "")),
        )
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY and addresses < MAP_BYTES:
        diagnosis.problem(
            "address space", f"the image takes {MAP_BYTES} bytes of addresses, the limit is {addresses}",
            hint_of(OSError(errno.ENOMEM, "")),
        )
    _, largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    needed = Settings().segment_bytes + MIB
    if largest != resource.RLIM_INFINITY and largest < needed:
        diagnosis.problem(
            "files", f"the log needs files of {needed} bytes, the limit is {largest}",
            hint_of(OSError(errno.EFBIG, "")),
        )
    if (nice := os.getpriority(os.PRIO_PROCESS, 0)) > 0:
        diagnosis.note(
            "priority", f"this process is nice ({nice}), and a writer that it starts may stay so",
            "Start the writer from elsewhere: inmem start -d DIR.",
        )
    limits = (soft, hard)
    return {
        "open": len(os.listdir("/proc/self/fd")),
        **{name: None if one == resource.RLIM_INFINITY else one
           for name, one in zip(("soft", "hard"), limits, strict=True)},
    }  # fmt: skip
