"""Bugs planted into the writer: the suite's own checks pass without them, and fail with each.

The writer of these tests finds `tests/plants/sitecustomize.py` as it starts,
and patches itself; see there. A plant that had no effect fails its test: a
check that fails for another reason proves nothing.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import TESTS, Workers, control_state, stop_writer, wait_until, writer_pid

sys.path += [str(TESTS / "crash"), str(TESTS / "faults")]
import test_01_writer_killed_at_a_step
import test_contention
from histories.recording import Recorded, recorded_run
from histories.test_serializable import SEED, assert_serializable, killer

import inmem
from inmem import CommitUnknownError, WriterUnavailableError
from inmem.storage.wal.files import segment_files

PLANTS = TESTS / "plants"
SECONDS = 0.7
WORKERS = 4
RUN = "run"


@dataclass(frozen=True, slots=True)
class Place:
    """What a check gets to work with."""

    store: Path
    scratch: Path
    workers: Workers
    monkeypatch: pytest.MonkeyPatch


# --- checks of the suite ----------------------------------------------------------------------------


def an_anomaly_is_refused(at: Place) -> None:
    test_contention.test_an_anomaly_is_refused(at.store, at.workers, "write-skew")


def killed_at_a_step_of_a_commit(at: Place) -> None:
    test_01_writer_killed_at_a_step.test_killed_at_a_step_of_a_commit(
        at.store, at.scratch, at.monkeypatch, "buffered", "published"
    )


def histories(at: Place) -> None:
    """Many processes in each other's way."""
    with inmem.open(at.store):
        assert_serializable(recorded(at))


def histories_under_kills(at: Place) -> None:
    """The same, while writers are killed at random moments."""
    trouble, _ = killer(at.store, at.workers, random.Random(SEED))
    with inmem.open(at.store):
        assert_serializable(recorded(at, trouble))


def histories_of_writers_that_die_before_answering(at: Place) -> None:
    """The same, while each writer dies between publishing a group and answering it."""
    at.monkeypatch.setenv("INMEM_FAILPOINT", "answering:120")
    with inmem.open(at.store):
        run = recorded(at)
        assert control_state(at.store).epoch > 1, "no writer died"
        assert_serializable(run)


def recorded(at: Place, trouble: Callable[[], None] | None = None) -> Recorded:
    """A short run of a few processes."""
    print(f"seed {SEED}")
    return recorded_run(
        at.store, at.workers, at.scratch / "history", seed=SEED, count=WORKERS, seconds=SECONDS,
        trouble=trouble,
    )


def a_chaos(at: Place) -> None:
    """Jobs and leases, among all else, held for longer than they last."""
    figures = at.scratch / "figures.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "workers.chaos", "--minutes", "0.1", "--workers", "12", "--seed", str(SEED),
            "--kills-per-minute", "20", "--worker-stops-per-minute", "60",
            "--directory", str(at.scratch), "--json", str(figures),
        ],
        cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert figures.exists(), done.stderr
    assert done.returncode == 0, json.loads(figures.read_text())["problems"]


def what_was_seen_survives_a_power_cut(at: Place) -> None:
    """In a `sync` store nothing that a reader has seen may go with the power.

    The cut is played: the writer dies at a step of a commit, then the log
    loses what was not synced, and the image goes, as it does in a reboot.
    """
    synced = at.scratch / "synced"
    at.monkeypatch.setenv("INMEM_TEST_SYNCED", str(synced))
    dropped = {}
    for step in ("logged", "published", "answering"):
        with inmem.open(at.store, durability="sync") as db:
            before = db.kv.get(RUN, "n", 0)
        stop_writer(at.store)
        at.monkeypatch.setenv("INMEM_FAILPOINT", f"{step}:9")
        with inmem.open(at.store):
            pass  # starts the writer, which stays for a while
        with inmem.open(at.store, autostart=False) as db:
            acknowledged = count_until_it_dies(db, before)
            wait_until(lambda: not writer_pid(at.store), "the writer is dead")
            seen = db.kv.get(RUN, "n")
        at.monkeypatch.delenv("INMEM_FAILPOINT")
        dropped[step] = cut_power(at.store, synced)
        with inmem.open(at.store) as db:
            found = db.kv.get(RUN, "n", 0)
            assert found >= acknowledged, f"at {step}: {acknowledged} was acknowledged, {found} is left"
            assert found >= seen, f"at {step}: {seen} was seen, {found} is left"
            assert acknowledged > before
    print(f"bytes that the power took: {dropped}")
    assert dropped["logged"] > 0, "a cut right after logging takes what was logged"
    assert dropped["published"] == dropped["answering"] == 0


