"""A store in the lower layer of an overlay, as in a container image, opens at once, and is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_disks import needs_root
from support import alive, wait_until, writer_pid

import inmem

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
import inmem

place, lower, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for name in ("upper", "work", "merged"):
    (place / name).mkdir()
options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, place / "merged"], check=True)
path = place / "merged" / "data"
other = "import sys, inmem; print(inmem.open(sys.argv[1], timeout_s=20).kv.add('r', 'k'))"
began = time.monotonic()
with inmem.open(path, timeout_s=20) as db:
    assert db.kv.get("r", "k") == count
    assert db.kv.add("r", "k") == count + 1 and db.kv.get("r", "k") == count + 1
    took = time.monotonic() - began
    # What another process writes is seen here: both have the same control page.
    found = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True)
    assert found.stdout.strip() == str(count + 2), found
    assert db.kv.get("r", "k") == count + 2
    assert db.check().problems == []
    pid = db.status().writer_pid
while Path(f"/proc/{pid}").exists():
    time.sleep(0.01)
with inmem.open(path, timeout_s=20) as db:
    assert db.kv.add("r", "k") == count + 3
    pid = db.status().writer_pid
while Path(f"/proc/{pid}").exists():
    time.sleep(0.01)
print("took", round(took, 2))
"""


@needs_root
@pytest.mark.parametrize("where", ["same file system", "another file system"])
def test_a_store_in_the_lower_layer(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "0.2")  # the writers are waited for
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    lower = (tmp_path if where == "same file system" else Path("/dev/shm")) / f"lower-{time.time_ns()}"
    lower.mkdir()
    upper = tmp_path / "upper"
    upper.mkdir()
    try:
        with inmem.open(lower / "data") as db:
            db.kv.put("r", "k", 7)
            pid = writer_pid(lower / "data")
        wait_until(lambda: not alive(pid), "the writer leaves", 20)
        done = subprocess.run(
            [unshare, "--mount", sys.executable, "-c", PROGRAM, str(upper), str(lower), "7"],
            capture_output=True, text=True, timeout=100, check=False,
        )
        if any(text in done.stderr for text in ("unshare failed", "wrong fs type", "special device")):
            pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()[-200:]}")
        assert done.stdout.startswith("took"), done.stdout + done.stderr
        print(where, done.stdout)
        with inmem.open(lower / "data") as db:
            assert db.kv.get("r", "k") == 7, "the lower layer is as it was"
    finally:
        shutil.rmtree(lower)
