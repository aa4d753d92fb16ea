"""What a store offers as resources: a table of URIs and what they show.

Invariant: a resource shows what the tool of the same name answers, by the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mcp.shared.uri_template import UriTemplate
from pydantic import BaseModel

import inmem
import inmem.aio
from inmem.adapters.mcp import pages
from inmem.adapters.mcp.pages import View, number_in
from inmem.adapters.mcp.reading import scope_of

ROOT: Final = "inmem://runs"
MIME_TYPE: Final = "application/json"
MAX_URI_CHARS: Final = 4096


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource: what its URIs look like, and what it shows."""

    name: str
    template: UriTemplate
    description: str
    show: Callable[[View, dict[str, str]], BaseModel]


def _kind(
    name: str, rest: str, description: str, show: Callable[[View, dict[str, str]], BaseModel]
) -> ResourceKind:
    return ResourceKind(name, UriTemplate.parse(ROOT + rest), description, show)


KINDS: Final = (
    _kind("runs", "{?cursor}", "All runs, the newest first.",
          lambda view, given: pages.runs(view, given.get("cursor"), reverse=True)),
    _kind("run", "/{run}", "A run: its status, tags and metadata, and what it contains.",
          lambda view, given: pages.run(view, given["run"])),
    _kind("entries", "/{run}/kv{?cursor}", "The keys of a run with their values.",
          lambda view, given: pages.entries(view, cursor=given.get("cursor"))),
    _kind("entry", "/{run}/kv/{key}", "The value under a key of a run.",
          lambda view, given: pages.entry(view, given["key"])),
    _kind("events", "/{run}/events{?cursor}", "The log of a run, the last events first.",
          lambda view, given: pages.events(view, newest_first=True, cursor=given.get("cursor"))),
    _kind("event", "/{run}/events/{sequence}", "One event of a run's log.",
          lambda view, given: pages.event(view, number_in(given["sequence"], given["sequence"]))),
    _kind("cells", "/{run}/cells{?cursor}", "The cells of a run with their values and versions.",
          lambda view, given: pages.cells(view, cursor=given.get("cursor"))),
    _kind("cell", "/{run}/cells/{name}", "The value and version of a cell.",
          lambda view, given: pages.cell(view, given["name"])),
    _kind("traces", "/{run}/traces{?cursor}", "What the agent of a run did and thought, the last first.",
          lambda view, given: pages.traces(view, newest_first=True, cursor=given.get("cursor"))),
    _kind("trace", "/{run}/traces/{id}", "One trace of a run.",
          lambda view, given: pages.trace(view, given["id"])),
    _kind("queues", "/{run}/queues{?cursor}", "The queues of a run, with how many jobs they have.",
          lambda view, given: pages.queues(view, given.get("cursor"))),
    _kind("leases", "/{run}/leases{?cursor}", "The leases of a run: who owns what, and until when.",
          lambda view, given: pages.leases(view, cursor=given.get("cursor"))),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoreResource:
    """One resource of a store."""

    uri: str
    scope: inmem.aio.AsyncRunScope
    kind: ResourceKind
    given: dict[str, str]

    def text(self, view: View) -> str:
        """What it shows, as JSON."""
        return self.kind.show(view, self.given).model_dump_json(by_alias=True)

    async def read(self) -> str:
        """What it shows now.

        Raises:
            NotFoundError: what it names is not there.
            RunDeletedError: the run was deleted.
        """
        return await self.scope.transact(self.text)


def resource_at(db: inmem.aio.AsyncDatabase, uri: str) -> StoreResource | None:
    """The resource that a URI names; None if it is no URI of this store.

    Raises:
        InvalidInputError: it is one, of a run that cannot be.
    """
    if len(uri) > MAX_URI_CHARS:
        return None
    for kind in KINDS:
        found: dict[str, Any] | None = kind.template.match(uri)
        if found is not None and all(isinstance(value, str) for value in found.values()):
            return StoreResource(uri, scope_of(db, found.get("run", "@agent")), kind, found)
    return None


def uri_of(run_id: str) -> str:
    """The resource of a run.

    >>> uri_of("trip-7")
    'inmem://runs/trip-7'
    """
    return UriTemplate.parse(ROOT + "/{run}").expand({"run": run_id})
