"""Huey's consumers as they are run, and killed: what becomes of the tasks."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh
from support import alive, kill, kill_writer, wait_until

pytest.importorskip("huey", reason="the extra `huey` is not installed")

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = HELPERS.parents[1]
TASKS, KILLS = (400, 40) if os.environ.get("INMEM_EXHAUSTIVE") else (30, 4)
DEADLINE_S = 60.0
CONSUMER = ("-m", "huey.bin.huey_consumer")
GREEN = "from gevent import monkey; monkey.patch_all(); import huey.bin.huey_consumer as c; c.consumer_main()"


class App:
    """The program `huey_app`: this process puts tasks, and consumers are started and killed."""

    def __init__(self, place: str, name: str, log: Path, stack: ExitStack, patch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.log = log
        self._stack = stack
        self.set = patch.setenv
        self.set("HUEY_APP_PLACE", place)
        self.set("HUEY_APP_NAME", name)
        self.set("HUEY_APP_LOG", str(log))
        self.set("PYTHONPATH", os.pathsep.join([str(ROOT), str(HELPERS), os.environ.get("PYTHONPATH", "")]))
        self._module: Any = None

    @property
    def module(self) -> Any:
        """The program, as of this process; what is to be set is set before."""
        if self._module is None:
            sys.modules.pop("huey_app", None)
            self._module = importlib.import_module("huey_app")
            self._stack.callback(self._module.huey.storage.close)
        return self._module

    def consumer(self, *options: str, program: Sequence[str] = CONSUMER) -> subprocess.Popen[bytes]:
        """Start one, in a group of its own."""
        command = [sys.executable, *program, "huey_app.huey", "-q", *options]
        started = subprocess.Popen(command, start_new_session=True, cwd=ROOT)
        self._stack.callback(end, started)
        return started

    def lines(self, word: str) -> list[int]:
        """The numbers in the lines with a word."""
        text = self.log.read_text() if self.log.exists() else ""
        return [int(line.split()[1]) for line in text.splitlines() if line.startswith(word)]

    def begun_by(self) -> set[int]:
        """Processes in which functions have begun."""
        return {int(line.split()[2]) for line in self.log.read_text().splitlines()}


def end(consumer: subprocess.Popen[bytes]) -> None:
    """Kill a consumer and its workers: the process group that it was started with."""
    try:
        os.killpg(consumer.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    consumer.wait(30)


def children(pid: int) -> list[int]:
    """Workers and scheduler of a consumer."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def app(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    where = fresh()
    with ExitStack() as stack:
        name = where.get("agent", "app")
        yield App(str(where["path"]), name, tmp_path / "log", stack, monkeypatch)


def put_work(app: App, count: int, work_s: float) -> list[Any]:
    """Half of the tasks at once, half of them a little later; each with one that follows it."""
    huey, work, then = app.module.huey, app.module.work, app.module.then
    results = []
    for number in range(count):
        delay = {"delay": 1} if number % 2 else {}
        results.append(huey.enqueue(work.s(number, work_s, **delay).then(then)))
    return results


def all_ready(results: list[Any]) -> Callable[[], bool]:
    return lambda: all(each.is_ready() for group in results for each in group)


OPTIONS = [("-k", "process", "-w", "3", "-c", "1"), ("-k", "thread", "-w", "3")]


@pytest.mark.parametrize("options", OPTIONS, ids=["processes", "threads"])
def test_killed_workers_lose_nothing_that_is_redelivered(app: App, options: tuple[str, ...]) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    app.set("HUEY_APP_REDELIVER", "1")
    app.set("HUEY_APP_LEASE_S", "1")
    results = put_work(app, TASKS, 0.1)
    consumers = [app.consumer(*options)]
    for _ in range(KILLS):
        wanted = min(len(app.lines("began")) + 3, TASKS)
        wait_until(lambda wanted=wanted: len(app.lines("began")) >= wanted, "tasks are executed", DEADLINE_S)
        kind = rng.choice(["worker", "consumer", "writer"])
        workers = [pid for pid in children(consumers[-1].pid) if alive(pid)]
        if kind == "writer" and not app.place.startswith("postgresql"):
            kill_writer(Path(app.place))
        elif kind == "worker" and "process" in options and workers:
            kill(rng.choice(workers), wait=False)
        else:
            end(consumers[-1])
            consumers.append(app.consumer(*options))
    wait_until(all_ready(results), "all results are there", DEADLINE_S)
    assert [group.get() for group in results] == [[n, 2 * n] for n in range(TASKS)]
    begun = Counter(app.lines("began"))
    assert set(begun) == set(range(TASKS))
    # What follows a task was queued once, however often the task was begun: as one job.
    jobs = [line.split() for line in app.log.read_text().splitlines() if line.startswith("then")]
    assert Counter(n for n, _ in {(n, job) for _, n, _, job in jobs}) == Counter(map(str, range(TASKS)))
    huey = app.module.huey
    assert (huey.pending_count(), huey.scheduled_count()) == (0, 0)
    assert huey.storage.queues.dead("tasks") == []


