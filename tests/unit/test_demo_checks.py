"""`inmem demo` without processes: each check finds what it is for, and the picture fits."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inmem.demo.children import FleetChild
from inmem.demo.facts import HeardFacts, StoredFacts, StoredTrace, WorkerFacts
from inmem.demo.fleet import DemoKill, DemoOptions, DemoResult, DemoState
from inmem.demo.plan import job_of, name_of
from inmem.demo.screen import document_of, picture_of, tell_result
from inmem.demo.verify import DemoCheck, DemoEvidence, verified
from inmem.primitives.events.rules import ChainVerification

ROOT = Path(__file__).parents[2]
MAIN = ["-c", "from inmem.cli import main; main()"]
SEED, JOBS, RUN = 5, 8, "demo-x"
WHO = ("worker-1", "worker-2")
ONCE, APPROVED, TOTALS, CHAINS, LEASES, TRACES, STORE = (
    "every job was done exactly once", "every result was approved exactly once",
    "totals and states are the sum of the acknowledged work",
    "the hash chains are whole, to the last acknowledged event", "no lease was held twice, and tokens grow",
    "the traces of each job are complete", "image, log and indices are in order",
)  # fmt: skip


def evidence() -> DemoEvidence:
    """Of a fleet that did all of it right: reviewer-1 approved the first half, and was killed."""
    jobs = [job_of(SEED, number) for number in range(JOBS)]
    heard, events, workers = HeardFacts(planned={0: JOBS}, closed=JOBS), [], {}
    heard.kills.update({"reviewer": 1, "worker": 1})
    events += [("began", {"workers": 2}), ("planned", {"first": 0, "jobs": JOBS})]
    for job in jobs:
        who = WHO[job.number % 2]
        heard.done.append((job.number, who))
        events.append(("done", {"job": job.number, "worker": who, "amount": job.amount}))
    for job in jobs:
        token, reviewer = (3, "reviewer-1#1") if job.number < JOBS // 2 else (9, "reviewer-2#1")
        heard.approved.append((job.number, token, reviewer))
        events.append(("approved", {"job": job.number, "token": token, "reviewer": reviewer}))
    events.append(("closed", {"jobs": JOBS}))
    heard.leases += [(3, "reviewer-1#1"), (9, "reviewer-2#1")]
    for place, name in enumerate(WHO):
        own, traces = jobs[place::2], {}
        for job in own:
            root = name_of(job.number)
            traces[root] = StoredTrace(None, None)
            for number, call in enumerate(job.calls):
                traces[f"{root}.{number}"] = StoredTrace(root, call.tool, call.arguments, call.result)
        finished = [{"job": job.number, "amount": job.amount} for job in own]
        workers[name] = WorkerFacts(len(own), {"job": own[-1].number, "done": len(own)}, finished, traces)
    amount = sum(job.amount for job in jobs)
    entries = {
        "closed": JOBS, "planned": JOBS, "total:amount": amount, "total:jobs": JOBS, "total:approved": amount,
    }
    chains = {RUN: ChainVerification(True, len(events))}
    chains |= {f"{RUN}.{name}": ChainVerification(True, JOBS) for name in WHO}
    stored = StoredFacts(RUN, entries, events, {"jobs": 0, "review": 0}, workers, chains, [], 100)
    return DemoEvidence(SEED, stored, heard)


def wrong(of: DemoEvidence) -> set[str]:
    return {check.name for check in verified(of) if not check.ok}


def test_what_is_right_is_found_right() -> None:
    checks = verified(evidence())
    assert [check.problems for check in checks] == [[]] * 7
    assert {check.name for check in checks} == {ONCE, APPROVED, TOTALS, CHAINS, LEASES, TRACES, STORE}
    assert all(check.ok for check in checks)


def test_what_compared_nothing_is_not_right() -> None:
    heard = HeardFacts(closed=0)
    stored = StoredFacts(RUN, {"closed": 0}, [], {}, {}, {RUN: ChainVerification(True, 0)}, [])
    assert wrong(DemoEvidence(SEED, stored, heard)) == {check.name for check in verified(evidence())}


def event(of: DemoEvidence, kind: str, number: int) -> dict[str, Any]:
    return next(payload for found, payload in of.stored.events if found == kind and payload["job"] == number)


def without(of: DemoEvidence, kind: str, number: int) -> None:
    of.stored.events.remove((kind, event(of, kind, number)))


def again(of: DemoEvidence, kind: str, number: int) -> None:
    of.stored.events.append((kind, event(of, kind, number)))


def entry(name: str, change: int) -> Callable[[DemoEvidence], None]:
    def damage(of: DemoEvidence) -> None:
        of.stored.entries[name] += change

    return damage


def chain(of: DemoEvidence) -> None:
    of.stored.chains[f"{RUN}.worker-2"] = ChainVerification(False, 4, 2, "hash does not match")


def cut(of: DemoEvidence) -> None:
    of.stored.chains[RUN] = replace(of.stored.chains[RUN], length=3)


def trace(of: DemoEvidence) -> None:
    del of.stored.workers["worker-1"].traces[f"{name_of(0)}.0"]


def result(of: DemoEvidence) -> None:
    of.stored.workers["worker-1"].traces[f"{name_of(0)}.1"].result = {"cents": -1}


def stray(of: DemoEvidence) -> None:
    of.stored.workers["worker-1"].traces["job-x"] = StoredTrace(None, None)


def state(of: DemoEvidence) -> None:
    of.stored.workers["worker-1"].state = {"job": 0, "done": 4}


def unheard(of: DemoEvidence) -> None:
    del of.heard.done[:2]  # and there was one kill


def one_unheard(of: DemoEvidence) -> None:
    del of.heard.done[:1]


def late(of: DemoEvidence) -> None:
    """The first reviewer approves after the second one has begun."""
    for approved in (event(of, "approved", JOBS - 1),):
        approved |= {"token": 3, "reviewer": "reviewer-1#1"}


def shared(of: DemoEvidence) -> None:
    of.heard.leases.append((9, "reviewer-1#1"))


def few(of: DemoEvidence) -> None:
    of.heard.kills["reviewer"] = 2


def left(of: DemoEvidence) -> None:
    of.stored.left["review"] = 1


def finding(of: DemoEvidence) -> None:
    of.stored.findings.append("an index entry is missing")


def done_by_another(of: DemoEvidence) -> None:
    of.heard.done[0] = (0, "worker-2")
    of.heard.kills["worker"] = 0


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda of: without(of, "done", 2), {ONCE, CHAINS, TRACES, TOTALS}),
        (lambda of: again(of, "done", 2), {ONCE, CHAINS, TOTALS}),
        (lambda of: without(of, "approved", 2), {APPROVED, CHAINS}),
        (lambda of: again(of, "approved", JOBS - 1), {APPROVED, CHAINS}),
        (entry("total:amount", -1), {TOTALS}), (entry("total:jobs", 1), {TOTALS}),
        (entry("total:approved", 1), {TOTALS}), (entry("closed", 8), {ONCE, APPROVED, TOTALS, CHAINS}),
        (state, {TOTALS}), (unheard, {ONCE}), (one_unheard, set()), (done_by_another, {ONCE}),
        (chain, {CHAINS}), (cut, {CHAINS}),
        (trace, {TRACES}), (result, {TRACES}), (stray, {TRACES}),
        (late, {LEASES, APPROVED}), (shared, {LEASES}), (few, {LEASES}),
        (left, {ONCE}), (finding, {STORE}),
    ],
)
def test_each_damage_is_found(damage: Callable[[DemoEvidence], None], found: set[str]) -> None:
    of = evidence()
    damage(of)
    assert wrong(of) == found, [problem for check in verified(of) for problem in check.problems]


# --- what is seen -------------------------------------------------------------------------------


def shown_state(children: int) -> DemoState:
    kills = [DemoKill("writer", "writer", 12345, 7.5, 0.41), DemoKill("worker", "worker-1", 12346, 9.0)]
    state = DemoState(
        "/tmp/a long path\x1b[2J/" + "x" * 90, RUN, 15, "buffered", "works", 3.25, planned=1234567,
        kills=kills,
    )
    state.children = [
        FleetChild(f"worker-{n}", "worker", doing="calls translate for Kyoto " * 3, done=123456, kills=n % 2)
        for n in range(children)
    ]
    return state


@pytest.mark.parametrize("children", [0, 6, 70])
@pytest.mark.parametrize(("width", "height"), [(20, 10), (40, 12), (64, 24), (200, 50)])
def test_the_picture_fits(children: int, width: int, height: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, highlight=False, markup=False)
    console.print(picture_of(shown_state(children), width, height))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "\x1b" not in out.getvalue()
    assert len([line for line in lines if line.strip()]) <= height
    assert any(line.startswith("inmem demo works") for line in lines)


def test_a_verdict_that_is_bad_is_told_with_its_problems(capsys: pytest.CaptureFixture[str]) -> None:
    check = DemoCheck("totals", 3, "amounts", ["total:jobs is 2"])
    bad = DemoResult(shown_state(1), [check], ["totals: total:jobs is 2"])
    assert not bad.ok
    tell_result(DemoOptions(), bad, as_json=False, is_quiet=True)
    out, errors = capsys.readouterr()
    assert out == "It does not hold: 1 problems.\n" and errors == "totals: total:jobs is 2\n"
    told = document_of(DemoOptions(), bad)
    assert told["ok"] is False and told["checks"][0]["ok"] is False and told["problems"] == bad.problems


@pytest.mark.parametrize("words", [["-m", "inmem.demo"], [*MAIN, "demo"]])
@pytest.mark.parametrize("missing", ["rich", "typer"])
def test_without_the_extra_it_says_what_is_missing(words: list[str], missing: str, tmp_path: Any) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "inmem: the command needs more than the library: pip install 'inmem[cli]'\n"
