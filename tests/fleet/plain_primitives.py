"""Cells, traces and runs in plain dicts: the part of `plain_store` that is not KV or events."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import inmem
from inmem.primitives.queues.shown import QueueCounts

Cells = dict[str, dict[str, inmem.State]]
Traces = dict[str, dict[str, inmem.Trace]]
Jobs = dict[str, dict[int, "PlainJob"]]
Runs = dict[str, inmem.RunMetadata]


class PlainCells:
    def __init__(self, data: Cells, marks: dict[str, int]) -> None:
        self._data, self._marks = data, marks

    def read(self, run: str, name: str) -> inmem.State | None:
        return copy.deepcopy(self._data.get(run, {}).get(name))

    def list(self, run: str) -> list[str]:
        return sorted(self._data.get(run, {}))

    def init(self, run: str, name: str, value: Any) -> int:
        found = self.read(run, name)
        if found is not None:
            raise inmem.CellExistsError(f"{name} exists", name=name, version=found.version)
        return self.set(run, name, value)

    def set(self, run: str, name: str, value: Any) -> int:
        found = self.read(run, name)
        version = 1 + (self._marks.get(run, 0) if found is None else found.version)
        self._data.setdefault(run, {})[name] = inmem.State(copy.deepcopy(value), version, 0)
        return version

    def cas(self, run: str, name: str, expected: int, value: Any) -> int:
        found = self.read(run, name)
        if found is None:
            raise inmem.CellNotFoundError(f"no {name}", name=name)
        if found.version != expected:
            raise inmem.VersionMismatchError("changed", expected=expected, actual=found.version)
        return self.set(run, name, value)

    def transition(self, run: str, name: str, fn: Any) -> Any:
        state = self.read(run, name)
        assert state is not None
        value, result = fn(state)
        self.cas(run, name, state.version, value)
        return result

    def delete(self, run: str, name: str) -> bool:
        found = self._data.get(run, {}).pop(name, None)
        if found is not None:
            self._marks[run] = max(self._marks.get(run, 0), found.version)
        return found is not None


@dataclass(frozen=True, slots=True)
class PlainJob:
    number: int
    payload: Any
    state: str = "ready"
    result: Any = None
    attempt: int = 0


class PlainQueues:
    """Each run has one queue, whose jobs are taken in their order."""

    def __init__(self, data: Jobs) -> None:
        self._data = data

    def put_many(self, run: str, queue: str, payloads: Iterable[Any]) -> None:
        jobs = self._data.setdefault(run, {})
        for payload in payloads:
            jobs[len(jobs)] = PlainJob(len(jobs), payload)

    def put(self, run: str, queue: str, payload: Any) -> None:
        self.put_many(run, queue, [payload])

    def claim(self, run: str, queue: str, **_: Any) -> PlainJob | None:
        for job in self._data.get(run, {}).values():
            if job.state == "ready":
                return self._write(run, replace(job, state="claimed", attempt=job.attempt + 1))
        return None

    def ack(self, run: str, job: PlainJob, result: Any = None) -> None:
        assert self._data[run][job.number] == job
        self._write(run, replace(job, state="done", result=result))

    def get(self, run: str, job_id: str) -> PlainJob | None:
        return self._data.get(run, {}).get(int(job_id.rpartition("/")[2]))

    def counts(self, run: str, queue: str) -> QueueCounts:
        states = [job.state for job in self._data.get(run, {}).values()]
        return QueueCounts(states.count("ready"), 0, states.count("claimed"), 0)

    def _write(self, run: str, job: PlainJob) -> PlainJob:
        self._data[run][job.number] = job
        return job


def type_name(body: Any) -> str:
    found: str = inmem.Trace("x", None, body, 0, (), {}).type_name
    return found


class PlainTraces:
    def __init__(self, data: Traces) -> None:
        self._data = data

    def record(self, run: str, body: Any, **more: Any) -> str:
        return self.record_many(run, [inmem.NewTrace(body, **more)])[0]

    def record_many(self, run: str, traces: Iterable[inmem.NewTrace]) -> list[str]:
        stored = self._data.setdefault(run, {})
        ids = []
        for new in traces:
            name = new.id or f"made-{len(stored)}"
            if name in stored:
                raise inmem.TraceExistsError(name, trace_id=name)
            if new.parent_id is not None and new.parent_id not in stored:
                raise inmem.TraceNotFoundError(new.parent_id, trace_id=new.parent_id)
            stored[name] = inmem.Trace(
                name, new.parent_id, copy.deepcopy(new.body), new.timestamp or 0, tuple(new.tags),
                copy.deepcopy(dict(new.metadata or {})),
            )  # fmt: skip
            ids.append(name)
        return ids

    def list(self, run: str) -> list[inmem.Trace]:
        return sorted(self._data.get(run, {}).values(), key=lambda trace: (trace.timestamp, trace.id))

    def count(self, run: str) -> int:
        return len(self._data.get(run, {}))

    def roots(self, run: str) -> list[inmem.Trace]:
        return [trace for trace in self.list(run) if trace.parent_id is None]

    def get_tree(self, run: str, root: str) -> inmem.TraceTree:
        below: dict[str | None, list[inmem.Trace]] = {}
        for trace in self.list(run):
            below.setdefault(trace.parent_id, []).append(trace)

        def tree(trace: inmem.Trace) -> inmem.TraceTree:
            return inmem.TraceTree(trace, [tree(child) for child in below.get(trace.id, [])])

        return tree(self._data[run][root])

    def query_by_type(
        self, run: str, name: str, *, limit: int | None = None, reverse: bool = False
    ) -> list[inmem.Trace]:
        found = [trace for trace in self.list(run) if trace.type_name == name]
        return (found[::-1] if reverse else found)[:limit]

    def query_by_tag(self, run: str, tag: str) -> list[inmem.Trace]:
        return [trace for trace in self.list(run) if tag in trace.tags]

    def query_by_time(self, run: str, start: int, end: int) -> list[inmem.Trace]:
        return [trace for trace in self.list(run) if start <= trace.timestamp < end]


class PlainRuns:
    def __init__(self, data: Runs, fences: set[str], stores: list[dict[str, Any]]) -> None:
        self._data, self._fences, self._stores = data, fences, stores

    def create_run(
        self, run_id: str, *, parent_run: str | None = None, tags: Iterable[str] = (), metadata: Any = None
    ) -> None:
        if run_id in self._fences:
            raise inmem.RunDeletedError(run_id, run_id=run_id)
        if run_id in self._data:
            raise inmem.RunExistsError(run_id, run_id=run_id)
        if parent_run is not None and parent_run not in self._data:
            raise inmem.RunNotFoundError(parent_run, run_id=parent_run)
        active = inmem.RunStatus.ACTIVE
        self._data[run_id] = inmem.RunMetadata(
            run_id, parent_run, active, 0, 0, None, tuple(tags), dict(metadata or {}), None, 1
        )

    def get_run(self, run: str) -> inmem.RunMetadata | None:
        return self._data.get(run)

    def _change(self, run: str, status: inmem.RunStatus | None = None, **more: Any) -> None:
        old = self._data[run]
        if status is not None:
            if not inmem.is_valid_transition(old.status, status):
                raise inmem.InvalidTransitionError(run, from_status=old.status, to_status=status)
            more["status"] = status
            if status in ("completed", "failed", "cancelled"):
                more["completed_at"] = 0
        self._data[run] = replace(old, version=old.version + 1, **more)

    def pause_run(self, run: str) -> None:
        self._change(run, inmem.RunStatus.PAUSED)

    def resume_run(self, run: str) -> None:
        self._change(run, inmem.RunStatus.ACTIVE)

    def complete_run(self, run: str) -> None:
        self._change(run, inmem.RunStatus.COMPLETED)

    def fail_run(self, run: str, error: str) -> None:
        self._change(run, inmem.RunStatus.FAILED, error=error)

    def archive_run(self, run: str) -> None:
        self._change(run, inmem.RunStatus.ARCHIVED)

    def add_tags(self, run: str, tags: Iterable[str]) -> None:
        self._change(run, tags=(*self._data[run].tags, *tags))

    def update_metadata(self, run: str, metadata: dict[str, Any]) -> None:
        self._change(run, metadata=self._data[run].metadata | metadata)

    def delete_run(self, run: str) -> inmem.RunDeletedError | Any:
        if run in self._fences:
            raise inmem.RunDeletedError(run, run_id=run)
        counts = [len(store.pop(run, ())) for store in self._stores]
        self._fences.add(run)
        record = self._data.pop(run, None)

        class Deleted:
            kv, events, cells, traces = counts
            had_record = record is not None

        return Deleted()

    def query_runs(self, _: str | None = None, **conditions: Any) -> list[inmem.RunMetadata]:
        found = []
        for run in self._data.values():
            status = conditions.get("status")
            shown = run.status != "archived" or status is not None or conditions.get("include_archived")
            parent = conditions.get("parent_run")
            if (
                shown
                and status in (None, run.status)
                and parent in (None, run.parent_run)
                and set(conditions.get("tags", ())) <= set(run.tags)
            ):
                found.append(run)
        return found

    def list_runs(self, *, include_archived: bool = False) -> list[str]:
        return sorted(run.run_id for run in self.query_runs(include_archived=include_archived))

    def get_child_runs(self, run: str) -> list[inmem.RunMetadata]:
        return self.query_runs(parent_run=run, include_archived=True)

    def get_stats(self, _: str | None = None) -> Any:
        counts: dict[Any, int] = {}
        for run in self._data.values():
            counts[run.status] = counts.get(run.status, 0) + 1

        class Stats:
            total, by_status = len(self._data), counts

        return Stats()
