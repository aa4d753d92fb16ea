"""What the fleet has left against what was acknowledged, and against the plan made again.

Invariant: pure, and no code is shared with the transactions. Each check says
how many things it compared: one that compared nothing is not good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from inmem.demo.facts import HeardFacts, StoredFacts
from inmem.demo.plan import DemoJob, job_of, name_of

_TOLD: Final = 20  # problems of one check


@dataclass(frozen=True, slots=True)
class DemoCheck:
    """What one check has compared, and what it has found."""

    name: str
    compared: int
    unit: str
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there was something to compare, and all of it was right."""
        return self.compared > 0 and not self.problems


@dataclass(frozen=True, slots=True)
class DemoEvidence:
    """All that the checks look at."""

    seed: int
    stored: StoredFacts
    heard: HeardFacts

    @property
    def jobs(self) -> int:
        """How many jobs there were, as the planner's last transaction says."""
        return int(self.stored.entries.get("closed", 0))

    def job(self, number: int) -> DemoJob:
        """A job, made again."""
        return job_of(self.seed, number)


def verified(evidence: DemoEvidence) -> list[DemoCheck]:
    """All checks."""
    checks = []
    for name, unit, check, compared in _CHECKS:
        problems = list(check(evidence))
        if len(problems) > _TOLD:
            problems = [*problems[:_TOLD], f"and {len(problems) - _TOLD} more"]
        checks.append(DemoCheck(name, compared(evidence), unit, problems))
    return checks


def _each_once(found: list[int], jobs: int, what: str) -> Iterator[str]:
    times = Counter(found)
    for number in range(jobs):
        if times[number] != 1:
            yield f"{name_of(number)} was {what} {times[number]} times"
    yield from (f"{name_of(number)} was {what} and never planned" for number in times if number >= jobs)


def _not_lost(told: Counter[tuple[int, str]], stored: Counter[tuple[int, str]], kills: int) -> Iterator[str]:
    """Work that was acknowledged is there; what is there was acknowledged, but for one thing a kill."""
    for (number, who), times in (told - stored).items():
        yield f"{name_of(number)} was acknowledged to {who} {times} times more than it is stored"
    unheard = (stored - told).total()
    if unheard > kills:
        yield f"{unheard} are stored that nobody was told of, after {kills} kills"


def jobs_once(of: DemoEvidence) -> Iterator[str]:
    """Every job that was planned is done, once."""
    batches = [(each["first"], each["jobs"]) for each in of.stored.of_type("planned")]
    planned = [number for first, jobs in batches for number in range(first, first + jobs)]
    yield from _each_once(planned, of.jobs, "planned")
    if (told := sum(of.heard.planned.values())) != of.jobs or of.heard.closed != of.jobs:
        yield f"{told} jobs were acknowledged, and {of.heard.closed} at the end; {of.jobs} are stored"
    done = of.stored.of_type("done")
    yield from _each_once([each["job"] for each in done], of.jobs, "done")
    finished = [each["job"] for worker in of.stored.workers.values() for each in worker.finished]
    yield from _each_once(finished, of.jobs, "finished by a worker")
    yield from _not_lost(
        Counter(of.heard.done), Counter((each["job"], each["worker"]) for each in done),
        of.heard.kills["worker"],
    )
    for queue, left in of.stored.left.items():
        if left:
            yield f"{left} jobs of the queue {queue} are not done"


def results_once(of: DemoEvidence) -> Iterator[str]:
    """Every result is approved, once."""
    approved = of.stored.of_type("approved")
    yield from _each_once([each["job"] for each in approved], of.jobs, "approved")
    yield from _not_lost(
        Counter((number, f"{who} under {token}") for number, token, who in of.heard.approved),
        Counter((each["job"], f"{each['reviewer']} under {each['token']}") for each in approved),
        of.heard.kills["reviewer"],
    )


