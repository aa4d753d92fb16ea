"""The tools that change runs, entries, events, cells and traces. Each call is one commit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import inmem
import inmem.aio
from inmem.adapters.mcp.arguments import (
    JsonValue,
    Metadata,
    Run,
    Tags,
    is_tool,
    metadata_of,
    value_of,
)
from inmem.adapters.mcp.reading import scope_of
from inmem.adapters.mcp.shown import RunShown

Key = Annotated[str, Field(description="The key: 1 to 320 bytes.")]
CellName = Annotated[str, Field(description="The cell's name: 1 to 320 bytes.")]
TtlS = Annotated[
    float | None, Field(gt=0, description="It disappears after so many seconds; none: it stays.")
]


class Given(BaseModel):
    """A part of an argument: what it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class EventGiven(Given):
    """An event to append."""

    event_type: str = Field(description="What kind of event it is: 1 to 128 bytes.")
    payload: JsonValue = None


class ToolCallGiven(Given):
    """A call of a tool, and what it returned."""

    type: Literal["ToolCall"]
    tool_name: str
    arguments: JsonValue = None
    result: JsonValue = None
    duration_ms: float | None = None


class DecisionGiven(Given):
    """A choice between options, and why."""

    type: Literal["Decision"]
    question: str
    options: list[JsonValue]
    chosen: JsonValue
    reasoning: str | None = None


class QueryGiven(Given):
    """A search, and how much it found."""

    type: Literal["Query"]
    query_type: str
    query: JsonValue
    results_count: int


class ThoughtGiven(Given):
    """A step of reasoning."""

    type: Literal["Thought"]
    content: str
    confidence: float | None = None


class ErrorGiven(Given):
    """Something that went wrong."""

    type: Literal["Error"]
    error_type: str
    message: str
    recoverable: bool


class CustomGiven(Given):
    """Anything else."""

    type: Literal["Custom"]
    trace_type: str = Field(description="The type of its own: 1 to 128 bytes.")
    data: JsonValue


BodyGiven = Annotated[
    ToolCallGiven | DecisionGiven | QueryGiven | ThoughtGiven | ErrorGiven | CustomGiven,
    Field(discriminator="type", description="What the trace says; its fields depend on its type."),
]
_BODIES: dict[str, Any] = {
    "ToolCall": inmem.ToolCall, "Decision": inmem.Decision, "Query": inmem.Query, "Thought": inmem.Thought,
    "Error": inmem.ErrorTrace, "Custom": inmem.Custom,
}


class WrittenShown(BaseModel):
    """Something was written."""

    version: int = Field(description="The version of the commit, or of the cell.")


class NumberShown(BaseModel):
    """A number after it was added to."""

    value: int | float


class RemovedShown(BaseModel):
    """What was removed."""

    removed: int = Field(description="How many were there; 0 if there was none.")


class AppendedShown(BaseModel):
    """Where events went."""

    first_sequence: int = Field(description="The place of the first one in the log; the others follow it.")
    count: int


class RecordedShown(BaseModel):
    """A trace was recorded."""

    id: str


class DeletedShown(BaseModel):
    """What a run stored before it was deleted."""

    run: str
    records: int = Field(description="How many records were removed.")


