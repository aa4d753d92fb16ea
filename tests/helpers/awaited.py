"""The asynchronous facades over a synchronous engine: what a sink or a wait gives is there already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import inmem
from inmem.aio import driving
from inmem.aio.facade_sets import (
    AsyncDatabaseFacades,
    AsyncPipelinedFacades,
    AsyncPipelineFacades,
    AsyncScopeFacades,
    AsyncSnapshotFacades,
    AsyncTransactionFacades,
)
from inmem.engines.base import Batches, Draft, MomentView, Sink
from inmem.host.interrupts import OURS
from inmem.stepping import Steps, Streamed

OURS.add(__name__)  # an error that comes by here is the engine's


class Done:
    """A result that is there already."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, Any]:
        return self.value
        yield


class DoneSink:
    """An awaiting sink over one that returns results."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.default = sink.default

    def __getattr__(self, name: str) -> Callable[..., Done]:
        method = getattr(self._sink, name)
        return lambda *args, **kwargs: Done(method(*args, **kwargs))

    def drive(self, steps: Steps[Any]) -> Any:
        return driving.driven(steps)


class DoneWaits:
    """Awaiting waits over `RunScope.wait`."""

    def __init__(self, wait: Callable[..., Any]) -> None:
        self.leaving: set[Any] = set()
        self._wait = wait

    def wait(self, fn: Any, timeout_s: float | None, convert: Callable[[Any], Any]) -> Done:
        return Done(convert(self._wait(fn, timeout_s=timeout_s)))

    def drive(self, steps: Steps[Any]) -> Any:
        return driving.driven(steps, lambda fn, timeout_s: Done(self._wait(fn, timeout_s=timeout_s)))

    def stream(self, steps: Streamed[Any]) -> AsyncIterator[Any]:
        return driving.streamed(steps, lambda fn, timeout_s: Done(self._wait(fn, timeout_s=timeout_s)))


class AwaitedScope(AsyncScopeFacades):
    """A run."""

    def __init__(self, host: AwaitedDatabase, scope: inmem.RunScope) -> None:
        self.scope = scope
        self.prefix, self.namespace, self.run_id = scope.prefix, scope.namespace, scope.run_id
        engine = host.database.engine
        sink: Any = DoneSink(engine.direct())
        super().__init__(
            host, engine.latest(), sink, scope.prefix, scope.namespace, scope.run_id,
            lambda fn, **options: Done(scope.transact(fn, **options)), DoneWaits(scope.wait),
        )


class AwaitedDatabase(AsyncDatabaseFacades):
    """A database."""

    def __init__(self, database: inmem.Database) -> None:
        self.database = database
        self.namespace_prefix = database.namespace_prefix
        super().__init__(self)

    def shared(self, level: str) -> AwaitedScope:
        return AwaitedScope(self, self.database.shared(level))

    def run(self, run_id: Any) -> AwaitedScope:
        if isinstance(run_id, AwaitedScope):
            return run_id
        return AwaitedScope(self, self.database.run(run_id))

    def snapshot(self, run_id: str) -> tuple[AsyncSnapshotFacades, MomentView]:
        scope, view = self.run(run_id), self.database.engine.snapshot()
        return AsyncSnapshotFacades(self, view, scope.prefix, scope.namespace, scope.run_id), view

    def transaction(self, run_id: str) -> tuple[AsyncTransactionFacades, Draft]:
        scope, draft = self.run(run_id), self.database.engine.transaction(timeout_s=None, sync=False)
        sink: Any = DoneSink(draft)
        return (
            AsyncTransactionFacades(self, draft, sink, scope.prefix, scope.namespace, scope.run_id), draft
        )

    def pipeline(self) -> AwaitedPipeline:
        return AwaitedPipeline(self, self.database.engine.pipeline(sync=False))


class AwaitedPipeline(AsyncPipelineFacades):
    """A pipeline."""

    def __init__(self, host: AwaitedDatabase, batches: Batches) -> None:
        self.batches = batches
        self.namespace_prefix = host.namespace_prefix
        self._host = host
        super().__init__(self)

    def run(self, run_id: Any) -> AsyncPipelinedFacades:
        sink: Any = DoneSink(self.batches.sink())
        return AsyncPipelinedFacades(sink, self._host.run(run_id).prefix)