def test_without_it_a_task_begins_once_at_most_and_only_those_that_had_begun_are_lost(app: App) -> None:
    results = put_work(app, TASKS, 0.1)
    consumers, killed = [app.consumer("-k", "process", "-w", "3", "-c", "1")], 0
    for _ in range(KILLS):
        wanted = min(len(app.lines("began")) + 3, TASKS)
        wait_until(lambda wanted=wanted: len(app.lines("began")) >= wanted, "tasks are executed", DEADLINE_S)
        end(consumers[-1])
        consumers.append(app.consumer("-k", "process", "-w", "3", "-c", "1"))
        killed += 1
    huey = app.module.huey
    wait_until(lambda: len(set(app.lines("began"))) == TASKS, "all tasks have begun", DEADLINE_S)
    wait_until(lambda: huey.pending_count() == huey.scheduled_count() == 0, "nothing is left", DEADLINE_S)
    most = 3 * killed  # each kill ends what three workers were doing
    wait_until(lambda: TASKS - len(set(app.lines("ended"))) <= most, "the last tasks end", DEADLINE_S)
    assert Counter(app.lines("began")).most_common(1)[0][1] == 1
    assert results and Counter(app.lines("then")).most_common(1)[0][1] == 1


def test_a_consumer_that_is_told_to_stop_gives_its_task_back(app: App) -> None:
    app.set("HUEY_APP_REDELIVER", "1")
    huey, work = app.module.huey, app.module.work
    for kind in ("process", "thread"):
        result = work(7, 1.5)
        first = app.consumer("-k", kind, "-w", "1")
        wait_until(lambda: len(app.lines("began")) % 2, "it has begun", DEADLINE_S)
        os.kill(first.pid, signal.SIGTERM)
        first.wait(30)
        assert huey.storage.queues.counts("tasks").ready == 1  # its claim would hold for 30 seconds more
        second = app.consumer("-k", kind, "-w", "1")
        assert result.get(blocking=True, timeout=DEADLINE_S) == 7
        os.kill(second.pid, signal.SIGINT)
        assert second.wait(30) == 0
    assert Counter(app.lines("began")) == {7: 4}


def test_signals_are_handled_in_each_forked_worker(app: App) -> None:
    huey = app.module.huey
    results = [app.module.work(number, 0.02) for number in range(TASKS)]
    consumer = app.consumer("-k", "process", "-w", "3")
    assert [each.get(blocking=True, timeout=DEADLINE_S) for each in results] == list(range(TASKS))
    os.kill(consumer.pid, signal.SIGINT)
    assert consumer.wait(30) == 0
    assert huey.storage.incr("executing tasks", 0) == huey.storage.incr("complete tasks", 0) == TASKS
    assert len(app.begun_by()) > 1 and Counter(app.lines("began")).most_common(1)[0][1] == 1


def test_a_fork_of_who_has_used_it_has_a_handle_of_its_own(app: App) -> None:
    storage = app.module.huey.storage
    storage.put_data("before", b"1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            storage.enqueue(b"from the child")
            code = 0 if storage.wait_result("from the parent", 30) and storage.dequeue() is None else 2
        finally:
            os._exit(code)
    wait_until(storage.queue_size, "the child has put its message")
    assert storage.dequeue() == b"from the child"
    storage.put_data("from the parent", b"")
    assert os.waitpid(child, 0)[1] == 0
    assert storage.peek_data("before") == b"1"


def test_greenlets_wait_without_holding_up_each_other(app: App) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed, so there are no greenlet workers")
    consumer = app.consumer("-k", "greenlet", "-w", "8", program=("-c", GREEN))
    began = time.monotonic()
    command = [sys.executable, "-c", "import huey_app; print(*(huey_app.work(n, 1).id for n in range(8)))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    huey = app.module.huey
    results = [huey.result(each, blocking=True, timeout=DEADLINE_S) for each in done.stdout.split()]
    assert sorted(results) == list(range(8)) and time.monotonic() - began < 60
    assert len(app.begun_by()) == 1
    os.kill(consumer.pid, signal.SIGINT)
    assert consumer.wait(30) == 0
