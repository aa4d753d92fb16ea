"""What does a checkpoint cost? `python -m bench.savers`

LangGraph's savers: ours on both engines, beside its own on SQLite and on
PostgreSQL. A step of a graph is a `put` of a checkpoint with eight channels,
of which two are new, and a `put_writes` of two values; who resumes a thread
reads it with `get_tuple`. By one process and by eight, each on a thread of
its own.
"""

from __future__ import annotations

import functools
import sys
import uuid
from collections.abc import Callable
from typing import Any, Final

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from bench.harness import Options, bench, main
from bench.measuring import Work
from bench.peers import Client

SUBJECTS: Final = (
    "inmem", "inmem before", "inmem sync", "inmem sync before", "langgraph sqlite", "inmem on postgresql",
    "inmem on postgresql before", "langgraph postgres",
)  # fmt: skip
RATIOS: Final = (
    ("inmem", "inmem before"), ("inmem sync", "inmem sync before"), ("inmem sync", "langgraph sqlite"),
    ("inmem on postgresql", "inmem on postgresql before"), ("inmem on postgresql", "langgraph postgres"),
)  # fmt: skip
COUNTS: Final = (1, 8)
PUT, PUT_WRITES, GET = "put", "put_writes", "get_tuple"
_MESSAGES: Final = [{"role": "user", "content": f"{number} ".ljust(100, "x")} for number in range(20)]
_STILL: Final = {f"channel-{number}": f"value {number}" for number in range(6)}  # channels that do not change
_WRITTEN: Final = 4  # tasks that have written at the checkpoint that is read


def label(operation: str, count: int) -> str:
    """The name of a row."""
    return f"{operation}, {count} process{'es' if count > 1 else ''}"


class SavedThread:
    """A thread of a graph, whose newest checkpoint has eight channels."""

    def __init__(self, client: Client, name: str) -> None:
        self.saver: Any = client.saver()
        self.where: Any = {"configurable": {"thread_id": f"{name}-{uuid.uuid4()}", "checkpoint_ns": ""}}
        self._versions: dict[str, Any] = {}
        self._step = 0
        self.put([*_STILL, "messages", "next"])

    def put(self, channels: list[str]) -> None:
        """Put a checkpoint in which these channels are new."""
        made = empty_checkpoint()
        made["id"] = str(uuid6(clock_seq=self._step))
        made["channel_values"] = {**_STILL, "messages": _MESSAGES, "next": self._step}
        new = {name: self.saver.get_next_version(self._versions.get(name), None) for name in channels}
        self._versions |= new
        made["channel_versions"] = {**self._versions}
        self.where = self.saver.put(self.where, made, {"source": "loop", "step": self._step}, new)
        self._step += 1

    def put_writes(self, place: Any = None) -> None:
        """Put what a task wrote."""
        writes = [("messages", _MESSAGES[:1]), ("next", 7)]
        self.saver.put_writes(place or self.where, writes, str(uuid.uuid4()), "~__pregel_pull, step")

    def newest(self) -> Any:
        """The newest checkpoint."""
        return self.saver.get_tuple({"configurable": {
            "thread_id": self.where["configurable"]["thread_id"], "checkpoint_ns": ""
        }})

    def check(self, writes: int) -> None:
        """Raise unless the newest checkpoint is there, with all that belongs to it."""
        found = self.newest()
        assert found is not None and found.checkpoint["id"] == self.where["configurable"]["checkpoint_id"]
        assert found.checkpoint["channel_values"]["messages"] == _MESSAGES
        assert len(found.checkpoint["channel_values"]) == len(_STILL) + 2
        assert len(found.pending_writes) == writes


def put(client: Client, index: int) -> Work:
    """Put checkpoints."""
    thread = SavedThread(client, f"put-{index}")
    return Work(
        lambda channels: thread.put(channels), [["messages", "next"]], check=lambda count: thread.check(0)
    )


def put_writes(client: Client, index: int) -> Work:
    """Put the writes of a task, at a checkpoint of its own each."""
    thread = SavedThread(client, f"put_writes-{index}")

    def write(_: None) -> None:
        place = {**thread.where["configurable"], "checkpoint_id": str(uuid6())}
        thread.put_writes({"configurable": place})

    def check(count: int) -> None:
        thread.put_writes()
        thread.check(2)

    return Work(write, [None], check=check)


def get(client: Client, index: int) -> Work:
    """Read the newest checkpoint of a thread, with writes of tasks."""
    thread = SavedThread(client, f"get-{index}")
    for _ in range(10):
        thread.put(["messages", "next"])
    for _ in range(_WRITTEN):
        thread.put_writes()
    wanted = thread.where["configurable"]["checkpoint_id"]
    return Work(
        lambda _: thread.newest(), [None], lambda _, found: found.checkpoint["id"] == wanted,
        check=lambda count: thread.check(2 * _WRITTEN),
    )


BUILDS: Final[dict[str, Callable[[Client, int], Work]]] = {PUT: put, PUT_WRITES: put_writes, GET: get}


def run(options: Options) -> dict[str, Any]:
    """Each operation, by one process and by eight."""
    with bench("savers", "what does a checkpoint of LangGraph cost?", options, SUBJECTS) as b:
        b.processes.need(max(COUNTS))
        for count in COUNTS:
            for operation, build in BUILDS.items():
                b.cases(
                    label(operation, count), functools.partial(build), processes=count, sample=True,
                    situations=options.situations,
                )  # fmt: skip
        b.rounds()
        for count in COUNTS:
            for operation in BUILDS:
                name = label(operation, count)
                for ours, theirs in RATIOS:
                    if b.found(name, ours) and b.found(name, theirs):
                        pairs = zip(b.found(name, ours), b.found(name, theirs), strict=True)
                        ratios = [a.rate / z.rate for a, z in pairs if a is not None and z is not None]
                        b.figure(f"{name}: {ours} x {theirs}", *ratios)
        return b.document()


if __name__ == "__main__":
    sys.exit(main("savers", __doc__, run))
