"""A data directory is known by device and inode, never by its path's text."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disks import needs_root

import inmem


def laid_out(path: Path) -> Path:
    """A directory to lie in, a link to it, and a link into the depth of another one."""
    (path / "real").mkdir(parents=True)
    (path / "link").symlink_to("real")
    (path / "other" / "deep").mkdir(parents=True)
    (path / "deep").symlink_to("other/deep")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return laid_out(tmp_path)


@pytest.fixture(scope="module")
def places(module_scratch: Path) -> Callable[[str], Path]:
    """By name: each is laid out once, and its store has one writer."""
    return functools.cache(lambda name: laid_out(module_scratch / name.replace(" ", "-")))


PATHS: dict[str, Callable[[Path], str]] = {
    "as it is": lambda place: f"{place}/real/data",
    "through a link": lambda place: f"{place}/link/data",
    "with a slash": lambda place: f"{place}/real/data/",
    "with dots": lambda place: f"{place}/real/./data/.",
    "up and down": lambda place: f"{place}/real/../link/../real/data",
    "twice": lambda place: f"//{place}/real//data",
    "relative": lambda place: os.path.relpath(place / "real" / "data"),
    "relative through a link": lambda place: os.path.relpath(place / "link" / "data"),
    "inside itself": lambda place: f"{place}/real/data/wal/..",
}


@pytest.mark.parametrize("second", PATHS)
@pytest.mark.parametrize("first", ["as it is", "through a link", "relative"])
def test_two_handles_by_two_paths_are_one_store(
    places: Callable[[str], Path], first: str, second: str
) -> None:
    place = places(first)
    with inmem.open(PATHS[first](place)) as one, inmem.open(PATHS[second](place)) as two:
        one.kv.put("r", "k", 1)
        assert two.kv.get("r", "k") == 1 and two.kv.add("r", "k") == 2
        assert one.kv.get("r", "k") == 2 and one.status().writer_pid == two.status().writer_pid
        assert one.engine.is_same_store(two.engine)
        assert one.kv.get(two.run("r"), "k") == 2, "a scope of the one is honoured by the other"
    with inmem.open(PATHS[second](place), create=False) as again:
        assert again.kv.get("r", "k") == 2


def test_dots_after_a_link_lead_where_the_system_says(place: Path) -> None:
    """`deep/../data` is `other/data`, and not `data`, which the text says."""
    with inmem.open(f"{place}/deep/../data") as db:
        assert db.path == place / "other" / "data" and not (place / "data").exists()


def test_a_relative_path_is_that_of_its_opening(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "real")
    with inmem.open("data") as db:
        db.kv.put("r", "k", 1)
        monkeypatch.chdir(place / "other")
        assert db.kv.add("r", "k") == 2
        with inmem.open("data") as other:
            assert other.kv.get("r", "k") is None
        with inmem.open("../real/data") as same:
            assert same.kv.get("r", "k") == 2


def test_a_link_that_leads_elsewhere_later(place: Path) -> None:
    with inmem.open(place / "link" / "data") as db:
        db.kv.put("r", "k", 1)
        (place / "link").unlink()
        (place / "link").symlink_to("other")
        assert db.kv.add("r", "k") == 2, "a handle stays with its directory"
        with inmem.open(place / "link" / "data") as other:
            assert other.kv.get("r", "k") is None


def test_a_link_as_the_directory_itself_is_refused(place: Path) -> None:
    with inmem.open(place / "real" / "data"):
        (place / "data").symlink_to("real/data")
        with pytest.raises(inmem.PermissionDeniedError, match="symlink"):
            inmem.open(place / "data")


def test_opened_by_many_paths_at_once(place: Path) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(len(PATHS))

    def work(path: str) -> None:
        try:
            start.wait(20)
            for _ in range(5):
                with inmem.open(path, timeout_s=30) as db:
                    db.kv.add("r", "n")
                    assert db.kv.get("r", "n") > 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(path(place),)) for path in PATHS.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert failures == []
    with inmem.open(place / "real" / "data") as db:
        assert db.kv.get("r", "n") == 5 * len(PATHS)


BIND = """
import subprocess, sys, inmem
place = sys.argv[1]
with inmem.open(place + "/real/data") as one:
    one.kv.put("r", "k", 1)
    subprocess.run(["mount", "--bind", place + "/real", place + "/other"], check=True)
    with inmem.open(place + "/other/data") as two:
        assert two.kv.add("r", "k") == 2 and one.kv.get("r", "k") == 2
        assert one.status().writer_pid == two.status().writer_pid
        other = "import sys, inmem; print(inmem.open(sys.argv[1]).kv.add('r', 'k'))"
        command = [sys.executable, "-c", other, place + "/other/data"]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.stdout.strip() == "3", found
    assert one.kv.get("r", "k") == 3
print("one store")
"""


@needs_root
def test_a_bind_mount(place: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-c", BIND, str(place)], capture_output=True, text=True,
        timeout=60, check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.strip() == "one store", done.stdout + done.stderr