class WritingTools:
    """The tools that change a store."""

    def __init__(self, db: inmem.aio.AsyncDatabase) -> None:
        self._db = db

    # --- runs ---------------------------------------------------------------------------------

    @is_tool("Create a run", changes=True)
    async def runs_create(
        self,
        run: Annotated[
            str | None, Field(description="Its id: 1 to 64 letters, digits and . _ : -; none: one is made.")
        ] = None,
        parent_run: Annotated[str | None, Field(description="The id of the run that begins it.")] = None,
        tags: Tags = None,
        metadata: Metadata = None,
        exist_ok: Annotated[bool, Field(description="Return a run that is there already.")] = False,
    ) -> RunShown:
        """Create a run with the status active. Other tools may write to a run that was never created, too."""
        return RunShown.of(
            await self._db.runs.create_run(
                run_id=run, parent_run=parent_run, tags=tags or (), metadata=metadata_of(metadata),
                exist_ok=exist_ok,
            )
        )

    @is_tool("Change the status of a run", changes=True)
    async def runs_set_status(
        self,
        run: Run,
        status: Annotated[
            Literal["active", "paused", "completed", "failed", "cancelled", "archived"],
            Field(description="The new status. There is no way back from archived."),
        ],
        error: Annotated[str | None, Field(description="Why it failed; only with failed.")] = None,
    ) -> RunShown:
        """Complete, fail, cancel, pause, resume or archive a run.

        An active run may get any status, a paused one active, cancelled or archived. One that has ended may
        only be archived.
        """
        changed = await self._db.runs.update_status(run, inmem.RunStatus(status), error=error)
        return RunShown.of(changed)

    @is_tool("Add tags and metadata to a run", changes=True, destroys=True, repeatable=True)
    async def runs_update(self, run: Run, add_tags: Tags = None, metadata: Metadata = None) -> RunShown:
        """Add tags to a run, and set fields of its metadata. Other fields stay as they are."""
        fields = metadata_of(metadata)

        def update(txn: inmem.Transaction) -> inmem.RunMetadata | None:
            if add_tags:
                txn.runs.add_tags(add_tags)
            if fields:
                txn.runs.update_metadata(fields)
            return txn.runs.get_run()

        changed = await scope_of(self._db, run).transact(update)
        if changed is None:
            raise inmem.RunNotFoundError(f"there is no run {run}", run_id=run)
        return RunShown.of(changed)

    @is_tool("Delete a run for good", changes=True, destroys=True)
    async def runs_delete(self, run: Run) -> DeletedShown:
        """Delete a run with everything that it stores. There is no way back, and its id cannot be used again.

        To hide a run and keep its data, set its status to archived.
        """
        deleted = await self._db.runs.delete_run(run)
        return DeletedShown(run=run, records=deleted.total)

    # --- entries ------------------------------------------------------------------------------

    @is_tool("Write a key", changes=True, destroys=True, repeatable=True)
    async def kv_put(self, run: Run, key: Key, value: JsonValue, ttl_s: TtlS = None) -> WrittenShown:
        """Write a value under a key of a run. It replaces what is there, also its time to live.

        To change a value only if nobody else did, use a cell.
        """
        scope = scope_of(self._db, run)
        return WrittenShown(version=await scope.kv.put(key, value_of(value), ttl=ttl_s))

    @is_tool("Write several keys", changes=True, destroys=True, repeatable=True)
    async def kv_put_many(
        self,
        run: Run,
        entries: Annotated[dict[str, JsonValue], Field(description="An object: keys with their values.")],
        ttl_s: TtlS = None,
    ) -> WrittenShown:
        """Write several keys of a run at once: others see all of them or none."""
        values = {key: value_of(value, f"entries[{key[:80]!r}]") for key, value in entries.items()}
        return WrittenShown(version=await scope_of(self._db, run).kv.put_many(values, ttl=ttl_s))

    @is_tool("Add to a number", changes=True)
    async def kv_add(
        self,
        run: Run,
        key: Key,
        delta: Annotated[int | float, Field(description="What to add; may be negative.")] = 1,
        initial: Annotated[int | float, Field(description="What it was, if there is no such key.")] = 0,
    ) -> NumberShown:
        """Add to the number under a key, and return the new one. Many agents may do this at the same time."""
        return NumberShown(value=await scope_of(self._db, run).kv.add(key, delta, initial=initial))

    @is_tool("Remove a key", changes=True, destroys=True, repeatable=True)
    async def kv_delete(self, run: Run, key: Key) -> RemovedShown:
        """Remove a key of a run."""
        return RemovedShown(removed=int(await scope_of(self._db, run).kv.delete(key)))

    @is_tool("Remove all keys with a prefix", changes=True, destroys=True, repeatable=True)
    async def kv_clear(
        self, run: Run, prefix: Annotated[str, Field(description='What the keys begin with; "" for all.')]
    ) -> RemovedShown:
        """Remove all keys of a run that begin with a prefix."""
        return RemovedShown(removed=int(await scope_of(self._db, run).kv.clear(prefix or None)))

    # --- events -------------------------------------------------------------------------------

    @is_tool("Append events", changes=True)
    async def events_append(
        self,
        run: Run,
        events: Annotated[
            list[EventGiven], Field(min_length=1, max_length=500, description="In the order of the log.")
        ],
    ) -> AppendedShown:
        """Append events to a run's log, all of them at once. They cannot be changed or removed later."""
        pairs = [
            (each.event_type, value_of(each.payload, f"events[{number}].payload"))
            for number, each in enumerate(events)
        ]
        appended = await scope_of(self._db, run).events.append_many(pairs)
        return AppendedShown(first_sequence=appended[0].sequence, count=len(appended))

    # --- cells --------------------------------------------------------------------------------

    @is_tool("Change a cell", changes=True, destroys=True)
    async def cells_set(
        self,
        run: Run,
        name: CellName,
        value: JsonValue,
        expected_version: Annotated[
            int | None,
            Field(
                ge=0, lt=1 << 62,
                description="The version that you have read: refused if it is another one by now. "
                "0: there must be no such cell yet. None: overwrite whatever is there.",
            ),
        ] = None,
    ) -> WrittenShown:
        """Create or change a cell; with `expected_version` only if nobody has changed it since you read it.

        If it fails with the code version_mismatch, read the cell again and decide anew.
        """
        cells = scope_of(self._db, run).cells
        content = value_of(value)
        if expected_version is None:
            return WrittenShown(version=await cells.set(name, content))
        if expected_version == 0:
            return WrittenShown(version=await cells.init(name, content))
        return WrittenShown(version=await cells.cas(name, expected_version, content))

    @is_tool("Remove a cell", changes=True, destroys=True, repeatable=True)
    async def cells_delete(self, run: Run, name: CellName) -> RemovedShown:
        """Remove a cell of a run."""
        return RemovedShown(removed=int(await scope_of(self._db, run).cells.delete(name)))

    # --- traces -------------------------------------------------------------------------------

    @is_tool("Record a trace", changes=True)
    async def traces_record(
        self,
        run: Run,
        body: BodyGiven,
        id: Annotated[str | None, Field(description="An id of its own; none: one is made.")] = None,
        parent_id: Annotated[str | None, Field(description="The trace that it belongs to.")] = None,
        tags: Tags = None,
        metadata: Metadata = None,
    ) -> RecordedShown:
        """Record what you did, decided, searched or thought, so that others can understand it later."""
        fields = {name: value_of(given, f"body.{name}") for name, given in body if name != "type"}
        recorded = await scope_of(self._db, run).traces.record(
            _BODIES[body.type](**fields), id=id, parent_id=parent_id, tags=tags or (),
            metadata=metadata_of(metadata),
        )
        return RecordedShown(id=recorded)
