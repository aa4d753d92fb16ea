"""`inmem demo` finds bugs of its processes: see `demo_faults`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inmem.demo.fleet import DemoFailedError, DemoOptions, StopSignals, run_demo

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("acks-alone", "every job was done exactly once"),
        ("books-twice", "every job was done exactly once"),
        ("forgets-traces", "the traces of each job are complete"),
        ("trusts-its-clock", "no lease was held twice, and tokens grow"),
    ],
)
def test_it_is_found(fault: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)
    options = DemoOptions(seconds=1.5, workers=2, program=("-m", "demo_faults", fault))
    with StopSignals() as signals:
        result = run_demo(options, signals)
    wrong = {check.name for check in result.checks if check.problems}
    assert found in wrong and not result.ok, result.problems


def test_a_process_that_cannot_start_is_told() -> None:
    options = DemoOptions(seconds=1, workers=1, program=("-c", "raise SystemExit('no such thing')"))
    with StopSignals() as signals, pytest.raises(DemoFailedError, match=r"exit code 1\. no such thing"):
        run_demo(options, signals)
