"""The server table: what the store knows of each primitive, one line for each.

Check, index repair, salvage, deletion, export and import go through the
record types, the writer and transactions through the procedures. None of them
knows a primitive by name. It imports no facade: the writer loads it.

Invariant: a procedure is a pure function of a workspace and its arguments,
checks its arguments before it changes anything, and is registered by name;
code is never shipped. Because it sees the state at commit time, hot logs,
counters and cells never conflict. Arguments and result are MessagePack-able.

The footprint of a procedure is what it may look at and change. A transaction
may call those that have one: it runs a call itself only once it has looked at
something that the call concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from inmem.commit.footprint import Footprint, Looks
from inmem.primitives import record_table
from inmem.primitives.cells import procedures as cell_procedures
from inmem.primitives.cells import records as cell_records
from inmem.primitives.events import procedures as event_procedures
from inmem.primitives.events import records as event_records
from inmem.primitives.kv import procedures as kv_procedures
from inmem.primitives.kv import records as kv_records
from inmem.primitives.leases import procedures as lease_procedures
from inmem.primitives.leases import records as lease_records
from inmem.primitives.queues import procedures as queue_procedures
from inmem.primitives.queues import records as queue_records
from inmem.primitives.record_table import HANDED_OUT as HANDED_OUT
from inmem.primitives.record_table import INDEX_TAGS as INDEX_TAGS
from inmem.primitives.record_table import RECORD_TYPES as RECORD_TYPES
from inmem.primitives.record_table import counted as counted
from inmem.primitives.record_table import entries_of as entries_of
from inmem.primitives.record_table import is_index as is_index
from inmem.primitives.record_table import is_upkeep as is_upkeep
from inmem.primitives.record_table import line_forms as line_forms
from inmem.primitives.record_table import record_type_of as record_type_of
from inmem.primitives.record_type import RecordType
from inmem.primitives.runs import procedures as run_procedures
from inmem.primitives.runs import records as run_records
from inmem.primitives.traces import procedures as trace_procedures
from inmem.primitives.traces import records as trace_records

WRITE_WHOLE: Final = kv_procedures.WRITE_WHOLE  # procedures that write more than their arguments tell

Procedure = Callable[..., Any]

PROCEDURES: Final[dict[str, Procedure]] = {}  # by name: `(workspace, *arguments) -> result`
FOOTPRINTS: Final[dict[str, Callable[..., Footprint]]] = {}  # by the same names: `(*arguments) -> footprint`
LOOKS: Final[dict[str, Callable[..., Looks]]] = {}  # of those that look at more than their footprint's keys
_NO_LOOKS: Final[Mapping[str, Callable[..., Looks]]] = {}


def add(
    record_types: Iterable[RecordType], procedures: Mapping[str, Procedure],
    footprints: Mapping[str, Callable[..., Footprint]], looks: Mapping[str, Callable[..., Looks]] = _NO_LOOKS,
) -> None:
    """Enter a primitive, after those that are there."""
    LOOKS.update(looks)
    for record_type in record_types:
        record_table.add(record_type)
    PROCEDURES.update(procedures)
    FOOTPRINTS.update(footprints)


# In the order of their lines in an export.
add(kv_records.RECORD_TYPES, kv_procedures.PROCEDURES, kv_procedures.FOOTPRINTS)
add(cell_records.RECORD_TYPES, cell_procedures.PROCEDURES, cell_procedures.FOOTPRINTS)
add(
    event_records.RECORD_TYPES, event_procedures.PROCEDURES, event_procedures.FOOTPRINTS,
    event_procedures.LOOKS,
)
add(trace_records.RECORD_TYPES, trace_procedures.PROCEDURES, trace_procedures.FOOTPRINTS)
add(lease_records.RECORD_TYPES, lease_procedures.PROCEDURES, lease_procedures.FOOTPRINTS)
add(run_records.RECORD_TYPES, run_procedures.PROCEDURES, run_procedures.FOOTPRINTS)
add(
    queue_records.RECORD_TYPES, queue_procedures.PROCEDURES, queue_procedures.FOOTPRINTS,
    queue_procedures.LOOKS,
)