def totals(of: DemoEvidence) -> Iterator[str]:
    """Totals, and each worker's state, are the sums of the work that was done."""
    entries = of.stored.entries
    planned = sum(of.job(number).amount for number in range(of.jobs))
    done, noted = of.stored.of_type("done"), Counter[str]()
    for each in done:
        noted[each["worker"]] += 1
    # Of each job that anybody was told of, as often as it was told; and of what a kill kept from being told.
    told = Counter(number for number, _ in of.heard.done)
    untold = Counter(each["job"] for each in done) - told
    worked = sum(times * of.job(number).amount for number, times in (told + untold).items())
    for name, expected in (
        ("total:amount", worked), ("total:jobs", (told + untold).total()), ("total:approved", planned),
    ):
        if entries.get(name) != expected:
            yield f"{name} is {entries.get(name)}, and the acknowledged work is {expected}"
    if worked != planned:
        yield f"the work that was done is worth {worked}, and what was planned {planned}"
    for each in done:
        if each["amount"] != of.job(each["job"]).amount:
            yield f"{name_of(each['job'])} is noted with {each['amount']}"
    for name, worker in of.stored.workers.items():
        state = worker.state or {}
        last = worker.finished[-1]["job"] if worker.finished else None
        if worker.done != noted[name] or state.get("done", 0) != noted[name] or state.get("job") != last:
            yield (
                f"{name} has done {noted[name]} jobs, last {last}; it counts {worker.done}, "
                f"and its state is {state}"
            )


def chains(of: DemoEvidence) -> Iterator[str]:
    """Each log's chain is whole and has every event that was acknowledged."""
    for run, chain in of.stored.chains.items():
        if not chain.is_valid:
            yield f"the log of {run} is broken at {chain.first_invalid}: {chain.error}"
    kinds = Counter(event_type for event_type, _ in of.stored.events)
    expected = Counter({
        "began": 1, "planned": len(of.heard.planned), "done": of.jobs, "approved": of.jobs, "closed": 1,
    })
    if kinds != expected:
        yield f"the fleet's log has {dict(kinds)}, and not {dict(expected)}"
    if of.stored.chains[of.stored.run].length != len(of.stored.events):
        yield "the chain is not as long as the log"


def leases(of: DemoEvidence) -> Iterator[str]:
    """One holder at a time: tokens grow, and each is one process's."""
    holders: dict[int, str] = {}
    for token, who in of.heard.leases:
        if holders.setdefault(token, who) != who:
            yield f"lease {token} was acquired by {holders[token]} and by {who}"
    last = 0
    for each in of.stored.of_type("approved"):
        token, who = each["token"], each["reviewer"]
        if token < last:
            yield f"{who} approved under lease {token} after {last} was held"
        # A process that was killed may not have told of a lease that it had just acquired.
        if holders.setdefault(token, who) != who:
            yield f"lease {token} is {holders[token]}'s, and {who} approved under it"
        last = max(last, token)
    if len(holders) <= of.heard.kills["reviewer"]:
        yield f"{len(holders)} leases were held, after {of.heard.kills['reviewer']} kills of the holder"


def traces(of: DemoEvidence) -> Iterator[str]:
    """Each job's tree is there, and is the plan's; there are no others."""
    expected: dict[str, dict[str, tuple[object, ...]]] = {name: {} for name in of.stored.workers}
    for each in of.stored.of_type("done"):
        root = name_of(each["job"])
        calls = of.job(each["job"]).calls
        tree = expected.setdefault(each["worker"], {})
        tree[root] = (None, None, None, None)
        for place, call in enumerate(calls):
            tree[f"{root}.{place}"] = (root, call.tool, call.arguments, call.result)
    for name, tree in expected.items():
        worker = of.stored.workers.get(name)
        found = {} if worker is None else {
            key: (one.parent, one.tool, one.arguments, one.result) for key, one in worker.traces.items()
        }
        for key in [key for key in tree if found.get(key) != tree[key]]:
            yield f"{name}: trace {key} is missing or another one"
        for key in [key for key in found if key not in tree]:
            yield f"{name}: trace {key} is of no job that it has done"


def store(of: DemoEvidence) -> Iterator[str]:
    """What `inmem check` says of image, log, chains and indices."""
    yield from of.stored.findings


_CHECKS: Final[
    tuple[tuple[str, str, Callable[[DemoEvidence], Iterator[str]], Callable[[DemoEvidence], int]], ...]
] = (
    ("every job was done exactly once", "jobs", jobs_once, lambda of: of.jobs),
    ("every result was approved exactly once", "results", results_once,
     lambda of: len(of.stored.of_type("approved"))),
    ("totals and states are the sum of the acknowledged work", "amounts", totals,
     lambda of: len(of.heard.done)),
    ("the hash chains are whole, to the last acknowledged event", "events", chains,
     lambda of: sum(chain.length for chain in of.stored.chains.values())),
    ("no lease was held twice, and tokens grow", "approvals", leases,
     lambda of: len(of.stored.of_type("approved"))),
    ("the traces of each job are complete", "traces", traces,
     lambda of: sum(len(worker.traces) for worker in of.stored.workers.values())),
    ("image, log and indices are in order", "records", store, lambda of: of.stored.records),
)