def count_until_it_dies(db: inmem.Database, number: int) -> int:
    """Commit ever higher numbers; the last that was acknowledged."""
    while True:
        try:
            db.kv.put(RUN, "n", number + 1)
        except (CommitUnknownError, WriterUnavailableError):
            return number
        number += 1


def cut_power(path: Path, synced: Path) -> int:
    """Take from the log what was not synced, and the memory; the bytes taken."""
    durable = json.loads(synced.read_text())
    taken = 0
    for _, segment in segment_files(path / "wal"):
        size = segment.stat().st_size
        kept = min(size, durable.get(segment.name, 0))
        taken += size - kept
        os.truncate(segment, kept)
    image = Path(control_state(path).image)
    for entry in image.iterdir():
        entry.unlink()
    image.rmdir()
    return taken


# --- with a bug, and without ------------------------------------------------------------------------

Check = Callable[[Place], None]

# What is planted, who has to catch it, and a part of what that says.
CAUGHT_BY: list[tuple[str, Check, str]] = [
    ("skip_validation", an_anomaly_is_refused, "'done', 'done'"),
    ("skip_validation", histories, "anomalies: [1-9]"),
    ("ack_before_logging", killed_at_a_step_of_a_commit, "assert"),
    ("ack_before_logging", histories_under_kills, "anomalies: [1-9]"),
    ("publish_before_sync", what_was_seen_survives_a_power_cut, "at published: .* was seen"),
    ("drop_deduplication", killed_at_a_step_of_a_commit, "assert"),
    ("drop_deduplication", histories_of_writers_that_die_before_answering, "anomalies: [1-9]"),
    ("let_late_holders_write", a_chaos, "leases: "),
    ("let_late_workers_ack", a_chaos, "jobs: "),
]
CHECKS = list(dict.fromkeys(check for _, check, _ in CAUGHT_BY))


@pytest.fixture
def place(
    store_path: Path, scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Writers started from here on look for a plant."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLANTS), str(TESTS.parent)]))
    monkeypatch.setenv("INMEM_TEST_PLANTED", str(scratch / "planted"))
    return Place(store_path, scratch, workers, monkeypatch)


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_without_a_bug(place: Place, check: Check) -> None:
    check(place)
    assert not (place.scratch / "planted").exists()


@pytest.mark.parametrize(
    ("plant", "check", "told"), CAUGHT_BY, ids=[f"{plant}-{check.__name__}" for plant, check, _ in CAUGHT_BY]
)
def test_a_planted_bug_is_caught(place: Place, plant: str, check: Check, told: str) -> None:
    place.monkeypatch.setenv("INMEM_TEST_PLANT", plant)
    with pytest.raises(AssertionError, match=told) as caught:
        check(place)
    print(f"{plant} is caught by {check.__name__}:\n{caught.value!s:.1000}")
    assert (place.scratch / "planted").exists(), f"{plant} had no effect"


def test_every_plant_is_tried() -> None:
    plants = runpy.run_path(str(PLANTS / "sitecustomize.py"))["PLANTS"]
    assert plants.keys() == {plant for plant, _, _ in CAUGHT_BY}
